// The view of a chart: the plot, a legend with the values at the noise of the slider, the files
// to save, and a table of the numbers.
import { enlarge, make, page, short, span, whenSliderMoves } from "./state.js";
import { interpolate, noiseOf } from "./noise.js";
import {
  SETTINGS, axisOf, dashOf, layout, lineColor, nameOfLine, shapes, traces,
} from "./drawing.js";

const drawn = new Map(); // {element of a plot: its view}

export function chartView(section, chart) {
  const plot = make("div", { className: "plot" });
  plot.setAttribute("role", "img");
  const against = `curves against ${chart.axes[0].label}`;
  const below = "the values at the chosen noise are listed below";
  plot.setAttribute("aria-label", `${chart.title}, ${against}; ${below}`);
  const view = { plot, chart, isSeen: false, isReady: false };
  drawn.set(plot, view);
  watch.observe(plot);
  const reading = make("p", { className: "at" });
  const entries = chart.lines.map((line, k) => legendEntry(view, line, k));
  whenSliderMoves(() => {
    if (chart.has_slider) reading.textContent = readingOf(chart);
    entries.forEach((entry) => entry.update());
    if (view.isReady) page.plotly.relayout(plot, { shapes: shapes(chart, plot.clientWidth) });
  });
  const legend = make("ul", { className: "legend" }, ...entries.map((entry) => entry.element));
  const parts = [make("h3", {}, chart.title), plot, reading, legend];
  if (chart.left_out) {
    const all = chart.lines.length + chart.left_out;
    parts.push(make("p", { className: "at" }, `${chart.lines.length} of ${all} curves are drawn.`));
  }
  return make("article", { className: "chart" }, ...parts, tools(view, section), table(chart));
}

// The noise of the slider, in words, on all axes of a chart.
function readingOf(chart) {
  const [first, ...others] = chart.axes;
  const noise = noiseOf(first);
  const also = [];
  for (const axis of others) {
    const value = interpolate(noise, first.values, axis.values);
    if (value !== null) also.push(`${axis.label} ${short(value)}`);
  }
  const list = also.length ? ` (${also.join(", ")})` : "";
  return `At ${first.label}: ${short(noise)}${list}:`;
}

// A button that hides a line, and makes it bright when it is pointed at, with the value of the
// line at the noise of the slider.
function legendEntry(view, line, k) {
  const { chart } = view;
  const sample = make("i", { className: dashOf(line) });
  const button = make("button", { type: "button" }, sample, nameOfLine(chart, line));
  const value = make("span");
  const press = () => button.setAttribute("aria-pressed", String(!line.hidden));
  const brighten = (isPointedAt) => {
    const isBright = isPointedAt && !line.hidden && chart.lines.length > 1;
    const next = isBright ? line : null;
    if (chart.bright === next) return;
    chart.bright = next;
    redraw(view);
  };
  press();
  button.onclick = () => {
    line.hidden = !line.hidden;
    chart.bright = null;
    press();
    redraw(view);
  };
  button.onpointerenter = (event) => brighten(event.pointerType === "mouse");
  button.onpointerleave = () => brighten(false);
  button.onfocus = () => brighten(button.matches(":focus-visible"));
  button.onblur = () => brighten(false);
  const update = () => {
    button.style.setProperty("--c", lineColor(chart, k));
    if (!chart.has_slider) return;
    const { values } = chart.axes[0];
    const noise = noiseOf(chart.axes[0]);
    const read = (end) => interpolate(noise, values, line[end], chart.is_joined);
    value.textContent = span(read("value"), read("low"), read("high"));
  };
  return { element: make("li", {}, button, value), update };
}

// Buttons that enlarge a chart and save its picture and its numbers.
function tools(view, section) {
  const { chart, plot } = view;
  const file = `${section.name}-${chart.name}`.replace(/[^\w.-]+/g, "-");
  const save = (format) => {
    const size = { width: 900, height: 540, scale: format === "png" ? 2 : 1 };
    if (page.plotly) page.plotly.downloadImage(plot, { format, filename: file, ...size });
  };
  const actions = {
    Enlarge: () => enlargeChart(chart),
    SVG: () => save("svg"),
    PNG: () => save("png"),
    CSV: () => download(`${file}.csv`, csv(chart), "text/csv"),
  };
  const buttons = Object.entries(actions).map(([name, run]) => {
    const ariaLabel = `${name}: ${chart.title}`;
    return make("button", { type: "button", onclick: run, ariaLabel }, name);
  });
  return make("div", { className: "tools" }, ...buttons);
}

function enlargeChart(chart) {
  const plot = make("div", { className: "plot" });
  enlarge(plot, chart.title);
  if (!page.plotly) return;
  page.plotly.newPlot(plot, traces(chart), layout(chart, plot.clientWidth), SETTINGS);
}

// The numbers of a chart, made when they are unfolded.
function table(chart) {
  const details = make("details", {}, make("summary", {}, "Numbers"));
  details.ontoggle = () => {
    if (!details.open || details.children.length > 1) return;
    const rows = axisOf(chart).values.map((x, i) => rowOf(chart, x, i));
    const names = [axisOf(chart).label, ...chart.lines.map((line) => nameOfLine(chart, line))];
    const heads = names.map((name) => make("th", { scope: "col" }, name));
    const head = make("thead", {}, make("tr", {}, ...heads));
    const numbers = make("table", {}, head, make("tbody", {}, ...rows));
    const box = make("div", { tabIndex: 0, role: "region" }, numbers);
    box.setAttribute("aria-label", `numbers of ${chart.title}`);
    box.setAttribute("style", "overflow:auto;max-height:20rem");
    details.append(box);
  };
  return details;
}

function rowOf(chart, x, i) {
  const cells = [short(x)];
  for (const { value, low, high } of chart.lines) {
    cells.push(value[i] === null ? "" : span(value[i], low[i], high[i]));
  }
  return make("tr", {}, ...cells.map((text) => make("td", {}, text)));
}

// The numbers of a chart as a file, in full.
function csv(chart) {
  const columns = chart.axes.map((axis) => [axis.name, ...axis.values]);
  for (const line of chart.lines) {
    const name = line.name || chart.name;
    columns.push([name, ...line.value], [`${name} low`, ...line.low]);
    columns.push([`${name} high`, ...line.high]);
  }
  const rows = columns[0].map((_, i) => columns.map((column) => cellOf(column[i])).join(","));
  return rows.join("\r\n");
}

// Spreadsheets take a text that begins with one of =+-@ for a formula.
function cellOf(value) {
  if (typeof value === "number") return String(value);
  const text = value === null ? "" : String(value);
  return `"${text.replace(/^([=+\-@])/, "'$1").replace(/"/g, '""')}"`;
}

function download(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- drawing, when a chart is seen for the first time -------------------------------------------

function redraw(view) {
  if (!page.plotly || !view.isSeen) return;
  const { plot, chart } = view;
  page.plotly.react(plot, traces(chart), layout(chart, plot.clientWidth), SETTINGS);
  view.isReady = true;
}

const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    const view = drawn.get(entry.target);
    view.isSeen = true;
    if (!view.isReady) redraw(view);
  }
}, { rootMargin: "300px" });

export function redrawAll() {
  for (const view of drawn.values()) if (view.isReady) redraw(view);
}

export function drawSeen() {
  for (const view of drawn.values()) redraw(view);
}

// Draw all charts that are unfolded, for printing.
export function drawUnfolded() {
  for (const view of drawn.values()) {
    if (view.plot.closest("details:not([open])")) continue;
    view.isSeen = true;
    redraw(view);
  }
}
