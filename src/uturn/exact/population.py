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
from typing import Literal, NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike

from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.progress import steps
from uturn.core.protocols import Channel
from uturn.core.random import Purpose, checked_seed, fold, keys, philox, uniforms
from uturn.exact.rhm import RandomHierarchyModel, tuples
from uturn.exact.theory import MeanField, Phase

Ensemble = Literal["one grammar", "fresh rules"]
ENSEMBLES: tuple[Ensemble, ...] = ("one grammar", "fresh rules")

# Keys of the random streams are keys(seed, Purpose.POPULATION, replicate, use, tree_level) with
# these values of `use`.
_RULES = 0
_MEMBERS = 1
_LEAVES = 2
_LANES = 16
"""Noise levels in a round of the threshold search."""
_MOST_LEVELS = 300
_MOST_TUPLES = 2**20
""""fresh rules" shuffles all v**s of them."""
_MOST_BYTES = 8 * 2**30


class PopulationBeliefs(NamedTuple):
    """Mean upward belief in the true symbol: arrays (*noise.shape, levels + 1), tree level last, 0
    = leaves.
    """

    beliefs: np.ndarray
    standard_error: np.ndarray
    """Error of the mean, from the spread between independent pools of the same grammar. It includes
    the errors of all levels below."""


@dataclass(frozen=True)
class ThresholdEstimate:
    """Noise at which the class of an infinitely deep tree is lost, in the unit of the channel."""

    values: np.ndarray
    """Threshold of each replicate, (replicates,). 0 if the class is lost at all noise levels that
    the search resolves; the channel's `max_noise`, which may be inf, if it is recovered at all of
    them."""
    value: float
    """Mean of `values`; NaN if only some are infinite."""
    standard_error: float
    """Of `value`; NaN for one replicate, or if any value is infinite."""
    spread: float
    """Standard deviation of `values`; NaN likewise."""
    phase: Phase | Literal["mixed"]
    """Of all replicates; "mixed" if they differ."""
    effective_epsilon: float
    """`value` in effective ε (Eq. 63 of arXiv:2402.16991)."""
    bits_per_leaf: float
    """`value` in bits."""


def population_dynamics(
    vocab_size: int,
    multiplicity: int,
    branching: int,
    corruption: Channel,
    noise: ArrayLike,
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
    flows = []
    for replicate in range(replicates):
        flow = setting.flow(wanted.reshape(-1), levels, seed, replicate, model)
        flows.append(np.stack(list(flow), axis=-1))
    beliefs = np.reshape(flows, (replicates, *wanted.shape, levels + 1))
    error = beliefs.std(axis=0, ddof=1) / np.sqrt(replicates)
    return PopulationBeliefs(beliefs.mean(axis=0), error)


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
    chosen: list[RandomHierarchyModel | int | None] = [None] * replicates
    if grammars is not None:
        chosen = list(grammars)
    expect(chosen, "grammars", grammars, "at least one grammar or seed")
    setting.check_memory(_LANES, _MOST_LEVELS)
    models = [setting.grammar(grammar, seed, r, _MOST_LEVELS) for r, grammar in enumerate(chosen)]
    shares = []
    for replicate, model in enumerate(steps(models)):
        shares.append(setting.search(seed, replicate, model, tolerance))
    return setting.estimate(np.array(shares))


@dataclass(frozen=True)
class _Setting:
    """Checked arguments that all noise levels and replicates share."""

    v: int
    m: int
    s: int
    corruption: Channel
    pool: int
    ensemble: Ensemble

    @classmethod
    def checked(
        cls, v: int, m: int, s: int, corruption: Channel, pool: int, ensemble: Ensemble
    ) -> _Setting:
        v = checked_integer("vocab_size", v, 2)
        s = checked_integer("branching", s, 2)
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
        messages = 2 * N * self.v * lanes
        children = 5 * N * self.s
        rules = self.v * self.m * self.s * levels
        shuffled = _MOST_TUPLES if self.ensemble == "fresh rules" else 0
        size = 8 * (messages + children + rules + shuffled)
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
        self,
        chosen: RandomHierarchyModel | int | None,
        seed: int,
        replicate: int,
        levels: int,
    ) -> RandomHierarchyModel | None:
        """The grammar of a replicate, by default drawn; None for "fresh rules"."""
        if self.ensemble == "fresh rules":
            way = "none for ensemble = 'fresh rules'; drop it, or take 'one grammar'"
            expect(chosen is None, "grammar", chosen, way)
            return None
        if isinstance(chosen, RandomHierarchyModel):
            self._check_grammar(chosen)
            return chosen
        if chosen is None:
            own = int(keys(seed, Purpose.POPULATION, replicate, _RULES))
        else:
            own = checked_seed(chosen, "grammar")
        return RandomHierarchyModel(self.v, self.m, self.s, levels, seed=own)

    def _check_grammar(self, grammar: RandomHierarchyModel) -> None:
        sizes = (grammar.vocab_size, grammar.num_classes, grammar.multiplicity, grammar.branching)
        fits = sizes == (self.v, self.v, self.m, self.s)
        expected = f"v = num_classes = {self.v}, multiplicity = {self.m}, branching = {self.s}"
        expect(fits, "grammar", grammar, expected)
        ranges = [np.ptp(p) for p in grammar.rule_probabilities.values()]
        expect(max(ranges) <= 1e-12, "grammar", grammar, "uniform rule_probabilities")

    # -- the flow of the pools ---------------------------------------------------------------------
    def flow(
        self,
        noise: np.ndarray,
        levels: int,
        seed: int,
        replicate: int,
        model: RandomHierarchyModel | None,
    ) -> Iterator[np.ndarray]:
        """Yield the mean belief in the true symbol, (noise,), at the tree levels 0 .. levels in
        order.
        """
        s = self.s
        q = self.symbols
        N = self.members
        messages = self._leaves(noise, int(keys(seed, Purpose.POPULATION, replicate, _LEAVES)))
        yield self._mean(messages)
        for level in range(1, levels + 1):
            stream = keys(seed, Purpose.POPULATION, [replicate], _MEMBERS, level)
            u = uniforms(stream, q * N * s + 2)[0]
            # True symbols of the children of the new nodes.
            children = np.zeros((q, N, s), np.int64)
            if model is not None:
                # Nodes use the rules cyclically, which adds less noise than drawing them. The first
                # rule is random, so that all rules have the same expected share.
                rule = (np.arange(N) + int(u[-1] * self.m)) % self.m
                children = model.rules[level][:, rule]
            child = _rows_of_children(children.reshape(-1), u[:-1], N).reshape(q * N, s)
            above = np.empty_like(messages)
            if model is not None:
                _shared_rules_step(model.rules[level], child, messages, above)
            else:
                key = keys(seed, Purpose.POPULATION, replicate, _RULES, level)[()]
                all_tuples = tuples(np.arange(self.v**s), self.v, s)
                _fresh_rules_step(self.m, all_tuples, key, child, messages, above)
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
        means = [pools[y, :, y].mean(axis=0) for y in range(self.symbols)]
        return np.asarray(np.mean(means, axis=0))

    # -- the search --------------------------------------------------------------------------------
    def search(
        self, seed: int, replicate: int, model: RandomHierarchyModel | None, tolerance: float
    ) -> float:
        """Threshold in effective ε; 0 or 1 where there is none."""
        growth = np.log(max(self._slope, 1 + 1e-9))
        low = 0.0
        high = 1.0
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
            low = shares[recovered]
            high = shares[recovered + 1]
            if step <= tolerance:
                break
            # A threshold close to a level may lie on its other side, so the next interval extends
            # slightly beyond both ends.
            low = max(low - step / 4, 0.0)
            high = min(high + step / 4, 1.0)
        # There is no threshold inside if all leaves are certain at the lower end, or all are
        # uninformative at the upper end.
        first, last = next(self.flow(self._noise([low, high]), 0, seed, replicate, model))
        if first == 1:
            return 0.0
        if np.isclose(last, 1 / self.v, rtol=1e-12):
            return 1.0
        return float((low + high) / 2)

    @property
    def _slope(self) -> float:
        """Slope of the upward map of mean field at the fixed point that pools leave."""
        theory = MeanField(self.v, self.m, self.s)
        if theory.phase == "always lost":
            return theory.slope_at_one
        if theory.phase == "always recovered":
            return float(theory.slope_at(1 / self.v))
        return theory.slope or 1.0

    @cached_property
    def _axis(self) -> tuple[np.ndarray, np.ndarray]:
        """Effective ε on an even grid of shares of the noise range, and the shares; coarse,
        since it only places the search.
        """
        share = np.linspace(0, 1, 33)
        epsilon = np.asarray(self.corruption.effective_epsilon(self._at(share), self.v), float)
        rises = epsilon.shape == share.shape and (np.diff(epsilon) > -1e-9).all()
        fits = rises and np.allclose(epsilon[[0, -1]], [0, 1])
        expected = "an effective_epsilon that rises from 0 to 1 with noise"
        expect(fits, "corruption", self.corruption, expected)
        return np.maximum.accumulate(epsilon), share

    def _at(self, share: np.ndarray) -> np.ndarray:
        """Noise level at a share of the noise range; if the range is infinite, at that noise
        variance 1 - exp(-2 t).
        """
        most = self.corruption.max_noise
        if np.isfinite(most):
            return share * most
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log1p(-share) / 2)

    def _noise(self, epsilon: ArrayLike) -> np.ndarray:
        """Noise level of an effective ε."""
        return self._at(np.interp(np.asarray(epsilon, float), *self._axis))

    def estimate(self, shares: np.ndarray) -> ThresholdEstimate:
        """The thresholds of all replicates, in the unit of the channel; `shares`: results of
        `search`, (replicates,).
        """
        values = self._noise(shares)
        is_finite = np.isfinite(values)
        value = spread = np.nan
        if is_finite.all() or not is_finite.any():
            value = float(values.mean())
        if is_finite.all() and len(values) > 1:
            spread = float(values.std(ddof=1))
        epsilon = bits = np.nan
        if not np.isnan(value):
            epsilon = _number(self.corruption.effective_epsilon(value, self.v))
            bits = _number(self.corruption.bits_per_leaf(value, self.v))
        error = spread / np.sqrt(len(values))
        return ThresholdEstimate(values, value, error, spread, _phase_of(shares), epsilon, bits)


def _number(value: np.ndarray | None) -> float:
    """A value of an axis; NaN if the channel does not know the axis."""
    return np.nan if value is None else float(value)


def _phase_of(shares: np.ndarray) -> Phase | Literal["mixed"]:
    if (shares == 0).all():
        return "always lost"
    if (shares == 1).all():
        return "always recovered"
    if ((shares > 0) & (shares < 1)).all():
        return "transition"
    return "mixed"


def _rows_of_children(symbols: np.ndarray, u: np.ndarray, members: int) -> np.ndarray:
    """Row of the message that each child takes from the pool of its symbol: members in random
    order, equally often up to one.
    """
    order = np.argsort(symbols + u[:-1], kind="stable")
    pool = symbols[order]
    # Rank among the children that use the same pool.
    rank = np.arange(len(pool)) - np.searchsorted(pool, pool)
    first = int(u[-1] * members)
    rows = np.empty_like(symbols)
    rows[order] = pool * members + (rank + first) % members
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
    left = below[child[0]]
    right = below[child[1]]
    for y in range(symbols):
        for lane in range(lanes):
            out[y, lane] = 0.0
        for k in range(m):
            a = rules[y, k, 0]
            b = rules[y, k, 1]
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
    count = out.shape[1] * m
    blocks = 64  # a fixed number, so that results do not depend on the number of threads
    for block in prange(blocks):
        deck = np.arange(T)
        drawn = np.zeros((count, s), np.int64)
        rules = drawn.reshape(-1, m, s)
        first = block * len(child) // blocks
        last = (block + 1) * len(child) // blocks
        for i in range(first, last):
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
