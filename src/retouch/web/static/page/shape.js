// The shape of the result: as the picture, an aspect ratio, or an exact size.

import { at, make } from "./dom.js";

const RATIOS = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];
const MULTIPLE_PX = 16;
const MIN_PX = 64, MAX_PX = 2048;

export function drawShape({ defaults, max_areas_px: [mostPx] }) {
  const presets = RATIOS.map(([across, down]) => {
    const size = fit(across / down, Math.min(defaults.area_px, mostPx));
    return make("option", { value: size.join("x") }, `${across}:${down} · ${size.join(" × ")}`);
  });
  const shape = make(
    "select", { id: "shape", onchange: showSize },
    make("option", { value: "" }, "as the picture"), ...presets, make("option", { value: "exact" }, "exact size"),
  );
  const most = make("p", { className: "hint" }, `Multiples of ${MULTIPLE_PX}; the loaded model takes ${mostPx.toLocaleString("en")} pixels in all.`);
  return make(
    "div", { className: "wide" },
    make("div", { className: "field" }, make("label", { htmlFor: "shape" }, "Shape"), shape),
    make("div", { id: "exact", className: "controls", hidden: true }, drawSide("width"), drawSide("height"), make("div", { className: "wide" }, most)),
  );
}

function drawSide(name) {
  const input = make("input", { id: name, type: "number", min: MIN_PX, max: MAX_PX, step: MULTIPLE_PX, "data-field": name });
  return make("div", { className: "field" }, make("label", { htmlFor: name }, name[0].toUpperCase() + name.slice(1)), input);
}

/** Return width and height of at most `areaPx` in this ratio, in multiples of 16. */
export function fit(ratio, areaPx) {
  const width = Math.min(MAX_PX, Math.sqrt(areaPx * ratio)), height = Math.min(MAX_PX, width / ratio);
  return [height * ratio, height].map(side => Math.max(MIN_PX, Math.floor(side / MULTIPLE_PX) * MULTIPLE_PX));
}

function showSize() {
  at("exact").hidden = at("shape").value !== "exact";
}

export function readShape() {
  const shape = at("shape")?.value;
  if (!shape) return {};
  const sides = shape === "exact" ? [at("width").value, at("height").value] : shape.split("x");
  return Object.fromEntries(["width", "height"].map((name, at) => [name, sides[at]]).filter(([, side]) => side).map(([name, side]) => [name, Number(side)]));
}

export function writeShape({ width, height }) {
  if (!at("shape")) return;
  const size = `${width}x${height}`;
  const isPreset = [...at("shape").options].some(option => option.value === size);
  at("shape").value = isPreset ? size : width || height ? "exact" : "";
  at("width").value = isPreset ? "" : width ?? "";
  at("height").value = isPreset ? "" : height ?? "";
  showSize();
}
