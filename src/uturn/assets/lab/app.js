// Changes of the state, the chain, and the events of the page.
import { CHANNELS } from "./channels.js";
import { setLevelColours } from "./charts.js";
import { at, drawChain, drawLegend, drawLevels, drawPhase, markLevels, markPhase, noiseAt } from "./curves.js";
import { problemOf } from "./grammar.js";
import { showImages, startImages } from "./images.js";
import { inRange, rangeWords, readState, writeState } from "./state.js";
import { STORY } from "./story.js";
import { announce, showControls, showNode, showNumbers, showProblem, showTab, showTree, treeView } from "./views.js";
import { average, build, channel, clearChain, compute, setState, state, stepChain } from "./world.js";

let waiting = 0,
  remembering = 0,
  playing = 0,
  times = [];

/** Change the state. Moving the noise recomputes beliefs only; a new grammar, channel or string rebuilds what depends on it. */
function set(changes) {
  const old = state;
  const free = !("step" in changes) && ["v", "m", "s", "L", "channel"].some((name) => name in changes);
  setState({ ...state, ...changes, ...(free ? { step: 0 } : {}) });
  if ("noise" in changes || "draw" in changes) stopChain();
  showTab();
  const differs = (...names) => names.some((name) => state[name] !== old[name]);
  if (differs("v", "m", "s", "L", "seed", "string", "channel")) rebuild(differs("v", "m", "s", "L", "seed", "channel"));
  else if (differs("tab")) drawCharts();
  else if (differs("clones")) treeView.layout(state, state.clones);
  if (!waiting)
    waiting = requestAnimationFrame(() => {
      waiting = 0;
      update();
    });
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    history.replaceState(null, "", writeState(state));
    announce(at("tree-words").textContent);
  }, 150);
}

function rebuild(curves) {
  stopChain();
  build();
  setLevelColours(state.L);
  if (curves) {
    average(() => {
      drawLevels();
      showNumbers();
    });
  }
  drawCharts();
  drawLegend();
  treeView.select(state.L, 0);
}

function drawCharts() {
  treeView.layout(state, state.clones);
  drawLevels();
  drawPhase();
  drawChain();
}

function update() {
  const start = performance.now();
  compute();
  showTree();
  markLevels();
  markPhase();
  showNumbers();
  showControls();
  showImages();
  if (treeView.chosen) showNode(treeView.chosen.level, treeView.chosen.node);
  times = [...times.slice(-199), performance.now() - start];
  if (times.length < 20) return; // the first updates wait for the compiler of the browser
  const median = times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)];
  at("speed").textContent = `Median time of an update: ${median.toFixed(1)} ms.`;
}

function stopChain() {
  clearInterval(playing);
  playing = 0;
  at("play").setAttribute("aria-pressed", "false");
  at("play").textContent = "▶ Chain of U-turns";
}

function toggleChain() {
  if (playing) return stopChain();
  if (state.view !== "changes") set({ view: "changes" });
  at("play").setAttribute("aria-pressed", "true");
  at("play").textContent = "❚❚ Pause the chain";
  playing = setInterval(advance, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 250);
}

function advance() {
  stepChain();
  drawChain();
  showTree();
}

function resetChain() {
  stopChain();
  clearChain();
  drawChain();
  showTree();
}

function changeNumber({ target }) {
  const value = target.value.trim() === "" ? NaN : Number(target.value),
    wanted = { ...state, [target.name]: value };
  const problem = inRange(target.name, value)
    ? problemOf(wanted)
    : `${target.name} = ${target.value || "nothing"}: expected ${rangeWords(target.name)}.`;
  target.setCustomValidity(problem);
  target.setAttribute("aria-invalid", String(Boolean(problem)));
  showProblem(problem);
  if (!problem) set({ [target.name]: value });
}

function start() {
  at("channel").replaceChildren(...Object.entries(CHANNELS).map(([name, { name: words }]) => new Option(words, name)));
  at("steps").replaceChildren(
    ...STORY.map(({ title, set: preset }, k) => {
      const item = document.createElement("li"),
        button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(
        Object.assign(document.createElement("b"), { textContent: k + 1 }),
        Object.assign(document.createElement("span"), { textContent: title }),
      );
      button.addEventListener("click", () => {
        showProblem("");
        resetChain();
        set({ ...preset, step: k + 1 });
      });
      item.append(button);
      return item;
    }),
  );
  treeView.onNode = (level, node) => {
    showNode(level, node);
    announce(at("node").textContent);
  };
  treeView.onClone = (number) => {
    resetChain();
    set({ clone: state.clone === number ? 0 : number, view: "changes" });
  };
  at("noise").addEventListener("input", ({ target }) => set({ noise: (channel().most * target.value) / 1000 }));
  at("channel").addEventListener("change", ({ target }) =>
    set({ channel: target.value, noise: (state.noise / channel().most) * CHANNELS[target.value].most }),
  );
  at("draw").addEventListener("click", () => {
    resetChain();
    set({ draw: (state.draw + 1) % 2 ** 32 });
  });
  at("play").addEventListener("click", toggleChain);
  at("reset").addEventListener("click", resetChain);
  at("grammar").addEventListener("change", changeNumber);
  at("grammar").addEventListener("submit", (event) => event.preventDefault());
  for (const input of document.querySelectorAll("input[name=view]"))
    input.addEventListener("change", () => set({ view: input.value }));
  const drag = (event) => {
    if (event.buttons) set({ noise: noiseAt(event) });
  };
  at("levels").addEventListener("pointerdown", drag);
  at("levels").addEventListener("pointermove", drag);
  for (const button of at("tabs").children) button.addEventListener("click", () => set({ tab: button.value }));
  const themes = ["system", "light", "dark"];
  at("theme").addEventListener("click", ({ target }) => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3];
    document.documentElement.dataset.theme = next;
    target.textContent = `Theme: ${next}`;
  });
  addEventListener("hashchange", () => {
    const read = readState(location.hash);
    showProblem(read.problems.join("; "));
    set(read.state);
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawCharts();
    update();
  });
  const { state: first, problems } = readState(location.hash);
  showProblem(problems.join("; "));
  setState(first);
  showTab();
  startImages(set);
  rebuild(true);
  update();
}

start();
