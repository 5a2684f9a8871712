// Names of the request's fields as the page says them, and faults shown beside their fields.

import { at, make } from "./dom.js";

const LABELS = {
  image_url: "Picture", image_urls: "Pictures", prompt: "Instruction", negative_prompt: "Negative prompt",
  num_inference_steps: "Steps", guidance_scale: "Guidance", output_format: "Format", output_quality: "Quality",
  cache: "Source cache", mask_url: "Mask", num_images: "Results", size_from: "Shape taken from", key: "API key",
  loras: "LoRA",
};

/** Return the label of a field: its own, or its name in plain letters. */
export function labelOf(name) {
  const words = name.replaceAll("_", " ");
  return LABELS[name] || words[0].toUpperCase() + words.slice(1);
}

/** Return `text` with the names of fields replaced by their labels. */
export function inWords(text) {
  return text.replace(/\b[a-z]+(_[a-z]+)+\b/g, name => (LABELS[name] ? labelOf(name) : name));
}

export function clearErrors() {
  at("fault").textContent = "";
  for (const error of document.querySelectorAll(".error")) error.remove();
  for (const control of document.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
    control.classList.remove("wrong");
  }
}

/** Show each fault beside its field, the first one focused; return those without a field as text. */
export function showErrors(faults) {
  const elsewhere = [];
  let first = null;
  for (const [name, fault] of Object.entries(faults)) {
    const control = document.querySelector(`[data-field~="${CSS.escape(name)}"]`);
    if (!control) elsewhere.push(`${labelOf(name)}: ${inWords(fault)}`);
    else first = mark(control, inWords(fault)) && (first || control);
  }
  first?.focus();
  return elsewhere.join("; ");
}

function mark(control, fault) {
  if (control.hasAttribute("aria-invalid")) return true;
  const error = make("p", { className: "error", id: `error-${control.id}` }, fault[0].toUpperCase() + fault.slice(1));
  control.after(error);
  control.classList.add("wrong");
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", error.id);
  const folded = control.closest("details");
  if (folded) folded.open = true;
  return true;
}

/** Say what goes on, or what went wrong. */
export function say(text, { fault = false } = {}) {
  at("status").textContent = fault ? "" : text;
  at("fault").textContent = fault ? text : "";
}
