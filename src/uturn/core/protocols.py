"""Protocols of the four kinds of parts, Source, Corruption, Backward and Probe, and the data that pass between them.

Methods marked `abstractmethod` are required, as are the values `unit` and `max_noise` of a corruption. All other members have
defaults, which user-defined parts of an experiment get even if their class does not inherit from the protocol.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr
from pydantic.dataclasses import dataclass as checked_dataclass

from uturn.core.checks import LARGEST, expect, plain
from uturn.core.display import page, table
from uturn.core.inputs import Input, marked
from uturn.core.progress import portion
from uturn.core.random import Purpose, Streams

Axes = Mapping[str, tuple[Any, Mapping[str, Any]]]
"""Coordinates of the noise axis: {name: (values, attributes)}."""
Coordinates = Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]]
"""Coordinates of results, {name: (dims, values, attributes)}; a coordinate with the name of a dim determines its length."""


_Level = Annotated[float, Field(strict=True, allow_inf_nan=False)] | StrictStr | None  # strict, so that True is not a number
GUESSED = "which is a guess"  # in the remark on a start
_SHARED_DIMS = ("noise", "item", "trajectory", "clone")  # all other dims are a variable's own


@checked_dataclass(frozen=True)
class Variable:
    """Dims, meaning and reading instructions of a variable that a probe measures; `uturn.study` needs these and the store."""

    dims: tuple[StrictStr, ...]
    """("noise", "item", ..). With the dim "trajectory" there is one reading for every reconstruction; in an experiment with
    several clones the dim "clone" follows it."""
    long_name: StrictStr
    """Description with unit, stored with the readings."""
    _: KW_ONLY
    start: _Level = None
    """Value without changes, at noise 0: a number; the name of a variable or coordinate without noise; "same:NAME", the
    probability that two originals agree in NAME; or "same:A=B", the share of originals whose A equals B. Without a start, no
    place is located on the curve."""
    chance: _Level = None
    """Value for independent data, as `start`; by default the value at the largest noise."""
    bounds: tuple[FiniteFloat | None, FiniteFloat | None] = (None, None)
    """Smallest and largest possible value, None for no bound. Intervals are clipped to the bounds; means of readings in [0, 1]
    have the interval of a proportion."""
    group: StrictStr = ""
    """Readings of one group are drawn in one panel; by default the name of the probe."""
    order: StrictStr | None = None
    """The dim whose first and last entries may swap their order, such as the layers of a network, from low to high level."""
    role: Literal["reading", "record", "changes"] = "reading"
    """A record is shown but not averaged (pictures, tokens, numbers of classes); "changes" are covariances of changes by distance
    along the last dim, or their sum over all pairs."""
    family: StrictStr | None = None
    """Symmetric readings of one family are tested together by Holm; by default those of the probe."""
    unit: StrictStr = ""
    """Unit of the values; of "changes", of a distance between two sites."""
    symmetric: bool = False
    """The reading is f(original, reconstruction) with f(x, y) = f(y, x). With several clones the probe then also reads
    `clone_<name>`: clone k compared by f with the other clones of the same noisy datum, averaged over them."""
    ranked: bool = False
    """The reading is a function h(x̂; y) of one reconstruction and the noisy datum. The probe then also reads `original_<name>`,
    h(x_0; y), for each trajectory, without clones (`uturn.ranks`)."""
    pooled: bool = True
    """Whether a reading without the dim "trajectory" depends on all trajectories of its item, as a mean does. Such readings are
    measured again when trajectories are added."""
    probe: StrictStr = ""
    model: StrictStr = ""  # names of the probe and of its network; filled in by the experiment
    guessed: bool = False
    """Whether the start is a guess from the readings. The study says so, and uses it only if they change with noise."""

    def instructions(self) -> dict[str, Any]:
        """The reading instructions that differ from the defaults, as plain data: the attribute `reading` of a stored array."""
        mine = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        return {name: plain(value) for name, value in mine.items() if name not in ("dims", "long_name", "pooled")}

    def check(self, where: str = "") -> None:
        """ValueError, after `where`, for instructions that contradict each other or name a dim that the variable lacks."""
        low, high = self.bounds
        expect(low is None or high is None or low < high, f"{where}bounds", self.bounds, "a smaller and a larger number, or None")
        for name, level in (("start", self.start), ("chance", self.chance)):
            if isinstance(level, float):
                inside = (low is None or low <= level) and (high is None or level <= high)
                expect(inside, where + name, level, f"a number in its bounds {self.bounds}")
                expect(abs(level) < LARGEST, where + name, level, f"a number below {LARGEST:g}")
        own_dims = tuple(dim for dim in self.dims if dim not in _SHARED_DIMS)
        expect(self.order in (None, *own_dims), f"{where}order", self.order, f"one of its own dims {own_dims}")

    @property
    def about_start(self) -> str:
        """A remark on a start that is a guess; "" for others."""
        return f"its start is taken as {self.start:g}, {GUESSED}: give start" if self.guessed else ""

    @property
    def is_share(self) -> bool:
        """Whether readings lie in [0, 1], so that their mean is a proportion."""
        return self.bounds == (0.0, 1.0)


@dataclass(frozen=True, repr=False)
class Noisy:
    """Noisy data: the output of a corruption, batch = items * trajectories, or items if a corruption of strings draws nothing."""

    values: np.ndarray
    """(batch, ..); for strings (batch, num_leaves), masked ones -1, or (batch, num_leaves, vocab_size) for Gaussian noise."""
    noise: np.ndarray
    """float64 (batch,), noise level of each sample, in the unit of the corruption."""
    vocab_size: int = 0
    """Number of symbols; 0 for data without symbols."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({np.shape(self.values)}, noise {np.unique(self.noise)})"


@dataclass(frozen=True, repr=False)
class UTurns:
    """U-turns of a block of originals at one noise level: the input of probes."""

    originals: Any
    """A block of a source (`Originals`)."""
    noisy: Any
    """The output of the corruption (`Noisy`)."""
    reconstructions: Any
    """(items, draws, ..), or for strings {tree_level: int64 (items, draws, nodes)}, with draws = trajectories * clones; clones of
    one noisy datum are next to each other."""
    clones: int = 1
    """Reconstructions of each noisy datum."""

    def __repr__(self) -> str:
        return f"UTurns({self.originals!r}, {self.noisy!r}, clones={self.clones})"

    def _repr_html_(self) -> str:
        by_level = self.reconstructions if isinstance(self.reconstructions, Mapping) else {"": self.reconstructions}
        rows = [("originals", "", repr(self.originals)), ("noisy", "", repr(self.noisy))]
        rows += [("reconstructions", f"tree level {k}" if k != "" else "", np.shape(values)) for k, values in by_level.items()]
        return page("U-turns", table(("", "", "(items, trajectories * clones, ..)"), rows), note=f"Clones: {self.clones}.")


class Originals(Protocol):
    """A block of originals from one source."""

    items: np.ndarray
    """Numbers of the items, int64 (batch,)."""
    distance: Any = None
    """Distances between the sites of an original (`uturn.measures.covariances`); by default the differences of their indices."""
    free: Any = None
    """bool (batch, sites), the sites that an original has and noise can change; by default all."""
    if TYPE_CHECKING:  # may be a field or a property

        @property
        def data(self) -> np.ndarray:
            """The originals (batch, ..) in the form read by networks."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.items)} items)"

    def data_of(self, reconstructions: Any) -> Any:
        """Reconstructions in the form read by networks, (batch, draws, ...)."""
        return reconstructions

    def continued(self, reconstructions: Any, taken: np.ndarray) -> Any:
        """A block of the same items and source: the reconstruction of each item `taken`, bool (batch,), else its own datum.

        `reconstructions` as of a U-turn with one trajectory, (batch, 1, ...). Chains of U-turns need it.
        """
        raise ValueError(f"{self!r} cannot be continued by its reconstructions; a chain of U-turns needs its method `continued`")

    def observed_by(self, corruption: Any, noise: float, streams: Streams) -> Any:
        """Noisy data, one for each trajectory of each original; by default `corruption.corrupt(data, noise, keys)`."""
        return corruption.corrupt(np.repeat(self.data, streams.count, axis=0), noise, streams.keys(corruption.purpose))


class Part(Input, Protocol):
    """Optional members of every part."""

    kind: ClassVar[str] = ""
    """Kind of data of a source, such as "strings", "vectors", "images"."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of data that a corruption, backward or probe accepts; empty: any."""
    execution: ClassVar[frozenset[str]] = frozenset()
    """Names of execution-only options, such as the device; a store can be resumed with other values of them."""
    batch_invariant: ClassVar[bool] = False
    """Whether the output for an item is bit-identical, whatever else is in its batch."""


class Source(Part, Protocol):
    """A source of originals."""

    site_name: ClassVar[str] = "sites"
    """Name of the sites of an original, in the plural."""

    @property
    def num_symbols(self) -> int:
        """Number of symbols: by default `vocab_size`, or 0 for data without symbols."""
        return getattr(self, "vocab_size", 0)

    @property
    def item_bytes(self) -> int:
        """Memory of a noisy datum in bytes; 0 if it is not known."""
        return 0

    @abstractmethod
    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Any]:
        """Originals of the items, in order, as one or more blocks; each depends on its item, the seed and `num_items` alone."""

    def made_by(self, backward: Any, seed: int) -> Any:
        """The source of an experiment with this backward and seed: itself, unless the originals are draws of the model."""
        return self

    def coordinates(self, seed: int, num_items: int) -> Mapping[str, Any]:
        """Further coordinates along `item`, such as labels: {name: values (num_items,)}.

        `file` and `file_digest` are texts; a run goes on only while the digests of its items are the same.
        """
        return {}

    def skipped(self, num_items: int) -> Mapping[str, str]:
        """Data that could not be used: {name: reason}; recorded with the results."""
        return {}

    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of its images; None for other kinds of data."""
        return None

    def num_labels(self) -> int | None:
        """Number of classes; None without labels."""
        return None

    def class_names(self) -> Sequence[str] | None:
        """Names of the classes in the order of the labels; None if they have no names."""
        return None


class Corruption(Part, Protocol):
    """A process that turns an original into a noisy datum."""

    process: ClassVar[str] = ""
    """The process: "channel" if the log-evidence about the original is known, "diffusion" for the forward process of a diffusion
    model."""
    purpose: int = Purpose.CORRUPTION
    """Purpose of the random streams of the corruption."""
    unit: ClassVar[str]
    """Quantity and unit of `noise` as text."""
    max_noise: ClassVar[float]
    """Largest noise level; the smallest is 0."""
    is_bayesian: ClassVar[bool] = True
    """Whether the evidence is the likelihood of the noisy datum. If so, the original and a posterior draw are exchangeable."""
    is_random: ClassVar[bool] = True
    """Whether the noisy datum is drawn at random. If not, all trajectories of an item have the same noisy datum."""
    masks: ClassVar[bool] = False
    """Whether each symbol of the noisy datum is that of the original or masked, -1, at places that do not depend on the symbols.
    Masked language models and decoders of masked symbols undo every such corruption."""

    @abstractmethod
    def corrupt(self, *args: Any, **kwargs: Any) -> Any:
        """Noisy data (batch, ...) of originals (batch, ...), by one random stream for each row, `keys` uint64 (batch,).

        The call is `corrupt(data, noise, keys)`, for strings `corrupt(leaves, noise, vocab_size, keys)`.
        """

    def observe(self, originals: Any, noise: float, streams: Streams) -> Any:
        """Noisy data of a block of originals, one for each trajectory of each original."""
        return originals.observed_by(self, noise, streams)

    def effective_epsilon(self, noise: Any, vocab_size: int) -> Any:
        """Effective ε (Eq. 63 of arXiv:2402.16991), v/(v-1) times the mean belief lost by the true symbol of a leaf, or None."""
        return None

    def bits_per_leaf(self, noise: Any, vocab_size: int) -> Any:
        """Mutual information of a uniformly distributed leaf and its observation, 0 .. log2 v bits; None if it is not known."""
        return None

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        """Further coordinates of the noise levels (levels,): {name: (values (levels,), attributes)}.

        The attribute `clean` is the value without noise, from which `uturn.study` interpolates to the first level. If there is
        `log_snr`, then `abar`, `log_snr` and `sigma` are interpolated in the angle with tan(angle) = sigma.
        """
        v = source.num_symbols
        if not v:
            return {}
        lost, kept = self.effective_epsilon(noise, v), self.bits_per_leaf(noise, v)
        bits = {"long_name": "information per leaf", "units": "bits", "clean": float(np.log2(v))}
        axes = {} if lost is None else {"effective_epsilon": (lost, {"long_name": "effective epsilon (Eq. 63)", "clean": 0.0})}
        return axes if kept is None else {**axes, "bits_per_leaf": (kept, bits)}


class Channel(Corruption, Protocol):
    """A corruption of symbols with known log-evidence about every leaf, and optional reverse steps."""

    process: ClassVar[str] = "channel"
    is_reversible: ClassVar[bool] = False
    """Whether `reverse` is defined."""
    clean_noise: ClassVar[float] = 0.0
    """Largest noise at which float64 evidence determines every leaf."""
    misread: ClassVar[float] = -np.inf
    """For each symbol, the log-probability that an observed leaf has another symbol; see `ExactDenoiser`."""

    @abstractmethod
    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Noisy data of strings (batch, num_leaves); `noise`: scalar or (batch,); `seed`: an integer, or uint64 keys (batch,)."""

    @abstractmethod
    def log_evidence(self, noisy: Noisy, dtype: Any = None) -> np.ndarray:
        """Log-likelihood (nats, up to a constant) of each leaf's observation for each symbol, (batch, num_leaves, vocab_size)."""

    def reverse(self, denoiser: Any, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        """Strings int64 (batch, num_leaves) from `steps` evaluations of a denoiser; all samples have the same noise level."""
        raise ValueError(f"{self!r} has no reverse steps")

    def value_shape(self, num_leaves: int, vocab_size: int) -> tuple[int, ...]:
        """Shape of `Noisy.values` for one string."""
        return (num_leaves,)

    def shown(self, noisy: Noisy) -> np.ndarray:
        """Symbols of noisy data without noise, int64 (batch, num_leaves)."""
        return noisy.values

    def checked_values(self, values: np.ndarray, noise: np.ndarray, vocab_size: int) -> np.ndarray:
        """`Noisy.values`; ValueError if they are impossible for this channel."""
        return values


class Backward(Part, Protocol):
    """A model that draws reconstructions given noisy data."""

    undoes: ClassVar[tuple[str, ...]] = ()
    """The processes (`Corruption.process`) that it undoes; empty: any."""
    asks: ClassVar[tuple[str, ...]] = ()
    """Further members that a user-defined corruption of strings needs."""
    adds_trajectories: ClassVar[bool] = False
    """Whether trajectories can be reconstructed separately with the same results."""
    shares_batches: ClassVar[bool] = False
    """Whether `reconstruct_stream` reconstructs the data of several blocks together. A hint for the order of tasks."""
    by_items: ClassVar[bool] = False
    """Whether the tasks of one block of items are best measured together, at all noise levels. A hint for the order of tasks."""
    blocks_ahead: ClassVar[int | None] = 64
    """Largest number of blocks (at least 1) that `reconstruct_stream` may have read and not yet answered, before it is called
    again. None for backwards that read only as many as they have room for."""
    has_gaps: ClassVar[bool] = False
    """Whether reconstructions may be missing, float arrays of NaN alone. Their readings are then NaN; probes do not see them."""

    @property
    def wants_processes(self) -> bool:
        """Whether several processes are faster than one with several threads."""
        return False

    @abstractmethod
    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        """`clones` reconstructions of each noisy datum, (items, trajectories * clones, ...); clone 0 is that of `clones=1`."""

    def reconstruct_stream(self, blocks: Iterable[tuple[Any, Any, Streams]], clones: int = 1) -> Iterator[tuple[Any, Any]]:
        """Reconstructions of blocks `(key, noisy, streams)`: `(key, reconstructions)`, each key once, in any order."""
        for key, noisy, streams in blocks:
            with portion(len(streams.items) * streams.count * clones):
                reconstructions = self.reconstruct(noisy, streams, clones)
            yield key, reconstructions

    def undone(self, corruption: Any, source: Any) -> Any:
        """The corruption to use with this backward, such as the forward process of a diffusion model; by default the given one.

        ValueError if source, corruption and backward do not fit together.
        """
        return corruption

    def describe(self) -> str:
        """One line of text about the model, recorded with the results."""
        return ""

    def missing(self, experiment: Any) -> Mapping[str, str]:
        """Reconstructions that it cannot give, {name: reason}; ValueError for data that do not fit the experiment."""
        return {}

    def doubts(self, experiment: Any) -> Sequence[str]:
        """What is missing or seems wrong in the data that it reads for an experiment, as sentences ("data check: ..")."""
        return ()

    def stale(self, fingerprint: str, noise: Sequence[float]) -> Collection[float] | None:
        """The noise levels that have changed since the fingerprint was this one; None: unknown, so that no run is resumed."""
        return None


class Probe(Part, Protocol):
    """A comparison of originals with reconstructions, level by level."""

    least_trajectories: ClassVar[int] = 1
    """Trajectories of each original that the probe needs."""
    reads_in_parts: ClassVar[bool] = False
    """Whether `accumulate` and `readings` take the trajectories of a block in parts. All variables then pool the trajectories."""

    @abstractmethod
    def variables(self, source: Any) -> Mapping[str, Variable]:
        """The measured variables: {name: Variable}."""

    def coordinates(self, source: Any) -> Mapping[str, Any]:
        """Coordinates of the dims that the probe adds: {dim: values}."""
        return {}

    @abstractmethod
    def read(self, u_turns: UTurns, source: Any) -> Mapping[str, np.ndarray]:
        """Readings of a block at one noise level, {name: array (items, ..)}, with trajectories * clones along "trajectory"."""

    def accumulate(self, kept: Any, u_turns: UTurns, source: Any) -> Any:
        """The running state of a block after more of its U-turns, given the state after earlier trajectories (None at first)."""
        return self.read(u_turns, source)

    def readings(self, kept: Any, source: Any) -> Mapping[str, np.ndarray]:
        """The readings of a block, in the form of `read`, from the state of `accumulate` after all its trajectories."""
        return kept

    def taken_from(self, source: Any) -> str:
        """Identity of further data that the probe takes from the source, recorded with the results; empty if there are none."""
        return ""


PROTOCOLS: Mapping[str, Any] = {"source": Source, "corruption": Corruption, "backward": Backward, "probes": Probe}


class _SpecMeta(type(BaseModel), type(Protocol)):  # type: ignore[misc]
    """Metaclass that lets a pydantic model inherit the defaults of a protocol."""


class Spec(BaseModel, Input, metaclass=_SpecMeta):
    """A part whose options are the fields of its table in a spec. Its files, identity and own code are those of what it reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def reads(self) -> Sequence[Any]:
        """What the part reads (`uturn.core.inputs`): by default the files that its fields of type `File` name."""
        values = [(kind, getattr(self, name)) for name, kind in marked(type(self)).items()]
        return [kind(value) for kind, value in values if isinstance(value, str)]

    def files(self) -> Sequence[Any]:
        return [path for one in self.reads() for path in one.files()]

    def own_code(self) -> Any:
        return next((code for one in self.reads() if (code := one.own_code()) is not None), None)

    def fingerprint(self) -> str:
        return " ".join(identity for one in self.reads() if (identity := one.fingerprint()))
