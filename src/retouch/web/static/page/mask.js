// The mask: strokes painted over the first picture. White is what may change.

import { at } from "./dom.js";

const LONGEST_PX = 1536;
const COLOR = "#e5247b";

// A mask is `{ width, height, strokes }`; a stroke `{ erases, size, points }`, in pixels of the canvas.
let mask = null;
let cursor = null;
let changed = () => {};

export const getMask = () => mask;

export function setMask(other) {
  mask = other?.strokes.length ? other : null;
  at("paint").textContent = mask ? "Change the mask" : "Paint a mask";
  at("paint").setAttribute("aria-pressed", String(Boolean(mask)));
  changed();
}

export function startMask(getPicture, onChange) {
  changed = onChange;
  at("paint").onclick = () => open(getPicture());
  at("painted-done").onclick = () => at("painter").close();
  at("painter").onclose = () => setMask(mask);
  at("undo").onclick = () => { mask.strokes.pop(); draw(); };
  at("clear").onclick = () => { mask.strokes = []; draw(); };
  at("brush").onclick = () => choose(false);
  at("eraser").onclick = () => choose(true);
  const canvas = at("canvas");
  canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); begin(pointOf(event)); };
  canvas.onpointermove = event => { if (canvas.hasPointerCapture(event.pointerId)) extend(pointOf(event)); };
  at("painter").onkeydown = press;
}

function open({ preview }) {
  const image = at("painted");
  image.src = preview;
  at("painter").showModal();
  image.decode().then(() => {
    const scale = Math.min(1, LONGEST_PX / Math.max(image.naturalWidth, image.naturalHeight));
    const [width, height] = [image.naturalWidth, image.naturalHeight].map(side => Math.max(1, Math.round(side * scale)));
    mask = mask?.width === width && mask.height === height ? mask : { width, height, strokes: [] };
    Object.assign(at("canvas"), { width, height });
    cursor = [width / 2, height / 2];
    draw();
  }, () => at("painter").close());
}

const isErasing = () => at("eraser").getAttribute("aria-pressed") === "true";

function choose(erases) {
  at("brush").setAttribute("aria-pressed", String(!erases));
  at("eraser").setAttribute("aria-pressed", String(erases));
}

function pointOf(event) {
  const box = at("canvas").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * mask.width, (event.clientY - box.top) / box.height * mask.height];
}

const sizeOf = () => Number(at("size").value) / 100 * Math.min(mask.width, mask.height) * 2;

function begin(point) {
  if (!mask) return;
  mask.strokes.push({ erases: isErasing(), size: sizeOf(), points: [point] });
  draw();
}

function extend(point) {
  mask.strokes.at(-1).points.push(point);
  draw();
}

/** Keys: Ctrl+Z undoes; on the canvas the arrows move the brush and space paints. */
function press(event) {
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); return at("undo").click(); }
  if (event.target !== at("canvas") || !cursor) return;
  const step = sizeOf() / 2;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key === " ") begin(cursor);
  else if (moves[event.key]) cursor = cursor.map((at, axis) => Math.max(0, Math.min([mask.width, mask.height][axis], at + moves[event.key][axis])));
  else return;
  event.preventDefault();
  draw({ withCursor: true });
}

function draw({ withCursor = false } = {}) {
  const context = at("canvas").getContext("2d");
  context.clearRect(0, 0, mask.width, mask.height);
  paint(context, mask.strokes, COLOR);
  at("undo").disabled = at("clear").disabled = !mask.strokes.length;
  if (withCursor) ring(context);
}

function ring(context) {
  context.beginPath();
  context.arc(...cursor, sizeOf() / 2, 0, 2 * Math.PI);
  context.lineWidth = 3;
  context.strokeStyle = COLOR;
  context.stroke();
}

function paint(context, strokes, color) {
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: color });
  for (const { erases, size, points } of strokes) {
    context.globalCompositeOperation = erases ? "destination-out" : "source-over";
    context.lineWidth = size;
    context.beginPath();
    context.moveTo(points[0][0] + 0.01, points[0][1]); // a line without length is not drawn
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

/** Return the mask as a data: URL of a PNG: white where painted, black elsewhere; null without one. */
export function maskUrl({ width, height, strokes }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  paint(context, strokes, "#fff");
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  return canvas.toDataURL("image/png");
}
