"""Originals drawn by the model itself."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from uturn.core.checks import checked_integer, expect
from uturn.core.data import StoredItems
from uturn.core.files import checked_path, named_errors, read_array, whole_file
from uturn.core.messages import counted
from uturn.core.own_parts import is_own, name_of
from uturn.core.prior import Prior
from uturn.core.protocols import Backward, Spec
from uturn.core.random import Purpose, keys
from uturn.sources.images import Images, ImageSource

_MOST_BYTES = 2**30  # bytes of originals in memory
_REFERENCE = 256  # number of images for statistics of activations
# {(identity of the draws, item): image}, latest last.
_kept: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()


class GeneratedSource(Spec, ImageSource):
    """Images that the model of the backward draws from pure noise, with its scheduler and all its
    steps.

    The originals have the law of the model, so a sampler that draws from its posterior is
    calibrated (`ut.calibration`). With a model that takes the true label, item i is drawn with the
    label i % num_classes; for other models there are no labels. Statistics of activations use the
    first 256 items, even in a smaller run, so that it can be extended.

    `seed`: seed of the originals, by default that of the experiment. `steps`: reverse steps of the
    chain that draws them, by default that of the backward; a coarse chain has another law than its
    model, and posterior samplers of inverse problems need this option. Execution-only option
    `folder`: folder of drawn originals, one file each, for other processes and later runs. Without
    it, a process caches up to 1 GB of originals in memory.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"folder"})
    type: Literal["generated"] = "generated"
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    steps: int | None = Field(default=None, ge=1)
    folder: str | None = None
    _prior: Prior | None = PrivateAttr(None)
    _seed: int = PrivateAttr(0)  # seed of the experiment
    _fingerprint: str = PrivateAttr("")
    _own_prior: str = PrivateAttr("")  # what errors call a user-defined prior

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneratedSource) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, str | None, Prior | None]:
        return self._seed_of(self._seed), self.folder, self._prior

    @property
    def prior(self) -> Prior:
        """The law of the originals; ValueError before `made_by`."""
        if self._prior is None:
            raise ValueError(f"{self!r} draws originals only in an experiment with a model")
        return self._prior

    def _seed_of(self, seed: int) -> int:
        """The seed of the originals in an experiment with this seed."""
        return seed if self.seed is None else self.seed

    def made_by(self, backward: Backward, seed: int) -> GeneratedSource:
        prior = backward.prior(self.steps)
        if prior is None:
            raise ValueError(
                f"the source 'generated' needs a backward that draws originals (`prior`), such as"
                f" type 'diffusion'; {name_of(backward, repr(backward))} draws none"
            )
        where = f"{name_of(backward, 'backward')}.prior"
        expect(isinstance(prior, Prior), where, prior, "a uturn.core.prior.Prior, or None")
        bound = self.model_copy()
        if is_own(backward):
            checked_integer(f"{where}: batch_size", prior.batch_size, 1)
            bound._own_prior = where
        bound._prior = prior
        bound._seed = seed
        return bound

    def count(self) -> int:
        return _REFERENCE

    def images_at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = np.asarray(indices)
        return self._images(indices, self._seed, _REFERENCE), self._labels(indices)

    def image_shape(self) -> tuple[int, int, int]:
        return self.prior.shape

    def num_labels(self) -> int | None:
        return self.prior.num_labels

    def fingerprint(self) -> str:
        """SHA-256 of the model and its sampler; with the seed, it determines the originals."""
        if not self._fingerprint:  # cached, since hashing the weights is slow
            self._fingerprint = self.prior.fingerprint
        return self._fingerprint

    def coordinates(self, seed: int, num_items: int) -> dict[str, np.ndarray]:
        return {"label": self._labels(np.arange(num_items))}

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Images]:
        yield Images(items, self._images(items, seed, num_items), self._labels(items))

    @classmethod
    def describe(cls, options: Mapping[str, Any], count: int, seed: int) -> str:
        own_seed = options.get("seed")
        seed = seed if own_seed is None else own_seed
        return f"{counted(count, 'original')} generated by the model (seed {seed})"

    def stored(self, originals: StoredItems) -> np.ndarray | None:
        return self.kept(originals.fingerprint, originals.seed, originals.items)

    def kept(self, fingerprint: str, seed: int, items: np.ndarray) -> np.ndarray | None:
        """Originals drawn by a run whose source has this fingerprint, without its model.

        None if some are no longer stored.
        """
        draws = _Draws(fingerprint, self._seed_of(seed), self.folder)
        images = []
        for item in items:
            image = draws.get(int(item))
            if image is None:
                return None
            images.append(image)
        return np.stack(images)

    def _labels(self, items: np.ndarray) -> np.ndarray:
        num_labels = self.num_labels()
        if num_labels is None:
            return np.full(len(items), -1)
        return np.asarray(items) % num_labels

    def _images(self, items: np.ndarray, seed: int, num_items: int) -> np.ndarray:
        """The originals of items, float32 (items, channels, height, width), drawn if needed."""
        seed = self._seed_of(seed)
        draws = _Draws(self.fingerprint(), seed, self.folder)
        images: dict[int, np.ndarray] = {}
        missing = []
        for item in map(int, items):
            image = draws.get(item)
            if image is None:
                missing.append(item)
            else:
                images[item] = image
        if missing:
            numbers = np.array(missing + self._ahead(draws, missing, set(images), num_items))
            drawn = self._drawn(keys(seed, Purpose.ORIGINAL, numbers), numbers)
            for item, image in zip(numbers.tolist(), drawn, strict=True):
                draws.put(item, image)
                images[item] = image
        return np.stack([images[int(item)] for item in items])

    def _drawn(self, keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Draws from the prior; ValueError unless they are images of its shape."""
        drawn = self.prior.draw(keys, numbers)
        if not self._own_prior:
            return drawn
        form = (getattr(drawn, "dtype", type(drawn)), np.shape(drawn))
        shape = (len(numbers), *self.prior.shape)
        fits = isinstance(drawn, np.ndarray) and drawn.dtype == np.float32 and drawn.shape == shape
        expect(fits, f"{self._own_prior}.draw: dtype, shape", form, f"float32 {shape}")
        expect(np.isfinite(drawn).all(), f"{self._own_prior}.draw", drawn, "finite numbers")
        return drawn

    def _ahead(
        self, draws: _Draws, missing: list[int], present: set[int], num_items: int
    ) -> list[int]:
        """Further items that fill the batches of the network, where that is faster."""
        end = min(num_items, missing[0] + self.prior.batch_size)
        new = [item for item in range(missing[0], end) if item not in present.union(missing)]
        return [item for item in new if draws.get(item) is None]


class _Draws:
    """Cache of originals, in memory and in a folder."""

    def __init__(self, fingerprint: str, seed: int, folder: str | None) -> None:
        self.identity = hashlib.sha256(f"{fingerprint} {seed}".encode()).hexdigest()
        self.folder: Path | None = None
        if folder is not None:
            self.folder = Path(checked_path("folder", folder)) / self.identity[:16]

    def get(self, item: int) -> np.ndarray | None:
        image = _kept.get((self.identity, item))
        if image is None and self.folder is not None:
            with suppress(ValueError):  # missing or damaged: draw it
                stored = read_array(self.folder / f"item{item}.npy")
                if stored.dtype == np.float32 and stored.ndim == 3:
                    image = stored
                    self._remember(item, image)
        return image

    def put(self, item: int, image: np.ndarray) -> None:
        self._remember(item, image)
        if self.folder is None:
            return
        path = self.folder / f"item{item}.npy"
        # Several processes may draw an item at the same time, so each writes to a different file.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with named_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(temporary) as file:
                np.save(file, image)
            os.replace(temporary, path)

    def _remember(self, item: int, image: np.ndarray) -> None:
        _kept[self.identity, item] = image
        while len(_kept) > 1 and len(_kept) * image.nbytes > _MOST_BYTES:
            _kept.popitem(last=False)
