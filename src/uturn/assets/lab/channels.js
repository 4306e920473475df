// The channels of uturn/corruption: what is observed of a string at a noise level, and the evidence that it gives.
import { NOISE, fold, keyOf, normals, uniforms } from "./random.js";

const noiseStream = (seed) => fold(keyOf(seed, 0), NOISE);

/** Log of the belief 1 - noise + noise / v in the symbol `seen[i]` of leaf i, and noise / v in each other one. */
function twoValued(seen, noise, v) {
  const right = Math.log1p((-noise * (v - 1)) / v),
    wrong = Math.log(noise / v);
  const out = new Float64Array(seen.length * v).fill(wrong);
  seen.forEach((symbol, leaf) => {
    out[leaf * v + symbol] = right;
  });
  return out;
}

const gaussian = {
  name: "Gaussian diffusion",
  python: "Gaussian",
  unit: "diffusion time t",
  most: 0.5,
  corrupt(leaves, noise, v, seed) {
    const abar = Math.exp(-2 * noise),
      spread = Math.fround(Math.sqrt(1 - abar)),
      signal = Math.fround(Math.sqrt(abar));
    const values = normals(noiseStream(seed), leaves.length * v).map((xi) => xi * spread);
    leaves.forEach((symbol, leaf) => {
      values[leaf * v + symbol] += signal;
    });
    return values;
  },
  logEvidence(values, noise, v) {
    if (noise === 0) return Float64Array.from(values, (x) => (x === 1 ? 0 : -Infinity));
    const gain = Math.exp(-noise) / -Math.expm1(-2 * noise);
    return Float64Array.from(values, (x) => x * gain);
  },
  /** The symbols that look most likely, for the drawing of the observed string. */
  seen: (values, v) =>
    Array.from({ length: values.length / v }, (_, leaf) => {
      const own = values.subarray(leaf * v, (leaf + 1) * v);
      return own.indexOf(own.reduce((a, b) => Math.max(a, b)));
    }),
  effectiveEpsilon: (noise, v) => gaussianEpsilon(noise, v),
};

const masking = {
  name: "Masking",
  python: "Masking",
  unit: "masked fraction",
  most: 1,
  corrupt(leaves, noise, v, seed) {
    const u = uniforms(noiseStream(seed), leaves.length);
    return Int16Array.from(leaves, (symbol, leaf) => (u[leaf] < noise ? -1 : symbol));
  },
  logEvidence(values, noise, v) {
    const out = new Float64Array(values.length * v);
    values.forEach((seen, leaf) => {
      if (seen >= 0) for (let symbol = 0; symbol < v; symbol++) out[leaf * v + symbol] = symbol === seen ? 0 : -Infinity;
    });
    return out;
  },
  seen: (values) => Array.from(values),
  effectiveEpsilon: (noise) => noise,
};

const replacement = {
  name: "Uniform replacement",
  python: "UniformReplacement",
  unit: "replaced fraction",
  most: 1,
  corrupt(leaves, noise, v, seed) {
    const d = leaves.length,
      u = uniforms(noiseStream(seed), 2 * d);
    return Int16Array.from(leaves, (symbol, leaf) => (u[leaf] < noise ? Math.floor(u[d + leaf] * v) : symbol));
  },
  logEvidence: twoValued,
  seen: (values) => Array.from(values),
  effectiveEpsilon(noise, v) {
    const other = noise / v,
      right = 1 - (v - 1) * other;
    return ((1 - right * right - (v - 1) * other * other) * v) / (v - 1);
  },
};

const epsilon = {
  name: "ε-process",
  python: "EpsilonBelief",
  unit: "noise ε",
  most: 1,
  corrupt: (leaves) => Int16Array.from(leaves),
  logEvidence: twoValued,
  seen: (values) => Array.from(values),
  effectiveEpsilon: (noise) => noise,
};

export const CHANNELS = { epsilon, gaussian, masking, replacement };

/**
 * Effective ε (Eq. 63) of a Gaussian leaf: v / (v - 1) times the mean belief that the true symbol loses.
 * With independent Gumbel noise added to the logits, E softmax is the probability that the true one is the largest: an
 * integral over y of the density of the true one and of g(y)^(v - 1), g(y) = E exp(-exp(c xi - y)); see
 * uturn/corruption/gaussian.py.
 */
export function gaussianEpsilon(t, v) {
  if (t === 0) return 0;
  const r = 1 / Math.expm1(2 * t);
  if (r > 150) return 0;
  const c = Math.sqrt(r),
    h = 0.35,
    step = Math.min(0.7, h / c),
    reach = Math.ceil(8 / step);
  const xi = Array.from({ length: 2 * reach + 1 }, (_, k) => step * (k - reach));
  const weight = xi.map((x) => Math.exp((-x * x) / 2)),
    total = weight.reduce((a, b) => a + b);
  let recovered = 0;
  for (let y = -8 * c - 5; y < r + 8 * c + 30 + Math.log(v); y += h) {
    let density = 0,
      below = 0;
    for (let k = 0; k < xi.length; k++) {
      const rate = Math.exp(Math.min(c * xi[k] + r - y, 700));
      density += weight[k] * rate * Math.exp(-rate);
      below += weight[k] * Math.exp(-Math.exp(Math.min(c * xi[k] - y, 700)));
    }
    recovered += ((h * density) / total) * (below / total) ** (v - 1);
  }
  return Math.min(1, Math.max(0, ((1 - recovered) * v) / (v - 1)));
}
