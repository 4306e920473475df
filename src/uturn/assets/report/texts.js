// The view of texts: each original, and its reconstruction from the noise of the slider.
import { counted, make, short, whenSliderMoves } from "./state.js";
import { levelOf } from "./noise.js";

export function tokensView(tokens) {
  const caption = make("p", { className: "at" });
  const texts = tokens.items.map(textOf);
  const box = make("div", {}, ...texts.map((text) => text.element));
  whenSliderMoves(() => {
    const level = levelOf(tokens.levels);
    caption.replaceChildren(...captionOfTexts(tokens, level));
    texts.forEach((text) => text.update(level));
  });
  const title = make("h3", {}, "Texts at the noise of the slider");
  return make("article", { className: "tokens whole" }, title, caption, box);
}

function captionOfTexts(tokens, level) {
  const noise = short(tokens.levels.values[level]);
  return [
    `Reconstructions from noise ${noise}, the nearest stored level. `,
    make("i", { className: "key" }, "Shaded"),
    ": masked or replaced, and the same again. ",
    make("mark", {}, "Marked"),
    `: another token. ${counted(tokens.items.length, tokens.total, "texts")}`,
  ];
}

function textOf(item) {
  const label = make("h4");
  const original = make("p", { className: "text first" }, item.original.join("").trimStart());
  const shown = make("p", { className: "text" });
  const update = (level) => {
    const { tokens, marks } = item.reconstructions[level];
    const changed = [...marks].filter((mark) => mark === "c").length;
    const count = `${changed} of ${tokens.length} tokens changed`;
    label.textContent = `${item.name}: original, and reconstruction with ${count}`;
    shown.replaceChildren(...tokens.map((token, i) => marked(token, marks[i])));
  };
  return { element: make("article", {}, label, original, shown), update };
}

function marked(token, mark) {
  if (mark === "c") return make("mark", {}, token);
  return mark === "n" ? make("i", {}, token) : token;
}
