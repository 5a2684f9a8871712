// The service: what is loaded, which fields it takes, and edits with their progress.

const KEY = "retouch.key";

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

/** Send an edit and return its answer; `onProgress` gets every progress event. */
export async function edit(body, { signal, onProgress }) {
  const headers = withKey({ "Content-Type": "application/json", Accept: "text/event-stream" });
  const answer = await fetch("/edit", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) throw new Refused((await answer.json()).error);
  for await (const { name, data } of readEvents(answer)) {
    if (name === "progress") onProgress(data);
    if (name === "error") throw new Refused(data.error);
    if (name === "result") return data;
  }
  throw new Error("The connection ended before the answer.");
}

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
