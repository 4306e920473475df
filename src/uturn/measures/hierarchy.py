"""Nesting index: at how many levels of a hierarchy do sites change together in U-turns? Its
definition is in docs/structure.md.

It assumes that the noise of different sites is independent given the original. Where noisy data are
known, the same functions check this on the changes from originals to noisy data, which then have
the index 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.random import Streams
from uturn.core.u_turns import u_turns
from uturn.measures.changes import covariances_of
from uturn.measures.covariances import Tree
from uturn.measures.statistics import ESTIMATE, Estimate, check_dims, nonincreasing, replicates

_DIMS = ("noise", "item", "trajectory", "site")


class Nesting(NamedTuple):
    """The nesting index, not clipped, and its parts: D_k of every site, and X_k over the mean
    variance of a site, (sites, K).
    """

    value: float
    nested: np.ndarray
    correlation: np.ndarray


def nesting_index(
    changed: xr.DataArray | xr.Dataset,
    branching: int | None = None,
    confidence: float = 0.95,
    name: str = "",
) -> Estimate:
    """Nesting index: the sum of the nested correlations of all levels without the strongest,
    averaged over sites.

    `H = mean_i [sum_k D_k(i) - max_k D_k(i)]`, clipped at 0, where D_k says how much more two
    sibling blocks of `s**(k-1)` sites change together than two blocks that meet one level higher.
    It is 0 if changes are independent, or are shared at one level only. For definition,
    interpretation and limits, see docs/structure.md.

    `changed`: DataArray (noise, item, trajectory, site), the change of every site in every U-turn,
    such as `site_changes` returns: 1 or 0 for symbols, or a squared difference; at least two
    trajectories of each item. The noise levels increase, and at the last one reconstructions are
    independent of the originals. Block b of level k holds the sites `b s**k .. (b + 1) s**k - 1`,
    with s = `branching`. Or a Dataset: the results of the probe `changes` on strings (`name`: that
    of the probe, if it has one), or `change` (noise, item) and `change_covariance` (noise, item,
    distance) at the distances `0, s, s**2, ..`. Returns an Estimate in 0 .. K - 1, with the
    interval of `uturn.statistics.estimate`.
    """
    moments, s = _moments(changed, branching, name)
    index = replicates(moments).interval(lambda means: _of_moments(means, s).value, confidence)
    return Estimate(*np.maximum(index, 0).tolist())


def nested_correlations(
    changed: xr.DataArray | xr.Dataset,
    branching: int | None = None,
    confidence: float = 0.95,
    name: str = "",
) -> xr.Dataset:
    """Nested correlations of every level, averaged over sites; arguments as in `nesting_index`.

    A Dataset (distance, estimate) at the distances s**k for k = 1 .. K, with `nested`, D_k, and
    `correlation`, X_k over the variance of a site: the excess correlation of two sites whose
    smallest common block is of level k.
    """
    moments, s = _moments(changed, branching, name)

    def levels(means: np.ndarray) -> np.ndarray:
        return np.stack(_of_moments(means, s)[1:]).mean(axis=1)

    nested, correlation = replicates(moments).interval(levels, confidence)
    dims, labels = (
        ("distance", "estimate"),
        {
            "distance": moments.moment.values[2:],
            "estimate": ESTIMATE,
        },
    )
    return xr.Dataset({"nested": (dims, nested), "correlation": (dims, correlation)}, labels)


def site_changes(experiment: Experiment) -> xr.DataArray:
    """Changes of all sites in the U-turns of an experiment on strings or vectors, in memory, with
    the random streams of the run.

    DataArray float64 (noise, item, trajectory, site), with the coordinates of the source along
    `item`: for strings 1 where a leaf has another symbol, else 0; for vectors the squared
    difference of a component.
    """
    source, corruption, backward, _ = checked_experiment(experiment).parts
    expect(experiment.clones == 1, "clones", experiment.clones, "one clone")

    def blocks() -> Iterator[tuple[tuple[int, int], Any, float, Streams]]:
        for k, noise in enumerate(experiment.noise):
            for b, originals in enumerate(
                source.blocks(np.arange(experiment.items), experiment.seed, experiment.items)
            ):
                yield (
                    (k, b),
                    originals,
                    noise,
                    Streams(
                        experiment.seed, originals.items, noise, range(experiment.trajectories)
                    ),
                )

    pieces: dict[tuple[int, int], np.ndarray] = {}
    for key, turned in u_turns(blocks(), corruption, backward):
        before, after = (
            turned.originals.data[:, None],
            turned.originals.data_of(turned.reconstructions),
        )
        shape, fits = turned.originals.data.shape, "(items, sites), as of strings or vectors"
        expect(
            len(shape) == 2,
            "shape of the originals",
            shape,
            f"{fits}; compute other changes from `uturn.u_turn`",
        )
        pieces[key] = after != before if before.dtype.kind in "biu" else np.square(after - before)
    levels = [
        np.concatenate([pieces[key] for key in sorted(pieces) if key[0] == k])
        for k in range(len(experiment.noise))
    ]
    along = {
        name: ("item", values)
        for name, values in source.coordinates(experiment.seed, experiment.items).items()
    }
    return xr.DataArray(
        np.array(levels, float), dims=_DIMS, coords={"noise": experiment.noise, **along}
    )


def _moments(changed: Any, branching: int | None, name: str) -> tuple[xr.DataArray, int]:
    """Mean change, and C_0 .. C_K, of every site of every item, (noise, item, site, moment), and
    s; a dataset has one site.
    """
    if isinstance(changed, xr.Dataset):
        readings = covariances_of(changed, name=name)
        change, covariance = readings["change"], readings["change_covariance"]
        distances = covariance.distance.values
        s = round(distances[1]) if len(distances) > 1 else 0
        is_nested = s > 1 and np.array_equal(
            distances, [0, *(s**k for k in range(1, len(distances)))]
        )
        expect(
            is_nested, "distance", distances.tolist(), "0, s, s**2, .., the sizes of nested blocks"
        )
        expect(
            branching in (None, s), "branching", branching, f"{s}, as the distances have, or none"
        )
        moments = xr.concat([change.expand_dims(distance=[-1]), covariance], dim="distance").rename(
            distance="moment"
        )
        moments = moments.expand_dims("site").transpose("noise", "item", "site", "moment")
    else:
        moments, s = _of_sites(changed, branching), int(branching or 0)
    is_complete = np.isfinite(moments.values.astype(float)).all()
    expect(
        is_complete,
        "changed",
        moments.values,
        "no missing or infinite readings; finish the run, or drop what is missing",
    )
    noise = moments.noise.values
    rises = noise.dtype.kind in "iuf" and len(noise) > 1 and (np.diff(noise) > 0).all()
    expect(
        rises,
        "noise",
        noise.tolist(),
        "at least two increasing levels, the last one without signal",
    )
    varies = (moments.sel(moment=0) > 0).any() and moments.isel(noise=-1).sel(moment=-1).mean() > 0
    expect(
        varies,
        "changed",
        changed,
        "changes that vary between trajectories, and are not 0 at the last noise level",
    )
    return moments, s


def _of_sites(changed: xr.DataArray, branching: Any) -> xr.DataArray:
    check_dims("changed", changed, _DIMS, ())
    s, K = branching, Tree(changed.sizes["site"], branching).depth
    fits = changed.sizes["trajectory"] > 1 and K > 0
    expect(
        fits,
        "changed: sizes",
        dict(changed.sizes),
        f"at least 2 trajectories, and at least {s} sites",
    )
    x = changed.transpose(*_DIMS).values.astype(float)
    mean = x.mean(axis=2)
    x = x - mean[:, :, None]
    # Sums of the covariances of a site with the sites of its block of every level.
    shared, sums = [np.zeros_like(mean)], x
    for k in range(K + 1):
        blocks = x.reshape(*sums.shape, s**k)
        shared.append(
            np.einsum("nitbj,nitb->nibj", blocks, sums).reshape(mean.shape) / (x.shape[2] - 1)
        )
        if k < K:
            sums = sums.reshape(*sums.shape[:3], -1, s).sum(axis=-1)
    # Sites whose smallest common block with a site is of level k.
    others = np.diff(s ** np.arange(K + 1), prepend=0)
    moments = np.concatenate(
        [mean[..., None], np.diff(shared, axis=0).transpose(1, 2, 3, 0) / others], axis=-1
    )
    coords = {
        name: values
        for name, values in changed.coords.items()
        if set(values.dims) <= {"noise", "item"}
    }
    names = [-1, 0, *(s**k for k in range(1, K + 1))]
    return xr.DataArray(
        moments, dims=("noise", "item", "site", "moment"), coords={**coords, "moment": names}
    )


def nesting(change: Any, covariance: Any, branching: int) -> Nesting:
    """Nested correlations and the nesting index of mean curves, measured or from a theory.

    `change` (noise,): mean change, whose last value is that of independent data. `covariance`
    (noise, sites, K + 1): C_0 .. C_K of every site, or of one site that stands for all, at the same
    noise levels.

    >>> import uturn as ut
    >>> epsilon, theory = np.linspace(0, 1, 101)[1:], ut.theory.MeanField(vocab_size=16, multiplicity=4, branching=2)
    >>> changed = 1 - theory.curves(epsilon, depth=4).marginals[:, 0]
    >>> covariance = theory.pair_correlations(epsilon, depth=4)[:, None] / 4  # of 0 and 1 instead of -1 and 1
    >>> round(nesting(changed, covariance, branching=2).value, 3)
    0.343
    """
    s, mean, C = branching, np.asarray(change, float), np.asarray(covariance, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = 1 - nonincreasing(1 - mean / mean[-1]).clip(0, 1)
        steps = np.r_[0, lost, 1]
        weight = (steps[2:] - steps[:-2]) / 2  # int .. da by trapezoids, from 0 without noise
        excess = np.tensordot(weight, C - (lost**2)[:, None, None] * C[-1], 1)[:, 1:]
        total = weight @ C.mean(axis=1)
        size = s ** np.arange(C.shape[2])
        variance = np.cumsum(np.diff(size, prepend=0) * total)  # B_k
        nested = -np.diff(excess, axis=1, append=0) * size[:-1] / variance[:-1]
    return Nesting(
        float((nested.sum(axis=1) - nested.max(axis=1)).mean()), nested, excess / total[0]
    )


def _of_moments(means: np.ndarray, branching: int) -> Nesting:
    return nesting(means[..., 0].mean(axis=1), means[..., 1:], branching)
