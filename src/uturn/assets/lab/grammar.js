// The Random Hierarchy Model (arXiv:2307.02129): the rules and strings that uturn/rhm.py draws for the same seed.
import { STRINGS, fold, keyOf, uniformAt, uniforms } from "./random.js";

export const LIMITS = { v: [2, 32], m: [1, 64], s: [2, 4], L: [1, 6], leaves: 64 };

/**
 * A grammar: every symbol of level l = 1..L has m rules, tuples of s symbols of level l - 1; n = v classes.
 * `rules[level]` holds the v * m tuples in a row; tuple r belongs to symbol floor(r / m).
 */
export function drawGrammar({ v, m, s, L, seed }) {
  const problem = problemOf({ v, m, s, L });
  if (problem) throw new RangeError(problem);
  const rules = {};
  for (let level = 1; level <= L; level++) rules[level] = distinctTuples(v, s, v * m, keyOf(seed), level);
  return { v, m, s, L, seed, rules, leaves: s ** L };
}

/** What is wrong with the sizes of a grammar, in words; "" if nothing is. */
export function problemOf({ v, m, s, L }) {
  for (const [name, value] of Object.entries({ v, m, s, L })) {
    const [least, most] = LIMITS[name];
    if (!Number.isInteger(value) || value < least || value > most) {
      return `${name} = ${value}: expected an integer from ${least} to ${most}.`;
    }
  }
  if (v * m > v ** s)
    return `v m = ${v * m} rules, but only v^s = ${v ** s} distinct tuples exist; lower m to at most ${v ** (s - 1)}.`;
  if (s ** L > LIMITS.leaves) return `s^L = ${s ** L} leaves: at most ${LIMITS.leaves} can be shown; lower L or s.`;
  return "";
}

/** `count` of the v^s tuples, drawn uniformly without replacement, in random order. */
function distinctTuples(v, s, count, key, level) {
  const total = v ** s;
  let codes;
  if (2 * count >= total) {
    // dense: a random permutation of all tuples
    const u = uniforms(keyOf(key, level), total);
    codes = Array.from(u.keys())
      .sort((a, b) => u[a] - u[b])
      .slice(0, count);
  } else {
    // sparse: draw with replacement and keep first occurrences
    const found = new Set();
    for (let attempt = 1; found.size < count; attempt++) {
      const stream = keyOf(key, level, attempt);
      for (let tuple = 0; tuple < 2 * count; tuple++) {
        let code = 0;
        for (let i = 0; i < s; i++) code = code * v + Math.floor(uniformAt(stream, tuple * s + i) * v);
        found.add(code);
      }
    }
    codes = [...found].slice(0, count);
  }
  const table = new Uint8Array(count * s);
  codes.forEach((code, row) => {
    for (let i = s - 1; i >= 0; i--, code = Math.floor(code / v)) table[row * s + i] = code % v;
  });
  return table;
}

/** String 0 of `rhm.sample(1, seed)` with its tree: `latents[level]`, level 0 = leaves, level L = class. */
export function sampleTree({ v, m, s, L, rules }, seed) {
  const stream = fold(keyOf(seed, 0), STRINGS);
  const latents = { [L]: Uint8Array.of(pickUniform(uniformAt(stream, 0), v)) };
  let index = 1; // random number i belongs to node i of the tree, counted from the root
  for (let level = L; level > 0; level--) {
    const parents = latents[level],
      children = new Uint8Array(parents.length * s);
    parents.forEach((symbol, node) => {
      const rule = symbol * m + pickUniform(uniformAt(stream, index++), m);
      children.set(rules[level].subarray(rule * s, (rule + 1) * s), node * s);
    });
    latents[level - 1] = children;
  }
  return latents;
}

/** One of `count` equally likely numbers: the smallest k with u < (k + 1) / count, with the sums that Python forms. */
function pickUniform(u, count) {
  for (let k = 0, sum = 0; k < count; k++) {
    sum += 1 / count;
    if (u < sum) return k;
  }
  return count - 1;
}

/** Which nodes differ between two trees: {level: array of 0 and 1}. */
export function differences(one, other) {
  return Object.fromEntries(
    Object.keys(one).map((level) => [level, one[level].map((symbol, node) => +(symbol !== other[level][node]))]),
  );
}
