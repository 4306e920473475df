// The start of the page: views of all sections, the slider, the filter of the verdicts, and the
// address, which holds what the reader has chosen.
import {
  byId, charts, enlargeImage, hasSlider, make, page, sections, short, sliderName, state,
  updateViews,
} from "./state.js";
import { largest, noiseOf, onScale } from "./noise.js";
import { chartView, drawSeen, drawUnfolded, redrawAll } from "./charts.js";
import { galleryView, gridView, slidesView } from "./images.js";
import { tokensView } from "./texts.js";
import { treeView } from "./tree.js";

// --- address: a view can be sent --------------------------------------------------------------

const defaults = { ...state };

function readAddress() {
  // Any text can be read so, also a lone "%".
  const entries = [...new URLSearchParams(location.hash.slice(1))];
  if (entries.length === 1 && !location.hash.includes("=")) {
    [[state.at]] = entries;
    return;
  }
  for (const [name, value] of entries) if (name in state) state[name] = value;
  state.noise = Math.min(1, Math.max(0, Number(state.noise))) || 0;
}

let waiting = 0;
function writeAddress() {
  clearTimeout(waiting);
  waiting = setTimeout(saveAddress, 150);
}

function saveAddress() {
  const changed = Object.entries(state).filter(([name, value]) => {
    return String(value) !== String(defaults[name]);
  });
  try {
    history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
  } catch { /* some browsers forbid it for files */ }
}

function goTo(name) {
  const target = byId(name);
  if (!target) return;
  state.at = name;
  target.scrollIntoView();
  const heading = target.querySelector("h2");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}

function followLink(event) {
  const link = event.target.closest && event.target.closest('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  goTo(decodeURIComponent(link.hash.slice(1)));
  writeAddress();
}

// --- inputs ------------------------------------------------------------------------------------

function readInput(input) {
  if (input.type === "checkbox") return input.checked ? "1" : "0";
  return input.type === "range" ? Number(input.value) : input.value;
}

// An input shows an entry of the state, and changes it.
function bind(name, event, whenChanged) {
  const input = byId(name);
  if (!input) return;
  if (input.type === "checkbox") input.checked = state[name] === "1";
  else input.value = state[name];
  if (input.tagName === "SELECT" && input.selectedIndex < 0) {
    input.selectedIndex = 0;
    state[name] = input.value;
  }
  input.addEventListener(event, () => {
    state[name] = readInput(input);
    whenChanged();
    writeAddress();
  });
}

function filterVerdicts() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll("#verdicts tbody tr")];
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const isOutcome = state.show === "all" || row.dataset.outcome === state.show;
    const isFigure = !state.figure || row.dataset.figure === state.figure;
    row.hidden = !(isOutcome && isFigure && words.every((word) => text.includes(word)));
    if (!row.hidden) count += 1;
  }
  byId("count").textContent = `${count} of ${rows.length} shown`;
}

function startFilter() {
  const form = byId("filter");
  if (!form) return;
  form.onsubmit = (event) => event.preventDefault();
  bind("show", "change", filterVerdicts);
  bind("figure", "change", filterVerdicts);
  bind("search", "input", filterVerdicts);
  filterVerdicts();
}

// --- slider ------------------------------------------------------------------------------------

// The noise axes of all views.
const VIEWS = ["grid", "slides", "gallery", "tree", "tokens"];
const noiseAxes = charts.filter((chart) => chart.has_slider).map((chart) => chart.axes[0]);
for (const section of sections) {
  for (const view of VIEWS) if (section[view]) noiseAxes.push(section[view].levels);
}

const isOne = (values) => new Set(values).size === 1;

// The noise that all views have, as on the page of one run; "" if they differ.
function commonLabel() {
  const labels = noiseAxes.map((axis) => axis.label).filter(Boolean);
  const isSameScale = isOne(noiseAxes.map(largest))
    && isOne(noiseAxes.map((axis) => axis.is_logarithmic));
  return isOne(labels) && isSameScale ? labels[0] : "";
}

const label = commonLabel();

function readingOfSlider() {
  if (label) return short(noiseOf(noiseAxes[0]));
  if (noiseAxes.every((axis) => largest(axis) === 1)) return short(state.noise);
  return `${Math.round(100 * state.noise)} % of each range`;
}

let frame = 0;
function slide() {
  byId("reading").textContent = readingOfSlider();
  byId("noise").setAttribute("aria-valuetext", byId("reading").textContent);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(updateViews);
}

// The slider begins at the first number of the summary, such as t*.
function beginAtCard() {
  const slides = (section) => section.charts.some((chart) => chart.has_slider);
  const first = sections.find((section) => section.cards.length && slides(section));
  if (!first) return;
  const axis = first.charts.find((chart) => chart.has_slider).axes[0];
  const [place] = first.cards[0].place;
  const share = onScale(axis, place) / onScale(axis, largest(axis));
  if (share <= 1) {
    state.noise = share;
    defaults.noise = share;
  }
}

function startSlider() {
  byId("word").textContent = label || sliderName[0].toUpperCase() + sliderName.slice(1);
  byId("bar").setAttribute("aria-label", `${sliderName}, axis and intervals`);
  const names = new Map([["noise", label || `${sliderName}, each in its own unit`]]);
  for (const chart of charts.filter((one) => one.has_slider)) {
    for (const axis of chart.axes) if (!names.has(axis.name)) names.set(axis.name, axis.label);
  }
  const options = [...names].map(([value, words]) => make("option", { value }, words));
  byId("axis").append(...options);
  byId("bar").hidden = !hasSlider();
  bind("noise", "input", slide);
  bind("axis", "change", redrawAll);
  bind("intervals", "change", redrawAll);
}

// --- start -------------------------------------------------------------------------------------

function showSection(section) {
  const find = (part) => document.querySelector(
    `.views[data-section="${CSS.escape(section.id)}"][data-part=${part}]`,
  );
  const views = find("shown");
  if (section.grid) views.append(gridView(section.grid));
  if (section.slides) views.append(slidesView(section.slides));
  if (section.gallery) views.append(galleryView(section.gallery));
  if (section.tree) views.append(treeView(section.tree));
  if (section.tokens) views.append(tokensView(section.tokens));
  for (const chart of section.charts) {
    const part = chart.is_shown ? views : find("folded");
    part.append(chartView(section, chart));
  }
  const shown = views.querySelectorAll(":scope > .chart");
  if (shown.length === 1) shown[0].classList.add("whole");
}

function startDialog() {
  for (const button of document.querySelectorAll(".pictures button.picture")) {
    button.onclick = () => enlargeImage(button.firstElementChild);
  }
  const dialog = byId("large");
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
}

function watchColours() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  page.isDark = dark.matches;
  dark.addEventListener("change", () => {
    page.isDark = dark.matches;
    slide();
    redrawAll();
  });
  const print = (isPrinting) => () => {
    page.isPrinting = isPrinting;
    drawUnfolded();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
}

function start() {
  beginAtCard();
  readAddress();
  watchColours();
  sections.forEach(showSection);
  startDialog();
  startSlider();
  startFilter();
  slide();
  document.addEventListener("click", followLink);
  if (state.at) goTo(state.at);
}

async function load() {
  const root = document.documentElement;
  if (!charts.length) {
    root.dataset.ready = "no curves";
    return;
  }
  const packed = atob(byId("plotly").textContent);
  const bytes = Uint8Array.from(packed, (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", { textContent: await new Response(stream).text() }));
  page.plotly = window.Plotly;
  drawSeen();
  if (state.at && scrollY) goTo(state.at);
  root.dataset.ready = "yes";
}

start();
load();
