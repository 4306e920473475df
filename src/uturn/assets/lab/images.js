// U-turns of images, which the server of `uturn explore --images` computes.
import { at, percent } from "./curves.js";
import { IMAGE_STEPS, IMAGE_TURNS, numbersOf } from "./state.js";
import { state } from "./world.js";

const SHOWN = 20, // images in the strip
  IMAGES = 1000,
  MOST_CHOSEN = 4,
  REST = 250; // milliseconds without a change, after which images are reconstructed
const running = { noisy: null, turns: null }; // the request of each kind that is answered
let first = -1, // image of the strip
  asked = "", // the settings that are wanted
  done = "", // the settings of the U-turns that are shown
  resting = 0;

const chosen = () => numbersOf(state.images);

/** Connect the controls. `set` changes the state of the page. */
export function startImages(set) {
  if (!("served" in document.body.dataset)) return;
  document.querySelector("main").prepend(document.querySelector(".images")); // who started the server came for them
  at("images-none").hidden = true;
  at("images-controls").hidden = false;
  at("image-steps").replaceChildren(...IMAGE_STEPS.map((steps) => new Option(steps, steps)));
  at("image-turns").replaceChildren(...IMAGE_TURNS.map((turns) => new Option(turns, turns)));
  at("image-back").addEventListener("input", ({ target }) => set({ imageBack: Number(target.value) }));
  at("image-steps").addEventListener("change", ({ target }) => {
    const imageSteps = Number(target.value);
    set({ imageSteps, imageBack: Math.round((state.imageBack / state.imageSteps) * imageSteps) });
  });
  at("image-turns").addEventListener("change", ({ target }) => set({ imageTurns: Number(target.value) }));
  at("image-draw").addEventListener("click", () => set({ imageSeed: (state.imageSeed + 1) % 2 ** 32 }));
  for (const [id, step] of [
    ["images-before", -SHOWN],
    ["images-after", SHOWN],
  ])
    at(id).addEventListener("click", () => showStrip((first + step + IMAGES) % IMAGES, set));
  showStrip(Math.floor(Math.min(...chosen()) / SHOWN) * SHOWN, set);
}

async function showStrip(from, set) {
  first = from;
  const answer = await ask("pictures", { first });
  if (!answer || first !== from) return;
  at("images-strip").replaceChildren(
    ...answer.pictures.map(({ item, label, picture }) => {
      const button = Object.assign(document.createElement("button"), { type: "button", title: `Image ${item}: ${label}` });
      button.dataset.item = item;
      button.append(image(picture, `Image ${item}: ${label}`));
      button.addEventListener("click", () => {
        const others = chosen().filter((one) => one !== item);
        if (others.length < chosen().length) return others.length && set({ images: others.join() });
        set({ images: [...others, item].slice(-MOST_CHOSEN).join() });
      });
      return button;
    }),
  );
  markChosen();
}

function markChosen() {
  for (const button of at("images-strip").children)
    button.setAttribute("aria-pressed", String(chosen().includes(Number(button.dataset.item))));
}

/** Show the state: noisy images at once, reconstructions when the state rests. */
export function showImages() {
  if (!("served" in document.body.dataset)) return;
  const { images, imageBack: back, imageSteps: steps, imageTurns: clones, imageSeed: seed } = state;
  at("image-back").max = steps;
  at("image-back").value = back;
  at("image-steps").value = steps;
  at("image-turns").value = clones;
  at("image-value").textContent = `${(back / steps).toFixed(2)} (${back} of ${steps} steps)`;
  at("image-python").textContent = python(state);
  markChosen();
  const wanted = { items: images, back, steps, clones, seed };
  if (JSON.stringify(wanted) === asked) return;
  [asked, done] = [JSON.stringify(wanted), ""];
  clearTimeout(resting);
  at("image-rows").classList.add("old");
  computeTurns(wanted, "noisy");
  resting = setTimeout(() => computeTurns(wanted, "turns"), REST);
}

/** Ask for noisy images, or for U-turns, and show them if they are still wanted. */
async function computeTurns(wanted, kind) {
  const key = JSON.stringify(wanted);
  while (running[kind]) await running[kind];
  if (key !== asked) return;
  const start = performance.now();
  if (kind === "turns") at("image-words").textContent = "Denoising …";
  running[kind] = ask("turns", kind === "turns" ? wanted : { ...wanted, clones: 0 });
  const answer = await running[kind];
  running[kind] = null;
  if (!answer || key !== asked || (kind === "noisy" && done === key)) return;
  if (kind === "turns") done = key;
  showTurns(answer.images, kind === "turns" ? wanted.clones : 0, performance.now() - start);
}

function showTurns(images, clones, time) {
  at("image-rows").replaceChildren(
    ...images.map(({ item, label, noisy, reconstructions, ...original }) => {
      const row = document.createElement("div");
      row.className = "turns";
      row.append(
        figure(original, `image ${item}`, original.class),
        figure({ picture: noisy, class: label }, "noisy"),
        ...reconstructions.map((one, k) => figure(one, k + 1, original.class)),
        ...Array.from({ length: clones ? 0 : state.imageTurns }, (_, k) => figure(null, k + 1)),
      );
      return row;
    }),
  );
  if (!clones) return;
  at("image-rows").classList.remove("old");
  const all = images.flatMap((one) => one.reconstructions.map((turn) => turn.class === one.class));
  const kept = all.filter(Boolean).length;
  at("image-words").textContent =
    `The class is kept in ${kept} of ${all.length} reconstructions (${percent(kept / all.length)}). ` +
    `Computed in ${(time / 1000).toFixed(2)} s.`;
}

/** A picture with its place and the class that is read in it; `null` is a place that is still empty. */
function figure(one, place, original = null) {
  const found = document.createElement("figure"),
    words = document.createElement("figcaption");
  if (one) found.append(image(one.picture, `${place}${original ? `: ${one.class}` : ""}`));
  else found.append(Object.assign(document.createElement("span"), { className: "empty" }));
  words.append(Object.assign(document.createElement("span"), { textContent: place }));
  if (one && original) {
    found.classList.toggle("lost", one.class !== original);
    words.append(
      Object.assign(document.createElement("b"), { textContent: one.class }),
      Object.assign(document.createElement("span"), { textContent: percent(one.probability) }),
    );
  }
  found.append(words);
  return found;
}

const image = (src, alt) => Object.assign(document.createElement("img"), { src, alt, width: 28, height: 28 });

async function ask(name, parameters) {
  try {
    const response = await fetch(`${name}?${new URLSearchParams(parameters)}`);
    if (response.ok) return await response.json();
    at("image-words").textContent = `The server refused: ${await response.text()}`;
  } catch {
    at("image-words").textContent = "The server does not answer; start uturn explore --images again.";
  }
  return null;
}

const python = ({ images, imageBack: back, imageSteps: steps, imageTurns: clones, imageSeed: seed }) => `import uturn as ut
source = ut.sources.FashionMNISTSource()
backward = ut.backward.DiffusionModel(steps=${steps})
corruption = backward.undone(ut.corruption.Diffusion(), source)
originals = next(source.blocks([${images}], ${seed}, source.count()))
turned = ut.u_turn(originals, corruption, backward, ${back} / ${steps}, ${seed}, clones=${clones})
turned.reconstructions  # (images, reconstructions, channel, row, column), in [-1, 1]`;
