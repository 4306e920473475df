// U-turns of images: those of examples/laboratory_images.py, which the page holds.
import { at, percent } from "./curves.js";
import { IMAGES } from "./state.js";
import { state } from "./world.js";

let shownTurns = ""; // original and noise level

/** Connect the controls. `set` changes the state of the page. */
export function startImages(set) {
  const { originals, back, steps, seed } = IMAGES;
  at("image-choice").replaceChildren(
    ...originals.map((original, k) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(image(original.picture, original.class));
      button.addEventListener("click", () => set({ image: k }));
      return button;
    }),
  );
  at("image-level").max = back.length - 1;
  at("image-level").addEventListener("input", ({ target }) => set({ imageLevel: Number(target.value) }));
  at("image-source").textContent =
    `The page does not compute these images. They were computed once, by the model and the classifier that come with the ` +
    `package: ${steps} steps of the chain, seed ${seed}. For other images, steps and seeds, change the code below.`;
}

export function showImages() {
  const { image: chosen, imageLevel: level } = state;
  if (shownTurns === `${chosen} ${level}`) return;
  shownTurns = `${chosen} ${level}`;
  const { originals, steps, seed, clones } = IMAGES,
    original = originals[chosen],
    back = IMAGES.back[level],
    { noisy, reconstructions } = original.levels[level];
  for (const [k, button] of [...at("image-choice").children].entries()) button.setAttribute("aria-pressed", k === chosen);
  at("image-level").value = level;
  at("image-value").textContent = (back / steps).toFixed(2);
  at("image-level").setAttribute("aria-valuetext", at("image-value").textContent);
  at("image-turns").replaceChildren(
    figure("original", original.picture, original),
    figure("noisy", noisy),
    ...reconstructions.map((turn, k) => figure(`reconstruction ${k + 1}`, turn.picture, turn, turn.class !== original.class)),
  );
  const kept = originals.map((one) => one.levels[level].reconstructions.filter((turn) => turn.class === one.class).length);
  at("image-words").textContent =
    `The class is kept in ${kept[chosen]} of ${clones} reconstructions; for all ${originals.length} originals, in ` +
    `${kept.reduce((a, b) => a + b)} of ${clones * originals.length}.`;
  at("image-python").textContent = `import uturn as ut
source = ut.sources.FashionMNISTSource()
backward = ut.backward.DiffusionModel(steps=${steps})
corruption = backward.forward_process(source)
originals = next(source.blocks([${original.item}], ${seed}, source.count()))
turned = ut.u_turn(originals, corruption, backward, ${back} / ${steps}, ${seed}, clones=${clones})
turned.reconstructions  # (images, reconstructions, channel, row, column), in [-1, 1]`;
}

/** A picture with its place, and the class that is read in it with its probability. */
function figure(place, picture, read = null, lost = false) {
  const element = document.createElement("figure"),
    words = document.createElement("figcaption"),
    word = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
  element.classList.toggle("lost", lost);
  words.append(word("span", place));
  if (read) words.append(word("b", read.class), word("span", percent(read.probability)));
  element.append(image(picture, read ? `${place}: ${read.class}` : place), words);
  return element;
}

const image = (png, alt) =>
  Object.assign(document.createElement("img"), { src: `data:image/png;base64,${png}`, alt, width: 28, height: 28 });
