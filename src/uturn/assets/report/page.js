"use strict";
// The page: one noise slider and one choice of axis for all views. Words from results are written as text, never as HTML.
const { sections } = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);
const charts = sections.flatMap((section) => section.charts || []);
const sliding = [];          // functions that are called with the noise of the slider
const word = sections.map((section) => section.word).find(Boolean) || "noise"; // what the slider sets
const drawn = new Map();     // charts on the screen: {element, chart, update}
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { noise: 0.5, axis: "noise", intervals: "1", show: "all", figure: "", search: "", at: "" };
let Plotly = null;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "style" && name !== "list") element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
// Three digits as in the tables of the page, which Python writes: it rounds a half to the even digit, toPrecision away from zero.
function short(x) {
  if (x === null || !Number.isFinite(x)) return "none";
  const half = /^(-?\d\.\d[02468])50*(e.*)$/.exec(x.toExponential(60));
  return String(Number(half ? half[1] + half[2] : x.toPrecision(3)));
}
function span(value, low, high) {
  if (low === null || high === null) return short(value);
  return `${short(Math.abs(value) < 1e-6 * (high - low) ? 0 : value)} [${short(low)}, ${short(high)}]`;
}

// --- noise -----------------------------------------------------------------------------------------------------------
// The slider goes from 0 to 1. A view whose noise goes beyond 1, or is logarithmic, has 1 of the slider at its largest noise.
// A logarithmic scale is linear below its smallest level, so that noise 0 has a place: half a decade to the left.
const largest = ({ values, log }) => { const most = Math.max(...values.filter(Number.isFinite)); return most <= 1.0001 && !log ? 1 : most; };
const least = (values) => Math.min(...values.filter((x) => x > 0));
const onScale = ({ values, log }, x) => (!log || x === null ? x : x < least(values) ? x / least(values) / 2 : Math.log10(x / least(values)) + 0.5);
const offScale = ({ values, log }, u) => (!log ? u : u < 0.5 ? 2 * u * least(values) : least(values) * 10 ** (u - 0.5));
const noiseOf = (scale) => offScale(scale, state.noise * onScale(scale, largest(scale)));
const scaleOf = (view) => ({ values: view.noise, log: view.log, words: view.words });
function ticks({ values, log }) {
  if (!log) return {};
  const [low, high] = [least(values), largest({ values, log })], marks = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5], at = [0];
  for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) at.push(...marks.map((m) => Number(`${m}e${k}`)).filter((x) => x >= low && x <= high));
  return { tickvals: at.map((x) => onScale({ values, log }, x)), ticktext: at.map(short) };
}

function interpolate(x, xs, ys, joined = false) {
  const at = xs.map((one, k) => [one, ys[k]]).filter(([a, y]) => a !== null && !(joined && y === null)).sort((a, b) => a[0] - b[0]);
  if (!at.length || x < at[0][0] - 1e-9 || x > at[at.length - 1][0] + 1e-9) return null;
  const k = Math.max(1, at.findIndex((one) => one[0] >= x - 1e-12));
  if (at.length === 1) return at[0][1];
  const [[a, p], [b, q]] = [at[k - 1], at[k]];
  if (p === null || q === null) return Math.abs(x - a) < 1e-9 ? p : Math.abs(x - b) < 1e-9 ? q : null; // no guess across a gap
  return b === a ? q : p + ((q - p) * (x - a)) / (b - a);
}
const nearest = (x, xs) => xs.reduce((best, one, k) => (Math.abs(one - x) < Math.abs(xs[best] - x) ? k : best), 0);

// --- address: a view can be sent -----------------------------------------------------------------------------------------
const defaults = { ...state };
function readAddress() {
  const said = [...new URLSearchParams(location.hash.slice(1))]; // any text can be read so, also a lone "%"
  if (said.length === 1 && !location.hash.includes("=")) { [[state.at]] = said; return; }
  for (const [name, value] of said) if (name in state) state[name] = value;
  state.noise = Math.min(1, Math.max(0, Number(state.noise))) || 0;
}
let waiting = 0;
function writeAddress() {
  clearTimeout(waiting);
  waiting = setTimeout(saveAddress, 150);
}
function saveAddress() {
  const said = Object.entries(state).filter(([name, value]) => String(value) !== String(defaults[name]));
  try { history.replaceState(null, "", `#${new URLSearchParams(said)}`); } catch { /* some browsers forbid it for files */ }
}
function goTo(name) {
  const target = byId(name);
  if (!target) return;
  state.at = name;
  target.scrollIntoView();
  const heading = target.querySelector("h2");
  if (heading) { heading.tabIndex = -1; heading.focus({ preventScroll: true }); }
}

// --- charts --------------------------------------------------------------------------------------------------------------
const few = { light: ["#0060a8", "#c04a00", "#00795a", "#a8437f", "#8a6100", "#2f7fb5", "#7a4a0a", "#6a2a86"],
  dark: ["#6bb6ff", "#ff9d5c", "#3fd0a4", "#f29cc9", "#f0c04a", "#9ad4f5", "#d9a066", "#c99be0"] };
const ramp = { light: ["#1b2a8f", "#7a1fa0", "#b32d7d", "#d4552f", "#b98300"], dark: ["#7f9bff", "#c58bff", "#ff86c4", "#ff9a76", "#ffd166"] };
function color(k, count) {
  const mode = dark.matches && !printing ? "dark" : "light";
  if (count <= 4) return few[mode][k];
  const x = (k / (count - 1)) * 4, a = Math.min(3, Math.floor(x)), parts = [ramp[mode][a], ramp[mode][a + 1]];
  const [from, to] = parts.map((one) => [1, 3, 5].map((i) => parseInt(one.slice(i, i + 2), 16)));
  return `rgb(${from.map((one, i) => Math.round(one + (to[i] - one) * (x - a))).join(",")})`;
}
const faded = (one) => (one[0] === "#" ? `${one}30` : one.replace("rgb(", "rgba(").replace(")", ",0.19)"));
const axisOf = (chart) => (chart.slides && chart.axes.find((axis) => axis.name === state.axis)) || chart.axes[0];
const place = (chart, noise) => { const axis = axisOf(chart); return interpolate(noise, chart.axes[0].values, axis.values); };

const dashes = ["solid", "dash", "dot", "dashdot"]; // a line that lies on others is drawn over them with gaps
const lineColor = (chart, k) => color(chart.lines[k].of ?? k, chart.lines.filter((line) => line.of === undefined).length);
const dashOf = (line) => line.of !== undefined ? "dot" : dashes[Math.min(line.on, dashes.length - 1)];
const nameOfLine = (chart, line) => line.name || chart.y || "value";

function traces(chart) {
  const axis = axisOf(chart), found = [], levels = axis.values, known = levels.filter((x) => x !== null);
  // Curves are linear in the noise between levels, on a logarithmic axis too.
  const xs = axis.log ? known.flatMap((x, k) => (k ? [...Array.from({ length: 7 }, (_, j) => known[k - 1] + ((x - known[k - 1]) * (j + 1)) / 8), x] : [x])) : levels;
  const x = xs.map((one) => onScale(axis, one)), along = (ys) => (axis.log ? xs.map((one) => interpolate(one, levels, ys, chart.joined)) : ys);
  chart.lines.map((line, k) => [line, k]).sort(([a], [b]) => (a === chart.bright) - (b === chart.bright)).forEach(([line, k]) => { // a bright line comes last, on top
    if (line.hidden) return;
    const bright = line === chart.bright, opacity = chart.bright && !bright ? 0.15 : 1;
    const ink = lineColor(chart, k), [value, low, high] = [line.value, line.low, line.high].map(along);
    const there = x.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null && x[i] !== null);
    if (state.intervals === "1" && there.length > 1) {
      found.push({ x: [...there, ...there.slice().reverse()].map((i) => x[i]), y: [...there.map((i) => high[i]), ...there.reverse().map((i) => low[i])],
        fill: "toself", fillcolor: faded(ink), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, opacity });
    }
    const size = (one) => (levels.includes(one) ? (bright ? 8 : 5) : 0);
    found.push({ x, y: value, name: nameOfLine(chart, line), text: x.map((_, i) => span(value[i], low[i], high[i])), mode: levels.length > 40 || line.of !== undefined ? "lines" : "lines+markers", marker: { size: xs.map(size), line: { width: 0 } },
      line: { color: ink, width: bright ? 4 : 2, dash: dashOf(line) }, opacity, connectgaps: chart.joined, showlegend: false, hovertemplate: "%{text}<extra>%{meta}</extra>",
      meta: plain(line.name || "value") });
  });
  return found;
}
const plain = (text) => String(text).replace(/</g, "‹").replace(/>/g, "›").replace(/&/g, "＆").slice(0, 60); // Plotly reads some tags in labels

function shapes(chart) {
  const found = [], style = getComputedStyle(document.body), ink = style.getPropertyValue("--ink").trim(), accent = style.getPropertyValue("--accent").trim();
  const vertical = (x0, x1, more) => ({ type: x0 === x1 ? "line" : "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, layer: "below", ...more });
  chart.marks.forEach((mark, k) => {
    const own = (mark.at[axisOf(chart).name] || mark.at.noise.map((one) => (one === null ? null : place(chart, one)))).map((one) => onScale(axisOf(chart), one));
    if (own[0] === null) return;
    if (own[1] !== null && own[2] !== null && state.intervals === "1") found.push(vertical(own[1], own[2], { fillcolor: ink, opacity: 0.08, line: { width: 0 } }));
    found.push(vertical(own[0], own[0], { line: { color: ink, width: 1.5, dash: "dot" }, label: { text: plain(mark.label), textposition: "end", textangle: 0,
      xanchor: chart.marks.length > 1 && k === 0 ? "right" : "left", padding: 3, font: { size: 12, color: ink } } }));
  });
  if (chart.slides) {
    const at = onScale(axisOf(chart), place(chart, noiseOf(chart.axes[0])));
    if (at !== null) found.push(vertical(at, at, { line: { color: accent, width: 2.5 }, layer: "above" }));
  }
  return found;
}

function layout(chart) {
  const style = getComputedStyle(document.body), ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = axisOf(chart), both = { color: ink, gridcolor: line, zeroline: false, linecolor: line, automargin: true };
  return { margin: { l: 44, r: 12, t: 22, b: 42 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 13, color: ink }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { bgcolor: style.getPropertyValue("--raised").trim(), font: { color: ink } }, shapes: shapes(chart),
    xaxis: { ...both, ...ticks(axis), title: { text: plain(axis.words) }, autorange: axis.name === "log_snr" ? "reversed" : true }, yaxis: { ...both, title: { text: plain(chart.y || "") } } };
}
const settings = { displayModeBar: false, responsive: true, doubleClick: "reset" };

function chartView(section, chart) {
  const plot = make("div", { className: "plot" }), legend = make("ul", { className: "legend" }), at = make("p", { className: "at" });
  const title = make("h3", {}, chart.title);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${chart.title}, curves against ${chart.axes[0].words}; the values at the chosen noise are listed below`);
  const values = chart.lines.map((line, k) => {
    const button = make("button", { type: "button" }, make("i", { className: dashOf(line) }), nameOfLine(chart, line)), value = make("span");
    const brighten = (now) => { const next = now && !line.hidden && chart.lines.length > 1 ? line : null; if (chart.bright !== next) { chart.bright = next; redraw(view); } };
    button.setAttribute("aria-pressed", String(!line.hidden));
    button.onclick = () => { line.hidden = !line.hidden; chart.bright = null; button.setAttribute("aria-pressed", String(!line.hidden)); redraw(view); };
    button.onpointerenter = (event) => brighten(event.pointerType === "mouse");
    button.onpointerleave = () => brighten(false);
    button.onfocus = () => brighten(button.matches(":focus-visible"));
    button.onblur = () => brighten(false);
    legend.append(make("li", {}, button, value));
    return { button, value, line, k };
  });
  const file = `${section.short}-${chart.name}`.replace(/[^\w.-]+/g, "-");
  const tool = (words, run) => make("button", { type: "button", onclick: run, ariaLabel: `${words}: ${chart.title}` }, words);
  const tools = make("div", { className: "tools" }, tool("Enlarge", () => enlargeChart(chart)), tool("SVG", () => picture("svg")), tool("PNG", () => picture("png")),
    tool("CSV", () => download(`${file}.csv`, csv(chart), "text/csv")));
  const picture = (format) => Plotly && Plotly.downloadImage(plot, { format, filename: file, width: 900, height: 540, scale: format === "png" ? 2 : 1 });
  const view = { plot, chart, values, ready: false };
  function slide() {
    const levels = chart.axes[0].values, noise = noiseOf(chart.axes[0]), others = chart.axes.slice(1).map((axis) => [axis.words, interpolate(noise, levels, axis.values)]);
    const said = others.filter(([, x]) => x !== null).map(([words, x]) => `${words} ${short(x)}`);
    if (chart.slides) at.textContent = `At ${chart.axes[0].words}: ${short(noise)}${said.length ? ` (${said.join(", ")})` : ""}:`;
    for (const { button, value, line, k } of values) {
      button.style.setProperty("--c", lineColor(chart, k));
      const read = (name) => interpolate(noise, levels, line[name], chart.joined);
      value.textContent = chart.slides ? span(read("value"), read("low"), read("high")) : "";
    }
    if (view.ready && drawn.has(plot)) Plotly.relayout(plot, { shapes: shapes(chart) });
  }
  sliding.push(slide);
  watch.observe(plot);
  drawn.set(plot, view);
  view.slide = slide;
  const more = chart.left_out ? make("p", { className: "at" }, `${chart.lines.length} of ${chart.lines.length + chart.left_out} curves are drawn.`) : "";
  return make("article", { className: "chart" }, title, plot, at, legend, more, tools, table(chart));
}

function redraw(view) {
  if (!Plotly || !view.seen) return;
  Plotly.react(view.plot, traces(view.chart), layout(view.chart), settings);
  view.ready = true;
}
const redrawAll = () => { for (const view of drawn.values()) if (view.ready) redraw(view); };
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { const view = drawn.get(entry.target); view.seen = true; if (!view.ready) redraw(view); }
}, { rootMargin: "300px" });

function table(chart) {
  const details = make("details", {}, make("summary", {}, "Numbers"));
  details.ontoggle = () => {
    if (!details.open || details.children.length > 1) return;
    const head = make("tr", {}, ...[axisOf(chart).words, ...chart.lines.map((line) => nameOfLine(chart, line))].map((words) => make("th", { scope: "col" }, words)));
    const rows = axisOf(chart).values.map((x, i) => make("tr", {}, make("td", {}, short(x)), ...chart.lines.map((line) =>
      make("td", {}, line.value[i] === null ? "" : span(line.value[i], line.low[i], line.high[i])))));
    const box = make("div", { tabIndex: 0, role: "region" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
    box.setAttribute("aria-label", `numbers of ${chart.title}`);
    box.setAttribute("style", "overflow:auto;max-height:20rem");
    details.append(box);
  };
  return details;
}

function csv(chart) {
  const cell = (one) => { const text = one === null ? "" : String(one); return typeof one === "number" ? text : `"${text.replace(/^([=+\-@])/, "'$1").replace(/"/g, '""')}"`; };
  const columns = [...chart.axes.map((axis) => [axis.name, axis.values])];
  for (const line of chart.lines) for (const end of ["value", "low", "high"]) columns.push([`${line.name || chart.name}${end === "value" ? "" : ` ${end}`}`, line[end]]);
  return [columns.map(([name]) => cell(name)), ...chart.axes[0].values.map((_, i) => columns.map(([, values]) => cell(values[i])))].map((row) => row.join(",")).join("\r\n");
}
function download(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const counted = (shown, all, things) => (shown < all ? `${shown} of ${all} ${things} are shown.` : `All ${all} ${things} are shown.`);

// --- images and texts ------------------------------------------------------------------------------------------------------
function gridView(grid) {
  const at = make("p", { className: "at" }), hard = grid.smooth ? "" : " hard", tiles = make("div", { className: `tiles${hard}` });
  const image = (url, words) => (url ? make("img", { src: url, alt: words, loading: "lazy" }) : make("i", {}));
  const updates = grid.items.map((item) => {
    const shown = image(item.images[0], ""), caption = make("span"), button = make("button", { type: "button", className: "tile" });
    button.append(make("div", { className: "pair" }, image(item.original, `${item.name}, original`), shown), caption);
    button.onclick = () => enlarge(make("div", { className: `strip${hard}` }, figure(item.original, "original"), ...item.images.map((url, k) => figure(url, `${word} ${short(grid.noise[k])}${item.kept ? (item.kept[k] ? ", class kept" : ", class lost") : ""}`))), item.name + (grid.half_life ? `, ${grid.half_life}: ${short(item.half_life)}` : ""));
    const figure = (url, words) => make("figure", {}, image(url, `${item.name}, ${words}`), make("figcaption", {}, words));
    tiles.append(button);
    item.button = button;
    return (k) => {
      const kept = item.kept ? item.kept[k] : null;
      if (item.images[k] && shown.tagName === "IMG") { shown.src = item.images[k]; shown.alt = `${item.name}, reconstructed from ${word} ${short(grid.noise[k])}`; }
      caption.replaceChildren(item.name, ...(kept === null ? [] : [": ", make("b", {}, kept ? "kept" : "lost")]));
      button.classList.toggle("lost", kept === false);
    };
  });
  sliding.push(() => {
    const k = nearest(noiseOf(scaleOf(grid)), grid.noise), known = grid.items.filter((item) => item.kept), kept = known.filter((item) => item.kept[k]).length;
    at.textContent = `Original and reconstruction from ${word} ${short(grid.noise[k])}, the nearest stored level` + (known.length ? `: ${kept} of ${known.length} keep the class.` : ".")
      + ` ${counted(grid.items.length, grid.of, "originals")}` + (grid.kept < grid.of ? ` The run kept the images of ${grid.kept}.` : "")
      + (grid.kept > grid.items.length ? " They are a sample, drawn with seed 0." : "");
    updates.forEach((update) => update(k));
  });
  const orders = { "as in the run": () => 0, "by name": (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }) };
  if (grid.half_life) orders[`by ${grid.half_life}`] = (a, b) => (a.half_life ?? Infinity) - (b.half_life ?? Infinity) || 0; // Infinity - Infinity is NaN
  const order = make("select", { onchange: () => tiles.append(...[...grid.items].sort(orders[order.value]).map((item) => item.button)) }, ...Object.keys(orders).map((words) => make("option", {}, words)));
  return make("article", { className: "grid whole" }, make("h3", {}, `Images at the ${word} of the slider`), make("div", { className: "filter" }, make("label", {}, "Order", order)), at, tiles);
}

// Pictures of which the slider chooses one in each row.
function slidesView(slides) {
  const at = make("p", { className: "at" }), box = make("div");
  for (const row of slides.rows) {
    const image = make("img", { loading: "lazy" }), button = make("button", { type: "button", className: "picture" }, image);
    button.onclick = () => enlarge(make("img", { src: image.src, alt: image.alt }), image.alt);
    box.append(make("h4", {}, row.name), button);
    sliding.push(() => {
      const { url, words, width, height } = row.levels[nearest(noiseOf(scaleOf(slides)), slides.noise)];
      Object.assign(image, { src: url, alt: words, width, height });
    });
  }
  sliding.push(() => {
    at.textContent = `At ${slides.words}: ${short(slides.noise[nearest(noiseOf(scaleOf(slides)), slides.noise)])}, the nearest level of the run.`;
  });
  return make("article", { className: "whole" }, make("h3", {}, slides.title), at, box);
}

// Tables of images, of which the slider chooses the level: each item has images that its rows share, and rows of images.
function galleryView(gallery) {
  const at = make("p", { className: "at" }), hard = gallery.smooth ? "" : " hard", box = make("div"), updates = [];
  const heads = make("tr", {}, ...gallery.heads.map((words) => make("th", { scope: "col" }, words)));
  for (const group of gallery.groups) {
    const bodies = group.items.map((item) => {
      const cell = (levels, words, properties = {}) => { // of {url, size} at each level, or of one for all levels
        const image = make("img", { loading: "lazy" }), note = levels[0].size === undefined ? [] : [make("small")];
        updates.push((k) => {
          const { url, size } = levels[Math.min(k, levels.length - 1)];
          if (image.src !== url) image.src = url;
          image.alt = `${item.name}: ${words}${note.length ? `, ${size} on average` : ""}`;
          for (const one of note) one.textContent = size.toFixed(2);
        });
        return make("td", properties, image, ...note);
      };
      const shared = item.shared.map((levels, k) => cell(levels, gallery.heads[k], { rowSpan: item.rows.length })), first = shared.length + 1;
      return make("tbody", {}, ...item.rows.map((cells, k) => make("tr", {}, ...(k ? [] : shared), make("th", { scope: "row" }, group.rows[k]),
        ...cells.map((levels, n) => cell(levels, `${gallery.heads[first + n]}, ${group.rows[k]}`)))));
    });
    const table = make("table", { className: `gallery${hard}` }, make("thead", {}, heads.cloneNode(true)), ...bodies);
    const region = make("div", { className: "scroll", tabIndex: 0, role: "region" }, table);
    region.setAttribute("aria-label", `${gallery.label}, ${group.name}`);
    box.append(...(gallery.groups.length > 1 ? [make("h4", {}, group.name)] : []), region);
  }
  sliding.push(() => {
    const k = nearest(noiseOf(scaleOf(gallery)), gallery.noise), key = gallery.key.map((one) => (one.swatch ? make("i", { className: one.swatch }) : one));
    at.replaceChildren(`At ${gallery.words}: ${short(gallery.noise[k])}, the nearest level of the run. `, ...key, ` ${counted(gallery.kept, gallery.of, "originals")}`);
    updates.forEach((update) => update(k));
  });
  return make("article", { className: "grid whole" }, make("h3", {}, gallery.title), at, box);
}

function tokensView(tokens) {
  const at = make("p", { className: "at" }), texts = make("div");
  const updates = tokens.items.map((item) => {
    const label = make("h4"), now = make("p", { className: "text" });
    texts.append(make("article", {}, label, make("p", { className: "text first" }, item.original.join("").trimStart()), now));
    return (k) => {
      const { tokens: words, marks } = item.levels[k], changed = [...marks].filter((mark) => mark === "c").length;
      label.textContent = `${item.name}: original, and reconstruction with ${changed} of ${words.length} tokens changed`;
      now.replaceChildren(...words.map((word, i) => (marks[i] === "c" ? make("mark", {}, word) : marks[i] === "n" ? make("i", {}, word) : word)));
    };
  });
  sliding.push(() => {
    const k = nearest(noiseOf(scaleOf(tokens)), tokens.noise);
    at.replaceChildren(`Reconstructions from noise ${short(tokens.noise[k])}, the nearest stored level. `, make("i", { className: "key" }, "Shaded"), ": masked or replaced, and the same again. ",
      make("mark", {}, "Marked"), ": another token." + ` ${counted(tokens.items.length, tokens.of, "texts")}`);
    updates.forEach((update) => update(k));
  });
  return make("article", { className: "tokens whole" }, make("h3", {}, "Texts at the noise of the slider"), at, texts);
}

// --- trees: every node has the colour of what is kept of it ----------------------------------------------------------------
const drawing = (tag, properties, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
function treeView(tree) {
  const { branching: s, depth } = tree, names = (level) => (level === depth ? "class" : level === 0 ? "leaves" : `level ${level}`);
  const at = make("p", { className: "at", role: "note" }), choices = make("div", { className: "filter" }), note = make("p", { className: "at" });
  const narrow = innerWidth < 700, [width, left, right, gap, top] = narrow ? [420, 66, 56, 34, 16] : [900, 70, 200, 46, 20], inner = width - left - right;
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${top + gap * depth + 22}`, role: "img" }), branches = drawing("g", { class: "branches" }), nodes = drawing("g", {});
  svg.append(branches, nodes);
  const rows = []; // of the levels, from the root down: what is coloured, and the words beside it
  for (let level = depth, first = 0; level >= 0; level--) {
    const count = s ** (depth - level), y = top + gap * (depth - level), own = [], x = (k) => left + (inner * (k + 0.5)) / count;
    if (count <= 64) for (let k = 0; k < count; k++) {
      if (level < depth) branches.append(drawing("line", { x1: x(k), y1: y, x2: left + (inner * (Math.floor(k / s) + 0.5) * s) / count, y2: y - gap }));
      own.push(nodes.appendChild(drawing("circle", { cx: x(k), cy: y, r: Math.max(1.8, Math.min(narrow ? 9 : 13, (0.42 * inner) / count)) })));
    } else own.push(nodes.appendChild(drawing("rect", { x: left, y: y - 9, width: inner, height: 18, rx: 3 }))); // too many nodes to draw
    const value = drawing("text", { x: width - right + 14, y: y + 5, class: "value" });
    svg.append(drawing("text", { x: left - 14, y: y + 5, "text-anchor": "end" }, names(level)), value);
    rows.push({ level, own, value, first, single: count <= 64 });
    first += count;
  }
  const shared = { reading: 0, item: "mean" };
  const select = (words, options, change) => {
    const box = make("select", { onchange: () => { change(box.value); show(); } }, ...options.map(([value, text]) => make("option", { value }, text)));
    choices.append(make("label", {}, words, box));
    return box;
  };
  if (tree.readings.length > 1) select("Shown", tree.readings.map((one, k) => [String(k), one.words]), (value) => { shared.reading = Number(value); });
  const items = tree.readings[0].items;
  if (items.length) select("Of", [["mean", "all originals, mean of each level"], ...items.map((one, k) => [String(k), `${one.name}, node by node`])], (value) => { shared.item = value; }).selectedIndex = 1;
  if (items.length) shared.item = "0";
  const paint = (element, share) => {
    element.style.setProperty("--share", share === null ? "0%" : `${Math.round(100 * share)}%`);
    element.classList.toggle("unknown", share === null);
  };
  function show() {
    const reading = tree.readings[shared.reading], k = nearest(noiseOf(scaleOf(tree)), tree.noise), item = reading.items[Number(shared.item)];
    const said = [];
    for (const { level, own, value, first, single } of rows) {
      const mean = reading.levels[level], known = item && single, shares = known ? item.nodes[k].slice(first, first + own.length).map((x) => x / 100) : own.map(() => mean.value[k]);
      own.forEach((element, n) => paint(element, shares[n]));
      value.textContent = known ? `${short(shares.reduce((a, b) => a + b, 0) / shares.length)}` : narrow ? short(mean.value[k]) : span(mean.value[k], mean.low[k], mean.high[k]);
      said.push(`${names(level)} ${value.textContent}`);
    }
    at.textContent = `At ${tree.words}: ${short(tree.noise[k])}, the nearest stored level. Colour: ${reading.words}${item ? `, ${item.name}; at the right, means of the levels` : ", mean over originals; at the right, the means of the levels"}.`;
    note.textContent = item ? "" : items.length ? "All nodes of a level have the colour of its mean." : "All nodes of a level have the colour of its mean: means of levels are what this run kept. The probe tree_nodes keeps single nodes.";
    svg.setAttribute("aria-label", `tree with ${depth + 1} levels; ${said.join(", ")}`);
  }
  sliding.push(show);
  const scale = make("p", { className: "at key" }, "0, lost ", make("i", { className: "scale" }), " 1, kept");
  const title = `Tree at the noise of the slider${tree.run ? ` (run ${tree.run})` : ""}`;
  return make("article", { className: "tree whole" }, make("h3", {}, title), choices, at, svg, scale, note);
}

// --- enlarged ----------------------------------------------------------------------------------------------------------------
function enlarge(content, name) {
  const dialog = byId("large");
  dialog.setAttribute("aria-label", name);
  dialog.lastElementChild.replaceChildren(make("h3", {}, name), content);
  dialog.showModal();
}
function enlargeChart(chart) {
  const plot = make("div", { className: "plot" });
  enlarge(plot, chart.title);
  if (Plotly) Plotly.newPlot(plot, traces(chart), layout(chart), settings);
}
for (const button of document.querySelectorAll("button.picture")) {
  const image = button.firstElementChild;
  button.onclick = () => enlarge(make("img", { src: image.src, alt: image.alt }), image.alt);
}
byId("large").onclick = (event) => { if (event.target === byId("large")) byId("large").close(); };

// --- filter of the verdicts ----------------------------------------------------------------------------------------------------
function filter() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean), rows = [...document.querySelectorAll("#verdicts tbody tr")];
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = (state.show !== "all" && row.dataset.outcome !== state.show) || (state.figure && row.dataset.figure !== state.figure) || !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  byId("count").textContent = `${count} of ${rows.length} shown`;
}
function bind(name, event, after) {
  const input = byId(name);
  if (!input) return;
  if (input.type === "checkbox") input.checked = state[name] === "1"; else input.value = state[name];
  if (input.tagName === "SELECT" && input.selectedIndex < 0) { input.selectedIndex = 0; state[name] = input.value; }
  input.addEventListener(event, () => { state[name] = input.type === "checkbox" ? (input.checked ? "1" : "0") : input.type === "range" ? Number(input.value) : input.value; after(); writeAddress(); });
}

// --- start ---------------------------------------------------------------------------------------------------------------------
let frame = 0, printing = false;
const views = sections.flatMap((section) => [section.grid, section.slides, section.gallery, section.tree, section.tokens]).filter(Boolean);
const scales = [...charts.filter((chart) => chart.slides).map((chart) => chart.axes[0]), ...views.map(scaleOf)];
const alike = (of) => new Set(scales.map(of).filter((one) => one !== undefined)).size === 1;
const unit = alike((scale) => scale.words) && alike(largest) && alike((scale) => scale.log) ? scales.find((scale) => scale.words).words : null; // of the only run
function slide() {
  byId("reading").textContent = unit ? short(noiseOf(scales[0])) : scales.every((scale) => largest(scale) === 1) ? short(state.noise) : `${Math.round(100 * state.noise)} % of each range`;
  byId("noise").setAttribute("aria-valuetext", byId("reading").textContent);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => sliding.forEach((run) => run()));
}
function start() {
  // It begins at the first t*.
  const starred = sections.find((section) => section.headlines.length && (section.charts || []).some((chart) => chart.slides));
  if (starred) {
    const axis = starred.charts.find((chart) => chart.slides).axes[0], share = onScale(axis, starred.headlines[0].place[0]) / onScale(axis, largest(axis));
    if (share <= 1) defaults.noise = state.noise = share;
  }
  readAddress();
  for (const section of sections) for (const chart of section.charts || []) for (const line of chart.lines) line.hidden = false;
  for (const section of sections) {
    const [views, folded] = ["shown", "folded"].map((part) => document.querySelector(`.views[data-section="${CSS.escape(section.id)}"][data-part=${part}]`));
    if (section.grid) views.append(gridView(section.grid));
    if (section.slides) views.append(slidesView(section.slides));
    if (section.gallery) views.append(galleryView(section.gallery));
    if (section.tree) views.append(treeView(section.tree));
    if (section.tokens) views.append(tokensView(section.tokens));
    for (const chart of section.charts || []) (chart.shown ? views : folded).append(chartView(section, chart));
    const shown = views.querySelectorAll(":scope > .chart");
    if (shown.length === 1) shown[0].classList.add("whole");
  }
  byId("word").textContent = unit || word[0].toUpperCase() + word.slice(1);
  byId("bar").setAttribute("aria-label", `${word}, axis and intervals`);
  const axes = new Map([["noise", unit || `${word}, each in its own unit`]]);
  for (const chart of charts) if (chart.slides) for (const axis of chart.axes) if (!axes.has(axis.name)) axes.set(axis.name, axis.words);
  byId("axis").append(...[...axes].map(([value, words]) => make("option", { value }, words)));
  byId("bar").hidden = !sliding.length;
  bind("noise", "input", slide);
  bind("axis", "change", redrawAll);
  bind("intervals", "change", redrawAll);
  if (byId("filter")) {
    byId("filter").onsubmit = (event) => event.preventDefault();
    for (const [name, event] of [["show", "change"], ["figure", "change"], ["search", "input"]]) bind(name, event, filter);
    filter();
  }
  slide();
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest('a[href^="#"]');
    if (link) { event.preventDefault(); goTo(decodeURIComponent(link.hash.slice(1))); writeAddress(); }
  });
  dark.addEventListener("change", () => { slide(); redrawAll(); });
  const all = (now) => { printing = now; for (const view of drawn.values()) if (!view.plot.closest("details:not([open])")) { view.seen = true; redraw(view); } };
  addEventListener("beforeprint", () => all(true));
  addEventListener("afterprint", () => all(false));
  if (state.at) goTo(state.at);
}
async function load() {
  const packed = byId("plotly").textContent;
  if (!charts.length) { document.documentElement.dataset.ready = "no curves"; return; }
  const bytes = Uint8Array.from(atob(packed), (one) => one.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", { textContent: text }));
  Plotly = window.Plotly;
  for (const view of drawn.values()) redraw(view);
  if (state.at && scrollY) goTo(state.at);
  document.documentElement.dataset.ready = "yes";
}
start();
load();
