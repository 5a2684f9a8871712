// Elements: find them, make them.

export const at = id => document.getElementById(id);

/** Return a new element. Names with a dash become attributes, the others are set as properties. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Return a button that does `act` and sends no form. */
export function makeButton(label, act, properties = {}) {
  return make("button", { type: "button", onclick: act, ...properties }, label);
}

/** Do `act` once a click that made a field lose the focus is over: what moves before it is not hit. */
export function afterClick(act) {
  setTimeout(act, 300);
}

/** Copy `text`, and say so on `button` for a moment. Without a clipboard (plain http) select it. */
export async function copy(text, button, shown) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!shown) return;
    getSelection().selectAllChildren(shown);
    if (!document.execCommand("copy")) return;
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}
