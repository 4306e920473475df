"""Population dynamics: belief propagation on trees of any depth, and the threshold of every
channel.

A pool holds messages drawn from the law of the messages of a level. For the next pool, a new node
takes a rule and a random message for each of its children, and makes one upward step of belief
propagation. In the ensemble "one grammar" all nodes of a level share their rules, and there is one
pool for each true symbol; with "fresh rules" every node has rules of its own, and one pool
suffices, with true symbol 0. All noise levels use the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit, prange

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.progress import steps
from uturn.core.protocols import Channel
from uturn.core.random import Purpose, checked_seed, fold, keys, philox, uniforms
from uturn.exact.rhm import RandomHierarchyModel, tuples
from uturn.exact.theory import MeanField

Ensemble = Literal["one grammar", "fresh rules"]
ENSEMBLES: tuple[Ensemble, ...] = ("one grammar", "fresh rules")

# Keys of the random streams are keys(seed, Purpose.POPULATION, replicate, use, tree_level) with
# these values of `use`.
_RULES, _MEMBERS, _LEAVES = range(3)
_LANES = 16  # noise levels in a round of the threshold search
_MOST_LEVELS = 300
_MOST_TUPLES = 2**20  # "fresh rules" shuffles all v**s of them
_MOST_BYTES = 8 * 2**30


class PopulationBeliefs(NamedTuple):
    """Mean upward belief in the true symbol: arrays (*noise.shape, levels + 1), tree level last, 0
    = leaves.

    `standard_error` is the error of the mean, from the spread between independent pools of the same
    grammar. It includes the errors of all levels below.
    """

    beliefs: np.ndarray
    standard_error: np.ndarray


@dataclass(frozen=True)
class ThresholdEstimate:
    """Noise at which the class of an infinitely deep tree is lost, in the unit of the channel.

    `values` (replicates,): threshold of each replicate. 0 if the class is lost at all noise levels
    that the search resolves; the channel's `max_noise`, which may be inf, if it is recovered at all
    of them. `value`, `standard_error`, `spread`: mean of `values` (NaN if only some are infinite),
    its standard error, and the standard deviation of `values`; NaN for one replicate, or if any
    value is infinite. `phase`: of all replicates; "mixed" if they differ. `effective_epsilon`,
    `bits_per_leaf`: `value` in effective ε (Eq. 63 of arXiv:2402.16991) and in bits.
    """

    values: np.ndarray
    value: float
    standard_error: float
    spread: float
    phase: Literal["transition", "always lost", "always recovered", "mixed"]
    effective_epsilon: float
    bits_per_leaf: float


def population_dynamics(
    vocab_size: int,
    multiplicity: int,
    branching: int,
    corruption: Channel,
    noise: Any,
    levels: int,
    pool: int = 8192,
    ensemble: Ensemble = "one grammar",
    seed: int = 0,
    *,
    replicates: int = 4,
    grammar: RandomHierarchyModel | int | None = None,
) -> PopulationBeliefs:
    """Mean belief in the true symbol of a node, given the noisy leaves below it, level by level.

    The step `up[y] ~ sum over rules y -> (x_1, .., x_s) of prod_i up_i[x_i]` (Eq. 7 of
    arXiv:2402.16991) is iterated on a pool of messages (Mezard and Montanari 2009, ch. 14). Up to
    the finite pool, entry l is the mean root belief of exact inference (`uturn.infer`) on trees of
    depth l with uniform classes.

    `vocab_size`, `multiplicity`, `branching`: v, m, s with v * m <= v**s. `corruption`: the law of
    its evidence must be symmetric under permutations of the symbols. `noise` (...): levels in its
    unit. `levels`: tree levels above the leaves. `pool`: total number of messages, which "one
    grammar" divides among the true symbols, rounded up; at most 8 GB of memory. `replicates` >= 2:
    independent pools of the same grammar, for means and standard errors. `grammar`, for "one
    grammar": a model with depth >= `levels` and uniform rule probabilities, or the seed of a model;
    by default it is drawn from `seed`.
    """
    setting = _Setting.checked(vocab_size, multiplicity, branching, corruption, pool, ensemble)
    checked_integer("levels", levels, 1)
    checked_integer("replicates", replicates, 2)
    checked_seed(seed)
    wanted = checked_noise(noise, corruption.max_noise)
    setting.check_memory(wanted.size, levels)
    model = setting.grammar(grammar, seed, 0, levels)
    flows = [
        np.stack(list(setting.flow(wanted.reshape(-1), levels, seed, r, model)), axis=-1)
        for r in range(replicates)
    ]
    beliefs = np.reshape(flows, (replicates, *wanted.shape, levels + 1))
    return PopulationBeliefs(
        beliefs.mean(axis=0), beliefs.std(axis=0, ddof=1) / np.sqrt(replicates)
    )


def threshold(
    vocab_size: int,
    multiplicity: int,
    branching: int,
    corruption: Channel,
    pool: int = 8192,
    ensemble: Ensemble = "one grammar",
    seed: int = 0,
    *,
    replicates: int = 8,
    tolerance: float = 5e-4,
    grammars: Sequence[RandomHierarchyModel | int] | None = None,
) -> ThresholdEstimate:
    """Noise beyond which the class of a deep tree is lost, for any channel.

    The mean belief of the pool flows, level by level, to 1 (recovered) or to 1/v (lost). A noise
    level counts as recovered if the belief is above (1 + 1/v)/2 after K tree levels. The search
    uses the effective ε (Eq. 63 of arXiv:2402.16991), and divides an interval by 16 noise levels,
    until they are at most `tolerance` apart.

    Near the threshold, the distance from it grows as `slope**K`, with slope = F'(p*) of the mean
    field, so that K = 5 + 1.25 log(1/distance)/log(slope) decides the levels next to it. Without a
    transition in mean field, the slope is that at the fixed point 1 or 1/v, and the distance that
    of the beliefs at the leaves from it, if smaller. K is at most 300, too small for slopes below
    about 1.03: the class then seems to be recovered at small noise, although it is lost in deeper
    trees.

    Other arguments are those of `population_dynamics`. A finite pool adds a random error to every
    threshold, which is part of the `spread`; a noise level at which all its leaves are certain, or
    all are uninformative, is assigned to neither phase. `replicates`: independent grammars and
    pools, or pools with fresh rules. `grammars`, for "one grammar": a model of depth 300 or more,
    or the seed of one, for each replicate.

    Examples
    --------
    >>> import uturn as ut
    >>> from uturn.exact.population import threshold
    >>> found = threshold(8, 2, 2, ut.EpsilonBelief(), pool=400, ensemble="fresh rules", replicates=2, tolerance=0.02)
    >>> found.phase, bool(abs(found.value - ut.theory.MeanField(8, 2, 2).critical_noise) < 0.05)
    ('transition', True)
    """
    setting = _Setting.checked(vocab_size, multiplicity, branching, corruption, pool, ensemble)
    checked_seed(seed)
    checked_integer("replicates", replicates, 1)
    expect(0 < tolerance <= 0.1, "tolerance", tolerance, "a number in (0, 0.1]")
    chosen: list[Any] = [None] * replicates if grammars is None else list(grammars)
    expect(chosen, "grammars", grammars, "at least one grammar or seed")
    setting.check_memory(_LANES, _MOST_LEVELS)
    models = [setting.grammar(grammar, seed, r, _MOST_LEVELS) for r, grammar in enumerate(chosen)]
    return setting.estimate(
        np.array(
            [setting.search(seed, r, model, tolerance) for r, model in enumerate(steps(models))]
        )
    )


@dataclass(frozen=True)
class _Setting:
    """Checked arguments that all noise levels and replicates share."""

    v: int
    m: int
    s: int
    corruption: Any
    pool: int
    ensemble: Ensemble

    @classmethod
    def checked(cls, v: Any, m: Any, s: Any, corruption: Any, pool: Any, ensemble: Any) -> _Setting:
        v, s = checked_integer("vocab_size", v, 2), checked_integer("branching", s, 2)
        MeanField(v, m, s)  # checks that the rules fit
        expect(ensemble in ENSEMBLES, "ensemble", ensemble, f"one of {ENSEMBLES}")
        # Tuples are shuffled for every node.
        fits = ensemble != "fresh rules" or v**s <= _MOST_TUPLES
        expect(fits, "vocab_size**branching", v**s, f"at most {_MOST_TUPLES} for 'fresh rules'")
        checked_integer("pool", pool, 1)
        return cls(v, int(m), s, corruption, int(pool), ensemble)

    def check_memory(self, lanes: int, levels: int) -> None:
        """ValueError if two generations of messages, the children with their order, and all
        rules exceed the memory limit.
        """
        N = self.symbols * self.members
        shuffled = _MOST_TUPLES if self.ensemble == "fresh rules" else 0
        size = 8 * (
            2 * N * self.v * lanes + 5 * N * self.s + self.v * self.m * self.s * levels + shuffled
        )
        what = (
            f"pool = {self.pool}, vocab_size = {self.v}, {lanes} noise levels, {levels} levels:"
            " bytes of memory"
        )
        expect(size <= _MOST_BYTES, what, size, f"at most {_MOST_BYTES}; lower one of them")

    @property
    def symbols(self) -> int:
        """Number of pools: v for "one grammar", 1 for "fresh rules"."""
        return self.v if self.ensemble == "one grammar" else 1

    @property
    def members(self) -> int:
        """Number of messages in each pool."""
        return -(-self.pool // self.symbols)

    def grammar(
        self, chosen: Any, seed: int, replicate: int, levels: int
    ) -> RandomHierarchyModel | None:
        """The grammar of a replicate, by default drawn; None for "fresh rules"."""
        if self.ensemble == "fresh rules":
            expect(
                chosen is None,
                "grammar",
                chosen,
                "none for ensemble = 'fresh rules'; drop it, or take 'one grammar'",
            )
            return None
        if isinstance(chosen, RandomHierarchyModel):
            sizes = (chosen.vocab_size, chosen.num_classes, chosen.multiplicity, chosen.branching)
            fits, uniform = (
                sizes == (self.v, self.v, self.m, self.s),
                [np.ptp(p) for p in chosen.rule_probabilities.values()],
            )
            expect(
                fits,
                "grammar",
                chosen,
                f"v = num_classes = {self.v}, multiplicity = {self.m}, branching = {self.s}",
            )
            expect(max(uniform) <= 1e-12, "grammar", chosen, "uniform rule_probabilities")
            return chosen
        own = (
            int(keys(seed, Purpose.POPULATION, replicate, _RULES))
            if chosen is None
            else checked_seed(chosen, "grammar")
        )
        return RandomHierarchyModel(self.v, self.m, self.s, levels, seed=own)

    # -- the flow of the pools ---------------------------------------------------------------------
    def flow(
        self, noise: np.ndarray, levels: int, seed: int, replicate: int, model: Any
    ) -> Iterator[np.ndarray]:
        """Yield the mean belief in the true symbol, (noise,), at the tree levels 0 .. levels in
        order.
        """
        s, q, N = self.s, self.symbols, self.members
        messages = self._leaves(noise, int(keys(seed, Purpose.POPULATION, replicate, _LEAVES)))
        yield self._mean(messages)
        for level in range(1, levels + 1):
            u = uniforms(
                keys(seed, Purpose.POPULATION, [replicate], _MEMBERS, level), q * N * s + 2
            )[0]
            # True symbols of the children of the new nodes.
            children = np.zeros((q, N, s), np.int64)
            if model is not None:
                # Nodes use the rules cyclically, which adds less noise than drawing them. The first
                # rule is random, so that all rules have the same expected share.
                children = model.rules[level][:, (np.arange(N) + int(u[-1] * self.m)) % self.m]
            child = _rows_of_children(children.reshape(-1), u[:-1], N).reshape(q * N, s)
            above = np.empty_like(messages)
            if model is not None:
                _shared_rules_step(model.rules[level], child, messages, above)
            else:
                key = keys(seed, Purpose.POPULATION, replicate, _RULES, level)[()]
                _fresh_rules_step(
                    self.m, tuples(np.arange(self.v**s), self.v, s), key, child, messages, above
                )
            messages = above
            yield self._mean(messages)

    def _leaves(self, noise: np.ndarray, seed: int) -> np.ndarray:
        """Normalised evidence of all leaves, (pools * members, v, noise), with the same random
        numbers at all noise levels.
        """
        true = np.repeat(np.arange(self.symbols), self.members)
        streams = keys(seed, np.arange(len(true)))
        out = np.empty((len(true), self.v, len(noise)))
        for lane, level in enumerate(noise):
            noisy = self.corruption.corrupt_symbols(true[:, None], level, streams, self.v)
            evidence = np.asarray(self.corruption.log_evidence(noisy), np.float64)[:, 0]
            evidence = np.exp(evidence - evidence.max(axis=1, keepdims=True))
            out[:, :, lane] = evidence / evidence.sum(axis=1, keepdims=True)
        return out

    def _mean(self, messages: np.ndarray) -> np.ndarray:
        pools = messages.reshape(self.symbols, self.members, self.v, -1)
        return np.mean([pools[y, :, y].mean(axis=0) for y in range(self.symbols)], axis=0)

    # -- the search --------------------------------------------------------------------------------
    def search(self, seed: int, replicate: int, model: Any, tolerance: float) -> float:
        """Threshold in effective ε; 0 or 1 where there is none."""
        theory = MeanField(self.v, self.m, self.s)
        slope = {
            "transition": theory.slope,
            "always lost": theory.slope_at_one,
            "always recovered": float(theory.slope_at(1 / self.v)),
        }[theory.phase]
        growth = np.log(max(float(slope or 1), 1 + 1e-9))
        low, high = 0.0, 1.0
        while True:
            shares = np.linspace(low, high, _LANES + 2)
            step = shares[1] - shares[0]
            flow = self.flow(self._noise(shares[1:-1]), _MOST_LEVELS, seed, replicate, model)
            leaves = next(flow)
            distances = np.r_[step, 1 - leaves, leaves - 1 / self.v]
            nearest = distances[distances > 1e-15].min()
            levels = int(np.clip(5 + 1.25 * np.log(1 / nearest) / growth, 10, _MOST_LEVELS))
            belief = next(islice(flow, levels - 1, None))
            recovered = int((belief > (1 + 1 / self.v) / 2).sum())
            low, high = shares[recovered], shares[recovered + 1]
            if step <= tolerance:
                break
            # A threshold close to a level may lie on its other side, so the next interval extends
            # slightly beyond both ends.
            low, high = max(low - step / 4, 0.0), min(high + step / 4, 1.0)
        # There is no threshold inside if all leaves are certain at the lower end, or all are
        # uninformative at the upper end.
        first, last = next(self.flow(self._noise([low, high]), 0, seed, replicate, model))
        return (
            0.0
            if first == 1
            else 1.0
            if np.isclose(last, 1 / self.v, rtol=1e-12)
            else (low + high) / 2
        )

    @cached_property
    def _axis(self) -> tuple[np.ndarray, np.ndarray]:
        """Effective ε on an even grid of shares of the noise range, and the shares; coarse,
        since it only places the search.
        """
        share = np.linspace(0, 1, 33)
        epsilon = np.asarray(self.corruption.effective_epsilon(self._at(share), self.v), float)
        rises = (
            epsilon.shape == share.shape
            and (np.diff(epsilon) > -1e-9).all()
            and np.allclose(epsilon[[0, -1]], [0, 1])
        )
        expect(
            rises,
            "corruption",
            self.corruption,
            "an effective_epsilon that rises from 0 to 1 with noise",
        )
        return np.maximum.accumulate(epsilon), share

    def _at(self, share: np.ndarray) -> np.ndarray:
        """Noise level at a share of the noise range; if the range is infinite, at that noise
        variance 1 - exp(-2 t).
        """
        most = self.corruption.max_noise
        with np.errstate(divide="ignore"):
            return share * most if np.isfinite(most) else -np.log1p(-share) / 2

    def _noise(self, epsilon: Any) -> np.ndarray:
        """Noise level of an effective ε."""
        return self._at(np.interp(epsilon, *self._axis))

    def estimate(self, shares: np.ndarray) -> ThresholdEstimate:
        values = self._noise(shares)
        finite = np.isfinite(values)
        value = float(values.mean()) if finite.all() or not finite.any() else np.nan
        spread = float(values.std(ddof=1)) if len(values) > 1 and finite.all() else np.nan
        kinds = np.where(
            shares == 0, "always lost", np.where(shares == 1, "always recovered", "transition")
        )
        phase: Any = str(kinds[0]) if (kinds == kinds[0]).all() else "mixed"
        axes = [np.nan] * 2
        if not np.isnan(value):
            axes = [
                float(axis(value, self.v))
                for axis in (self.corruption.effective_epsilon, self.corruption.bits_per_leaf)
            ]
        return ThresholdEstimate(values, value, spread / np.sqrt(len(values)), spread, phase, *axes)


def _rows_of_children(symbols: np.ndarray, u: np.ndarray, members: int) -> np.ndarray:
    """Row of the message that each child takes from the pool of its symbol: members in random
    order, equally often up to one.
    """
    order = np.argsort(symbols + u[:-1], kind="stable")
    of = symbols[order]
    # Rank among the children that use the same pool.
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    rows = np.empty_like(symbols)
    rows[order] = of * members + (rank + int(u[-1] * members)) % members
    return rows


@njit(inline="always", cache=True)
def _up(rules, child, below, out):
    """Upward message of a node at all noise levels, out (symbols, noise), from the rows `child`
    of below (messages, v, noise).
    """
    symbols, m, s = rules.shape
    lanes = below.shape[2]
    product = np.empty(lanes)
    total = np.zeros(lanes)
    left, right = below[child[0]], below[child[1]]
    for y in range(symbols):
        for lane in range(lanes):
            out[y, lane] = 0.0
        for k in range(m):
            a, b = rules[y, k, 0], rules[y, k, 1]
            if s == 2:
                for lane in range(lanes):
                    out[y, lane] += left[a, lane] * right[b, lane]
            else:
                for lane in range(lanes):
                    product[lane] = left[a, lane] * right[b, lane]
                for i in range(2, s):
                    x = rules[y, k, i]
                    for lane in range(lanes):
                        product[lane] *= below[child[i], x, lane]
                for lane in range(lanes):
                    out[y, lane] += product[lane]
        for lane in range(lanes):
            total[lane] += out[y, lane]
    for y in range(symbols):
        for lane in range(lanes):
            # The sum is 0 only if contradictory evidence underflows in float64; the message is then
            # set to uninformative.
            out[y, lane] = out[y, lane] / total[lane] if total[lane] > 0 else 1 / symbols


@njit(parallel=True, cache=True)
def _shared_rules_step(rules, child, below, out):
    for i in prange(len(child)):
        _up(rules, child[i], below, out[i])


@njit(parallel=True, cache=True)
def _fresh_rules_step(m, tuples, key, child, below, out):
    """One upward step in which each node draws v * m distinct tuples. The true tuple of the true
    symbol 0 is (0, .., 0).
    """
    T, s = tuples.shape
    count, blocks = out.shape[1] * m, 64
    # A fixed number, so that results do not depend on the number of threads.
    for block in prange(blocks):
        deck = np.arange(T)
        drawn = np.zeros((count, s), np.int64)
        rules = drawn.reshape(-1, m, s)
        for i in range(block * len(child) // blocks, (block + 1) * len(child) // blocks):
            own = fold(key, np.uint64(i))
            bits = more = own
            for k in range(1, count):
                # First steps of a Fisher-Yates shuffle of all tuples but tuple 0, from the order
                # that the last node left.
                if k % 2:
                    bits, more = philox(own, np.uint64(k))
                else:
                    bits = more
                j = k + np.int64(np.float64(bits >> np.uint64(11)) * 2.0**-53 * (T - k))
                taken = deck[j]
                deck[j] = deck[k]
                deck[k] = taken
                for c in range(s):
                    drawn[k, c] = tuples[taken, c]
            _up(rules, child[i], below, out[i])
