// The page: joins the parts, and runs one edit at a time. An edit goes on when the page is closed, and is picked up when it opens.

import { drawCode, startCode } from "./code.js";
import { afterClick, at, make, makeButton } from "./dom.js";
import { clearErrors, inWords, say, showErrors } from "./fields.js";
import { forget, forgetAll, keep, readHistory, readRunning } from "./history.js";
import { getMask, maskUrl, setMask, startMask } from "./mask.js";
import { checkOptions, drawOptions, readOptions, writeOptions } from "./options.js";
import { add, getPictures, limitPictures, setPictures, startPictures, takeAddress, toUrl } from "./pictures.js";
import * as progress from "./progress.js";
import { age, drawHistory, showResults } from "./results.js";
import { cancel, edit, fetchBlob, isLost, keepKey, makeId, readFields, readInfo, readKey, Refused } from "./service.js";

const RETRY_MS = 1500;
let fields = {};
let info = { notes: [] };
let running = null;

/** Read what is loaded, again and again until it is. */
async function load() {
  try {
    info = await readInfo();
    fields = await readFields();
  } catch (fault) {
    at("model").textContent = fault instanceof Refused ? `${fault.message} …` : "the service does not answer …";
    if (fault.type === "Unauthorized") return lock();
    return setTimeout(load, RETRY_MS);
  }
  drawModel();
  await pickUp();
}

function lock() {
  at("model").textContent = readKey() ? "this API key is not valid" : "an API key is needed";
  at("locked").hidden = false;
}

function drawModel() {
  at("model").textContent = `${info.model} · up to ${(info.max_areas_px[0] / 1e6).toFixed(1)} megapixels`;
  at("notes").textContent = info.notes.join(" · ");
  at("about").hidden = !info.notes.length;
  at("strip").hidden = info.model !== "retouch-demo" || !at("result").hidden;
  at("prompt").placeholder = info.examples[0] ?? "";
  at("examples").replaceChildren(...info.examples.map(text => make("li", {}, makeButton(text, () => writePrompt(text)))));
  at("paint").hidden = !fields.mask_url || !getPictures().length;
  limitPictures(info.max_images, info.max_image_bytes);
  drawOptions(fields, info);
}

function writePrompt(text) {
  at("prompt").value = text;
  clearErrors();
  update();
}

/** Return what is asked for beside pictures and mask, by field. */
function readValues() {
  const values = { prompt: at("prompt").value.trim(), ...readOptions() };
  if (!getMask()) for (const name of ["mask_feather", "mask_padding"]) delete values[name];
  return values;
}

/** Return a request: `read` makes of a picture, and `readMask` of the mask, what stands in it. */
function buildRequest({ pictures, mask, values }, read, readMask) {
  const request = {};
  if (pictures.length > 1) request.image_urls = pictures.map(read);
  else if (pictures.length) request.image_url = read(pictures[0]);
  if (mask) request.mask_url = readMask(mask);
  return { ...request, ...values };
}

const readForm = () => ({ pictures: getPictures().map(({ name, blob, url }) => ({ name, blob, url })), mask: getMask(), values: readValues() });
const asCode = form => buildRequest(form, ({ name, blob, url }) => (blob ? { file: name } : url), () => ({ file: "mask.png" }));

function update() {
  at("paint").hidden = !fields.mask_url || !getPictures().length;
  at("save-mask").hidden = !getMask();
  drawCode(asCode(readForm()));
}

function check({ pictures, values }) {
  const faults = checkOptions();
  if (!pictures.length) faults.image_url = "choose a picture first";
  if (!values.prompt) faults.prompt = "say what to change";
  return faults;
}

async function run() {
  if (running) return;
  clearErrors();
  say("");
  if (!takeAddress()) return;
  const form = readForm();
  const faults = check(form);
  if (Object.keys(faults).length) return fail(showErrors(faults) || "Please look at the marked fields.");
  await follow({ at: Date.now(), job: makeId(), ...form }, { isPickedUp: false });
}

/** Follow the edits that ran when this page was closed. */
async function pickUp() {
  for (const entry of await readRunning()) {
    if (running) return;
    if (!getPictures().length && !at("prompt").value) restore(entry);
    await follow(entry, { isPickedUp: true });
  }
}

/** Run an edit to its end, or follow one that began before, and show what it comes to. */
async function follow(entry, { isPickedUp }) {
  running = new AbortController();
  progress.begin(entry.at, { isPickedUp });
  age(true);
  try {
    if (!isPickedUp) entry.id = await keep(entry);
    const body = isPickedUp ? null : await buildBody(entry);
    await finish(entry, await edit(entry.job, body, { signal: running.signal, onProgress: progress.show }), { isPickedUp });
  } catch (fault) {
    await leave(entry, fault, { isPickedUp });
    explain(fault);
  } finally {
    running = null;
    age(false);
    progress.end();
    focusFault();
  }
}

async function buildBody(entry) {
  const urls = new Map(await Promise.all(entry.pictures.map(async picture => [picture, await toUrl(picture)])));
  return buildRequest(entry, picture => urls.get(picture), maskUrl);
}

/** Cancel what is stopped, show the results that were stored before one failed, and forget the edit unless it may still end. */
async function leave(entry, fault, { isPickedUp }) {
  const mayEnd = isLost(fault) || (fault.type === "Unauthorized" && isPickedUp);
  if (fault.name === "AbortError") cancel(entry.job);
  if (fault.details?.results?.length) await finish(entry, fault.details, { isPickedUp });
  else if (!mayEnd) await forget(entry.id);
}

async function finish({ job: _, ...entry }, answer, { isPickedUp }) {
  const results = answer.results?.length ? answer.results : [answer.result];
  const seconds = (isPickedUp ? results.at(-1).meta.timings_ms.total : Date.now() - entry.at) / 1000;
  const outcomes = await Promise.all(results.map(async result => ({
    url: result.presigned_url, type: result.content_type, meta: result.meta, blob: await fetchBlob(result.presigned_url),
    notes: result.meta.notes.filter(note => !info.notes.includes(note)),
  })));
  const ended = { ...entry, answer, seconds, outcomes };
  showResults(ended, actions);
  say(`Done in ${seconds.toFixed(1)} s.`);
  at("outcome").scrollIntoView({ block: "nearest" });
  await keep(ended);
  await drawPast();
}

const fail = text => say(text, { fault: true });

function explain(fault) {
  if (fault.name === "AbortError") return say("Stopped.");
  if (!(fault instanceof Refused)) return fail(isLost(fault) ? "The service could not be reached." : fault.message);
  if (fault.type === "Unauthorized") {
    lock();
    return fail(showErrors({ key: "this service needs a valid key" }) || "An API key is needed.");
  }
  if (fault.details?.code === "job_not_found") return fail("The service knows nothing of the edit that was running.");
  const wrong = fault.details?.fields;
  const elsewhere = wrong ? showErrors(wrong) : inWords(fault.message);
  fail(elsewhere ? elsewhere[0].toUpperCase() + elsewhere.slice(1) : "Please look at the marked fields.");
}

const focusFault = () => document.querySelector("[aria-invalid]")?.focus();

/** Fill the form as it was for an earlier edit. */
function restore({ pictures, mask, values }) {
  const { prompt, ...options } = values;
  setPictures(pictures);
  setMask(mask);
  at("prompt").value = prompt;
  writeOptions(options);
  update();
}

const actions = {
  useAsSource({ blob, url, type, meta }) {
    setPictures([]);
    add({ name: `retouch-${meta.seed}.${type.split("/").pop()}`, blob, url });
    at("prompt").focus();
    at("prompt").select();
  },
  again({ values: { seed: _, ...values }, ...entry }) {
    restore({ ...entry, values });
    run();
  },
  keepSeed(seed) {
    writeOptions({ ...readOptions(), seed });
    at("options").open = true;
    update();
    document.querySelector("[data-field=seed]")?.focus();
  },
  show(entry) {
    showResults(entry, actions);
    at("outcome").scrollIntoView({ block: "nearest" });
  },
  async remove({ id }) {
    await forget(id);
    await drawPast();
  },
};

async function drawPast() {
  drawHistory(await readHistory(), actions);
}

function saveMask() {
  make("a", { href: maskUrl(getMask()), download: "mask.png" }).click();
}

function start() {
  startPictures(({ isFirstOther }) => { if (isFirstOther) setMask(null); else update(); });
  startMask(() => getPictures()[0], update);
  startCode(() => asCode(readForm()));
  at("key").value = readKey();
  at("key").onchange = () => { keepKey(at("key").value.trim()); afterClick(load); };
  at("key").onkeydown = event => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // the key is tried, and no edit begins
    clearErrors();
    say("");
    at("key").blur();
  };
  at("form").oninput = update;
  at("form").onsubmit = event => { event.preventDefault(); run(); };
  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    if (event.key === "Escape" && running && !at("painter").open) running.abort();
  });
  at("stop").onclick = () => running?.abort();
  at("save-mask").onclick = saveMask;
  at("forget").onclick = async () => { await forgetAll(); await drawPast(); };
  drawPast();
  load();
}

start();
