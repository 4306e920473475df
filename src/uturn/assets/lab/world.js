// The state of the page and what is computed from it. Other modules read these values; only the functions here change them.
import { CHANNELS } from "./channels.js";
import { differences, drawGrammar, sampleTree } from "./grammar.js";
import { beliefIn, drawPosterior, mean, propagate } from "./propagation.js";
import { DEFAULTS } from "./state.js";
import { MeanField } from "./theory.js";

export const AVERAGED = 24; // strings in the mean curves
export const GRID = 32; // noise levels of the curves, and zero

export let state = DEFAULTS;
export let grammar, truth, theory; // of the state: the rules, the tree of the string {level: symbols}, mean-field theory
export let beliefs = null; // of the observed string
export let clones = []; // which nodes each reconstruction changes, {level: 0 or 1}
export let averages = { grid: [], levels: [], count: 0 };
export let chain = null; // {tree: the last result, shares: of unchanged nodes by step and level, changed: which nodes}
let averaging = 0;

export const channel = () => CHANNELS[state.channel];
export const effective = () => channel().effectiveEpsilon(state.noise, state.v);
export const isTheory = () => state.channel === "epsilon"; // mean-field theory describes this channel only

export function setState(next) {
  state = { ...next, clone: Math.min(next.clone, next.clones), noise: Math.min(next.noise, CHANNELS[next.channel].most) };
}

/** Rules, string and theory of a new state. */
export function build() {
  grammar = drawGrammar(state);
  truth = sampleTree(grammar, state.string);
  theory = new MeanField(state);
  beliefs = chain = null;
}

/** Beliefs and reconstructions at the noise of the state. */
export function compute() {
  beliefs = infer(truth[0], state.draw);
  clones = Array.from({ length: state.clones }, (_, k) =>
    differences(truth, drawPosterior(grammar, beliefs, state.draw, k)),
  );
}

function infer(leaves, seed, noise = state.noise) {
  const noisy = channel().corrupt(leaves, noise, state.v, seed);
  return { noisy, ...propagate(grammar, channel().logEvidence(noisy, noise, state.v)) };
}

/** Mean beliefs of many strings at all noise levels, a few milliseconds at a time, so that the page stays responsive. */
export function average(show) {
  clearTimeout(averaging);
  const grid = Array.from({ length: GRID + 1 }, (_, k) => (channel().most * k) / GRID);
  const sums = grid.map(() => new Float64Array(state.L + 1));
  averages = { grid, levels: [], count: 0 };
  let string = 0,
    k = 0,
    drawn = 0,
    tree;
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
      show();
    }
    if (!done) averaging = setTimeout(work, 0);
  };
  averaging = setTimeout(work, 0);
}

/** One more U-turn, from the result of the last one. */
export function stepChain() {
  chain ??= { tree: truth, shares: [Array(state.L + 1).fill(1)] };
  const seed = state.draw + chain.shares.length; // U-turn k has the seed draw + k
  chain.tree = drawPosterior(grammar, infer(chain.tree[0], seed), seed);
  chain.changed = differences(truth, chain.tree);
  chain.shares.push(Array.from({ length: state.L + 1 }, (_, level) => 1 - mean(chain.changed[level])));
}

export function clearChain() {
  chain = null;
}

/** Share of the reconstructions that change a node: {level: array (nodes,)}. */
export function meanChanges() {
  const share = (level) => Float64Array.from(truth[level], (_, node) => mean(clones.map((own) => own[level][node])));
  return Object.fromEntries(Object.keys(truth).map((level) => [level, share(level)]));
}
