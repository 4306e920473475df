// Exact belief propagation (Eqs. 7, 8, 16-19 of arXiv:2402.16991) and posterior draws on a tree. Messages of a level are one
// array (node, symbol); each is normalised to 1, and the logs of the normalisers add up to the log-evidence.
import { fold, keyOf, uniformAt } from "./random.js";

/**
 * Upward messages, downward messages and marginals, {level: Float64Array (node, symbol)}, and the log-evidence in nats.
 * `logEvidence`: Float64Array (leaf, symbol), log-likelihood of what is observed of a leaf, given its symbol.
 */
export function propagate(grammar, logEvidence) {
  const { v, m, s, L, rules } = grammar;
  const upward = {},
    downward = {},
    marginals = {};
  let total;
  [upward[0], total] = leafMessages(logEvidence, v);
  for (let level = 1; level <= L; level++) {
    upward[level] = new Float64Array(s ** (L - level) * v);
    total += rise(rules[level], v, m, s, upward[level - 1], upward[level]);
  }
  total -= Math.log(v); // the classes are equally likely
  downward[L] = new Float64Array(v).fill(1 / v);
  for (let level = L; level > 0; level--) {
    downward[level - 1] = new Float64Array(upward[level - 1].length);
    descend(rules[level], v, m, s, upward[level - 1], downward[level], downward[level - 1]);
  }
  for (let level = 0; level <= L; level++) {
    marginals[level] = upward[level].map((up, k) => up * downward[level][k]);
    normalise(marginals[level], v);
  }
  return { upward, downward, marginals, logEvidence: total };
}

function leafMessages(logEvidence, v) {
  const out = new Float64Array(logEvidence.length);
  let total = 0;
  for (let first = 0; first < out.length; first += v) {
    let largest = -Infinity;
    for (let k = first; k < first + v; k++) largest = Math.max(largest, logEvidence[k]);
    for (let k = first; k < first + v; k++) out[k] = Math.exp(logEvidence[k] - largest);
    total += largest;
  }
  return [out, total + normalise(out, v)];
}

/** up[y] ~ (1/m) sum over the rules y -> (x_1..x_s) of prod_i up_i[x_i]; returns the sum of the logs of the normalisers. */
function rise(children, v, m, s, below, out) {
  for (let node = 0, to = 0; node < out.length / v; node++) {
    const base = node * s * v;
    for (let symbol = 0, at = 0; symbol < v; symbol++) {
      let sum = 0;
      for (let rule = 0; rule < m; rule++) {
        let product = below[base + children[at++]];
        for (let i = 1; i < s; i++) product *= below[base + i * v + children[at++]];
        sum += product;
      }
      out[to++] = sum / m;
    }
  }
  return normalise(out, v);
}

/** down_i[x] ~ sum over the rules y -> (x_1..x_s) with x_i = x of down[y] * prod_{j != i} up_j[x_j]. */
function descend(children, v, m, s, below, down, out) {
  for (let node = 0; node < down.length / v; node++) {
    const base = node * s * v;
    for (let symbol = 0, at = 0; symbol < v; symbol++) {
      const weight = down[node * v + symbol];
      for (let rule = 0; rule < m; rule++, at += s) {
        if (s === 2) {
          // the general case below, without its loops
          const left = base + children[at],
            right = base + v + children[at + 1];
          out[left] += weight * below[right];
          out[right] += weight * below[left];
          continue;
        }
        for (let i = 0; i < s; i++) {
          let product = weight;
          for (let j = 0; j < s; j++) if (j !== i) product *= below[base + j * v + children[at + j]];
          out[base + i * v + children[at + i]] += product;
        }
      }
    }
  }
  normalise(out, v);
}

/** Scale every group of v numbers to the sum 1; returns the sum of the logs of the sums. */
function normalise(values, v) {
  let logs = 0;
  for (let first = 0; first < values.length; first += v) {
    let sum = 0;
    for (let k = first; k < first + v; k++) sum += values[k];
    if (!(sum > 0)) throw new RangeError("The evidence is impossible in this grammar, or its numbers are too small.");
    for (let k = first; k < first + v; k++) values[k] /= sum;
    logs += Math.log(sum);
  }
  return logs;
}

/** Draw `number` of `sample_posterior(rhm, log_evidence, seed, num_draws)`: a tree from the posterior, from the root down. */
export function drawPosterior({ v, m, s, L, rules }, { upward }, seed, number = 0) {
  const stream = fold(keyOf(seed, 0), [number, 0]);
  const tree = { [L]: Uint8Array.of(pick(upward[L], uniformAt(stream, 0))) };
  const weight = new Float64Array(m);
  let index = 1;
  for (let level = L; level > 0; level--) {
    const below = upward[level - 1],
      children = new Uint8Array(below.length / v);
    tree[level].forEach((symbol, node) => {
      for (let rule = 0; rule < m; rule++) {
        weight[rule] = 1;
        const at = (symbol * m + rule) * s;
        for (let i = 0; i < s; i++) weight[rule] *= below[(node * s + i) * v + rules[level][at + i]];
      }
      const at = (symbol * m + pick(weight, uniformAt(stream, index++))) * s;
      children.set(rules[level].subarray(at, at + s), node * s);
    });
    tree[level - 1] = children;
  }
  return tree;
}

/** The smallest k whose cumulated weight exceeds u times the total. */
function pick(weight, u) {
  const target = u * weight.reduce((a, b) => a + b);
  let sum = 0,
    last = 0;
  for (let k = 0; k < weight.length; k++) {
    sum += weight[k];
    if (weight[k] > 0) last = k;
    if (target < sum) return k;
  }
  return last;
}

/** Belief in the symbol of every node of a tree: {level: array (nodes,)}. */
export function beliefIn(marginals, tree) {
  return Object.fromEntries(
    Object.keys(tree).map((level) => {
      const v = marginals[level].length / tree[level].length;
      return [level, Float64Array.from(tree[level], (symbol, node) => marginals[level][node * v + symbol])];
    }),
  );
}

/** Entropy of the marginal of every node, divided by log v: 0 = known, 1 = nothing known. */
export function entropyOf(marginals, v) {
  return Object.fromEntries(
    Object.entries(marginals).map(([level, p]) => {
      const out = new Float64Array(p.length / v);
      for (let k = 0; k < p.length; k++) if (p[k] > 0) out[Math.floor(k / v)] -= (p[k] * Math.log(p[k])) / Math.log(v);
      return [level, out];
    }),
  );
}

export const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
