// The results of one edit: a slider between before and after, all results side by side, what to do next.

import { at, copy, make, makeButton } from "./dom.js";

let previews = [];

/** Return an address for an <img>: of the bytes where they are here, else the link. */
function preview({ blob, url }) {
  if (!blob) return url;
  const address = URL.createObjectURL(blob);
  previews.push(address);
  return address;
}

/** Show an edit; `actions` are `{ useAsSource, again, keepSeed }`. */
export function showResults(entry, actions) {
  previews.forEach(URL.revokeObjectURL);
  previews = [];
  at("strip").hidden = at("nothing").hidden = true;
  at("result").hidden = false;
  choose(entry, 0, actions);
}

/** Show that what is seen is of an earlier edit while another runs. */
export function age(isOld) {
  at("result").classList.toggle("old", isOld);
}

function choose(entry, index, actions) {
  const chosen = entry.outcomes[index];
  const parts = [drawComparison(sourceOf(entry), chosen), drawFacts(entry, chosen), drawActions(entry, chosen, actions), drawAnswer(entry)];
  if (entry.outcomes.length > 1) parts.unshift(drawChoices(entry, index, actions));
  at("result").replaceChildren(...parts);
}

/** Return the picture whose shape the result has. */
function sourceOf({ pictures, mask, values }) {
  return mask || values.size_from === "first" ? pictures[0] : pictures.at(-1);
}

function drawChoices(entry, index, actions) {
  const choices = entry.outcomes.map((outcome, other) =>
    makeButton(make("img", { src: preview(outcome), alt: `Result ${other + 1}` }), () => {
      choose(entry, other, actions);
      at("result").querySelectorAll(".choices button")[other].focus();
    }, { "aria-pressed": String(other === index) }));
  return make("div", { className: "choices", role: "group", "aria-label": "Results" }, ...choices);
}

function drawComparison(source, outcome) {
  const after = make("img", { className: "after", src: preview(outcome), alt: "The edited picture" });
  const before = make("img", { className: "before", src: preview(source), alt: "The source picture" });
  const box = make("div", { className: "compare" }, after, before, make("span", {}, "Before"), make("span", {}, "After"));
  const slide = make("input", { type: "range", className: "slide", min: 0, max: 100, value: 50, "aria-label": "Share of the picture that shows the source" });
  slide.oninput = () => box.style.setProperty("--at", `${slide.value}%`);
  after.onerror = () => { after.alt = "The link to this result has expired"; };
  before.onerror = () => { before.remove(); slide.remove(); box.classList.add("single"); };
  before.onload = after.onload = () => box.classList.toggle("reshaped", isReshaped(before, after));
  box.onpointerdown = box.onpointermove = event => { if (event.buttons && event.isPrimary) follow(event, box, slide); };
  return make("div", { className: "comparison" }, box, slide);
}

function follow(event, box, slide) {
  event.preventDefault();
  const { left, width } = box.getBoundingClientRect();
  slide.value = 100 * (event.clientX - left) / width;
  slide.oninput();
}

/** Sizes are rounded, so a few per cent are no other shape. */
function isReshaped(before, after) {
  const ratio = image => image.naturalWidth / image.naturalHeight;
  return before.naturalWidth > 0 && after.naturalWidth > 0 && Math.abs(Math.log(ratio(before) / ratio(after))) > 0.1;
}

function drawFacts({ seconds }, { meta, notes }) {
  const facts = [
    `${meta.width} × ${meta.height}`, `${meta.num_inference_steps} steps`, `seed ${meta.seed}`,
    ...(meta.profile ? [meta.profile] : []), ...(meta.loras ?? []).map(lora => lora.name), `${seconds.toFixed(1)} s`, meta.model, ...(meta.reused ? ["reused, nothing was computed"] : []),
  ];
  return make("p", { className: "facts" }, facts.join(" · "), ...notes.flatMap(note => [make("br"), note]));
}

function drawActions(entry, chosen, { useAsSource, again, keepSeed }) {
  const name = `retouch-${chosen.meta.seed}.${chosen.type.split("/").pop()}`;
  const download = make("a", { href: preview(chosen), download: name, target: "_blank", rel: "noopener" }, "Download");
  const link = makeButton("Copy link", () => copy(chosen.url, link), { className: "quiet" });
  return make(
    "div", { className: "buttons" }, download,
    makeButton("Use as source", () => useAsSource(chosen)),
    makeButton("Again, new seed", () => again(entry)),
    makeButton("Keep this seed", () => keepSeed(chosen.meta.seed), { className: "quiet" }), link,
  );
}

function drawAnswer({ answer }) {
  return make("details", {}, make("summary", {}, "Answer"), make("pre", { tabIndex: 0, "aria-label": "The answer" }, JSON.stringify(answer, null, 2)));
}

/** Draw the edits of this browser; `actions` are `{ show, useAsSource, again, remove }`. */
export function drawHistory(entries, actions) {
  at("past").hidden = !entries.length;
  at("entries").querySelectorAll("img").forEach(image => URL.revokeObjectURL(image.src));
  at("entries").replaceChildren(...entries.map(entry => drawEntry(entry, actions)));
}

function drawEntry(entry, { show, useAsSource, again, remove }) {
  const [first] = entry.outcomes;
  const image = make("img", { src: first.blob ? URL.createObjectURL(first.blob) : first.url, alt: "Result", loading: "lazy" });
  image.onerror = () => { image.alt = "expired"; };
  const buttons = make(
    "div", { className: "buttons" }, makeButton("Use as source", () => useAsSource(first)),
    makeButton("Again, new seed", () => again(entry)), makeButton("✕", () => remove(entry), { className: "quiet", "aria-label": `Forget: ${entry.values.prompt}` }),
  );
  const when = new Date(entry.at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const thumbnail = makeButton(image, () => show(entry), { className: "thumbnail", "aria-label": `Show: ${entry.values.prompt}` });
  return make("li", {}, thumbnail, make("div", {}, make("p", {}, entry.values.prompt), make("p", { className: "hint" }, when), buttons));
}
