// The options: a control for every field of a request that the service takes, made from its schema.

import { at, make } from "./dom.js";
import { labelOf } from "./fields.js";
import { drawShape, readShape, writeShape } from "./shape.js";
import { drawLoras, readLoras, writeLoras } from "./loras.js";

// Fields with a place of their own, and those that are for programs.
const ELSEWHERE = new Set([
  "image_url", "image_urls", "prompt", "mask_url", "width", "height", "loras", "response_format", "webhook", "webhook_progress",
]);
const FIRST = ["profile", "num_images", "seed", "num_inference_steps", "guidance_scale", "negative_prompt", "strength", "scheduler"];
let fields = {};
let info = {};

/** Draw the options of what is loaded. */
export function drawOptions(schema, loaded) {
  fields = schema;
  info = loaded;
  const kept = readOptions();
  const names = Object.keys(fields).filter(name => !ELSEWHERE.has(name) && hasUse(name));
  names.sort((one, other) => rank(one) - rank(other));
  const parts = names.map(drawField);
  if (fields.width) parts.push(drawShape(info));
  if (fields.loras && info.loras?.length) parts.push(drawLoras(info.loras));
  at("controls").replaceChildren(...parts);
  writeOptions(kept);
}

const rank = name => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
const hasUse = name => Boolean(choicesOf(name) || ["integer", "number", "string", "boolean"].includes(fields[name].type))
  && (name !== "profile" || info.profiles.length > 1) && (name !== "size_from" || info.max_images > 1);

/** Return the values of a select, or undefined. */
function choicesOf(name) {
  if (name === "profile") return info.profiles;
  if (name === "output_format") return fields[name].enum?.filter(format => format !== "jpg");
  return fields[name].enum;
}

/** Return a default as the service tells it: what is loaded, or the words of the description. */
function defaultOf(name) {
  if (name === "profile") return info.profiles[0];
  const told = info.defaults?.[name] ?? /Default: (.+)\.$/.exec(fields[name].description || "")?.[1];
  return told === undefined ? undefined : String(told);
}

function drawField(name) {
  const control = drawControl(name);
  Object.assign(control, { id: `option-${name}`, name, title: fields[name].description || "" });
  control.dataset.field = name;
  const wide = fields[name].type === "string" && !choicesOf(name);
  return make("div", { className: wide ? "field wide" : "field" }, make("label", { htmlFor: control.id }, labelOf(name)), control);
}

function drawControl(name) {
  const { type, minimum, maximum, multipleOf, maxLength } = fields[name];
  const choices = choicesOf(name);
  if (choices) return drawSelect(choices, defaultOf(name));
  if (type === "boolean") return make("input", { type: "checkbox" });
  if (type === "string") return make("input", { type: "text", maxLength: maxLength ?? 800 });
  const control = make("input", { type: "number", step: multipleOf ?? (type === "integer" ? 1 : "any"), placeholder: defaultOf(name) ?? "none" });
  if (minimum !== undefined) control.min = minimum;
  if (maximum !== undefined) control.max = maximum;
  if (name === "seed") control.placeholder = "new each time";
  return control;
}

function drawSelect(choices, usual) {
  const options = choices.map(value => make("option", { value: value === usual ? "" : value }, value));
  if (!choices.includes(usual)) options.unshift(make("option", { value: "" }, "default"));
  return make("select", {}, ...options);
}

const controls = () => [...at("controls").querySelectorAll("[name]")];

/** Return what differs from the defaults, by field. */
export function readOptions() {
  const values = {};
  for (const control of controls()) {
    if (control.type === "checkbox") { if (control.checked) values[control.name] = true; }
    else if (control.value.trim()) values[control.name] = control.type === "number" ? Number(control.value) : control.value.trim();
  }
  return { ...values, ...readShape(), ...readLoras() };
}

/** Fill the options with the values of an earlier request. */
export function writeOptions(values) {
  for (const control of controls()) {
    if (control.type === "checkbox") control.checked = Boolean(values[control.name]);
    else control.value = values[control.name] ?? "";
  }
  writeShape(values);
  writeLoras(values.loras ?? []);
}

/** Return a fault by field for numbers that are none or out of range. */
export function checkOptions() {
  const faults = {};
  for (const control of at("controls").querySelectorAll("input[type=number]")) {
    const { validity, min, max, step, dataset } = control;
    if (validity.badInput) faults[dataset.field] = "is not a number";
    else if (validity.rangeUnderflow || validity.rangeOverflow) faults[dataset.field] = `must be from ${min} to ${max}`;
    else if (validity.stepMismatch) faults[dataset.field] = step === "1" ? "must be a whole number" : `must be a multiple of ${step}`;
  }
  return faults;
}
