// The LoRAs that the service has: which are used, and how strongly.

import { at, make } from "./dom.js";

const MOST = 4;

export function drawLoras(loras) {
  const rows = loras.map(drawLora);
  return make("fieldset", { id: "loras", className: "wide", tabIndex: -1, "data-field": "loras" }, make("legend", {}, "LoRA"), ...rows);
}

// One that is always applied is left out with the scale 0.
function drawLora({ name, scale: usual, always }) {
  const box = make("input", { type: "checkbox", value: name, checked: always, onchange: limit, "data-always": always });
  const scale = make("input", { type: "number", step: "any", min: -4, max: 4, placeholder: usual, "aria-label": `Strength of ${name}`, "data-field": "loras" });
  return make("div", { className: "lora" }, make("label", {}, box, ` ${name}`), scale);
}

const rows = () => [...(at("loras")?.querySelectorAll(".lora") ?? [])].map(row => row.querySelectorAll("input"));

function limit() {
  const isFull = rows().filter(([box]) => box.checked).length >= MOST;
  for (const [box] of rows()) box.disabled = isFull && !box.checked;
}

export function readLoras() {
  const loras = rows().flatMap(([box, scale]) => {
    const isUsual = box.checked === (box.dataset.always === "true") && (!scale.value || !box.checked);
    if (isUsual) return [];
    if (!box.checked) return [{ name: box.value, scale: 0 }];
    return [scale.value ? { name: box.value, scale: Number(scale.value) } : { name: box.value }];
  });
  return loras.length ? { loras } : {};
}

export function writeLoras(loras) {
  for (const [box, scale] of rows()) {
    const used = loras.find(lora => lora.name === box.value);
    box.checked = used ? used.scale !== 0 : box.dataset.always === "true";
    scale.value = used?.scale || "";
  }
  limit();
}
