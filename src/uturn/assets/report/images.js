// Views of images: a grid of originals and reconstructions, pictures in rows, and tables.
import {
  counted, enlarge, enlargeImage, make, short, sliderName, whenSliderMoves,
} from "./state.js";
import { levelOf } from "./noise.js";

// --- grid: each original beside its reconstruction from the noise of the slider ------------------

export function gridView(grid) {
  const caption = make("p", { className: "at" });
  const tiles = grid.items.map((item) => tileOf(grid, item));
  const pixels = grid.is_smooth ? "" : " hard";
  const box = make("div", { className: `tiles${pixels}` }, ...tiles.map((tile) => tile.element));
  whenSliderMoves(() => {
    const level = levelOf(grid.levels);
    caption.textContent = captionOfGrid(grid, level);
    tiles.forEach((tile) => tile.update(level));
  });
  const order = orderOfTiles(grid, tiles, box);
  const title = make("h3", {}, `Images at the ${sliderName} of the slider`);
  return make("article", { className: "grid whole" }, title, order, caption, box);
}

const imageOf = (url, words) => {
  return url ? make("img", { src: url, alt: words, loading: "lazy" }) : make("i", {});
};

function tileOf(grid, item) {
  const original = imageOf(item.original, `${item.name}, original`);
  const shown = imageOf(item.images[0], "");
  const caption = make("span");
  const pair = make("div", { className: "pair" }, original, shown);
  const element = make("button", { type: "button", className: "tile" }, pair, caption);
  element.onclick = () => enlarge(stripOf(grid, item), nameOfStrip(grid, item));
  const update = (level) => {
    const kept = item.kept ? item.kept[level] : null;
    if (item.images[level] && shown.tagName === "IMG") {
      shown.src = item.images[level];
      const noise = short(grid.levels.values[level]);
      shown.alt = `${item.name}, reconstructed from ${sliderName} ${noise}`;
    }
    const verdict = kept === null ? [] : [": ", make("b", {}, kept ? "kept" : "lost")];
    caption.replaceChildren(item.name, ...verdict);
    element.classList.toggle("lost", kept === false);
  };
  return { item, element, update };
}

// An original and its reconstructions from all levels, side by side.
function stripOf(grid, item) {
  const figure = (url, words) => {
    const image = imageOf(url, `${item.name}, ${words}`);
    return make("figure", {}, image, make("figcaption", {}, words));
  };
  const figures = [figure(item.original, "original")];
  item.images.forEach((url, level) => {
    let words = `${sliderName} ${short(grid.levels.values[level])}`;
    if (item.kept) words += item.kept[level] ? ", class kept" : ", class lost";
    figures.push(figure(url, words));
  });
  return make("div", { className: grid.is_smooth ? "strip" : "strip hard" }, ...figures);
}

function nameOfStrip(grid, item) {
  return grid.half_life ? `${item.name}, ${grid.half_life}: ${short(item.half_life)}` : item.name;
}

function captionOfGrid(grid, level) {
  const noise = short(grid.levels.values[level]);
  const classified = grid.items.filter((item) => item.kept);
  const kept = classified.filter((item) => item.kept[level]).length;
  const count = classified.length ? `: ${kept} of ${classified.length} keep the class.` : ".";
  let words = `Original and reconstruction from ${sliderName} ${noise}, the nearest stored level`;
  words += `${count} ${counted(grid.items.length, grid.total, "originals")}`;
  if (grid.stored < grid.total) words += ` The run kept the images of ${grid.stored}.`;
  if (grid.stored > grid.items.length) words += " They are a sample, drawn with seed 0.";
  return words;
}

// The choice of the order of the originals.
function orderOfTiles(grid, tiles, box) {
  const orders = {
    "as in the run": () => 0,
    "by name": (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
  };
  if (grid.half_life) orders[`by ${grid.half_life}`] = byHalfLife;
  const options = Object.keys(orders).map((name) => make("option", {}, name));
  const select = make("select", {}, ...options);
  select.onchange = () => {
    const sorted = [...tiles].sort((a, b) => orders[select.value](a.item, b.item));
    box.append(...sorted.map((tile) => tile.element));
  };
  return make("div", { className: "filter" }, make("label", {}, "Order", select));
}

function byHalfLife(a, b) {
  const difference = (a.half_life ?? Infinity) - (b.half_life ?? Infinity);
  return difference || 0; // Infinity - Infinity is NaN
}

// --- slides: pictures of which the slider chooses one in each row --------------------------------

export function slidesView(slides) {
  const caption = make("p", { className: "at" });
  const box = make("div");
  for (const row of slides.rows) {
    const image = make("img", { loading: "lazy" });
    const button = make("button", { type: "button", className: "picture" }, image);
    button.onclick = () => enlargeImage(image);
    box.append(make("h4", {}, row.name), button);
    whenSliderMoves(() => {
      const picture = row.pictures[levelOf(slides.levels)];
      const { width, height } = picture;
      Object.assign(image, { src: picture.url, alt: picture.caption, width, height });
    });
  }
  whenSliderMoves(() => {
    caption.textContent = nearestLevel(slides.levels);
  });
  return make("article", { className: "whole" }, make("h3", {}, slides.title), caption, box);
}

function nearestLevel(levels) {
  const value = short(levels.values[levelOf(levels)]);
  return `At ${levels.label}: ${value}, the nearest level of the run.`;
}

// --- gallery: tables of images whose level the slider chooses ------------------------------------

export function galleryView(gallery) {
  const caption = make("p", { className: "at" });
  const box = make("div");
  const cells = []; // {element, update}
  for (const group of gallery.groups) {
    if (gallery.groups.length > 1) box.append(make("h4", {}, group.name));
    box.append(tableOfGroup(gallery, group, cells));
  }
  whenSliderMoves(() => {
    const key = gallery.key.map((part) => {
      return part.swatch ? make("i", { className: part.swatch }) : part;
    });
    const count = counted(gallery.stored, gallery.total, "originals");
    caption.replaceChildren(`${nearestLevel(gallery.levels)} `, ...key, ` ${count}`);
    const level = levelOf(gallery.levels);
    cells.forEach((cell) => cell.update(level));
  });
  const title = make("h3", {}, gallery.title);
  return make("article", { className: "grid whole" }, title, caption, box);
}

function tableOfGroup(gallery, group, cells) {
  const heads = gallery.heads.map((words) => make("th", { scope: "col" }, words));
  const head = make("thead", {}, make("tr", {}, ...heads));
  const bodies = group.items.map((item) => bodyOfItem(gallery, group, item, cells));
  const pixels = gallery.is_smooth ? "" : " hard";
  const table = make("table", { className: `gallery${pixels}` }, head, ...bodies);
  const region = make("div", { className: "scroll", tabIndex: 0, role: "region" }, table);
  region.setAttribute("aria-label", `${gallery.label}, ${group.name}`);
  return region;
}

// The rows of an original, which share its first images.
function bodyOfItem(gallery, group, item, cells) {
  const add = (images, words, properties = {}) => {
    const cell = cellOfGallery(images, `${item.name}: ${words}`, properties);
    cells.push(cell);
    return cell.element;
  };
  const height = { rowSpan: item.rows.length };
  const shared = item.shared.map((images, k) => add(images, gallery.heads[k], height));
  const rows = item.rows.map((columns, k) => {
    const name = make("th", { scope: "row" }, group.rows[k]);
    const own = columns.map((images, n) => {
      return add(images, `${gallery.heads[shared.length + 1 + n]}, ${group.rows[k]}`);
    });
    return make("tr", {}, ...(k === 0 ? shared : []), name, ...own);
  });
  return make("tbody", {}, ...rows);
}

// An image at each level, or one for all levels; a heat map has its mean below it.
function cellOfGallery(images, words, properties) {
  const image = make("img", { loading: "lazy" });
  const isHeat = images[0].size !== null;
  const note = make("small");
  const element = make("td", properties, image, ...(isHeat ? [note] : []));
  const update = (level) => {
    const { url, size } = images[Math.min(level, images.length - 1)];
    if (image.src !== url) image.src = url;
    image.alt = isHeat ? `${words}, ${size} on average` : words;
    if (isHeat) note.textContent = size.toFixed(2);
  };
  return { element, update };
}
