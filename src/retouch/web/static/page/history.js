// The edits of this browser, kept in IndexedDB: request, pictures and results, or of an edit that runs the id of its job.
// Nothing leaves the browser.

const NAME = "retouch", STORE = "edits", MOST = 24;

/** Run `act` on the object store and return the result of the request that it makes. */
async function use(mode, act) {
  const database = await open();
  try {
    return await new Promise((done, fail) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => done(request.result);
      transaction.onerror = transaction.onabort = () => fail(transaction.error);
    });
  } finally {
    database.close();
  }
}

function open() {
  return new Promise((done, fail) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
}

const readAll = () => use("readonly", store => store.getAll()).catch(() => []);

/** Return the edits that ended, newest first; none where the browser keeps nothing. */
export const readHistory = async () => (await readAll()).filter(entry => entry.outcomes).reverse();

/** Return the edits whose end this browser has not seen, oldest first. */
export const readRunning = async () => (await readAll()).filter(entry => entry.job);

/** Keep an edit, in place of the one that has its id, and forget the oldest ones; a browser without room keeps nothing. Return its id. */
export async function keep(entry) {
  const id = await use("readwrite", store => store.put(entry)).catch(() => undefined);
  for (const { id: old } of (await readAll()).slice(0, -MOST)) await forget(old);
  return id;
}

export const forget = id => use("readwrite", store => store.delete(id)).catch(() => {});
export const forgetAll = () => use("readwrite", store => store.clear()).catch(() => {});
