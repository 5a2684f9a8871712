// The API's page, drawn from /openapi.json.

import { keepKey, readKey } from "./service.js";

const METHODS = ["post", "put", "get", "delete"];
const content = document.getElementById("content");
let spec;

function make(tag, text, parent, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  if (parent) parent.append(element);
  return element;
}
function look(node) {
  return node && node.$ref ? node.$ref.split("/").slice(1).reduce((found, name) => found[name], spec) : node;
}
function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return "list of " + typeOf(schema.items);
  const limits = [["minimum", "≥ "], ["maximum", "≤ "], ["multipleOf", "multiple of "], ["minLength", "length ≥ "], ["maxLength", "length ≤ "]]
    .filter(([name]) => schema[name] !== undefined).map(([name, sign]) => sign + schema[name]);
  return [schema.type, ...limits].join(", ");
}
/** Append `text`, the name of each schema as a link to its section. */
function writeType(text, parent) {
  for (const piece of text.split(/(\w+)/)) {
    if (Object.hasOwn(spec.components.schemas, piece)) make("a", piece, parent).href = "#" + piece;
    else parent.append(piece);
  }
}
function drawSchema(name, schema) {
  const section = make("section", undefined, content);
  section.id = name;
  make("h2", name, section);
  make("p", schema.description || "", section, "soft");
  const table = make("table", undefined, section);
  for (const [field, of] of Object.entries(schema.properties || {})) {
    const row = make("tr", undefined, table);
    make("code", field + ((schema.required || []).includes(field) ? " *" : ""), make("td", undefined, row));
    writeType(typeOf(of) + (of.default !== undefined ? `; default ${JSON.stringify(of.default)}` : ""), make("td", undefined, row));
    make("td", of.description || "", row, "soft");
  }
}
function drawOperation(path, method, operation) {
  const section = make("section", undefined, content);
  const title = make("h2", undefined, section);
  make("b", method, title); make("code", path, title);
  make("p", operation.summary + (operation.description ? ". " + operation.description : ""), section);
  const body = operation.requestBody && operation.requestBody.content["application/json"].schema;
  if (body) writeType("Body: " + typeOf(body), make("p", undefined, section));
  const keys = operation.security && !operation.security.length ? "none needed" : "if the service requires one: Authorization: Bearer <key> or X-API-Key: <key>";
  make("p", "API key: " + keys, section);
  const table = make("table", undefined, section);
  for (const given of operation.parameters || []) {
    const row = make("tr", undefined, table);
    make("code", given.name + (given.required ? " *" : ""), make("td", undefined, row));
    make("td", `${given.in}: ${typeOf(given.schema)}`, row);
    make("td", given.description || "", row, "soft");
  }
  for (const [status, given] of Object.entries(operation.responses)) {
    const response = look(given), row = make("tr", undefined, table);
    make("td", status, row);
    writeType(Object.entries(response.content || {}).map(([kind, of]) => `${kind}: ${typeOf(of.schema)}`).join("; "), make("td", undefined, row));
    make("td", response.description, row, "soft");
  }
}
async function load() {
  const key = readKey();
  const answer = await fetch("/openapi.json", key ? { headers: { Authorization: "Bearer " + key } } : {});
  document.getElementById("locked").hidden = answer.ok;
  if (!answer.ok) return;
  spec = await answer.json();
  content.replaceChildren();
  for (const [path, item] of Object.entries(spec.paths))
    for (const method of METHODS) if (item[method]) drawOperation(path, method, item[method]);
  for (const [name, schema] of Object.entries(spec.components.schemas)) drawSchema(name, schema);
}
document.getElementById("key").onchange = event => { keepKey(event.target.value); load(); };
load();
