// What the page shows, what its reader has chosen, and small helpers.
// Words from results are written as text, never as HTML.
"use strict";

export const byId = (name) => document.getElementById(name);
export const { sections } = JSON.parse(byId("data").textContent);
export const charts = sections.flatMap((section) => section.charts);
// What the slider sets.
export const sliderName = sections.map((section) => section.slider).find(Boolean) || "noise";
// The choices of the reader, which the address holds. `noise` is the place of the slider.
export const state = {
  noise: 0.5, axis: "noise", intervals: "1", show: "all", figure: "", search: "", at: "",
};
export const page = { plotly: null, isPrinting: false, isDark: false };
const updates = []; // functions that are called when the slider moves

export const whenSliderMoves = (update) => updates.push(update);
export const updateViews = () => updates.forEach((update) => update());
export const hasSlider = () => updates.length > 0;

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    const isProperty = name in element && name !== "style" && name !== "list";
    if (isProperty) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Three digits as in the tables of the page, which Python writes: it rounds a half to the even
// digit, toPrecision away from zero.
export function short(x) {
  if (x === null || !Number.isFinite(x)) return "none";
  const half = /^(-?\d\.\d[02468])50*(e.*)$/.exec(x.toExponential(60));
  return String(Number(half ? half[1] + half[2] : x.toPrecision(3)));
}

// A number with its interval.
export function span(value, low, high) {
  if (low === null || high === null) return short(value);
  const isRounding = Math.abs(value) < 1e-6 * (high - low);
  return `${short(isRounding ? 0 : value)} [${short(low)}, ${short(high)}]`;
}

export function counted(shown, all, things) {
  const some = shown < all ? `${shown} of ${all}` : `All ${all}`;
  return `${some} ${things} are shown.`;
}

// --- the dialog that shows one thing large ---------------------------------------------------

export function enlarge(content, name) {
  const dialog = byId("large");
  dialog.setAttribute("aria-label", name);
  dialog.lastElementChild.replaceChildren(make("h3", {}, name), content);
  dialog.showModal();
}

export function enlargeImage(image) {
  enlarge(make("img", { src: image.src, alt: image.alt }), image.alt);
}
