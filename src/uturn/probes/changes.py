"""The probe of correlated changes: which sites of a datum change together in U-turns of one
original.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.checks import expect
from uturn.core.progress import steps
from uturn.core.protocols import Probe, Source, UTurns, Variable
from uturn.measures.covariances import Covariances, Distance, Grid
from uturn.probes.named import Named
from uturn.probes.prepared import Prepared

if TYPE_CHECKING:
    from uturn.networks.modules import Network

_CLASSIFIER = "fashion_mnist"


class Changes(Named, Prepared, Probe):
    """Covariance over trajectories of the changes of two sites of one original, against their
    distance (arXiv:2410.13770).

    | data | sites | change of a site | distance |
    |---|---|---|---|
    | strings | leaves | 1 if the symbol differs, else 0 | s**k, common ancestor at tree level k |
    | images | square patches of `patch` pixels | Euclidean norm of the change of the pixels | on the grid |
    | images, `layer` given | positions of that layer | norm over channels of the change of its output | on the grid |
    | vectors | components | size of the change | periodic grid for fields; else difference of indices |
    | others, such as tokens | sites | 1 if an integer differs; size of the change of a number | difference of indices |

    Variables. `change`: mean change, over trajectories and the sites that an original has and noise
    can change. `change_covariance`: mean covariance C(r) of the ordered pairs of sites at distance
    r, in squared units of the change. `change_covariance_sum`: sum of C_ij over all ordered pairs,
    divided by the number of sites. Both are divided by the numbers of the longest original
    (`uturn.measures.changes.present_pairs`), and averaged over clone numbers, the trajectories of
    each of which are independent.

    Options. `patch`: side of the patches of images in pixels; it must divide height and width.
    `layer`: name of a module of the network `classifier` with `weights`, as in the probe
    `network_layers`. `name`: prefix of the variables and of the dim `distance`. `batch_size`:
    images in a forward pass (execution-only).
    """

    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    # With `layer` it is not, but then the backward is a network, too.
    batch_invariant: ClassVar[bool] = True
    least_trajectories: ClassVar[int] = 2
    reads_in_parts: ClassVar[bool] = True
    type: Literal["changes"] = "changes"
    patch: int = Field(default=4, ge=1)
    layer: str | None = None
    classifier: str = _CLASSIFIER
    weights: str | None = None
    batch_size: int = Field(default=100, ge=1)
    _sites: Sites = PrivateAttr()

    @property
    def network_name(self) -> str:
        return self.classifier

    @model_validator(mode="after")
    def _needs_a_layer(self) -> Changes:
        is_default = self.classifier == _CLASSIFIER and self.weights is None
        expect(
            is_default or self.layer is not None,
            "layer",
            None,
            "one; `classifier` and `weights` are used for the positions of a layer only",
        )
        return self

    def prepare(self, source: Source) -> None:
        self._sites = sites_of(self, source)

    def variables(self, source: Source) -> dict[str, Variable]:
        dims = ("noise", "item")
        unit = source.site_name
        if self.layer is not None:
            unit = "positions"
        elif source.image_shape() is not None:
            unit = f"patches of {self.patch} pixels"
        every = {
            "change": Variable(
                dims, "mean change of a site", start=0, bounds=(0, None), group="changes"
            ),
            "change_covariance": Variable(
                (*dims, f"{self.prefix}distance"),
                "mean covariance of the changes of two sites",
                role="changes",
                unit=unit,
            ),
            "change_covariance_sum": Variable(
                dims,
                "sum of the covariances of all pairs of sites over the number of sites",
                role="changes",
            ),
        }
        return self.prefixed(every)

    def coordinates(self, source: Source) -> dict[str, np.ndarray]:
        return {f"{self.prefix}distance": self._sites.distance.values}

    def read(self, u_turns: UTurns, source: Source) -> dict[str, np.ndarray]:
        return self.readings(self.accumulate(None, u_turns, source), source)

    def accumulate(
        self, state: RunningChanges | None, u_turns: UTurns, source: Source
    ) -> RunningChanges:
        originals = u_turns.originals
        changed = self._sites.changed(originals.data, originals.data_of(u_turns.reconstructions))
        items, _, sites = changed.shape
        clones = u_turns.clones
        covariances = Covariances(self._sites.distance) if state is None else state.covariances
        # The trajectories of one clone number are independent: a row for each item and number.
        by_clone = changed.reshape(items, -1, clones, sites).swapaxes(1, 2)
        covariances = covariances.add(by_clone.reshape(items * clones, -1, sites))
        free = originals.free
        num_sites = np.full(items, sites) if free is None else free.sum(axis=1)
        return RunningChanges(clones, num_sites, covariances)

    def readings(self, state: RunningChanges, source: Source) -> dict[str, np.ndarray]:
        covariances = state.covariances
        tables = {
            "change": covariances.mean.sum(axis=1) / state.num_sites.repeat(state.clones),
            "change_covariance": covariances.covariance,
            "change_covariance_sum": covariances.total,
        }
        means = {
            name: rows.reshape(-1, state.clones, *rows.shape[1:]).mean(axis=1)
            for name, rows in tables.items()
        }
        return self.prefixed(means)

    def reads(self) -> list[Network]:
        from uturn.networks.modules import Network

        return [] if self.layer is None else [Network(self.classifier, self.weights)]


@dataclass(frozen=True)
class RunningChanges:
    """Changes of the trajectories of a block that have been read so far."""

    clones: int
    num_sites: np.ndarray
    """(items,), sites of each original that noise can change."""
    covariances: Covariances
    """A row for each item and clone number."""


Components = Callable[[np.ndarray], np.ndarray]
"""The components (batch, sites, components) of the sites of data (batch, ...)."""


@dataclass(frozen=True)
class Sites:
    """The sites of a kind of data."""

    distance: Distance
    """Distances of the sites from each other."""
    components: Components | None = None
    """The change of a site is the norm of the change of its components. None: each value is a site
    of its own, and integers change or not."""

    def changed(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Changes (items, draws, sites) of originals (items, ...) in reconstructions (items,
        draws, ...).
        """
        if self.components is None and before.dtype.kind in "biu":
            is_changed: np.ndarray = after != before[:, None]
            return is_changed
        components = self.components or _values_as_components
        # One original at a time, since the output of a layer can be much larger than the image.
        changes = []
        for original, draws in steps(list(zip(before, after, strict=True))):
            difference = components(draws) - components(original[None])
            changes.append(np.linalg.norm(difference, axis=-1))
        return np.stack(changes)


def _values_as_components(data: np.ndarray) -> np.ndarray:
    return np.asarray(data, float)[..., None]


def sites_of(spec: Changes, source: Source) -> Sites:
    """The sites of a source's data, according to the options of the probe."""
    image_shape = source.image_shape()
    if image_shape is None:
        expect(spec.layer is None, "layer", spec.layer, "None, as the source has no images")
        first = next(iter(source.blocks(np.arange(1), 0, 1)))
        shape = np.shape(first.data)[1:]
        expect(len(shape) == 1, "shape of a datum for the probe 'changes'", shape, "(sites,)")
        return Sites(Grid(shape) if first.distance is None else first.distance)
    if spec.layer is None:
        return _patches(spec.patch, image_shape)
    return _positions(spec, spec.layer, image_shape)


def _patches(side: int, shape: tuple[int, int, int]) -> Sites:
    channels, height, width = shape
    rows = height // side
    columns = width // side
    expect(
        rows * side == height and columns * side == width,
        "patch",
        side,
        f"a common divisor of the {height} x {width} pixels of the images",
    )

    def pixels(images: np.ndarray) -> np.ndarray:
        cut = np.asarray(images, float).reshape(-1, channels, rows, side, columns, side)
        return cut.transpose(0, 2, 4, 1, 3, 5).reshape(len(cut), rows * columns, -1)

    return Sites(Grid((rows, columns)), pixels)


def _positions(spec: Changes, layer: str, shape: tuple[int, int, int]) -> Sites:
    from uturn.networks.modules import load_classifier
    from uturn.probes.hidden_layers import HiddenLayers

    classifier = load_classifier(spec.classifier, spec.weights, layers=(layer,), image_shape=shape)
    expect(
        len(classifier.layers) == 1,
        "layer",
        layer,
        f"the name of one module, not of {len(classifier.layers)}",
    )
    (name,) = classifier.layers
    axis = classifier.channel_axes[name]
    probe = HiddenLayers(classifier.module, name, classifier.preprocess, batch_size=spec.batch_size)

    def output(images: np.ndarray) -> np.ndarray:
        """Activations (batch, positions .., channels)."""
        batches = [
            batch[name].numpy() for batch in probe.activations(np.asarray(images, np.float32))
        ]
        return np.moveaxis(np.concatenate(batches), axis, -1)

    grid = output(np.zeros((1, *shape), np.float32)).shape[1:-1]
    skipped = 0
    if len(grid) == 1:
        prefix = int(getattr(classifier.module, "num_prefix_tokens", 0))
        skipped = _tokens_before_square(grid[0], prefix)
        side = math.isqrt(grid[0] - skipped)
        if side**2 == grid[0] - skipped:
            grid = (side, side)
    expect(
        math.prod(grid) > 1,
        "layer",
        layer,
        "one whose output has positions; choose an earlier layer",
    )

    def vectors(images: np.ndarray) -> np.ndarray:
        values = output(images)
        return values.reshape(len(values), -1, values.shape[-1])[:, skipped:]

    return Sites(Grid(grid), vectors)


def _tokens_before_square(tokens: int, prefix: int) -> int:
    """Number of first tokens of a transformer without which the others are a square grid: 0, 1 or
    `prefix`; 0 if none of these leaves a square.
    """
    for others in (0, 1, prefix):
        if others < tokens and math.isqrt(tokens - others) ** 2 == tokens - others:
            return others
    return 0
