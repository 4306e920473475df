// The view of a tree: every node has the colour of what is kept of it at the noise of the slider.
import { make, short, span, whenSliderMoves } from "./state.js";
import { levelOf } from "./noise.js";

const MOST_NODES = 64; // of a level that is drawn node by node
const WIDE = { width: 900, left: 70, right: 200, gap: 46, top: 20, radius: 13, isNarrow: false };
const NARROW = { width: 420, left: 66, right: 56, gap: 34, top: 16, radius: 9, isNarrow: true };

export function treeView(tree) {
  const size = innerWidth < 700 ? NARROW : WIDE;
  const drawing = drawTree(tree, size);
  const caption = make("p", { className: "at", role: "note" });
  const note = make("p", { className: "at" });
  // Which reading is shown, and of which original; null for all originals together.
  const chosen = { reading: tree.readings[0], original: tree.readings[0].originals[0] ?? null };
  const update = () => {
    const level = levelOf(tree.levels);
    const original = chosen.original && originalOf(chosen);
    const values = drawing.rows.map((row) => paintRow(row, chosen.reading, original, level, size));
    caption.textContent = captionOf(tree, chosen.reading, original, level);
    note.textContent = noteOf(tree, original);
    const list = drawing.rows.map((row, k) => `${row.name} ${values[k]}`).join(", ");
    drawing.svg.setAttribute("aria-label", `tree with ${tree.depth + 1} levels; ${list}`);
  };
  whenSliderMoves(update);
  const choices = choicesOf(tree, chosen, update);
  const scale = make("i", { className: "scale" });
  const key = make("p", { className: "at key" }, "0, lost ", scale, " 1, kept");
  const run = tree.run ? ` (run ${tree.run})` : "";
  const title = make("h3", {}, `Tree at the noise of the slider${run}`);
  const parts = [title, choices, caption, drawing.svg, key, note];
  return make("article", { className: "tree whole" }, ...parts);
}

// The nodes of the chosen original in the chosen reading.
function originalOf({ reading, original }) {
  return reading.originals.find((other) => other.name === original.name) ?? null;
}

// --- drawing ---------------------------------------------------------------------------------

function svgElement(tag, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The picture, and its rows from the root down: what is coloured, and the words beside it.
function drawTree(tree, size) {
  const height = size.top + size.gap * tree.depth + 22;
  const svg = svgElement("svg", { viewBox: `0 0 ${size.width} ${height}`, role: "img" });
  const branches = svgElement("g", { class: "branches" });
  const nodes = svgElement("g", {});
  svg.append(branches, nodes);
  const rows = [];
  let first = 0; // number of the first node of a level
  for (let level = tree.depth; level >= 0; level--) {
    const count = tree.branching ** (tree.depth - level);
    const y = size.top + size.gap * (tree.depth - level);
    const isSingle = count <= MOST_NODES;
    const elements = isSingle ? drawNodes(count, y, size) : [drawBar(y, size)];
    nodes.append(...elements);
    if (isSingle && level < tree.depth) branches.append(...drawBranches(count, y, tree, size));
    const name = nameOfLevel(tree, level);
    const label = { x: size.left - 14, y: y + 5, "text-anchor": "end" };
    const value = svgElement("text", { x: size.width - size.right + 14, y: y + 5, class: "value" });
    svg.append(svgElement("text", label, name), value);
    rows.push({ level, name, elements, value, first, isSingle });
    first += count;
  }
  return { svg, rows };
}

function nameOfLevel(tree, level) {
  if (level === tree.depth) return "class";
  return level === 0 ? "leaves" : `level ${level}`;
}

const innerWidthOf = (size) => size.width - size.left - size.right;
const placeOfNode = (k, count, size) => size.left + (innerWidthOf(size) * (k + 0.5)) / count;

function drawNodes(count, y, size) {
  const widest = Math.min(size.radius, (0.42 * innerWidthOf(size)) / count);
  const r = Math.max(1.8, widest);
  return Array.from({ length: count }, (_, k) => {
    return svgElement("circle", { cx: placeOfNode(k, count, size), cy: y, r });
  });
}

// A level with too many nodes to draw.
function drawBar(y, size) {
  const width = innerWidthOf(size);
  return svgElement("rect", { x: size.left, y: y - 9, width, height: 18, rx: 3 });
}

function drawBranches(count, y, tree, size) {
  const parents = count / tree.branching;
  return Array.from({ length: count }, (_, k) => svgElement("line", {
    x1: placeOfNode(k, count, size),
    y1: y,
    x2: placeOfNode(Math.floor(k / tree.branching), parents, size),
    y2: y - size.gap,
  }));
}

// --- colours and words at a noise level ------------------------------------------------------

// Colour a row and write its mean beside it; gives the mean in words.
function paintRow(row, reading, original, level, size) {
  const mean = reading.means[row.level];
  let shares = row.elements.map(() => mean.value[level]);
  let words = short(mean.value[level]);
  if (original && row.isSingle) {
    const own = original.nodes[level].slice(row.first, row.first + row.elements.length);
    shares = own.map((percent) => percent / 100);
    words = short(shares.reduce((sum, share) => sum + share, 0) / shares.length);
  } else if (!size.isNarrow) {
    words = span(mean.value[level], mean.low[level], mean.high[level]);
  }
  row.elements.forEach((element, k) => paint(element, shares[k]));
  row.value.textContent = words;
  return words;
}

function paint(element, share) {
  const percent = share === null ? 0 : Math.round(100 * share);
  element.style.setProperty("--share", `${percent}%`);
  element.classList.toggle("unknown", share === null);
}

function captionOf(tree, reading, original, level) {
  const value = short(tree.levels.values[level]);
  const whose = original
    ? `${original.name}; at the right, means of the levels`
    : "mean over originals; at the right, the means of the levels";
  return `At ${tree.levels.label}: ${value}, the nearest stored level. `
    + `Colour: ${reading.label}, ${whose}.`;
}

function noteOf(tree, original) {
  if (original) return "";
  const words = "All nodes of a level have the colour of its mean";
  if (tree.readings[0].originals.length) return `${words}.`;
  const kept = "means of levels are what this run kept";
  return `${words}: ${kept}. The probe tree_nodes keeps single nodes.`;
}

// --- choice of the reading and the original --------------------------------------------------

function choicesOf(tree, chosen, update) {
  const box = make("div", { className: "filter" });
  const add = (label, names, change) => { // `names`: of the options, by their values
    const options = Object.entries(names).map(([value, name]) => make("option", { value }, name));
    const select = make("select", {}, ...options);
    select.onchange = () => {
      change(select.value);
      update();
    };
    box.append(make("label", {}, label, select));
    return select;
  };
  if (tree.readings.length > 1) {
    const labels = { ...tree.readings.map((reading) => reading.label) };
    add("Shown", labels, (value) => { chosen.reading = tree.readings[value]; });
  }
  const { originals } = tree.readings[0];
  if (originals.length) {
    const names = { ...originals.map((original) => `${original.name}, node by node`) };
    names.mean = "all originals, mean of each level";
    const select = add("Of", names, (value) => { chosen.original = originals[value] ?? null; });
    select.prepend(select.lastChild);
    select.value = "0";
  }
  return box;
}
