// The edits of this browser, kept in IndexedDB: request, pictures and results. Nothing leaves the browser.

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

/** Return the kept edits, newest first; none where the browser keeps nothing. */
export async function readHistory() {
  const entries = await use("readonly", store => store.getAll()).catch(() => []);
  return entries.reverse();
}

/** Keep an edit and forget the oldest ones; a browser without room keeps nothing. */
export async function keep(entry) {
  await use("readwrite", store => store.add(entry)).catch(() => {});
  for (const { id } of (await readHistory()).slice(MOST)) await forget(id);
}

export const forget = id => use("readwrite", store => store.delete(id)).catch(() => {});
export const forgetAll = () => use("readwrite", store => store.clear()).catch(() => {});
