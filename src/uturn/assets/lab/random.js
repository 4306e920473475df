// Counter-based random numbers, the same as those of uturn/random.py: Philox4x32-10 (Salmon et al., SC 2011).
// A 64-bit number is an array [low, high] of two 32-bit words.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
export const STRINGS = [1, 0x80000000]; // sub-streams of a sample, as in uturn/random.py
export const NOISE = [2, 0x80000000];

export function words(integer) {
  return [integer >>> 0, Math.floor(integer / 2 ** 32) >>> 0];
}

/** Upper 32 bits of the product of two 32-bit words. */
function upperProduct(a, b) {
  const a0 = a & 0xffff,
    a1 = a >>> 16,
    b0 = b & 0xffff,
    b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carry = Math.floor((a0 * b1 + (middle & 0xffff)) / 65536);
  return (a1 * b1 + Math.floor(middle / 65536) + carry) >>> 0;
}

/** The four 32-bit words that Philox makes of a key, a counter and a domain, each [low, high]. */
export function philox(key, counter, domain = [0, 0]) {
  let [k0, k1] = key,
    [c0, c1] = counter,
    [c2, c3] = domain;
  for (let round = 0; round < 10; round++) {
    const high0 = upperProduct(MULTIPLIERS[0], c0),
      low0 = Math.imul(MULTIPLIERS[0], c0) >>> 0;
    const high1 = upperProduct(MULTIPLIERS[1], c2),
      low1 = Math.imul(MULTIPLIERS[1], c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** Key of the sub-stream `coordinate` of the stream `key`. */
export function fold(key, coordinate) {
  const [low, high] = philox(key, coordinate, [1, 0]);
  return [low, high];
}

/** `uturn.random.keys(seed, *coordinates)`: the key of a tuple of integers. */
export function keyOf(...integers) {
  return integers.reduce((key, integer) => fold(key, Array.isArray(integer) ? integer : words(integer)), [0, 0]);
}

/** The uniform number in [0, 1) at `index` of the stream `key`, with 53 random bits. */
export function uniformAt(key, index) {
  const [low, high] = philox(key, words(index));
  return (high * 2 ** 21 + (low >>> 11)) * 2 ** -53;
}

export function uniforms(key, count) {
  return Float64Array.from({ length: count }, (_, index) => uniformAt(key, index));
}

/** The first `count` standard normal float32 numbers of the stream `key`; one Philox call gives four. */
export function normals(key, count) {
  const out = new Float32Array(count);
  for (let at = 0; at < count; at += 4) {
    const [a, b, c, d] = philox(key, words(at / 4));
    const four = [...normalPair(a, b), ...normalPair(c, d)];
    for (let k = 0; k < 4 && at + k < count; k++) out[at + k] = four[k];
  }
  return out;
}

// -- Box-Muller in float32, the polynomials of uturn/box_muller.py --------------------------------------------------------
const LOG = [
  0.3333333134651184, -0.250008225440979, 0.20001226663589478, -0.16623356938362122, 0.14201761782169342, -0.131601944565773,
  0.12761549651622772, -0.07634429633617401,
].map(Math.fround);
const SINE = [-0.16666655242443085, 0.008332177996635437, -0.00019517297914717346].map(Math.fround);
const COSINE = [0.04166664555668831, -0.001388736767694354, 2.443845005473122e-5].map(Math.fround);
const LOG_TWO = Math.fround(Math.log(2)),
  TURN = Math.fround(2 * Math.PI * 2 ** -32),
  SQRT_HALF_BITS = 0x3f3504f3;
const asFloat = new Float32Array(1),
  asBits = new Int32Array(asFloat.buffer);

/** a * b + c in float32. The product of two float32 is exact in float64. */
const fma = (a, b, c) => Math.fround(a * b + c);

function logarithm(u) {
  asFloat[0] = u;
  const bits = asBits[0],
    exponent = (bits - SQRT_HALF_BITS) >> 23;
  asBits[0] = bits - (exponent << 23);
  const f = Math.fround(asFloat[0] - 1),
    square = Math.fround(f * f);
  let p = LOG[7];
  for (let k = 6; k >= 0; k--) p = fma(p, f, LOG[k]);
  p = fma(Math.fround(p * f), square, -0.5 * square);
  return fma(exponent, LOG_TWO, Math.fround(f + p));
}

function normalPair(a, b) {
  const radius = Math.fround(Math.sqrt(-2 * logarithm(Math.fround(Math.fround(Math.fround(a) + 1) * 2 ** -32))));
  const quarter = ((b + 2 ** 29) >>> 0) >>> 30; // the nearest multiple of a quarter turn
  const x = Math.fround(Math.fround((b - (quarter << 30)) | 0) * TURN),
    square = Math.fround(x * x);
  const sine = fma(Math.fround(fma(fma(SINE[2], square, SINE[1]), square, SINE[0]) * square), x, x);
  const inner = fma(fma(COSINE[2], square, COSINE[1]), square, COSINE[0]);
  const cosine = fma(inner, Math.fround(square * square), fma(-0.5, square, 1));
  const [along, across] = quarter & 1 ? [sine, cosine] : [cosine, sine];
  return [radius * ((quarter + 1) & 2 ? -along : along), radius * (quarter & 2 ? -across : across)].map(Math.fround);
}
