"""Mean-field theory of the ε-process: the annealed average of belief propagation over the rules
(arXiv:2402.16991).

All formulas use complements (1 - belief), which avoids cancellation at small noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.memory import check_memory
from uturn.exact.grammar import check_tuples, checked_depth

Phase = Literal["transition", "always lost", "always recovered"]


class Curves(NamedTuple):
    """Beliefs in the true symbol, in [0, 1]: arrays (..., depth + 1), tree level last, 0 =
    leaves, depth = class.
    """

    upward: np.ndarray
    downward: np.ndarray
    marginals: np.ndarray


@dataclass(frozen=True)
class MeanField:
    """Mean-field theory of belief propagation on the Random Hierarchy Model (section 5, appendix B
    of arXiv:2402.16991).

    `vocab_size` v, `multiplicity` m, `branching` s, with v * m <= v**s. `num_classes` n: root
    symbols, v by default; only the last upward step and the prior depend on it, so the threshold
    does not.

    Examples
    --------
    >>> mf = MeanField(vocab_size=32, multiplicity=8, branching=2)
    >>> mf.phase, round(mf.critical_noise, 4), round(mf.fixed_point, 4), round(mf.correlation_exponent, 3)
    ('transition', 0.7312, 0.2917, 1.893)
    """

    vocab_size: int
    multiplicity: int
    branching: int
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.num_classes is None:
            object.__setattr__(self, "num_classes", self.vocab_size)
        least_sizes = {"vocab_size": 2, "multiplicity": 1, "branching": 2, "num_classes": 1}
        for name, least in least_sizes.items():
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))
        most_symbols = max(self.vocab_size, self._n)
        check_tuples(self.vocab_size, self.branching, most_symbols, self.multiplicity)
        expected = "at most 2**50, the precision of float64"
        expect(self.vocab_size <= 2**50, "vocab_size", self.vocab_size, expected)

    @property
    def _n(self) -> int:
        return self.vocab_size if self.num_classes is None else self.num_classes

    @cached_property
    def _inverse_T(self) -> float:
        # Of an int of any size: 0.0 when it is huge.
        return float(1 / (self.vocab_size**self.branching - 1))

    # -- the map and its fixed points --------------------------------------------------------------
    def upward_map(self, belief: ArrayLike) -> np.ndarray:
        """One upward step `F(p) = [p**s + (m-1) b] / [p**s + (m v - 1) b]`, `b = (1 - p**s)/(v**s -
        1)` (Eqs. 11, 41).

        Both p and F are beliefs in the true symbol, in [0, 1].
        """
        lost = 1 - np.asarray(belief, float)
        return np.asarray(1 - self._lost_above(lost, self.vocab_size))

    def _lost_above(self, lost: np.ndarray, symbols: int) -> np.ndarray:
        """1 - F(p) from 1 - p, for a parent with `symbols` possible values: m (symbols - 1) b /
        [p**s + (m symbols - 1) b].
        """
        m = self.multiplicity
        s = self.branching
        power = _power(lost, s)
        b = -np.expm1(s * _log_kept(lost)) * self._inverse_T
        return np.asarray(m * (symbols - 1) * b / (power + (m * symbols - 1) * b))

    def slope_at(self, belief: ArrayLike) -> np.ndarray:
        """Derivative F'(p) of the upward map."""
        v = self.vocab_size
        m = self.multiplicity
        s = self.branching
        p = np.asarray(belief, float)
        # F = (x + (m-1)(1-x)/T) / (x + (m v - 1)(1-x)/T) with x = p**s; the numerator of dF/dx is m
        # (v-1)/T.
        x = p**s
        below = x + (m * v - 1) * (1 - x) * self._inverse_T
        slope_in_x = m * (v - 1) * self._inverse_T / below**2
        return np.asarray(slope_in_x * s * p ** (s - 1))

    @property
    def slope_at_one(self) -> float:
        """F'(1) = s m (v-1)/(v**s - 1) (Eq. 42). If it is below 1, the class can be recovered at
        small noise.
        """
        return self.branching * self.multiplicity * (self.vocab_size - 1) * self._inverse_T

    @cached_property
    def phase(self) -> Phase:
        """Fate of the class in deep trees: "transition" (lost above ε*), "always lost" or
        "always recovered" for 0 < ε < 1.
        """
        v = self.vocab_size
        m = self.multiplicity
        s = self.branching
        tuples = v**s - 1
        if s * m * (v - 1) >= tuples:
            return "always lost"
        if s * v ** (s - 1) * (v - 1) >= m * tuples:  # F'(1/v) >= 1
            return "always recovered"
        return "transition"

    @cached_property
    def fixed_point(self) -> float | None:
        """Repulsive fixed point p* of F in (1/v, 1); None without a transition.

        For s = 2, p* = (m-1)/(v-m). In general it is the root of F(p) - p after division by the
        factors of the trivial roots 1 and 1/v.
        """
        if self.phase != "transition":
            return None
        v = self.vocab_size
        m = self.multiplicity
        s = self.branching
        # Numerator over (1-p): p**s + (1/T) [(m-1) - (m v - 1) p] (1 + p + .. + p**(s-1)), highest
        # power first.
        ones = np.ones(s)
        polynomial = np.r_[ones * (1 - m * v), 0] + np.r_[0, ones * (m - 1)]
        polynomial = polynomial * self._inverse_T
        polynomial[0] += 1
        quotient = np.polydiv(polynomial, [1, -1 / v])[0]

        def excess(p: float) -> float:
            return float(np.polyval(quotient, p))

        return float(brentq(excess, 1 / v, 1, xtol=1e-15, rtol=1e-14))

    @property
    def critical_noise(self) -> float | None:
        """ε* = (1 - p*) v/(v-1); None without a transition."""
        p = self.fixed_point
        if p is None:
            return None
        return (1 - p) * self.vocab_size / (self.vocab_size - 1)

    @property
    def slope(self) -> float | None:
        """F'(p*) > 1, the slope at the repulsive fixed point; None without a transition."""
        p = self.fixed_point
        return None if p is None else float(self.slope_at(p))

    @property
    def correlation_exponent(self) -> float | None:
        """`ν = log s / log F'(p*)`: the correlation length grows as `|ε - ε*|**-ν`
        (arXiv:2410.13770); None without one.
        """
        slope = self.slope
        if slope is None:
            return None
        return float(np.log(self.branching) / np.log(slope))

    @property
    def decay_exponent(self) -> float | None:
        """2 - 2/ν: at ε* of deep trees the correlation falls as `r**-(2 - 2/ν)`; None without a
        transition.
        """
        nu = self.correlation_exponent
        return None if nu is None else 2 - 2 / nu

    # -- finite depth ------------------------------------------------------------------------------
    def curves(self, epsilon: ArrayLike, depth: int) -> Curves:
        """Beliefs in the true symbol of every tree level (Eqs. 41, 53, 57-62), for `epsilon`
        (...) in [0, 1], depth <= 10,000.
        """
        lost, q = self._messages(epsilon, depth)
        lost_marginals = [
            self._lost_marginal(lost[..., level], q[..., level], level == depth)
            for level in range(depth + 1)
        ]
        return Curves(1 - lost, q, 1 - np.stack(lost_marginals, axis=-1))

    def _messages(self, epsilon: ArrayLike, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """(1 - upward belief, downward belief) per level, (..., depth + 1)."""
        v = self.vocab_size
        m = self.multiplicity
        s = self.branching
        limit = "`fixed_point` and `critical_noise` are the limit of deep trees"
        depth = checked_depth(depth, instead=limit)
        noise = checked_noise(epsilon, 1)
        where = f"depth = {depth} at {noise.size} noise levels"
        check_memory(where, 64 * noise.size * depth, "lower one of them")
        lost = [noise * ((v - 1) / v)]
        for level in range(1, depth + 1):
            symbols = self._n if level == depth else v
            lost.append(self._lost_above(lost[-1], symbols))
        q = np.full(lost[0].shape, 1 / self._n)
        downward = [q]
        for level in range(depth - 1, -1, -1):
            c = _power(lost[level], s - 1)
            wrong = (q * (m - 1) + (1 - q) * m) * self._inverse_T  # each of the v - 1 other symbols
            right = q * c + wrong * -np.expm1((s - 1) * _log_kept(lost[level]))
            q = right / (right + (v - 1) * wrong)
            downward.append(q)
        return np.stack(lost, axis=-1), np.stack(downward[::-1], axis=-1)

    def _lost_marginal(self, lost: np.ndarray, q: np.ndarray, at_root: bool) -> np.ndarray:
        """1 - P, P = p q / [p q + (1-p)(1-q)/(v-1)] (Eq. 62)."""
        symbols = self._n if at_root else self.vocab_size
        wrong = lost * (1 - q) / max(symbols - 1, 1)
        return np.asarray(wrong / ((1 - lost) * q + wrong))

    def class_crossing(self, depth: int) -> float | None:
        """ε at which the marginals of the class and of the leaves cross (inversion of the levels);
        None if they do not cross.

        At finite depth it can lie below `ε*`: it is .706 for (v, m, s) = (32, 8, 2) at L = 10,
        where `ε* = .731`.
        """
        grid = np.linspace(0, 1, 2001)[1:-1]

        def gap(epsilon: ArrayLike) -> np.ndarray:
            lost, q = self._messages(epsilon, depth)
            of_leaves = self._lost_marginal(lost[..., 0], q[..., 0], False)
            of_class = self._lost_marginal(lost[..., -1], q[..., -1], True)
            return np.asarray(of_leaves - of_class)

        gaps = gap(grid)
        change = np.flatnonzero((gaps[:-1] > 0) & (gaps[1:] <= 0))
        if not len(change):
            return None
        k = change[-1]
        return float(brentq(gap, grid[k], grid[k + 1], xtol=1e-13))

    # -- correlations ------------------------------------------------------------------------------
    def pair_correlations(self, epsilon: ArrayLike, depth: int) -> np.ndarray:
        """Connected correlation of sigma = ±1 (changed or not) of two leaves (arXiv:2410.13770,
        mean field), (..., depth + 1).

        Entry k: leaves whose lowest common ancestor is at level k, hence at distances `s**(k-1) ..
        s**k - 1`; entry 0 is the variance 4 P (1 - P).
        """
        m = self.multiplicity
        s = self.branching
        lost, q = self._messages(epsilon, depth)
        p0 = self._lost_marginal(lost[..., 0], q[..., 0], False)
        result = [4 * p0 * (1 - p0)]
        damping = np.ones_like(p0)
        for k in range(1, depth + 1):
            e = lost[..., k - 1]
            p = 1 - e
            ps = _power(e, s)
            missing = -np.expm1(s * _log_kept(e))  # 1 - p**s
            g = (q[..., k] * (m - 1) + (1 - q[..., k]) * m) * self._inverse_T
            z = q[..., k] * ps + g * missing
            result.append(4 * g * (q[..., k] - g) * e**2 * ps / z**2 * damping)
            # From a node at level k to its child: a = P(child right | node right), b = P(child
            # right | node wrong).
            bend = p * -np.expm1((s - 1) * _log_kept(e))  # p - p**s
            above = ps + (m - 1) * bend * self._inverse_T
            a = above / (above + (m - 1) * e * self._inverse_T)
            with np.errstate(invalid="ignore", divide="ignore"):
                b = np.where(e > 0, bend / missing, (s - 1) / s)
            damping = damping * (a - b) ** 2
        return np.stack(result, axis=-1)

    def susceptibility(self, epsilon: ArrayLike, depth: int) -> np.ndarray:
        """Susceptibility (...), `chi = sum_ij C_ij / sum_i C_ii` over all pairs i, j of leaves
        (arXiv:2410.13770); chi(0) = 1.

        At finite depth the peak is not at `ε*`: for (v, m, s) = (16, 4, 2), where `ε* = .800`, it
        is at .763, .784, .795 for L = 5, 7, 10. With depth it approaches `ε*` for this grammar and
        for (32, 8, 2), but not for all: for (8, 2, 2), where `ε* = .952`, it stays at .907.
        """
        s = self.branching
        if checked_depth(depth) * np.log2(s) > 1000:
            raise ValueError(
                f"depth = {depth}, branching = {s}: more leaves than floating-point numbers can"
                " count; lower depth"
            )
        c = self.pair_correlations(epsilon, depth)
        # Partners of a leaf whose common ancestor is at level 1, 2, ..
        pairs = (s - 1) * float(s) ** np.arange(depth)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = (c[..., 1:] * pairs).sum(axis=-1) / c[..., 0]
        return np.asarray(1 + np.where(c[..., 0] > 0, ratio, 0.0))


class PhaseDiagram(NamedTuple):
    """Threshold against multiplicity: arrays (multiplicities,)."""

    multiplicity: np.ndarray
    """m."""
    rule_density: np.ndarray
    """f = m / v**(s-1)."""
    critical_noise: np.ndarray
    """ε*; 0 if the class is always lost, and 1 if it is always recovered."""
    phase: np.ndarray
    """The `Phase` of each."""


def phase_diagram(
    vocab_size: int, branching: int, multiplicities: ArrayLike | None = None
) -> PhaseDiagram:
    """The threshold ε*(m) of Fig. 6 of arXiv:2402.16991; by default for all m of 1..v**(s-1), if
    these are at most 100,000.

    Examples
    --------
    >>> phase_diagram(32, 2, [4, 8, 16, 17]).critical_noise.round(4).tolist()
    [0.9217, 0.7312, 0.0645, 0.0]
    """
    v = checked_integer("vocab_size", vocab_size, 2)
    s = checked_integer("branching", branching, 2)
    check_tuples(v, s)
    tuples = v ** (s - 1)
    if multiplicities is not None:
        ms = np.ravel(multiplicities).tolist()
    elif tuples <= 100_000:
        ms = list(range(1, tuples + 1))
    else:
        raise ValueError(f"multiplicities: all 1 .. {tuples} are too many; give those to compute")
    theories = [MeanField(v, m, s) for m in ms]
    return PhaseDiagram(
        multiplicity=np.array(ms),
        rule_density=np.array([m / tuples for m in ms]),
        critical_noise=np.array([_end_of_recovery(theory) for theory in theories]),
        phase=np.array([theory.phase for theory in theories]),
    )


def _end_of_recovery(theory: MeanField) -> float:
    """ε*, or the end of its range if there is no transition."""
    if theory.critical_noise is not None:
        return theory.critical_noise
    return 0.0 if theory.phase == "always lost" else 1.0


def _log_kept(lost: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-lost))


def _power(lost: np.ndarray, exponent: int) -> np.ndarray:
    """(1 - lost)**exponent."""
    return (1 - lost) ** exponent
