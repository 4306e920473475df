// The tree, and below its leaves the strings: what is observed, and the reconstructions.
import { element, unit } from "./charts.js";

export class TreeView {
  /** `onNode(level, node)` is called when a node is chosen, `onClone(number)` when a reconstruction is. */
  constructor(svg) {
    Object.assign(this, { svg, chosen: null, onNode: () => {}, onClone: () => {} });
    svg.addEventListener("click", (event) => {
      const { level, node, clone } = event.target.dataset;
      if (node !== undefined) this.choose(Number(level), Number(node));
      if (clone !== undefined) this.onClone(Number(clone));
    });
    svg.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Draw the nodes and branches of a tree of L levels with s children a node. */
  layout({ s, L }, clones) {
    Object.assign(this, { s, L, clones, unit: unit() });
    this.width = Math.max(260, this.svg.clientWidth || 700);
    const leaves = s ** L,
      step = (this.width - 20) / leaves;
    const gap = Math.max(34, Math.min(84 * this.unit, this.width / 11.5)),
      top = 18 * this.unit;
    this.svg.replaceChildren();
    const branches = element("g", { class: "branches" }, this.svg),
      nodes = element("g", {}, this.svg);
    this.nodes = {};
    this.branches = {};
    const x = (level, node) => 10 + step * s ** level * (node + 0.5);
    const y = (level) => top + gap * (L - level);
    for (let level = L; level >= 0; level--) {
      this.nodes[level] = [];
      this.branches[level] = [];
      const radius = Math.max(1.8, Math.min((5 + level * 0.9) * this.unit, 0.42 * step * s ** level));
      for (let node = 0; node < s ** (L - level); node++) {
        if (level < L) {
          const parent = Math.floor(node / s);
          const ends = { x1: x(level, node), y1: y(level), x2: x(level + 1, parent), y2: y(level + 1) };
          this.branches[level].push(element("line", ends, branches));
        }
        const circle = { cx: x(level, node), cy: y(level), r: radius, "data-level": level, "data-node": node };
        this.nodes[level].push(element("circle", circle, nodes));
      }
    }
    this.#strings(step, y(0) + 16 * this.unit);
    this.mark();
  }

  /** Rows of cells below the leaves: row 0 is what is observed, row k > 0 reconstruction k. */
  #strings(step, top) {
    const group = element("g", { class: "strings" }, this.svg),
      u = this.unit,
      height = Math.max(7, Math.min(11 * u, step));
    const heading = (y, words) => {
      element("text", { x: 10, y, class: "label" }, group).textContent = words;
    };
    heading(top + 10 * u, "Observed");
    this.rows = [];
    for (let row = 0; row <= this.clones; row++) {
      const y = top + 16 * u + row * (height + 2) + (row ? 20 * u : 0);
      if (row === 1) heading(y - 6 * u, "Reconstructions (choose one to see it in the tree)");
      const cells = Array.from({ length: this.nodes[0].length }, (_, leaf) => {
        const box = { x: 10 + leaf * step + 0.08 * step, y, width: 0.84 * step, height, rx: Math.min(2, step / 5) };
        return element("rect", { ...box, ...(row ? { "data-clone": row } : {}) }, group);
      });
      const tip = row
        ? element("path", { d: `M1 ${y + 1}l6 ${height / 2 - 1}l-6 ${height / 2 - 1}z`, class: "pointer" }, group)
        : null;
      this.rows.push({ cells, tip });
      this.height = y + height + 4;
    }
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
  }

  /** Colour the nodes: `values[level][node]` in [0, 1], from the colour --low to --high; `name`: "belief" or "changes". */
  colour(values, name) {
    this.svg.dataset.view = name;
    for (let level = 0; level <= this.L; level++) {
      const own = values[level];
      this.nodes[level].forEach((circle, node) => {
        const shade = Math.round(own[node] * 100);
        if (circle.shade === shade) return; // most nodes do not change between two positions of the slider
        circle.shade = shade;
        circle.style.setProperty("--share", `${shade}%`);
        this.branches[level][node]?.style.setProperty("--share", `${shade}%`);
      });
    }
  }

  /** Show the observed string and the reconstructions, as kinds of cells: "same", "other", "masked". */
  fill(kinds, chosen) {
    this.rows.forEach(({ cells, tip }, row) => {
      cells.forEach((cell, leaf) => {
        if (cell.kind !== kinds[row][leaf]) cell.setAttribute("class", (cell.kind = kinds[row][leaf]));
      });
      tip?.toggleAttribute("hidden", row !== chosen);
    });
  }

  select(level, node) {
    this.chosen = { level, node };
    this.mark();
  }

  choose(level, node) {
    this.select(level, node);
    this.onNode(level, node);
  }

  mark() {
    this.svg.querySelector(".chosen")?.classList.remove("chosen");
    if (!this.chosen) return;
    const { level, node } = this.chosen;
    if (this.nodes[level]?.[node]) this.nodes[level][node].classList.add("chosen");
    else this.chosen = null;
  }

  #move(event) {
    const { level, node } = this.chosen ?? { level: this.L, node: 0 },
      { s, L } = this;
    const target = {
      ArrowUp: [level + 1, Math.floor(node / s)],
      ArrowDown: [level - 1, node * s],
      ArrowLeft: [level, node - 1],
      ArrowRight: [level, node + 1],
      Home: [L, 0],
      Enter: [level, node],
      " ": [level, node],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    if (this.nodes[target[0]]?.[target[1]]) this.choose(...target);
  }
}
