// The tree with its strings, the table, and the controls.
import { element } from "./charts.js";
import { at, levelName, percent } from "./curves.js";
import { beliefIn, entropyOf, mean } from "./propagation.js";
import { STORY } from "./story.js";
import { TreeView } from "./tree.js";
import {
  GRID,
  averages,
  beliefs,
  chain,
  channel,
  clones,
  effective,
  isTheory,
  meanChanges,
  state,
  theory,
  truth,
} from "./world.js";

export const treeView = new TreeView(at("tree"));

export function showTree() {
  if (!beliefs) return;
  const { view, clone, v } = state;
  const running = chain && chain.shares.length > 1;
  if (view === "changes") treeView.colour(running ? chain.changed : clone ? clones[clone - 1] : meanChanges(), "changes");
  else if (view === "belief") treeView.colour(beliefIn(beliefs.marginals, truth), "belief");
  else
    treeView.colour(
      mapLevels(entropyOf(beliefs.marginals, v), (h) => h.map((x) => 1 - x)),
      "belief",
    );
  const seen = channel().seen(beliefs.noisy, v);
  const observed = seen.map((symbol, leaf) => (symbol < 0 ? "masked" : symbol === truth[0][leaf] ? "same" : "other"));
  treeView.fill([observed, ...clones.map((changed) => Array.from(changed[0], (x) => (x ? "other" : "same")))], clone);
  at("ramp").dataset.view = view;
  const [low, high] = { belief: ["0", "1: known"], certainty: ["0", "1: known"], changes: ["unchanged", "changed"] }[view];
  at("key-low").textContent = low;
  at("key-high").textContent = high;
  const lost = clones.filter((changed) => changed[state.L][0]).length;
  const leaves = mean(clones.map((changed) => mean(changed[0])));
  at("tree-words").textContent =
    view === "changes" && running
      ? `Red: differs from the start after ${chain.shares.length - 1} U-turns.`
      : `${state.clones} U-turns: ${lost} with another class, ${percent(leaves)} of the leaves changed.${
          view === "changes" ? ` The tree shows ${clone ? `reconstruction ${clone}` : "all of them"}.` : ""
        }`;
}

const mapLevels = (levels, change) =>
  Object.fromEntries(Object.entries(levels).map(([level, values]) => [level, change(values)]));

export function showNumbers() {
  if (!beliefs) return;
  const own = beliefIn(beliefs.marginals, truth),
    curve = theory.curves(state.noise, state.L).marginals,
    changed = meanChanges();
  const k = (state.noise / channel().most) * GRID,
    low = Math.min(GRID - 1, Math.floor(k));
  const between = (level) =>
    (averages.levels[low][level] * (low + 1 - k) + averages.levels[low + 1][level] * (k - low)).toFixed(3);
  at("strings-count").textContent = averages.count;
  at("numbers").replaceChildren(
    ...Array.from({ length: state.L + 1 }, (_, k) => state.L - k).map((level) => {
      const row = document.createElement("tr");
      const cells = [
        truth[level].length,
        mean(own[level]).toFixed(3),
        averages.count ? between(level) : "…",
        isTheory() ? curve[level].toFixed(3) : "–",
        percent(mean(changed[level])),
      ];
      row.append(
        Object.assign(document.createElement("th"), { scope: "row", textContent: levelName(level) }),
        ...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })),
      );
      return row;
    }),
  );
}

export function showNode(level, node) {
  if (!beliefs) return;
  const { v } = state,
    symbol = truth[level][node];
  const marginal = beliefs.marginals[level].subarray(node * v, (node + 1) * v);
  const changed = mean(clones.map((clone) => clone[level][node]));
  const place = level === state.L ? "Class" : `${level ? `Level ${level}, node` : "Leaf"} ${node + 1}`;
  const words = document.createElement("div");
  words.textContent =
    `${place}: symbol ${symbol}, belief in it ${marginal[symbol].toFixed(3)}; changed in ${percent(changed)} of the U-turns. ` +
    `Belief in all ${v} symbols:`;
  const bars = element("svg", {
    viewBox: `0 0 ${10 * v} 44`,
    preserveAspectRatio: "none",
    height: 44,
    "aria-hidden": "true",
  });
  marginal.forEach((p, x) =>
    element(
      "rect",
      { x: 10 * x + 1, y: 42 - 40 * p, width: 8, height: 40 * p + 1.5, class: x === symbol ? "bar true" : "bar" },
      bars,
    ),
  );
  at("node").replaceChildren(words, bars);
}

/** Show one tab. Charts have no width while theirs is hidden. */
export function showTab() {
  for (const button of at("tabs").children) {
    button.setAttribute("aria-pressed", button.value === state.tab);
    at(button.value).hidden = button.value !== state.tab;
  }
}

export function showControls() {
  const { most, unit } = channel();
  at("channel").value = state.channel;
  at("noise").value = Math.round((1000 * state.noise) / most);
  const own = state.noise.toFixed(3),
    equal =
      state.channel === "gaussian" || state.channel === "replacement" ? `  (effective ε ${effective().toFixed(3)})` : "";
  at("noise-name").textContent = unit[0].toUpperCase() + unit.slice(1);
  at("noise-value").textContent = own + equal;
  at("noise").setAttribute("aria-valuetext", `${unit} ${own}`);
  for (const input of document.querySelectorAll("input[name=view]")) input.checked = input.value === state.view;
  for (const input of at("grammar").elements) if (input !== document.activeElement) input.value = state[input.name];
  for (const [k, button] of [...at("steps").querySelectorAll("button")].entries()) {
    if (state.step === k + 1) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  }
  const step = STORY[state.step - 1] ?? { title: "Free exploration", text: "Choose a step to come back to the story." };
  if (at("story-text").dataset.step !== String(state.step)) {
    at("story-text").dataset.step = state.step;
    at("story-text").replaceChildren(
      Object.assign(document.createElement("b"), { textContent: `${step.title}. ` }),
      step.text,
    );
  }
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

/** Have a screen reader say something. */
export function announce(text) {
  at("announce").textContent = text;
}

export function showProblem(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}
