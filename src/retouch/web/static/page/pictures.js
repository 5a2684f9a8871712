// The chosen pictures: dropped, pasted, picked, by URL, or the sample.

import { afterClick, at, make, makeButton } from "./dom.js";
import { clearErrors, showErrors } from "./fields.js";

// A picture is `{ name, blob }` or `{ name, url }`, with `preview` for an <img>.
let pictures = [];
let limits = { count: 1, bytes: Infinity };
let changed = () => {};

export const getPictures = () => pictures;

export function startPictures(onChange) {
  changed = onChange;
  at("pick").onclick = () => at("file").click();
  at("file").onchange = () => {
    addFiles(at("file").files);
    at("file").value = ""; // else choosing the same file again is no change
  };
  at("sample").onclick = addSample;
  at("address").onchange = () => afterClick(takeAddress);
  at("address").onkeydown = event => { if (event.key === "Enter") takeAddress(); };
  startDrop();
  document.addEventListener("paste", event => {
    if (event.clipboardData.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); }
  });
  draw();
}

/** Take what the service says: how many pictures, and how many bytes each. */
export function limitPictures(count, bytes) {
  limits = { count, bytes };
  at("file").multiple = count > 1;
  draw();
}

function startDrop() {
  const over = isOver => at("drop").classList.toggle("over", isOver);
  document.addEventListener("dragover", event => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files.length) return addFiles(event.dataTransfer.files);
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0];
    if (url) addUrl(url);
  });
}

function addFiles(files) {
  for (const file of files) add({ name: file.name || "pasted.png", blob: file });
}

async function addSample() {
  const blob = await (await fetch("/sample.jpg")).blob();
  add({ name: "sample.jpg", blob });
}

/** Take the URL that is typed, if any; return false where it is none. */
export function takeAddress() {
  const url = at("address").value.trim();
  return !url || addUrl(url);
}

function addUrl(url) {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  if (!parsed || !["http:", "https:"].includes(parsed.protocol)) {
    clearErrors();
    showErrors({ image_url: "must begin with https:// or http://" });
    return false;
  }
  at("address").value = "";
  add({ name: parsed.pathname.split("/").pop() || parsed.host, url });
  return true;
}

/** Add a picture; where there is room for one, it takes the place of the other. */
export function add(picture) {
  clearErrors();
  if (picture.blob && picture.blob.size > limits.bytes) {
    return showErrors({ image_url: `${picture.name} has ${inMegabytes(picture.blob.size)}; at most ${inMegabytes(limits.bytes)} are taken` });
  }
  if (limits.count > 1 && pictures.length >= limits.count) {
    return showErrors({ image_url: `at most ${limits.count} pictures are taken: remove one first` });
  }
  setPictures(limits.count > 1 ? [...pictures, picture] : [picture]);
}

export function setPictures(chosen) {
  const isOther = (pictures[0]?.blob ?? pictures[0]?.url) !== (chosen[0]?.blob ?? chosen[0]?.url);
  for (const { preview } of pictures) if (preview?.startsWith("blob:")) URL.revokeObjectURL(preview);
  pictures = chosen.map(picture => ({ ...picture, preview: picture.blob ? URL.createObjectURL(picture.blob) : picture.url }));
  draw();
  changed({ isFirstOther: isOther });
}

function draw() {
  at("pictures").replaceChildren(...pictures.map(drawPicture));
  at("pick").textContent = pictures.length && limits.count > 1 ? "Add a picture" : pictures.length ? "Choose another picture" : "Choose a picture";
  at("pick").disabled = limits.count > 1 && pictures.length >= limits.count;
  at("sample").hidden = pictures.length > 0;
  at("drop").classList.toggle("full", pictures.length >= limits.count);
}

function drawPicture({ name, preview }, index) {
  const remove = () => {
    setPictures(pictures.filter((_, other) => other !== index));
    at("pick").focus();
  };
  const image = make("img", { src: preview, alt: `Chosen picture ${index + 1}`, title: name });
  image.onerror = () => {
    image.alt = "No preview; the service may still read it";
    image.className = "lost";
  };
  return make("li", {}, image, make("p", {}, name), makeButton("✕", remove, { "aria-label": `Remove ${name}` }));
}

const inMegabytes = bytes => `${(bytes / 2 ** 20).toFixed(1)} MB`;

/** Return the URL to send for a picture: its own, or a data: URL. */
export function toUrl({ blob, url }) {
  if (!blob) return url;
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
}
