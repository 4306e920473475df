// The state of the page, which stands in the fragment of its address, so that a view can be sent.
import { CHANNELS } from "./channels.js";
import { LIMITS, problemOf } from "./grammar.js";

export const TABS = ["strings", "images"];
export const VIEWS = ["belief", "certainty", "changes"];
export const IMAGES = JSON.parse(document.getElementById("image-data").textContent); // made by examples/laboratory_images.py
export const DEFAULTS = {
  tab: "strings",
  v: 32,
  m: 6,
  s: 2,
  L: 6,
  seed: 0,
  string: 0,
  channel: "masking",
  noise: 0,
  draw: 0,
  clones: 8,
  clone: 0,
  view: "belief",
  step: 1,
  image: 0,
  imageLevel: 5,
};
const MOST_SEED = 2 ** 32 - 1;
const RANGES = {
  v: LIMITS.v,
  m: LIMITS.m,
  s: LIMITS.s,
  L: LIMITS.L,
  seed: [0, MOST_SEED],
  string: [0, MOST_SEED],
  draw: [0, MOST_SEED],
  clones: [1, 16],
  clone: [0, 16],
  step: [0, 5],
  image: [0, IMAGES.originals.length - 1],
  imageLevel: [0, IMAGES.back.length - 1],
};

/** The state that a fragment describes, and what was wrong with it: values that cannot be used are replaced by the defaults. */
export function readState(fragment) {
  const state = { ...DEFAULTS },
    problems = [];
  for (const [name, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (!(name in DEFAULTS)) problems.push(`${shown(name)} is no setting`);
    else if (accepts(name, text)) state[name] = typeof DEFAULTS[name] === "number" ? Number(text) : text;
    else problems.push(`${name} = ${shown(text)} cannot be used`);
  }
  const problem = problemOf(state);
  if (problem) {
    problems.push(problem);
    for (const name of ["v", "m", "s", "L"]) state[name] = DEFAULTS[name];
  }
  state.noise = Math.min(state.noise, CHANNELS[state.channel].most);
  state.clone = Math.min(state.clone, state.clones);
  return { state, problems };
}

function accepts(name, text) {
  if (name === "channel") return Object.hasOwn(CHANNELS, text);
  if (name === "tab") return TABS.includes(text);
  if (name === "view") return VIEWS.includes(text);
  const value = text.trim() === "" ? NaN : Number(text);
  if (name === "noise") return value >= 0 && value <= 1;
  return inRange(name, value);
}

export const inRange = (name, value) => Number.isInteger(value) && value >= RANGES[name][0] && value <= RANGES[name][1];

export const rangeWords = (name) => `an integer from ${RANGES[name][0]} to ${RANGES[name][1]}`;

export const writeState = (state) => `#${new URLSearchParams(state)}`;

const shown = (text) => JSON.stringify(text.slice(0, 20));
