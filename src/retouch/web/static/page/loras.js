// The LoRAs that the service has: which are used, and how strongly.

import { at, make } from "./dom.js";

const MOST = 4;

export function drawLoras(loras) {
  const rows = loras.map(lora => drawLora(lora.name ?? lora, lora.scale ?? 1));
  return make("fieldset", { id: "loras", className: "wide", tabIndex: -1, "data-field": "loras" }, make("legend", {}, "LoRA"), ...rows);
}

function drawLora(name, usual) {
  const box = make("input", { type: "checkbox", value: name, onchange: limit });
  const scale = make("input", { type: "number", step: "any", placeholder: usual, "aria-label": `Strength of ${name}`, "data-field": "loras" });
  return make("div", { className: "lora" }, make("label", {}, box, ` ${name}`), scale);
}

const rows = () => [...(at("loras")?.querySelectorAll(".lora") ?? [])].map(row => row.querySelectorAll("input"));

function limit() {
  const isFull = rows().filter(([box]) => box.checked).length >= MOST;
  for (const [box] of rows()) box.disabled = isFull && !box.checked;
}

export function readLoras() {
  const loras = rows().filter(([box]) => box.checked)
    .map(([box, scale]) => (scale.value ? { name: box.value, scale: Number(scale.value) } : { name: box.value }));
  return loras.length ? { loras } : {};
}

export function writeLoras(loras) {
  for (const [box, scale] of rows()) {
    const used = loras.find(lora => lora.name === box.value);
    box.checked = Boolean(used);
    scale.value = used?.scale ?? "";
  }
  limit();
}
