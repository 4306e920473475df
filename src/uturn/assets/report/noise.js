// The slider goes from 0 to 1. An axis whose noise goes beyond 1, or is logarithmic, has its
// largest noise at 1 of the slider. A logarithmic scale is linear below its smallest level, so
// that noise 0 has a place: half a decade to the left.
import { state } from "./state.js";

export function largest(axis) {
  const most = Math.max(...axis.values.filter(Number.isFinite));
  return most <= 1.0001 && !axis.is_logarithmic ? 1 : most;
}

const smallest = (axis) => Math.min(...axis.values.filter((x) => x > 0));

export function onScale(axis, x) {
  if (!axis.is_logarithmic || x === null) return x;
  const low = smallest(axis);
  return x < low ? x / low / 2 : Math.log10(x / low) + 0.5;
}

function offScale(axis, place) {
  if (!axis.is_logarithmic) return place;
  const low = smallest(axis);
  return place < 0.5 ? 2 * place * low : low * 10 ** (place - 0.5);
}

// The noise of the slider on an axis, and the nearest of its levels.
export const noiseOf = (axis) => offScale(axis, state.noise * onScale(axis, largest(axis)));
export const levelOf = (axis) => nearest(noiseOf(axis), axis.values);

function nearest(x, values) {
  let best = 0;
  values.forEach((value, k) => {
    if (Math.abs(value - x) < Math.abs(values[best] - x)) best = k;
  });
  return best;
}

// Places and labels of the ticks of a logarithmic axis.
export function ticks(axis, label) {
  if (!axis.is_logarithmic) return {};
  const low = smallest(axis);
  const high = largest(axis);
  const digits = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5];
  const values = [0];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of digits) {
      const value = Number(`${digit}e${power}`);
      if (value >= low && value <= high) values.push(value);
    }
  }
  return { tickvals: values.map((x) => onScale(axis, x)), ticktext: values.map(label) };
}

// The value of a curve at x, linear between its points; null beyond them and across a gap,
// unless the curve is joined.
export function interpolate(x, xs, ys, isJoined = false) {
  const points = xs
    .map((a, k) => ({ x: a, y: ys[k] }))
    .filter((point) => point.x !== null && !(isJoined && point.y === null))
    .sort((a, b) => a.x - b.x);
  if (!points.length) return null;
  if (x < points[0].x - 1e-9 || x > points[points.length - 1].x + 1e-9) return null;
  if (points.length === 1) return points[0].y;
  const k = Math.max(1, points.findIndex((point) => point.x >= x - 1e-12));
  const [before, after] = [points[k - 1], points[k]];
  if (before.y === null || after.y === null) {
    if (Math.abs(x - before.x) < 1e-9) return before.y;
    return Math.abs(x - after.x) < 1e-9 ? after.y : null;
  }
  if (after.x === before.x) return after.y;
  return before.y + ((after.y - before.y) * (x - before.x)) / (after.x - before.x);
}
