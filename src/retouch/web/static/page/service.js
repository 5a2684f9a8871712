// The service: what is loaded, which fields it takes, and edits with their progress.

const KEY = "retouch.key", RETRY_MS = 1500, MOST_TRIES = 40;

/** An error of the service in its own form: `type`, `message`, `details`. */
export class Refused extends Error {
  constructor(error) {
    super(error.message);
    this.type = error.type;
    this.details = error.details;
  }
}

export const readKey = () => sessionStorage.getItem(KEY) || "";
export const keepKey = key => sessionStorage.setItem(KEY, key);

function withKey(headers = {}) {
  const key = readKey();
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

async function get(path) {
  const answer = await fetch(path, { headers: withKey() });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(body.error);
  return body;
}

/** Return what is loaded. Throws `Refused` while it loads, or without a key where one is needed. */
export const readInfo = () => get("/info");

/** Return the fields of a request by name, each a JSON Schema. */
export async function readFields() {
  const spec = await get("/openapi.json");
  return Object.fromEntries(
    Object.entries(spec.components.schemas.EditRequest.properties).map(([name, field]) => [name, plain(field, spec)]),
  );
}

/** Return a schema without references and without null among its types. */
function plain(schema, spec) {
  const { anyOf, $ref, ...rest } = schema;
  if ($ref) return { ...plain($ref.split("/").slice(1).reduce((node, name) => node[name], spec), spec), ...rest };
  const real = (anyOf || []).find(each => each.type !== "null");
  return real ? { ...plain(real, spec), ...rest } : schema;
}

/** Return a new id for an edit. */
export const makeId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");

/**
 * Edit as a job and return its answer; `onProgress` gets every progress event. Without a `body` the job has begun before.
 * The job goes on without this page, so a connection that is lost is made again.
 */
export async function edit(id, body, { signal, onProgress }) {
  let answer = await (body ? follow(id, { method: "PUT", body: JSON.stringify(body), signal }) : reopen(id, signal));
  for (;;) {
    try {
      for await (const { name, data } of readEvents(answer)) {
        if (name === "progress") onProgress(data);
        if (name === "error") throw new Refused(data.error);
        if (name === "result") return data;
      }
    } catch (fault) {
      if (!isLost(fault)) throw fault;
    }
    await pause();
    answer = await reopen(id, signal);
  }
}

/** Cancel an edit, also one that the service is only about to accept. */
export async function cancel(id) {
  const ask = () => fetch(`/jobs/${id}`, { method: "DELETE", headers: withKey(), keepalive: true }).catch(() => null);
  if ((await ask())?.status !== 404) return;
  await pause();
  await ask();
}

/** Open the events of a job. Throws `TypeError`, as `fetch` does, where a proxy answers for the service. */
async function follow(id, options) {
  const headers = withKey({ Accept: "text/event-stream", ...(options.body && { "Content-Type": "application/json" }) });
  const answer = await fetch(`/jobs/${id}`, { headers, ...options });
  const type = answer.headers.get("content-type") ?? "";
  if (type.startsWith("text/event-stream")) return answer;
  if (type.startsWith("application/json")) throw new Refused((await answer.json()).error);
  throw answer.status >= 500 ? new TypeError() : new Error(`The answer was HTTP ${answer.status}.`);
}

async function reopen(id, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await follow(id, { signal });
    } catch (fault) {
      if (tries === MOST_TRIES || !(isLost(fault) || fault.details?.retryable)) throw fault;
    }
    await pause();
  }
}

/** Browsers throw this where a connection fails or ends early. */
export const isLost = fault => fault instanceof TypeError;

const pause = () => new Promise(done => setTimeout(done, RETRY_MS));

async function* readEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (name && data) yield { name: name[1], data: JSON.parse(data[1]) };
    }
  }
}

/** Return the bytes behind a link of this service, or null for one that only its own origin may read. */
export async function fetchBlob(url) {
  if (new URL(url, location.href).origin !== location.origin) return null;
  const answer = await fetch(url).catch(() => null);
  return answer?.ok ? answer.blob() : null;
}
