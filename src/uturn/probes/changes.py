"""The probe of correlated changes: which sites of a datum change together in U-turns of one
original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.checks import expect
from uturn.core.files import cached_while_unchanged
from uturn.core.progress import steps
from uturn.core.protocols import UTurns, Variable
from uturn.measures.covariances import Covariances, Distance, Grid
from uturn.probes.named import Named

_Kept = tuple[int, np.ndarray, Covariances]


class Changes(Named):
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
    classifier: str = "fashion_mnist"
    weights: str | None = None
    batch_size: int = Field(default=100, ge=1)

    @property
    def network_name(self) -> str:
        return self.classifier

    @model_validator(mode="after")
    def _needs_a_layer(self) -> Changes:
        is_used = self.layer is not None or (self.classifier, self.weights) == (
            "fashion_mnist",
            None,
        )
        expect(
            is_used,
            "layer",
            None,
            "one; `classifier` and `weights` are used for the positions of a layer only",
        )
        return self

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item")
        patches = f"patches of {self.patch} pixels" if self.layer is None else "positions"
        unit = source.site_name if source.image_shape() is None else patches
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

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {f"{self.prefix}distance": sites_of(self, source).distance.values}

    def read(self, u_turns: UTurns, source: Any) -> Mapping[str, np.ndarray]:
        return self.readings(self.accumulate(None, u_turns, source), source)

    def accumulate(self, kept: _Kept | None, u_turns: UTurns, source: Any) -> _Kept:
        """The number of clones, the sites of each item, and the running covariances, a row for
        each item and clone.
        """
        space, originals = sites_of(self, source), u_turns.originals
        changed = space.changed(originals.data, originals.data_of(u_turns.reconstructions))
        items, clones, sites = len(changed), u_turns.clones, changed.shape[2]
        of_each_clone = (
            changed.reshape(items, -1, clones, sites)
            .swapaxes(1, 2)
            .reshape(items * clones, -1, sites)
        )
        covariances = Covariances(space.distance) if kept is None else kept[2]
        free = getattr(originals, "free", None)
        return (
            clones,
            np.full(items, sites) if free is None else free.sum(axis=1),
            covariances.add(of_each_clone),
        )

    def readings(self, kept: _Kept, source: Any) -> dict[str, np.ndarray]:
        clones, sites, covariances = kept
        tables = {
            "change": covariances.mean.sum(axis=1) / sites.repeat(clones),
            "change_covariance": covariances.covariance,
            "change_covariance_sum": covariances.total,
        }
        return self.prefixed(
            {
                name: rows.reshape(-1, clones, *rows.shape[1:]).mean(axis=1)
                for name, rows in tables.items()
            }
        )

    def reads(self) -> list[Any]:
        from uturn.networks.modules import Network

        return [] if self.layer is None else [Network(self.classifier, self.weights)]


class _Sites:
    """The sites of a kind of data: their distances, and the function that gives their changes."""

    def __init__(
        self, distance: Distance, components: Callable[[Any], np.ndarray] | None = None
    ) -> None:
        self.distance, self._components = distance, components

    def changed(self, before: np.ndarray, after: Any) -> np.ndarray:
        """Changes (items, draws, sites) of originals (items, ...) in reconstructions (items,
        draws, ...).
        """
        if self._components is None and before.dtype.kind in "biu":
            return after != before[:, None]
        # (batch, sites, components).
        parts = self._components or (lambda data: np.asarray(data, float)[..., None])
        # One original at a time, since the output of a layer can be much larger than the image.
        pairs = steps(list(zip(before, after, strict=True)))
        return np.stack([np.linalg.norm(parts(b) - parts(a[None]), axis=-1) for a, b in pairs])


@cached_while_unchanged()
def sites_of(spec: Changes, source: Any) -> _Sites:
    """The sites of a source's data, according to the options of the probe."""
    image_shape = source.image_shape()
    if image_shape is not None:
        return (
            _patches(spec.patch, image_shape)
            if spec.layer is None
            else _positions(spec, spec.layer, image_shape)
        )
    expect(spec.layer is None, "layer", spec.layer, "None, as the source has no images")
    first, *_ = source.blocks(np.arange(1), 0, 1)
    shape = np.shape(first.data)[1:]
    expect(len(shape) == 1, "shape of a datum for the probe 'changes'", shape, "(sites,)")
    return _Sites(getattr(first, "distance", None) or Grid(shape))


def _patches(side: int, shape: tuple[int, int, int]) -> _Sites:
    channels, height, width = shape
    rows, columns = height // side, width // side
    divides = (rows * side, columns * side) == (height, width)
    expect(
        divides, "patch", side, f"a common divisor of the {height} x {width} pixels of the images"
    )

    def pixels(images: Any) -> np.ndarray:
        cut = np.asarray(images, float).reshape(-1, channels, rows, side, columns, side)
        return cut.transpose(0, 2, 4, 1, 3, 5).reshape(len(cut), rows * columns, -1)

    return _Sites(Grid((rows, columns)), pixels)


def _positions(spec: Changes, layer: str, shape: tuple[int, int, int]) -> _Sites:
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

    def output(images: Any) -> np.ndarray:
        """(batch, positions .., channels)"""
        batches = [
            batch[name].numpy() for batch in probe.activations(np.asarray(images, np.float32))
        ]
        return np.moveaxis(np.concatenate(batches), axis, -1)

    grid = output(np.zeros((1, *shape), np.float32)).shape[1:-1]
    skipped = 0
    # The tokens of a transformer are a square grid if their number is a square, perhaps without
    # other tokens.
    if len(grid) == 1:
        # Counts of tokens that are not patches.
        others = (0, 1, int(getattr(classifier.module, "num_prefix_tokens", 0)))
        skipped = next(
            (k for k in others if k < grid[0] and math.isqrt(grid[0] - k) ** 2 == grid[0] - k), 0
        )
        side = math.isqrt(grid[0] - skipped)
        grid = (side, side) if side**2 == grid[0] - skipped else grid
    expect(
        math.prod(grid) > 1,
        "layer",
        layer,
        "one whose output has positions; choose an earlier layer",
    )

    def vectors(images: Any) -> np.ndarray:
        values = output(images)
        return values.reshape(len(values), -1, values.shape[-1])[:, skipped:]

    return _Sites(Grid(grid), vectors)
