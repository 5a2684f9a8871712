// The request as code to copy. Files are read from disk there; a key is never in it.

import { at, copy } from "./dom.js";
import { readKey } from "./service.js";

let language = "curl";

export function startCode(getRequest) {
  for (const button of at("code").querySelectorAll(".tabs button")) {
    button.onclick = () => { choose(button.value); drawCode(getRequest()); };
  }
  at("code").ontoggle = () => drawCode(getRequest());
  at("copy").onclick = () => copy(at("snippet").textContent, at("copy"), at("snippet"));
}

function choose(value) {
  language = value;
  for (const button of at("code").querySelectorAll(".tabs button")) button.setAttribute("aria-pressed", String(button.value === value));
}

/** Show the code of a request, whose pictures are `{ file }` or URLs. */
export function drawCode(request) {
  if (!at("code").open) return;
  const write = { curl: writeCurl, python: writePython, javascript: writeJavaScript }[language];
  at("snippet").textContent = write(request, `${location.origin}/edit`, Boolean(readKey()));
}

/** Return JSON in which every file is what `read` makes of its name, outside the quotes. */
function layOut(request, read) {
  const files = [];
  const mark = (_, value) => (value?.file ? `\u0000${files.push(value.file) - 1}\u0000` : value);
  return JSON.stringify(request, mark, 2).replace(/"\\u0000(\d+)\\u0000"/g, (_, index) => read(files[index]));
}

const hasFile = request => layOut(request, () => "\u0001").includes("\u0001");

export function writeCurl(request, url, needsKey) {
  const quote = text => `'${text.replaceAll("'", "'\\''")}'`;
  const read = name => `"data:;base64,\u0002(base64 < ${quote(name)} | tr -d '\\n')"`;
  // In the here document $, ` and \ are the shell's, but for the $(...) that reads a file.
  const body = layOut(request, read).replace(/\u0002\(.*?\| tr -d '\\n'\)|[\\$`]/g, part => (part[0] === "\u0002" ? part : `\\${part}`)).replaceAll("\u0002", "$");
  const key = needsKey ? ' -H "Authorization: Bearer $RETOUCH_KEY"' : "";
  return `curl -s ${url} -H 'Content-Type: application/json'${key} -d @- <<JSON\n${body}\nJSON`;
}

export function writePython(request, url, needsKey) {
  const body = layOut(request, name => `data_url(${JSON.stringify(name)})`).replace(/: (true|false|null)(?=,?\n)/g, (_, word) => `: ${{ true: "True", false: "False", null: "None" }[word]}`);
  const lines = ["import httpx", ""];
  if (needsKey) lines.unshift("import os");
  if (hasFile(request)) {
    lines.unshift("import base64", "from pathlib import Path");
    lines.push("", "def data_url(path):", '    return "data:;base64," + base64.b64encode(Path(path).read_bytes()).decode()', "", "");
  }
  const headers = needsKey ? '\n    headers={"Authorization": f"Bearer {os.environ[\'RETOUCH_KEY\']}"},' : "";
  return [...lines, `answer = httpx.post(\n    "${url}",\n    json=${indent(body, 4)},${headers}\n    timeout=600,\n)`, 'answer = answer.json()', 'if "error" in answer:', '    raise SystemExit(answer["error"]["message"])', 'print(answer["result"]["presigned_url"])'].join("\n");
}

/** Write code that begins a job and polls it: Node's fetch gives up on an answer that takes over 300 s. */
export function writeJavaScript(request, url, needsKey) {
  const body = layOut(request, name => `await dataUrl(${JSON.stringify(name)})`);
  const lines = hasFile(request) ? ['import { readFile } from "node:fs/promises";', "", 'const dataUrl = async path => "data:;base64," + (await readFile(path)).toString("base64");', ""] : [];
  const key = needsKey ? "{ Authorization: `Bearer ${process.env.RETOUCH_KEY}` }" : "{}";
  return [
    ...lines,
    `const service = "${new URL(url).origin}";`,
    `const key = ${key};`,
    "let job = await (await fetch(`${service}/edit`, {",
    '  method: "POST",',
    '  headers: { "Content-Type": "application/json", Prefer: "respond-async", ...key },',
    `  body: JSON.stringify(${indent(body, 2)}),`,
    "})).json();",
    "while (job.answer === null) {",
    "  await new Promise(wake => setTimeout(wake, 1000));",
    "  job = await (await fetch(`${service}/jobs/${job.id}`, { headers: key })).json();",
    "}",
    "const { result, error } = job.answer ?? job;",
    "if (error) throw new Error(error.message);",
    "console.log(result.presigned_url);",
  ].join("\n");
}

const indent = (text, by) => text.replaceAll("\n", `\n${" ".repeat(by)}`);
