// The charts: beliefs by level, phase diagram and map, chain. `draw..`: what stays while the slider moves; `mark..`: the rest.
import { Chart } from "./charts.js";
import { beliefIn, mean } from "./propagation.js";
import { phaseDiagram } from "./theory.js";
import { averages, beliefs, chain, channel, effective, isTheory, state, theory, truth } from "./world.js";

const CHAIN = 60; // U-turns that the chart of the chain shows at first
let levelsChart, phaseChart, mapChart;
export const at = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(100 * share)} %`;
export const levelName = (level) => (level === 0 ? "leaves" : level === state.L ? "class" : `level ${level}`);
const levelStyle = (level) => `stroke: var(--level-${level})`;

export function drawLevels() {
  const { most, unit } = channel();
  levelsChart = new Chart(at("levels"), {
    x: { range: [0, most], label: unit },
    y: { range: [0, 1], label: "belief" },
    height: 270,
  });
  const fine = !isTheory() ? [] : Array.from({ length: 101 }, (_, k) => (most * k) / 100);
  const curves = fine.map((noise) => theory.curves(noise, state.L).marginals);
  for (let level = 0; level <= state.L; level++) {
    if (isTheory())
      levelsChart.line(
        fine.map((x, k) => [x, curves[k][level]]),
        `${levelStyle(level)}; stroke-dasharray: 5 4; stroke-width: 1.3`,
      );
    if (averages.count)
      levelsChart.line(
        averages.grid.map((x, k) => [x, averages.levels[k][level]]),
        `${levelStyle(level)}; stroke-width: 2.4`,
      );
  }
  markLevels();
}

export function markLevels() {
  if (!levelsChart || !beliefs) return;
  levelsChart.clearMarks();
  levelsChart.marker(state.noise);
  const own = beliefIn(beliefs.marginals, truth);
  for (let level = 0; level <= state.L; level++)
    levelsChart.dot(state.noise, mean(own[level]), `fill: var(--level-${level})`);
  at("levels-words").textContent =
    averages.count === 0
      ? "Computing the curves …"
      : `Lines: exact, mean of ${averages.count} strings of this grammar. Dots: this string. ${
          isTheory()
            ? "Dashed: mean-field theory."
            : "Mean-field theory describes the ε-process: choose this channel to compare."
        }`;
}

/** The noise at a pointer on the chart of the levels. */
export const noiseAt = (event) => levelsChart.xOf(event);

export function drawLegend() {
  const entries = Array.from({ length: state.L + 1 }, (_, k) => state.L - k).map((level) =>
    legendEntry(levelName(level), "", `var(--level-${level})`),
  );
  at("legend").replaceChildren(...entries, ...(isTheory() ? [legendEntry("mean field", "dashed")] : []));
}

function legendEntry(words, kind, colour = "") {
  const entry = document.createElement("span"),
    swatch = document.createElement("i");
  swatch.className = kind;
  swatch.style.background = colour;
  entry.append(swatch, words);
  return entry;
}

export function drawPhase() {
  const { v, m, s } = state,
    diagram = phaseDiagram(v, s),
    density = m / v ** (s - 1);
  const widest = Math.min(1, Math.max(1.6 / s, 1.15 * density));
  phaseChart = new Chart(at("phase"), {
    x: { range: [0, widest], label: "rule density f = m / vˢ⁻¹" },
    y: { range: [0, 1], label: "ε" },
  });
  const border = [
    [0, diagram[0].noise],
    ...diagram.map((point) => [point.density, point.noise]).filter(([x]) => x <= widest),
  ];
  border.push([widest, border.at(-1)[1]]);
  phaseChart.area([...border, [widest, 0], [0, 0]], { style: "fill: var(--known); opacity: 0.16" });
  phaseChart.line(border, "stroke: var(--known)");
  phaseChart.text(phaseChart.px(0.03 * widest), phaseChart.py(0.06), "recovered", { class: "label" });
  phaseChart.text(phaseChart.px(0.97 * widest), phaseChart.py(0.9), "class lost", { class: "label", "text-anchor": "end" });
  mapChart = new Chart(at("map"), {
    x: { range: [0, 1], label: "belief p below" },
    y: { range: [0, 1], label: "belief F(p) above" },
  });
  mapChart.line(
    [
      [0, 0],
      [1, 1],
    ],
    "stroke: var(--muted); stroke-width: 1",
  );
  const points = Array.from({ length: 101 }, (_, k) => 1 / v + (1 - 1 / v) * (k / 100));
  mapChart.line(
    points.map((p) => [p, theory.upwardMap(p)]),
    "stroke: var(--known)",
  );
  const ends = { "always lost": [1, 0], "always recovered": [0, 1], transition: [1, 1] }[theory.phase]; // 1: attracts
  const kinds = ["fill: var(--card); stroke: var(--ink)", "fill: var(--ink)"];
  mapChart.dot(1 / v, 1 / v, kinds[ends[0]], mapChart.still);
  mapChart.dot(1, 1, kinds[ends[1]], mapChart.still);
  if (theory.fixedPoint !== null) {
    mapChart.dot(theory.fixedPoint, theory.fixedPoint, kinds[0], mapChart.still);
    mapChart.text(
      mapChart.px(theory.fixedPoint) + 9 * mapChart.unit,
      mapChart.py(theory.fixedPoint) + 12 * mapChart.unit,
      "p*",
      { class: "label" },
    );
  }
  markPhase();
}

export function markPhase() {
  if (!phaseChart) return;
  const epsilon = effective(),
    { v, m, s, L } = state,
    density = m / v ** (s - 1);
  phaseChart.clearMarks();
  const hollow = "fill: var(--card); stroke: var(--changed); stroke-width: 2.5";
  phaseChart.dot(density, epsilon, isTheory() ? "fill: var(--changed)" : hollow, phaseChart.moving, 6);
  mapChart.clearMarks();
  let p = 1 - (epsilon * (v - 1)) / v;
  const web = [[p, p]];
  for (let level = 0; level < L; level++, p = web.at(-1)[1]) {
    const above = theory.upwardMap(p);
    web.push([p, above], [above, above]);
  }
  mapChart.line(web, "stroke: var(--changed); stroke-width: 1.6", mapChart.moving);
  mapChart.dot(...web[0], "fill: var(--changed)", mapChart.moving, 5);
  const critical = theory.criticalNoise,
    name = isTheory() ? "ε" : "effective ε";
  const fate =
    theory.phase === "transition"
      ? `In deep trees the class is lost above ε* = ${critical.toFixed(3)}, where p* = ${theory.fixedPoint.toFixed(3)}`
      : `In deep trees the class is ${theory.phase}`;
  const caution =
    isTheory() || theory.phase !== "transition"
      ? ""
      : ` ${channel().name} has another threshold, since its noise differs from leaf to leaf.`;
  at("phase-words").textContent =
    `Mean field of the ε-process. Red: ${name} = ${epsilon.toFixed(3)}, f = ${density.toFixed(3)}, followed up ${
      L
    } levels. ${fate}.${caution}`;
}

export function drawChain() {
  const range = [0, Math.max(CHAIN, chain?.shares.length - 1 || 0)];
  const chainChart = new Chart(at("chain"), {
    x: { range, label: "number of U-turns" },
    y: { range: [0, 1], label: "share equal to the start" },
    height: 230,
  });
  const shares = chain?.shares ?? [];
  for (let level = 0; shares.length && level <= state.L; level++) {
    chainChart.line(
      shares.map((row, step) => [step, row[level]]),
      `${levelStyle(level)}; stroke-width: 2`,
    );
  }
  at("chain-words").textContent =
    shares.length < 2
      ? "Each U-turn starts from the result of the last one. The tree then shows what differs from the start."
      : `After ${shares.length - 1} U-turns: ${shares
          .at(-1)
          .map((share, level) => `${levelName(level)} ${percent(share)}`)
          .reverse()
          .join(", ")} equal to the start.`;
}
