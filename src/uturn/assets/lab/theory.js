// Mean-field theory of the ε-process (section 5 and appendix B of arXiv:2402.16991), as in uturn/theory.py. Formulas use
// complements (1 - belief), which avoids cancellation at small noise.

export class MeanField {
  constructor({ v, m, s }) {
    Object.assign(this, { v, m, s, inverseT: 1 / (v ** s - 1) });
  }

  /** F(p) = [p^s + (m - 1) b] / [p^s + (m v - 1) b], b = (1 - p^s) / (v^s - 1) (Eqs. 11, 41). */
  upwardMap(p) {
    return 1 - this.lostAbove(1 - p);
  }

  /** 1 - F(p) from 1 - p. */
  lostAbove(lost) {
    const { v, m, s, inverseT } = this;
    const b = -Math.expm1(s * Math.log1p(-lost)) * inverseT;
    return (m * (v - 1) * b) / ((1 - lost) ** s + (m * v - 1) * b);
  }

  /** F'(p). */
  slopeAt(p) {
    const { v, m, s, inverseT } = this;
    const x = p ** s,
      below = x + (m * v - 1) * (1 - x) * inverseT;
    return ((m * (v - 1) * inverseT) / below ** 2) * s * p ** (s - 1);
  }

  /** "transition" (lost above ε*), "always lost" or "always recovered", for 0 < ε < 1 in deep trees. */
  get phase() {
    const { v, m, s } = this,
      tuples = v ** s - 1;
    if (s * m * (v - 1) >= tuples) return "always lost";
    return s * v ** (s - 1) * (v - 1) >= m * tuples ? "always recovered" : "transition";
  }

  /** Repulsive fixed point p* of F in (1/v, 1), by bisection: F(p) < p below it, F(p) > p above; null without a transition. */
  get fixedPoint() {
    if (this.phase !== "transition") return null;
    if (this.s === 2) return (this.m - 1) / (this.v - this.m);
    let low = 1 / this.v,
      high = 1;
    for (let step = 0; step < 100; step++) {
      const p = (low + high) / 2;
      if (1 - p < this.lostAbove(1 - p)) low = p;
      else high = p;
    }
    return (low + high) / 2;
  }

  /** ε* = (1 - p*) v / (v - 1); null without a transition. */
  get criticalNoise() {
    const p = this.fixedPoint;
    return p === null ? null : ((1 - p) * this.v) / (this.v - 1);
  }

  /** Beliefs in the true symbol per level (Eqs. 41, 53, 57-62): {upward, downward, marginals}, arrays (L + 1,). */
  curves(epsilon, L) {
    const { v, m, s, inverseT } = this;
    const lost = [(epsilon * (v - 1)) / v];
    for (let level = 1; level <= L; level++) lost.push(this.lostAbove(lost[level - 1]));
    const q = Array(L + 1);
    q[L] = 1 / v;
    for (let level = L - 1; level >= 0; level--) {
      const above = q[level + 1],
        wrong = (above * (m - 1) + (1 - above) * m) * inverseT; // each of the v - 1 other symbols
      const right = above * (1 - lost[level]) ** (s - 1) + wrong * -Math.expm1((s - 1) * Math.log1p(-lost[level]));
      q[level] = right / (right + (v - 1) * wrong);
    }
    const marginals = lost.map((e, level) => {
      const wrong = (e * (1 - q[level])) / (v - 1);
      return 1 - wrong / ((1 - e) * q[level] + wrong);
    });
    return { upward: lost.map((e) => 1 - e), downward: q, marginals };
  }
}

/** The threshold of every m = 1 .. v^(s-1), about `count` of them: [{m, density, noise}]; 0 = always lost, 1 = recovered. */
export function phaseDiagram(v, s, count = 300) {
  const most = v ** (s - 1),
    extremes = { "always lost": 0, "always recovered": 1 };
  const step = Math.max(1, Math.floor(most / count));
  return Array.from({ length: Math.floor((most - 1) / step) + 1 }, (_, k) => {
    const m = 1 + k * step,
      theory = new MeanField({ v, m, s });
    return { m, density: m / most, noise: theory.criticalNoise ?? extremes[theory.phase] };
  });
}
