// The page: one state, what is computed from it, and the views.
import { CHANNELS } from "./channels.js";
import { Chart, element, setLevelColours } from "./charts.js";
import { differences, drawGrammar, problemOf, sampleTree } from "./grammar.js";
import { beliefIn, drawPosterior, entropyOf, mean, propagate } from "./propagation.js";
import { inRange, rangeWords, readState, writeState } from "./state.js";
import { STORY } from "./story.js";
import { MeanField, phaseDiagram } from "./theory.js";
import { TreeView } from "./tree.js";

const AVERAGED = 24; // strings in the mean curves
const GRID = 32; // noise levels of the curves, and zero
const CHAIN = 60; // U-turns that the chart of the chain shows
const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
const levelName = (level) => (level === 0 ? "leaves" : level === state.L ? "class" : `level ${level}`);
const levelStyle = (level) => `stroke: var(--level-${level})`;

let { state, problems } = readState(location.hash);
let grammar, truth, theory, beliefs, clones, levelsChart, phaseChart, mapChart, chainChart;
let averages = { levels: [], count: 0 }, averaging = 0, chain = null, playing = 0, times = [];

// -- what is computed ------------------------------------------------------------------------------------------------------
const channel = () => CHANNELS[state.channel];
const effective = () => channel().effectiveEpsilon(state.noise, state.v);

function infer(leaves, seed, noise = state.noise) {
  const noisy = channel().corrupt(leaves, noise, state.v, seed);
  return { noisy, ...propagate(grammar, channel().logEvidence(noisy, noise, state.v)) };
}

/** Mean beliefs of many strings at all noise levels, a few milliseconds at a time, so that the page stays responsive. */
function average() {
  clearTimeout(averaging);
  const grid = Array.from({ length: GRID + 1 }, (_, k) => (channel().most * k) / GRID);
  const sums = grid.map(() => new Float64Array(state.L + 1));
  averages = { grid, levels: [], count: 0 };
  let string = 0, k = 0, tree, drawn = 0;
  const work = () => {
    const start = performance.now();
    while (performance.now() - start < 10) {
      if (k === 0) tree = sampleTree(grammar, string);
      const found = beliefIn(infer(tree[0], string, grid[k]).marginals, tree);
      for (let level = 0; level <= state.L; level++) sums[k][level] += mean(found[level]);
      if (++k <= GRID) continue;
      [k, string] = [0, string + 1];
      averages.count = string;
      averages.levels = sums.map((row) => row.map((sum) => sum / string));
      if (string === AVERAGED) break;
    }
    const done = averages.count === AVERAGED;
    if (averages.count && (done || performance.now() - drawn > 250)) {
      drawn = performance.now();
      drawLevels();
      showNumbers();
    }
    if (!done) averaging = setTimeout(work, 0);
  };
  averaging = setTimeout(work, 0);
}

// -- the views: what stays while the slider moves ----------------------------------------------------------------------------
const treeView = new TreeView(at("tree"), {
  onNode: showNode,
  onClone: (number) => set({ clone: state.clone === number ? 0 : number, view: "changes" }),
});

function drawCharts() {
  treeView.layout(state, state.clones);
  drawLevels();
  drawPhase();
  drawChain();
}

function drawLevels() {
  const { most, unit } = channel();
  levelsChart = new Chart(at("levels"), { x: { range: [0, most], label: unit }, y: { range: [0, 1], label: "belief" }, height: 270 });
  const isTheory = state.channel === "epsilon"; // mean-field theory describes this channel only
  const fine = !isTheory ? [] : Array.from({ length: 101 }, (_, k) => (most * k) / 100);
  const curves = fine.map((noise) => theory.curves(noise, state.L).marginals);
  for (let level = 0; level <= state.L; level++) {
    if (isTheory) levelsChart.line(fine.map((x, k) => [x, curves[k][level]]), `${levelStyle(level)}; stroke-dasharray: 5 4; stroke-width: 1.3`);
    if (averages.count) levelsChart.line(averages.grid.map((x, k) => [x, averages.levels[k][level]]), `${levelStyle(level)}; stroke-width: 2.4`);
  }
  markLevels();
}

function drawPhase() {
  const { v, s } = state, diagram = phaseDiagram(v, s);
  phaseChart = new Chart(at("phase"), { x: { range: [0, 1], label: "rule density f = m / vˢ⁻¹" }, y: { range: [0, 1], label: "ε" } });
  const border = [[0, diagram[0].noise], ...diagram.map(({ density, noise }) => [density, noise])];
  phaseChart.area([...border, [1, 0], [0, 0]], { style: "fill: var(--known); opacity: 0.16" });
  phaseChart.line(border, "stroke: var(--known)");
  phaseChart.text(phaseChart.px(0.04), phaseChart.py(0.06), "recovered", { class: "label" });
  phaseChart.text(phaseChart.px(0.96), phaseChart.py(0.9), "class lost", { class: "label", "text-anchor": "end" });
  mapChart = new Chart(at("map"), { x: { range: [0, 1], label: "belief p below" }, y: { range: [0, 1], label: "belief F(p) above" } });
  mapChart.line([[0, 0], [1, 1]], "stroke: var(--muted); stroke-width: 1");
  const points = Array.from({ length: 101 }, (_, k) => 1 / v + (1 - 1 / v) * (k / 100));
  mapChart.line(points.map((p) => [p, theory.upwardMap(p)]), "stroke: var(--known)");
  const ends = { "always lost": [1, 0], "always recovered": [0, 1], transition: [1, 1] }[theory.phase]; // 1: attracts
  const kinds = ["fill: var(--card); stroke: var(--ink)", "fill: var(--ink)"];
  mapChart.dot(1 / v, 1 / v, kinds[ends[0]], mapChart.still);
  mapChart.dot(1, 1, kinds[ends[1]], mapChart.still);
  if (theory.fixedPoint !== null) {
    mapChart.dot(theory.fixedPoint, theory.fixedPoint, kinds[0], mapChart.still);
    mapChart.text(mapChart.px(theory.fixedPoint) + 9, mapChart.py(theory.fixedPoint) + 12, "p*", { class: "label" });
  }
  markPhase();
}

function drawChain() {
  const range = [0, Math.max(CHAIN, chain?.shares.length - 1 || 0)];
  chainChart = new Chart(at("chain"), { x: { range, label: "number of U-turns" }, y: { range: [0, 1], label: "share equal to the start" }, height: 230 });
  const shares = chain?.shares ?? [];
  for (let level = 0; shares.length && level <= state.L; level++) {
    chainChart.line(shares.map((row, step) => [step, row[level]]), `${levelStyle(level)}; stroke-width: 2`);
  }
  at("chain-words").textContent = shares.length < 2
    ? "Each U-turn starts from the result of the last one. Press “Chain of U-turns”; the tree then shows what differs from the start."
    : `After ${shares.length - 1} U-turns: ${shares.at(-1).map((share, level) => `${levelName(level)} ${percent(share)}`).reverse().join(", ")} equal to the start.`;
}

// -- the views: what follows the slider ---------------------------------------------------------------------------------------
function update() {
  const start = performance.now();
  beliefs = infer(truth[0], state.draw);
  clones = Array.from({ length: state.clones }, (_, k) => differences(truth, drawPosterior(grammar, beliefs, state.draw, k)));
  showTree();
  markLevels();
  markPhase();
  showNumbers();
  showControls();
  if (treeView.chosen) showNode(treeView.chosen.level, treeView.chosen.node);
  times = [...times.slice(-199), performance.now() - start];
  const median = times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)];
  at("speed").textContent = `Median time of an update: ${median.toFixed(1)} ms.`;
}

function meanChanges() {
  return Object.fromEntries(Object.keys(truth).map((level) => [level, truth[level].length
    ? Float64Array.from(truth[level], (_, node) => mean(clones.map((changed) => changed[level][node]))) : []]));
}

function showTree() {
  const { view, clone, v } = state;
  const running = chain && chain.shares.length > 1;
  if (view === "changes") treeView.colour(running ? chain.changed : clone ? clones[clone - 1] : meanChanges(), "changes");
  else if (view === "belief") treeView.colour(beliefIn(beliefs.marginals, truth), "belief");
  else treeView.colour(mapLevels(entropyOf(beliefs.marginals, v), (h) => h.map((x) => 1 - x)), "belief");
  const seen = channel().seen(beliefs.noisy, v);
  const observed = seen.map((symbol, leaf) => (symbol < 0 ? "masked" : symbol === truth[0][leaf] ? "same" : "other"));
  treeView.fill([observed, ...clones.map((changed) => Array.from(changed[0], (x) => (x ? "other" : "same")))], clone);
  at("ramp").dataset.view = view;
  const [low, high] = { belief: ["0", "1: known"], certainty: ["0", "1: known"], changes: ["unchanged", "changed"] }[view];
  at("key-low").textContent = low;
  at("key-high").textContent = high;
  const lost = clones.filter((changed) => changed[state.L][0]).length;
  const leaves = mean(clones.map((changed) => mean(changed[0])));
  at("tree-words").textContent = view === "changes" && running
    ? `Red: differs from the start after ${chain.shares.length - 1} U-turns.`
    : `${state.clones} U-turns: ${lost} with another class, ${percent(leaves)} of the leaves changed.${
      view === "changes" ? ` The tree shows ${clone ? `reconstruction ${clone}` : "all of them"}.` : ""}`;
}

const mapLevels = (levels, change) => Object.fromEntries(Object.entries(levels).map(([level, values]) => [level, change(values)]));

function markLevels() {
  if (!levelsChart || !beliefs) return;
  levelsChart.clearMarks();
  levelsChart.marker(state.noise);
  const own = beliefIn(beliefs.marginals, truth);
  for (let level = 0; level <= state.L; level++) levelsChart.dot(state.noise, mean(own[level]), `fill: var(--level-${level})`);
  at("levels-words").textContent = averages.count === 0 ? "Computing the curves …"
    : `Lines: exact, mean of ${averages.count} strings of this grammar. Dots: this string. ${state.channel === "epsilon"
      ? "Dashed: mean-field theory." : "Mean-field theory describes the ε-process: choose this channel to compare."}`;
}

function markPhase() {
  if (!phaseChart) return;
  const epsilon = effective(), { v, m, s, L } = state, density = m / v ** (s - 1);
  phaseChart.clearMarks();
  const isTheory = state.channel === "epsilon", hollow = "fill: var(--card); stroke: var(--changed); stroke-width: 2.5";
  phaseChart.dot(density, epsilon, isTheory ? "fill: var(--changed)" : hollow, phaseChart.moving, 6);
  mapChart.clearMarks();
  let p = 1 - (epsilon * (v - 1)) / v;
  const web = [[p, p]];
  for (let level = 0; level < L; level++, p = web.at(-1)[1]) {
    const above = theory.upwardMap(p);
    web.push([p, above], [above, above]);
  }
  mapChart.line(web, "stroke: var(--changed); stroke-width: 1.6", mapChart.moving);
  mapChart.dot(...web[0], "fill: var(--changed)", mapChart.moving, 5);
  const critical = theory.criticalNoise, name = isTheory ? "ε" : "effective ε";
  const fate = theory.phase === "transition" ? `In deep trees the class is lost above ε* = ${critical.toFixed(3)}, where p* = ${theory.fixedPoint.toFixed(3)}`
    : `In deep trees the class is ${theory.phase}`;
  const caution = isTheory || theory.phase !== "transition" ? "" : ` ${channel().name} loses the class at a smaller effective ε, because its noise differs from leaf to leaf.`;
  at("phase-words").textContent = `Mean field of the ε-process. Red: ${name} = ${epsilon.toFixed(3)}, f = ${density.toFixed(3)}, followed up ${
    L} levels. ${fate}.${caution}`;
}

function showNumbers() {
  if (!beliefs) return;
  const own = beliefIn(beliefs.marginals, truth), curve = theory.curves(state.noise, state.L).marginals, changed = meanChanges();
  const k = (state.noise / channel().most) * GRID, low = Math.min(GRID - 1, Math.floor(k));
  const between = (level) => (averages.levels[low][level] * (low + 1 - k) + averages.levels[low + 1][level] * (k - low)).toFixed(3);
  at("strings-count").textContent = averages.count;
  at("numbers").replaceChildren(...Array.from({ length: state.L + 1 }, (_, k) => state.L - k).map((level) => {
    const row = document.createElement("tr");
    const cells = [truth[level].length, mean(own[level]).toFixed(3), averages.count ? between(level) : "…", state.channel === "epsilon" ? curve[level].toFixed(3) : "–", percent(mean(changed[level]))];
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: levelName(level) }),
      ...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
}

function showNode(level, node) {
  const { v } = state, symbol = truth[level][node];
  const marginal = beliefs.marginals[level].subarray(node * v, (node + 1) * v);
  const changed = mean(clones.map((clone) => clone[level][node]));
  const place = level === state.L ? "Class" : `${level ? `Level ${level}, node` : "Leaf"} ${node + 1}`;
  const words = document.createElement("div");
  words.textContent = `${place}: symbol ${symbol}, belief in it ${marginal[symbol].toFixed(3)}; changed in ${percent(changed)} of the U-turns. Belief in all ${v} symbols:`;
  const bars = element("svg", { viewBox: `0 0 ${10 * v} 44`, preserveAspectRatio: "none", height: 44, "aria-hidden": "true" });
  marginal.forEach((p, x) => element("rect", { x: 10 * x + 1, y: 42 - 40 * p, width: 8, height: 40 * p + 1.5, class: x === symbol ? "bar true" : "bar" }, bars));
  at("node").replaceChildren(words, bars);
}

function showControls() {
  const { most, unit } = channel();
  at("channel").value = state.channel;
  at("noise").value = Math.round((1000 * state.noise) / most);
  const own = state.noise.toFixed(3), equal = state.channel === "gaussian" || state.channel === "replacement" ? `  (effective ε ${effective().toFixed(3)})` : "";
  at("noise-name").textContent = unit[0].toUpperCase() + unit.slice(1);
  at("noise-value").textContent = own + equal;
  at("noise").setAttribute("aria-valuetext", `${unit} ${own}`);
  for (const input of document.querySelectorAll("input[name=view]")) input.checked = input.value === state.view;
  for (const input of at("grammar").elements) if (input !== document.activeElement) input.value = state[input.name];
  for (const [k, button] of [...at("steps").querySelectorAll("button")].entries()) {
    if (state.step === k + 1) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  }
  at("story-text").textContent = state.step ? STORY[state.step - 1].text : "Free exploration: choose a step to come back to the story.";
  const { v, m, s, L, seed, string, draw, clones: count } = state;
  at("python").textContent = `import uturn as ut
rhm = ut.RandomHierarchyModel(${v}, ${m}, ${s}, ${L}, seed=${seed})
tree = rhm.sample(1, seed=${string})
channel = ut.${channel().python}()
noisy = channel.corrupt(tree.leaves, ${Number(state.noise.toPrecision(6))}, vocab_size=${v}, seed=${draw})
evidence = channel.log_evidence(noisy, float)
beliefs = ut.infer(rhm, evidence)
clones = ut.sample_posterior(rhm, evidence, seed=${draw}, num_draws=${count})`;
}

// -- changes of the state ------------------------------------------------------------------------------------------------------
let waiting = 0;

/** Change the state. Moving the noise recomputes beliefs only; a new grammar, channel or string rebuilds what depends on it. */
function set(changes) {
  const old = state;
  state = { ...state, ...changes };
  if (!("step" in changes) && ["v", "m", "s", "L", "channel"].some((name) => state[name] !== old[name])) state.step = 0;
  if ("noise" in changes || "draw" in changes) stopChain();
  const differs = (...names) => names.some((name) => state[name] !== old[name]);
  if (differs("v", "m", "s", "L", "seed", "string", "channel")) rebuild(differs("v", "m", "s", "L", "seed", "channel"));
  else if (differs("clones")) treeView.layout(state, state.clones);
  state.clone = Math.min(state.clone, state.clones);
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; update(); });
  clearTimeout(set.remember);
  set.remember = setTimeout(() => history.replaceState(null, "", writeState(state)), 150);
}

function rebuild(curves) {
  stopChain();
  chain = null;
  beliefs = null;
  state.noise = Math.min(state.noise, channel().most);
  grammar = drawGrammar(state);
  truth = sampleTree(grammar, state.string);
  theory = new MeanField(state);
  setLevelColours(state.L);
  if (curves) average();
  drawCharts();
  at("node").textContent = "Choose a node of the tree to see the belief in each of its symbols.";
  treeView.chosen = null;
  const entries = Array.from({ length: state.L + 1 }, (_, k) => state.L - k).map((level) => legendEntry(levelName(level), "", `var(--level-${level})`));
  at("legend").replaceChildren(...entries, ...(state.channel === "epsilon" ? [legendEntry("mean field", "dashed")] : []));
}

function legendEntry(words, kind, colour = "") {
  const entry = document.createElement("span"), swatch = document.createElement("i");
  swatch.className = kind;
  swatch.style.background = colour;
  entry.append(swatch, words);
  return entry;
}

// -- the chain --------------------------------------------------------------------------------------------------------------------
function stepChain() {
  chain ??= { tree: truth, shares: [Array(state.L + 1).fill(1)] };
  const seed = state.draw + chain.shares.length; // U-turn k has the seed draw + k
  chain.tree = drawPosterior(grammar, infer(chain.tree[0], seed), seed);
  chain.changed = differences(truth, chain.tree);
  chain.shares.push(Array.from({ length: state.L + 1 }, (_, level) => 1 - mean(chain.changed[level])));
  drawChain();
  showTree();
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
  playing = setInterval(stepChain, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 250);
}

function resetChain() {
  stopChain();
  chain = null;
  drawChain();
  showTree();
}

// -- events -------------------------------------------------------------------------------------------------------------------------
function showProblem(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}

function changeNumber({ target }) {
  const value = target.value.trim() === "" ? NaN : Number(target.value), wanted = { ...state, [target.name]: value };
  const problem = inRange(target.name, value) ? problemOf(wanted) : `${target.name} = ${target.value || "nothing"}: expected ${rangeWords(target.name)}.`;
  target.setCustomValidity(problem);
  target.setAttribute("aria-invalid", String(Boolean(problem)));
  showProblem(problem);
  if (!problem) set({ [target.name]: value });
}

function start() {
  at("channel").replaceChildren(...Object.entries(CHANNELS).map(([name, { name: words }]) => new Option(words, name)));
  at("steps").replaceChildren(...STORY.map(({ title, set: preset }, k) => {
    const item = document.createElement("li"), button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(Object.assign(document.createElement("b"), { textContent: k + 1 }), title);
    button.addEventListener("click", () => { showProblem(""); resetChain(); set({ ...preset, step: k + 1 }); });
    item.append(button);
    return item;
  }));
  at("noise").addEventListener("input", ({ target }) => set({ noise: (channel().most * target.value) / 1000 }));
  at("channel").addEventListener("change", ({ target }) => set({ channel: target.value, noise: (state.noise / channel().most) * CHANNELS[target.value].most }));
  at("draw").addEventListener("click", () => { chain = null; drawChain(); set({ draw: (state.draw + 1) % 2 ** 32 }); });
  at("play").addEventListener("click", toggleChain);
  at("reset").addEventListener("click", resetChain);
  at("grammar").addEventListener("change", changeNumber);
  at("grammar").addEventListener("submit", (event) => event.preventDefault());
  for (const input of document.querySelectorAll("input[name=view]")) input.addEventListener("change", () => set({ view: input.value }));
  const drag = (event) => { if (event.buttons) set({ noise: levelsChart.xOf(event) }); };
  at("levels").addEventListener("pointerdown", drag);
  at("levels").addEventListener("pointermove", drag);
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
  showProblem(problems.join("; "));
  rebuild(true);
  update();
}

start();
