// Line charts in SVG: axes and lines that stay, and a layer of marks that follows the slider.

export function element(name, attributes = {}, parent = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

/** Pixels of the page for one pixel at the usual size of letters, which is larger on large screens. */
export const unit = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

export class Chart {
  /** `x`, `y`: {range: [least, most], label}. At most `height` pixels high, and no higher than wide. */
  constructor(svg, { x, y, height = 250 }) {
    Object.assign(this, { svg, x, y });
    this.width = Math.max(240, svg.clientWidth || 400);
    const u = (this.unit = unit());
    this.height = Math.min(height * u, this.width);
    this.box = { left: 44 * u, right: this.width - 14 * u, top: 10 * u, bottom: this.height - 40 * u };
    svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    svg.setAttribute("height", this.height);
    svg.replaceChildren(...[...svg.children].filter((child) => ["title", "desc"].includes(child.tagName)));
    this.still = element("g", {}, svg);
    this.moving = element("g", {}, svg);
    this.#axes();
  }

  px(x) {
    const [least, most] = this.x.range,
      { left, right } = this.box;
    return left + ((x - least) / (most - least)) * (right - left);
  }

  py(y) {
    const [least, most] = this.y.range,
      { top, bottom } = this.box;
    return bottom - ((y - least) / (most - least)) * (bottom - top);
  }

  #axes() {
    const { left, right, top, bottom } = this.box,
      u = this.unit;
    for (const x of ticks(this.x.range, this.width > 320 * u ? 6 : 4)) {
      element("line", { x1: this.px(x), x2: this.px(x), y1: top, y2: bottom, class: "grid" }, this.still);
      this.text(this.px(x), bottom + 15 * u, String(x), { "text-anchor": "middle" });
    }
    for (const y of ticks(this.y.range, 5)) {
      element("line", { x1: left, x2: right, y1: this.py(y), y2: this.py(y), class: "grid" }, this.still);
      this.text(left - 7 * u, this.py(y) + 4 * u, String(y), { "text-anchor": "end" });
    }
    this.text((left + right) / 2, this.height - 6 * u, this.x.label, { "text-anchor": "middle", class: "label" });
    this.text(12 * u, (top + bottom) / 2, this.y.label, {
      "text-anchor": "middle",
      class: "label",
      transform: `rotate(-90 ${12 * u} ${(top + bottom) / 2})`,
    });
  }

  text(x, y, words, attributes = {}, layer = this.still) {
    const node = element("text", { x, y, ...attributes }, layer);
    node.textContent = words;
    return node;
  }

  path(points) {
    return points.map(([x, y], k) => `${k ? "L" : "M"}${this.px(x).toFixed(1)} ${this.py(y).toFixed(1)}`).join("");
  }

  line(points, style, layer = this.still) {
    return element("path", { d: this.path(points), class: "line", style }, layer);
  }

  area(points, attributes) {
    return element("path", { d: `${this.path(points)}Z`, ...attributes }, this.still);
  }

  dot(x, y, style, layer = this.moving, radius = 4) {
    return element("circle", { cx: this.px(x), cy: this.py(y), r: radius * this.unit, class: "dot", style }, layer);
  }

  /** A vertical line at x. */
  marker(x, layer = this.moving) {
    const { top, bottom } = this.box;
    return element("line", { x1: this.px(x), x2: this.px(x), y1: top, y2: bottom, class: "marker" }, layer);
  }

  clearMarks() {
    this.moving.replaceChildren();
  }

  /** The x of a pointer, within the range. */
  xOf(event) {
    const { left, right } = this.box,
      [least, most] = this.x.range;
    const bounds = this.svg.getBoundingClientRect();
    const at = ((event.clientX - bounds.left) * this.width) / bounds.width;
    return Math.min(most, Math.max(least, least + ((at - left) / (right - left)) * (most - least)));
  }
}

function ticks([least, most], about) {
  const rough = (most - least) / about,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(least / step - 1e-9);
  return Array.from({ length: Math.floor(most / step + 1e-9) - first + 1 }, (_, k) =>
    Number(((first + k) * step).toPrecision(10)),
  );
}

const PLASMA = [
  "0d0887",
  "41049d",
  "6a00a8",
  "8f0da4",
  "b12a90",
  "cc4778",
  "e16462",
  "f2844b",
  "fca636",
  "fcce25",
  "f0f921",
].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function plasma(x) {
  const at = Math.min(9.999, x * 10),
    k = Math.floor(at);
  return `rgb(${PLASMA[k].map((low, i) => Math.round(low + (at - k) * (PLASMA[k + 1][i] - low))).join(" ")})`;
}

/** Set the colours --level-0 .. --level-L, from the leaves to the class, for the light and the dark theme. */
export function setLevelColours(L) {
  for (let level = 0; level <= L; level++) {
    const light = plasma(0.03 + (0.69 * level) / L),
      dark = plasma(0.36 + (0.6 * level) / L);
    document.documentElement.style.setProperty(`--level-${level}`, `light-dark(${light}, ${dark})`);
  }
}
