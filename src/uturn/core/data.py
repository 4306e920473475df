"""The data that pass between parts: originals, noisy data, U-turns.

originals --corruption--> noisy --backward--> reconstructions --probe--> readings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol

import numpy as np
from typing_extensions import TypeVar

from uturn.core.checks import expect
from uturn.core.display import page, table
from uturn.core.messages import shown
from uturn.core.random import Streams

Reconstructions = Any
"""An array (items, draws, ..), or for strings {tree_level: int64 (items, draws, nodes)}. There are
trajectories * clones draws of an item, and clones of one noisy datum are next to each other."""


N = TypeVar("N", default=Any)
"""Kind of noisy data: the output of a corruption."""


@dataclass(frozen=True, repr=False)
class Noisy:
    """Noisy data: the output of a corruption.

    The batch has items * trajectories data, or one of each item if a corruption of strings draws
    nothing.
    """

    values: np.ndarray
    """(batch, ..). For strings (batch, num_leaves), where masked symbols are -1, or
    (batch, num_leaves, vocab_size) for Gaussian noise."""
    noise: np.ndarray
    """float64 (batch,), noise level of each datum, in the unit of the corruption."""
    vocab_size: int = 0
    """Number of symbols; 0 for data without symbols."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({np.shape(self.values)}, noise {np.unique(self.noise)})"


def checked_noisy(noisy: object, where: str, counts: Sequence[int]) -> Noisy:
    """What the method `where` returned, as noisy data.

    ValueError unless the number of data is one of `counts`, and each has its noise level.
    """
    if not isinstance(noisy, Noisy):
        raise ValueError(f"{where} = {shown(noisy)}: expected uturn.Noisy(values, noise)")
    expected = f"a numpy array ({counts[0]}, ..), a row for each of the data"
    is_array = isinstance(noisy.values, np.ndarray)
    expect(is_array, f"{where}: type of values", type(noisy.values).__name__, expected)
    shape = noisy.values.shape
    expect(
        shape[:1] in [(count,) for count in counts], f"{where}: shape of values", shape, expected
    )
    levels = np.shape(noisy.noise)
    expected = f"({shape[0]},), a noise level for each row of values"
    expect(levels == shape[:1], f"{where}: shape of noise", levels, expected)
    return noisy


class NoisingProcess(Protocol):
    """What originals ask of a corruption (`uturn.Corruption`) to make their noisy data."""

    purpose: int
    """Purpose of its random streams."""

    @property
    def is_random(self) -> bool:
        """Whether the noisy datum is drawn at random."""

    def corrupt(self, data: np.ndarray, noise: float, keys: np.ndarray) -> Any:  # noqa: ANN401 - noisy data of the kind that the corruption makes
        """Noisy data (batch, ..) of originals (batch, ..), by `keys`, uint64 (batch,)."""

    def corrupt_symbols(
        self, symbols: np.ndarray, noise: float, keys: np.ndarray, vocab_size: int
    ) -> Noisy:
        """Noisy data of strings or texts, int64 (batch, length), with their number of symbols."""


class Originals:
    """A block of originals from one source. The fields `items` and `data` are required."""

    items: np.ndarray
    """Numbers of the items, int64 (batch,)."""
    distance: Any = None
    """Distances between the sites of an original (`uturn.measures.covariances`). None: the
    differences of their indices."""
    free: np.ndarray | None = None
    """bool (batch, sites), the sites that an original has and noise can change. None: all."""
    if TYPE_CHECKING:  # may be a field or a property

        @property
        def data(self) -> np.ndarray:
            """The originals (batch, ..) in the form read by networks."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.items)} items)"

    def data_of(self, reconstructions: Reconstructions) -> np.ndarray:
        """Reconstructions in the form read by networks, (batch, draws, ..)."""
        array: np.ndarray = reconstructions
        return array

    def reconstructed_shape(self) -> tuple[int, ...] | dict[int, tuple[int, ...]] | None:
        """Shape of one reconstruction, or the shape of each of its tree levels. None: any shape.

        By default the shape of an original. A class that defines `data_of` has reconstructions in
        a form of its own, and by default any shape.
        """
        if type(self).data_of is not Originals.data_of:
            return None
        return self.data.shape[1:]

    def continued(self, reconstructions: Reconstructions, taken: np.ndarray) -> Originals:
        """A block of the same items and source: the reconstruction of each item `taken`, bool
        (batch,), else its own datum.

        `reconstructions` as of a U-turn with one trajectory, (batch, 1, ..). Chains of U-turns need
        it. ValueError if a block cannot be continued.
        """
        raise ValueError(
            f"{self!r} cannot be continued by its reconstructions; a chain of U-turns needs its"
            " method `continued`"
        )

    def observed_by(self, corruption: NoisingProcess, noise: float, streams: Streams) -> Noisy:
        """Noisy data, one for each trajectory of each original.

        By default `corruption.corrupt(data, noise, keys)`.
        """
        repeated = np.repeat(self.data, streams.count, axis=0)
        noisy: Noisy = corruption.corrupt(repeated, noise, streams.keys(corruption.purpose))
        return noisy


O = TypeVar("O", bound=Originals, default=Any)  # noqa: E741 - originals
"""Kind of originals: a block of a source."""


@dataclass(frozen=True, repr=False)
class UTurns(Generic[O, N]):
    """U-turns of a block of originals at one noise level: the input of probes."""

    originals: O
    """A block of a source."""
    noisy: N
    """The output of the corruption."""
    reconstructions: Reconstructions
    clones: int = 1
    """Reconstructions of each noisy datum."""
    records: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the backward tells beside the reconstructions, such as energies: {name: values (items,
    trajectories * clones)}.
    """

    def __repr__(self) -> str:
        return f"UTurns({self.originals!r}, {self.noisy!r}, clones={self.clones})"

    def _repr_html_(self) -> str:
        rows = [("originals", "", repr(self.originals)), ("noisy", "", repr(self.noisy))]
        if isinstance(self.reconstructions, Mapping):
            for level, values in self.reconstructions.items():
                rows.append(("reconstructions", f"tree level {level}", str(np.shape(values))))
        else:
            rows.append(("reconstructions", "", str(np.shape(self.reconstructions))))
        head = ("", "", "(items, trajectories * clones, ..)")
        return page("U-turns", table(head, rows), note=f"Clones: {self.clones}.")


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What a backward may give in place of bare reconstructions."""

    reconstructions: Reconstructions
    records: Mapping[str, np.ndarray]
    """For `UTurns.records`."""


@dataclass(frozen=True, eq=False)
class StoredItems:
    """Originals of a run, as its results describe them."""

    items: np.ndarray
    """Numbers of the items, int64 (items,)."""
    num_items: int
    """Number of originals in the run."""
    seed: int
    """Seed of the run."""
    fingerprint: str
    """Identity of the source (`Source.fingerprint`)."""
    shape: tuple[int, ...]
    """Shape of an original."""
    coordinates: Mapping[str, np.ndarray]
    """The coordinates of these items (`Source.coordinates`), (items,)."""
