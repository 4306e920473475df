"""Ranks of an original among its clones: simulation-based calibration of a posterior sampler,
reading by reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.random import Purpose, checked_seed, keys, uniforms
from uturn.measures.calibration import checked_variables, holm, items_tested, joined, twin_of
from uturn.measures.estimates import checked_share

_EQUAL = 1 - 1e-9
"""Tail probabilities that differ by rounding are equal."""
_LEAST = 1e-12
"""Smaller p-values are not distinguished from rounding."""
_STEPS = 20
"""Bisections of the tail probability of a band."""


def ranks(
    ds: xr.Dataset, variable: str | Sequence[str], *, level: float = 1e-3, seed: int = 0
) -> xr.Dataset:
    """Test whether the rank of an original among its clones is uniform, for readings h(x; y) of one
    datum.

    If the K clones are draws from p(x_0 | y), the number of clones with h(x̂_k; y) < h(x_0; y) is
    uniform on 0, .., K (Talts et al., arXiv:1804.06788). Trajectory 0 counts; ties are broken at
    random. The count n F(r) of n items of rank at most r is binomial with probability (r + 1) / (K +
    1); with B_r of this law, the statistic is

        gamma = min_r 2 min(P(B_r <= n F(r)), P(B_r >= n F(r)))    (Säilynoja, Bürkner and Vehtari 2022, arXiv:2103.10522).

    The band holds all F(r) at once with a probability of at least 1 - level, over all tests of the
    call (Bonferroni).

    `ds`, `level`: as in `uturn.calibration`. `variable`: ranked variables, those with a twin
    `original_<variable>`. `seed`: of the random ranks of ties. The Dataset has `difference` (..,
    rank), F(r) - (r + 1) / (K + 1), with the simultaneous band `low`, `high`; `count` (..,
    of_rank), number of items with each rank 0, .., K; `p`, `p_holm`, p-value of gamma and its
    adjustment by Holm; `mean_rank`, mean of rank / K, 1/2 for exact draws. Further dims and
    attributes as in `uturn.calibration`.

    Examples
    --------
    >>> import uturn as ut
    >>> h = ut.random.uniforms(ut.random.keys(0, range(300)), 5)  # of an original and four clones, all drawn alike
    >>> data = {"h": h[None, :, None, 1:], "original_h": h[None, :, None, 0]}
    >>> exact = ut.ranks(ut.readings(data, [1.0]), "h")
    >>> exact.attrs["passed"], int(exact["count"].sum())
    (True, 300)
    """
    names = checked_variables(ds, variable)
    level = checked_share("level", level)
    for name in names:
        is_ranked = "clone" not in ds[twin_of(ds, name)].dims
        expected = f"a ranked variable, with a twin original_{name}; this one compares two data"
        expect(is_ranked, "variable", name, expected)
    complete = items_tested(ds, names)
    expect(complete.any(), "variable", variable, "at least one item with all its readings")
    ds = ds.isel(item=complete)
    K = ds.sizes["clone"]
    items = ds.sizes["item"]
    streams = keys(checked_seed(seed), Purpose.RANKS, np.asarray(ds.item.values, np.int64))
    ties = uniforms(streams, ds.sizes["noise"])
    of_names = [_ranks(ds, name, ties, not isinstance(variable, str)) for name in names]
    rank = xr.concat(of_names, "reading") if len(of_names) > 1 else of_names[0]
    rank = rank.transpose("noise", ..., "item")
    count = np.stack([(rank.values == r).sum(-1) for r in range(K + 1)], axis=-1)
    at_most = count[..., :-1].cumsum(-1)  # n F(r)
    uniform = np.arange(1, K + 1) / (K + 1)
    low, high = band(items, K, level / rank.isel(item=0).size)
    p = _p_values(items, K, at_most)
    adjusted = holm(p)
    dims = rank.dims[:-1]
    variables = {
        "difference": ((*dims, "rank"), at_most / items - uniform),
        "low": ("rank", low),
        "high": ("rank", high),
        "count": ((*dims, "of_rank"), count),
        "p": (dims, p),
        "p_holm": (dims, adjusted),
        "mean_rank": (dims, rank.values.mean(-1) / K),
    }
    axes = {"rank": np.arange(K), "of_rank": np.arange(K + 1)}
    attributes = {
        "variable": ", ".join(names),
        "passed": bool((adjusted > level).all()),
        "level": level,
        "items": items,
        "clones": K,
    }
    return xr.Dataset(variables, {**rank.isel(item=0, drop=True).coords, **axes}, attributes)


def _p_values(items: int, clones: int, at_most: np.ndarray) -> np.ndarray:
    """p-values of gamma (see `ranks`), (..); `at_most`: counts n F(r), int64 (.., K)."""
    tails = _tails(items, clones)
    gamma = tails[np.arange(clones), at_most].min(-1)
    outside = [1 - _inside(tails, value) for value in gamma.ravel()]
    return np.array(outside).clip(_LEAST, 1).reshape(gamma.shape)


def band(items: int, clones: int, level: float) -> np.ndarray:
    """Ends (2, K) of the band that holds all F(r) - (r + 1) / (K + 1) with a probability of at
    least 1 - level.
    """
    tails = _tails(items, clones)
    low = np.log(level / clones)  # holds by Bonferroni
    high = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if 1 - _inside(tails, np.exp(middle)) <= level:
            low = middle
        else:
            high = middle
    uniform = np.arange(1, clones + 1) / (clones + 1)
    return np.stack(_bounds(tails, np.exp(low))) / items - uniform


def _ranks(ds: xr.Dataset, name: str, ties: np.ndarray, several: bool) -> xr.DataArray:
    """Ranks of the originals among their clones, (item, noise, ..); `ties`: uniform numbers
    (item, noise).
    """
    twin = twin_of(ds, name)
    first = ds[[name, twin]].isel(trajectory=0, drop=True)
    clones = first[name]
    original = first[twin]
    below = (clones < original).sum("clone")
    equal = (clones == original).sum("clone")
    drawn = below.copy(data=np.zeros(below.shape)).transpose("item", "noise", ...)
    drawn = drawn + ties.reshape(*ties.shape, *[1] * (drawn.ndim - 2))
    rank = below + np.floor(drawn * (equal + 1)).astype(int)
    rank = rank.drop_vars([key for key in rank.coords if key not in rank.dims])
    return joined(rank, name) if several else rank


@lru_cache(maxsize=4)
def _tails(items: int, clones: int) -> np.ndarray:
    """Two-sided tail probabilities of the counts n F(r) under uniform ranks, (ranks K, counts n +
    1).
    """
    from scipy.stats import binom

    counts = np.arange(items + 1)
    shares = np.arange(1, clones + 1)[:, None] / (clones + 1)
    at_most = binom.cdf(counts, items, shares)
    at_least = binom.sf(counts - 1, items, shares)
    return np.asarray(2 * np.minimum(at_most, at_least))


def _inside(tails: np.ndarray, gamma: float) -> float:
    """P(gamma* > gamma) for uniform ranks: that all counts stay between the bounds of gamma."""
    from scipy.stats import binom

    low, high = _bounds(tails, gamma)
    if (low > high).any():
        return 0.0
    K = len(tails)
    items = tails.shape[1] - 1
    before = np.zeros(1, int)
    probability = np.ones(1)
    for r in range(K):  # n F(r) - n F(r - 1) of the items that are left are binomial
        counts = np.arange(low[r], high[r] + 1)
        step = binom.pmf(counts - before[:, None], items - before[:, None], 1 / (K + 1 - r))
        probability = probability @ step
        before = counts
    return float(probability.sum())


def _bounds(tails: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest counts (K,) with tail probabilities above gamma; smallest > largest
    if there are none.
    """
    above = tails * _EQUAL > gamma
    exist = above.any(1)
    items = tails.shape[1] - 1
    smallest = above.argmax(1)
    from_end = above[:, ::-1]
    largest = items - from_end.argmax(1)
    return np.where(exist, smallest, 1), np.where(exist, largest, 0)
