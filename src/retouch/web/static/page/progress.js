// What a running edit is at: stage, step, place in the queue, elapsed time.

import { at } from "./dom.js";
import { say } from "./fields.js";

const STAGES = {
  source: { words: "reading the picture", share: 0.02 },
  queue: { words: "waiting for the model", share: 0.05 },
  condition: { words: "reading the instruction", share: 0.08 },
  denoise: { words: "editing", share: 0.1 },
  vae_decode: { words: "finishing", share: 0.9 },
  store: { words: "storing the result", share: 0.96 },
};
let timer = null;

/** Show that an edit runs since `began` (ms since 1970); one that is picked up leaves the focus where it is. */
export function begin(began, { isPickedUp }) {
  const tick = () => { at("elapsed").textContent = `${Math.floor((Date.now() - began) / 1000)} s`; };
  timer = setInterval(tick, 500);
  tick();
  at("go").disabled = true;
  at("stop").hidden = at("bar").hidden = false;
  at("bar").value = 0;
  if (!isPickedUp) at("stop").focus({ preventScroll: true });
  say(isPickedUp ? "Looking for the edit that was running …" : "Sending …");
}

/** Show that it has ended; the button to edit has the focus again. */
export function end() {
  clearInterval(timer);
  const hadFocus = document.activeElement === at("stop") || document.activeElement === document.body;
  at("elapsed").textContent = "";
  at("go").disabled = false;
  at("stop").hidden = at("bar").hidden = true;
  if (hadFocus) at("go").focus({ preventScroll: true });
}

/** Show a progress event. */
export function show({ stage, step, steps, place }) {
  const { words, share } = STAGES[stage] ?? { words: stage, share: 0 };
  at("bar").value = stage === "denoise" ? share + 0.8 * step / steps : share;
  say(`${words[0].toUpperCase()}${words.slice(1)}${detail(stage, step, steps, place)}`);
}

function detail(stage, step, steps, place) {
  if (stage === "denoise") return `: step ${Math.min(step + 1, steps)} of ${steps}`;
  if (stage === "queue" && place > 0) return `: ${place} ${place === 1 ? "edit" : "edits"} before this one`;
  return " …";
}
