"""The four ideas of an experiment, Source, Corruption, Backward and Probe, and what passes between them.

A part is any object with the members of its protocol. Methods marked `abstractmethod` are required, all others have defaults. A
class that inherits from the protocol has these defaults, and so has every user-defined part of an experiment, whether its class
inherits or not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from uturn.random import Purpose, Streams

Axes = Mapping[str, tuple[Any, Mapping[str, Any]]]
"""Coordinates of the noise axis: {name: (values, attributes)}."""


@dataclass(frozen=True)
class Variable:
    """Shape and meaning of what a probe measures.

    Attributes
    ----------
    dims : tuple of str
        They begin with ("noise", "item"). A variable with the dim "trajectory" has one reading for every reconstruction; an
        experiment with several clones gives it the dim "clone" after "trajectory".
    long_name : str
    pooled : bool
        Matters for a variable without the dim "trajectory" only. It is True if the reading of an item is computed from all its
        trajectories, as a mean over them is. Such readings are measured again when trajectories are added.
    symmetric : bool
        The reading compares the original with a reconstruction by a function f with f(x, y) = f(y, x). In an experiment with
        several clones the probe then also reads `clone_<name>`: clone k compared by f with the other clones of the same noisy
        datum, averaged over them.
    """

    dims: tuple[str, ...]
    long_name: str
    pooled: bool = True
    symmetric: bool = False


@dataclass(frozen=True, repr=False)
class Noisy:
    """Noisy data: what a corruption makes of a batch, one row for each original, or for each trajectory of each original.

    Attributes
    ----------
    values : array (batch, num_leaves), or (batch, num_leaves, vocab_size) for the Gaussian process
        Masked leaves are -1; the ε-process keeps the true leaves. Other kinds of data have other shapes, see their blocks.
    noise : float64 array (batch,)
        Noise level of each sample, in the unit of the corruption.
    vocab_size : int
        Number of symbols; 0 for data that have none.
    """

    values: np.ndarray
    noise: np.ndarray
    vocab_size: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({np.shape(self.values)}, noise {np.unique(self.noise)})"


@dataclass(frozen=True, repr=False)
class UTurns:
    """U-turns of a batch of originals at one noise level: what probes read.

    Attributes
    ----------
    originals : block of a source
    noisy : what the corruption made of them
    reconstructions : array (items, draws, ...), or for strings {tree_level: int64 (items, draws, nodes)}
        draws = trajectories x clones. The clones of a trajectory, which are reconstructions of one noisy datum, are neighbours.
    clones : int
    """

    originals: Any
    noisy: Any
    reconstructions: Any
    clones: int = 1

    def __repr__(self) -> str:
        return f"UTurns({self.originals!r}, {self.noisy!r}, clones={self.clones})"


class Originals(Protocol):
    """A block of originals of one source.

    Attributes
    ----------
    items : int64 array (batch,)
        Numbers of the items.
    data : array (batch, ...)
        The originals: what a network reads.
    """

    items: np.ndarray
    if TYPE_CHECKING:  # a field or a property

        @property
        def data(self) -> np.ndarray: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.items)} items)"

    def data_of(self, reconstructions: Any) -> Any:
        """What a network reads of reconstructions, (batch, draws, ...)."""
        return reconstructions

    def observed_by(self, corruption: Any, noise: float, streams: Streams) -> Any:
        """Every original once a trajectory, noisy; by default `corruption.corrupt(data, noise, keys)`."""
        return corruption.corrupt(np.repeat(self.data, streams.count, axis=0), noise, streams.keys(corruption.purpose))


class Part(Protocol):
    """What every part may say of itself."""

    kind: ClassVar[str] = ""
    """Of a source: the kind of its data, such as "strings", "vectors", "images"."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Of other parts: the kinds of data they are for; none named: any."""
    execution: ClassVar[frozenset[str]] = frozenset()
    """Names of options that only say how the results are computed. They may differ when a store is resumed."""

    def fingerprint(self) -> str:
        """Identity of the weights or data, if any, which is recorded with the results."""
        return ""


class Source(Part, Protocol):
    """Where the originals come from."""

    @property
    def num_symbols(self) -> int:
        """Number of symbols of its strings: its `vocab_size` if it has one; 0 for data without symbols."""
        return getattr(self, "vocab_size", 0)

    @abstractmethod
    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Any]:
        """Originals of the items, in order, as one or more blocks (`Originals`), each of one grammar, say."""

    def coordinates(self, seed: int, num_items: int) -> Mapping[str, Any]:
        """Further coordinates of `item`: {name: values (num_items,)}."""
        return {}

    def skipped(self, num_items: int) -> Mapping[str, str]:
        """Data that could not be used, and why; recorded with the results."""
        return {}

    def files(self) -> Sequence[Any]:
        """Paths of the files and folders that it reads: what is computed from the data is computed again when they change."""
        return []

    def num_labels(self) -> int | None:
        """Number of classes of the labels, None if there are none."""
        return None

    def class_names(self) -> Sequence[str] | None:
        """Names of the classes in the order of the labels, None if there are none."""
        return None


class Corruption(Part, Protocol):
    """What takes information away from a datum."""

    process: ClassVar[str] = ""
    """The family that a backward undoes: "channel" if the evidence about the original is known, "diffusion" for the forward
    process of a diffusion model."""
    purpose: int = Purpose.CORRUPTION
    """What its stream of random numbers is for."""
    unit: ClassVar[str]
    """What `noise` measures."""
    max_noise: ClassVar[float]
    is_bayesian: ClassVar[bool] = True
    """Whether evidence is the likelihood of what was drawn, so that original and reconstruction are exchangeable."""
    is_random: ClassVar[bool] = True
    """Whether anything is drawn. If not, all trajectories of an item have one noisy datum."""

    @abstractmethod
    def corrupt(self, *args: Any, **kwargs: Any) -> Any:
        """Noisy data of arrays: `corrupt(data, noise, keys)`; of strings `corrupt(leaves, noise, vocab_size, keys)`."""

    def observe(self, originals: Any, noise: float, streams: Streams) -> Any:
        """Noisy data of a block of originals, one for each trajectory."""
        return originals.observed_by(self, noise, streams)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> Any:
        """Effective ε of noise levels (Eq. 63 of arXiv:2402.16991), None where it is not known."""
        return None

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> Any:
        """Mutual information of a uniformly distributed leaf and its observation, in bits; None where it is not known."""
        return None

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        """What else places the noise levels (levels,) on an axis."""
        v = source.num_symbols
        if not v:
            return {}
        known = {
            "effective_epsilon": (self.effective_epsilon(noise, v), {"long_name": "effective epsilon (Eq. 63)"}),
            "bits_per_leaf": (
                self.bits_per_leaf(noise, v),
                {"long_name": "information per leaf", "units": "bit"},
            ),
        }
        return {name: entry for name, entry in known.items() if entry[0] is not None}


class Channel(Corruption, Protocol):
    """A corruption of symbols with known evidence about every leaf, and its reverse steps if it has any."""

    process: ClassVar[str] = "channel"
    is_reversible: ClassVar[bool] = False
    """Whether it has reverse steps."""
    clean_noise: ClassVar[float] = 0.0
    """Noise up to which an observation leaves no doubt in float64."""
    misread: ClassVar[float] = -np.inf
    """Log-probability per symbol that an observed leaf is not what it seems, see `ExactDenoiser`."""

    @abstractmethod
    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Observations of strings (batch, num_leaves); `seed`: an integer, or one uint64 key for each string."""

    @abstractmethod
    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-likelihood of what was observed, given each symbol: (batch, num_leaves, vocab_size), up to a constant a leaf."""

    def reverse(self, denoiser: Any, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        """Strings (batch, num_leaves) after `steps` evaluations of a denoiser; all observations have one noise level."""
        raise ValueError(f"{self!r} has no reverse steps")

    def value_shape(self, num_leaves: int, vocab_size: int) -> tuple[int, ...]:
        """Shape of the values that an observation of one string holds."""
        return (num_leaves,)

    def shown(self, noisy: Noisy) -> np.ndarray:
        """The symbols that an observation without noise shows, (batch, num_leaves)."""
        return noisy.values

    def checked_values(self, values: np.ndarray, noise: np.ndarray, vocab_size: int) -> np.ndarray:
        """The values of an observation, or a ValueError that says what they should be."""
        return values


class Backward(Part, Protocol):
    """The way back from noisy data to reconstructions."""

    undoes: ClassVar[tuple[str, ...]] = ()
    """The processes (`Corruption.process`) it undoes; none named: any."""
    asks: ClassVar[tuple[str, ...]] = ()
    """Members that it needs of a user-defined corruption of strings besides the required ones."""
    adds_trajectories: ClassVar[bool] = False
    """Whether some trajectories can be reconstructed by themselves, with the same numbers as among the others."""
    shares_batches: ClassVar[bool] = False
    """Whether it has a faster `reconstruct_many`."""

    @property
    def wants_processes(self) -> bool:
        """Whether several processes are faster than one with several threads."""
        return False

    @abstractmethod
    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        """`clones` reconstructions of each noisy datum, (items, trajectories * clones, ...); the first is that of clones = 1."""

    def reconstruct_many(self, batches: Iterable[tuple[Any, Any, Streams]], clones: int = 1) -> Iterator[tuple[Any, Any]]:
        """Reconstructions of batches `(name, noisy, streams)`: `(name, reconstructions)` in the order in which they end."""
        for name, noisy, streams in batches:
            yield name, self.reconstruct(noisy, streams, clones)

    def undone(self, corruption: Any, source: Any) -> Any:
        """The corruption that is undone: the one given, or one with what only this backward knows, the schedule of a diffusion.

        Raises
        ------
        ValueError
            If source, corruption and backward do not fit together.
        """
        return corruption

    def describe(self) -> str:
        """A line on the model, recorded with the results."""
        return ""


class Probe(Part, Protocol):
    """What is compared between original and reconstruction, level by level."""

    @abstractmethod
    def variables(self, source: Any) -> Mapping[str, Variable]:
        """What it measures: {name: Variable}."""

    def coordinates(self, source: Any) -> Mapping[str, Any]:
        """Values along its own dims: {dim: values}."""
        return {}

    @abstractmethod
    def read(self, u_turns: UTurns, source: Any) -> Mapping[str, np.ndarray]:
        """Readings of a batch at one noise level: {name: array (items, ...)}, with `draws` entries along "trajectory"."""

    def own_code(self) -> Any:
        """A user's function that the probe was given by its import path, if any; its code is recorded with the results."""
        return None


PROTOCOLS: Mapping[str, Any] = {"source": Source, "corruption": Corruption, "backward": Backward, "probes": Probe}


class _SpecMeta(type(BaseModel), type(Protocol)):  # type: ignore[misc]
    """Lets a pydantic model inherit the defaults of a protocol."""


class Spec(BaseModel, metaclass=_SpecMeta):
    """A part whose options are the fields of a table in a spec: plain data, checked, without further keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
