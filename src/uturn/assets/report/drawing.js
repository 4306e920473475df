// A chart as data for Plotly: its lines with intervals, its marks, and its axes.
import { page, short, span, state } from "./state.js";
import { interpolate, noiseOf, onScale, ticks } from "./noise.js";

// --- colours ---------------------------------------------------------------------------------

const FEW_COLORS = {
  light: ["#0060a8", "#c04a00", "#00795a", "#a8437f"],
  dark: ["#6bb6ff", "#ff9d5c", "#3fd0a4", "#f29cc9"],
};
const RAMP = {
  light: ["#1b2a8f", "#7a1fa0", "#b32d7d", "#d4552f", "#b98300"],
  dark: ["#7f9bff", "#c58bff", "#ff86c4", "#ff9a76", "#ffd166"],
};

function color(k, count) {
  const scheme = page.isDark && !page.isPrinting ? "dark" : "light";
  if (count <= FEW_COLORS[scheme].length) return FEW_COLORS[scheme][k];
  const place = (k / (count - 1)) * 4;
  const first = Math.min(3, Math.floor(place));
  const channels = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  const from = channels(RAMP[scheme][first]);
  const to = channels(RAMP[scheme][first + 1]);
  const mixed = from.map((one, i) => Math.round(one + (to[i] - one) * (place - first)));
  return `rgb(${mixed.join(",")})`;
}

function faded(ink) {
  if (ink.startsWith("#")) return `${ink}30`;
  return ink.replace("rgb(", "rgba(").replace(")", ",0.19)");
}

// A prediction of theory has the colour of its line.
export function lineColor(chart, k) {
  const measured = chart.lines.filter((line) => line.theory_of === null);
  return color(chart.lines[k].theory_of ?? k, measured.length);
}

// A line that lies on others is drawn over them with gaps.
const DASHES = ["solid", "dash", "dot", "dashdot"];
export function dashOf(line) {
  if (line.theory_of !== null) return "dot";
  return DASHES[Math.min(line.covered, DASHES.length - 1)];
}

export const nameOfLine = (chart, line) => line.name || chart.unit || "value";

// --- axes ------------------------------------------------------------------------------------

export function axisOf(chart) {
  const chosen = chart.axes.find((axis) => axis.name === state.axis);
  return chart.has_slider && chosen ? chosen : chart.axes[0];
}

// The place of a noise on the axis that the reader has chosen.
function placeOf(chart, noise) {
  return interpolate(noise, chart.axes[0].values, axisOf(chart).values);
}

// The points at which curves are drawn. They are linear in the noise between levels, on a
// logarithmic axis too.
function pointsOf(axis) {
  if (!axis.is_logarithmic) return axis.values;
  const known = axis.values.filter((x) => x !== null);
  const points = known.slice(0, 1);
  for (let k = 1; k < known.length; k++) {
    const step = known[k] - known[k - 1];
    for (let part = 1; part < 8; part++) points.push(known[k - 1] + (step * part) / 8);
    points.push(known[k]);
  }
  return points;
}

const MOST_MARKERS = 40; // points of a curve that are drawn one by one

// --- lines -----------------------------------------------------------------------------------

export function traces(chart) {
  const lines = chart.lines.map((line, k) => ({ line, ink: lineColor(chart, k) }));
  // A bright line comes last, on top.
  lines.sort((a, b) => (a.line === chart.bright) - (b.line === chart.bright));
  const shown = lines.filter(({ line }) => !line.hidden);
  return shown.flatMap(({ line, ink }) => tracesOf(chart, line, ink));
}

function tracesOf(chart, line, ink) {
  const axis = axisOf(chart);
  const points = pointsOf(axis);
  const along = (ys) => {
    if (!axis.is_logarithmic) return ys;
    return points.map((x) => interpolate(x, axis.values, ys, chart.is_joined));
  };
  const curve = {
    x: points.map((x) => onScale(axis, x)),
    value: along(line.value),
    low: along(line.low),
    high: along(line.high),
  };
  const isBright = line === chart.bright;
  const opacity = chart.bright && !isBright ? 0.15 : 1;
  const band = state.intervals === "1" ? bandOf(curve, ink, opacity, chart.is_joined) : null;
  const size = isBright ? 8 : 5;
  const hasMarkers = axis.values.length <= MOST_MARKERS && line.theory_of === null;
  const trace = {
    x: curve.x,
    y: curve.value,
    name: nameOfLine(chart, line),
    text: curve.x.map((_, i) => span(curve.value[i], curve.low[i], curve.high[i])),
    mode: hasMarkers ? "lines+markers" : "lines",
    marker: {
      size: points.map((x) => (axis.values.includes(x) ? size : 0)),
      line: { width: 0 },
    },
    line: { color: ink, width: isBright ? 4 : 2, dash: dashOf(line) },
    opacity,
    connectgaps: chart.is_joined,
    showlegend: false,
    hovertemplate: "%{text}<extra>%{meta}</extra>",
    meta: plain(line.name || "value"),
  };
  return band ? [band, trace] : [trace];
}

// The intervals of a curve as areas, one for each stretch of points that have them; null if no
// stretch has two points.
function bandOf(curve, ink, opacity, isJoined) {
  const x = [];
  const y = [];
  for (const stretch of stretchesOf(curve, isJoined)) {
    const back = stretch.slice().reverse();
    x.push(...[...stretch, ...back].map((i) => curve.x[i]), null);
    y.push(...stretch.map((i) => curve.high[i]), ...back.map((i) => curve.low[i]), null);
  }
  if (!x.length) return null;
  return {
    x,
    y,
    fill: "toself",
    fillcolor: faded(ink),
    line: { width: 0 },
    mode: "lines",
    hoverinfo: "skip",
    showlegend: false,
    opacity,
  };
}

// Indices of neighbouring points that have an interval. A joined curve goes on over the others.
function stretchesOf(curve, isJoined) {
  const stretches = [[]];
  curve.x.forEach((x, i) => {
    if (x !== null && curve.low[i] !== null && curve.high[i] !== null) stretches.at(-1).push(i);
    else if (!isJoined) stretches.push([]);
  });
  return stretches.filter((stretch) => stretch.length > 1);
}

// Plotly reads some tags in labels.
function plain(text) {
  return String(text).replace(/</g, "‹").replace(/>/g, "›").replace(/&/g, "＆").slice(0, 60);
}

// --- marks -----------------------------------------------------------------------------------

const ofStyle = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

function vertical(x0, x1, properties) {
  const type = x0 === x1 ? "line" : "rect";
  return { type, xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, layer: "below", ...properties };
}

// The marks of a chart with their intervals, and the place of the slider.
export function shapes(chart, width) {
  const ink = ofStyle("--ink");
  const found = [];
  const marks = marksOf(chart);
  const labels = labelsOf(chart, marks, width);
  marks.forEach(({ value, low, high }, k) => {
    if (low !== null && high !== null && state.intervals === "1") {
      found.push(vertical(low, high, { fillcolor: ink, opacity: 0.08, line: { width: 0 } }));
    }
    const label = {
      text: labels[k].text + "<br>\u00a0".repeat(labels[k].row), // with empty lines below it
      textposition: "end",
      textangle: 0,
      xanchor: labels[k].isLeft ? "right" : "left",
      padding: 3,
      font: { size: 12, color: ink },
    };
    found.push(vertical(value, value, { line: { color: ink, width: 1.5, dash: "dot" }, label }));
  });
  if (chart.has_slider) {
    const place = onScale(axisOf(chart), placeOf(chart, noiseOf(chart.axes[0])));
    const line = { color: ofStyle("--accent"), width: 2.5 };
    if (place !== null) found.push(vertical(place, place, { line, layer: "above" }));
  }
  return found;
}

// The marks that have a place on the axis that the reader has chosen.
function marksOf(chart) {
  const axis = axisOf(chart);
  const marks = chart.marks.map((mark) => {
    const places = mark.places[axis.name] ?? mark.places.noise.map((noise) =>
      (noise === null ? null : placeOf(chart, noise)));
    const [value, low, high] = places.map((place) => onScale(axis, place));
    return { label: plain(mark.label), value, low, high };
  });
  return marks.filter((mark) => mark.value !== null);
}

const LETTER = 6.2; // pixels
const ROW = 15;
const MARGIN = 56; // of a chart, left and right together

// Texts above the lines of the marks, in several rows where they would overlap.
function labelsOf(chart, marks, width) {
  const inner = width - MARGIN;
  const pixel = pixelsOf(chart, inner);
  const order = marks.map((_, k) => k);
  order.sort((a, b) => pixel(marks[a].value) - pixel(marks[b].value));
  const rows = []; // the pixels that texts take in each row
  const labels = [];
  order.forEach((k, number) => {
    const size = LETTER * marks[k].label.length + 6;
    const line = pixel(marks[k].value);
    const isTooFarRight = line + size > inner;
    const isFirstOfSeveral = marks.length > 1 && number === 0;
    const isLeft = line > size && (isTooFarRight || isFirstOfSeveral);
    const text = isLeft ? { from: line - size, to: line } : { from: line, to: line + size };
    const isFree = (row) => row.every((other) => text.to <= other.from || text.from >= other.to);
    let row = rows.findIndex(isFree);
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push(text);
    labels[k] = { text: marks[k].label, isLeft, row };
  });
  return labels;
}

// The place of a value on the first axis, in pixels from the left end of the chart.
function pixelsOf(chart, inner) {
  const axis = axisOf(chart);
  const known = axis.values.filter((x) => x !== null).map((x) => onScale(axis, x));
  const low = Math.min(...known);
  const range = Math.max(...known) - low || 1;
  const border = axis.values.length <= MOST_MARKERS ? 0.055 : 0; // Plotly leaves room for markers
  return (x) => {
    const share = isReversed(axis) ? 1 - (x - low) / range : (x - low) / range;
    return inner * (border + (1 - 2 * border) * share);
  };
}

// --- layout ----------------------------------------------------------------------------------

const isReversed = (axis) => axis.name === "log_snr";

export function layout(chart, width) {
  const ink = ofStyle("--ink");
  const line = ofStyle("--line");
  const axis = axisOf(chart);
  const labels = labelsOf(chart, marksOf(chart), width);
  const rows = 1 + Math.max(0, ...labels.map((label) => label.row));
  const both = {
    color: ink, gridcolor: line, zeroline: false, linecolor: line, automargin: true,
  };
  return {
    margin: { l: 44, r: 12, t: 22 + ROW * (rows - 1), b: 42 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { bgcolor: ofStyle("--raised"), font: { color: ink } },
    shapes: shapes(chart, width),
    xaxis: {
      ...both,
      ...ticks(axis, short),
      title: { text: plain(axis.label) },
      autorange: isReversed(axis) ? "reversed" : true,
    },
    yaxis: { ...both, title: { text: plain(chart.unit) } },
  };
}

export const SETTINGS = { displayModeBar: false, responsive: true, doubleClick: "reset" };
