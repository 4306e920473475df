"""The four ideas, as base classes: Source, Corruption, Backward and Probe.

A part of an experiment inherits from one of them. Methods marked `abstractmethod` are required, as
are the values `unit` and `max_noise` of a corruption; all other members have defaults. The types in
brackets say which data a part takes: `Source[O]` makes blocks of originals O, `Corruption[O, N]`
turns them into noisy data N, `Backward[N]` reconstructs those, and `Probe[O, N]` reads `UTurns[O,
N]`. Parts without brackets take any data, and what they take is then checked by `kinds`.

Sources of strings, texts and images have base classes of their own, listed in `uturn.sources`. Any
other source sets `kind`, since a source without one is not compared with the `kinds` of the parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from uturn.core.checks import expect
from uturn.core.data import (
    N,
    Noisy,
    O,
    Originals,
    Reconstructions,
    StoredItems,
    UTurns,
    checked_noisy,
)
from uturn.core.inputs import Input, marked
from uturn.core.messages import counted, file_name
from uturn.core.progress import portion
from uturn.core.random import Purpose, Streams
from uturn.core.variables import Axes, Axis, Coordinate, Coordinates, Variable

K = TypeVar("K", bound=Hashable)

if TYPE_CHECKING:
    from uturn.core.evidence import Evidence
    from uturn.core.prior import Prior

__all__ = [
    "Axes",
    "Axis",
    "Backward",
    "Channel",
    "Coordinate",
    "Coordinates",
    "Corruption",
    "Denoiser",
    "Design",
    "DesignParts",
    "FromFiles",
    "Hints",
    "MeanFieldTheory",
    "Noisy",
    "Originals",
    "Part",
    "Probe",
    "Reconstructions",
    "Source",
    "Spec",
    "UTurns",
    "Variable",
]


class Part(Input, ABC):
    """Optional members of every part."""

    kind: ClassVar[str] = ""
    """Kind of data of a source, such as "strings", "vectors", "images"."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of data that a corruption, backward or probe accepts; empty: any."""
    execution: ClassVar[frozenset[str]] = frozenset()
    """Names of execution-only options, such as the device; a store can be resumed with other
    values of them.
    """
    batch_invariant: ClassVar[bool] = False
    """Whether the output for an item is bit-identical, whatever else is in its batch."""
    required: ClassVar[tuple[str, ...]] = ()
    """Names of the values that a part must have, in addition to the abstract methods."""
    own_label: ClassVar[str] = ""
    """Name of a user-defined part in messages, such as "source ('mine:Own')". The experiment
    sets it.
    """
    own_table: ClassVar[Mapping[str, object]] = MappingProxyType({})
    """Table of a user-defined part in its spec. The experiment sets it."""

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.own_table.items() if name != "type"]
        return f"{type(self).__name__}({', '.join(options)})"


class MeanFieldTheory(Protocol):
    """The predictions of a mean-field theory that a study compares with its readings
    (`uturn.theory.MeanField`).
    """

    @property
    def critical_noise(self) -> float | None:
        """The noise of the transition; None without one."""

    def curves(self, epsilon: ArrayLike, depth: int) -> object:
        """Beliefs in the true symbol, arrays (.., depth + 1): the attributes `upward`, `downward`
        and `marginals`.
        """

    def susceptibility(self, epsilon: ArrayLike, depth: int) -> np.ndarray:
        """Susceptibility of the changes of the leaves, (..)."""


class Source(Part, Generic[O]):
    """A source of originals."""

    site_name: ClassVar[str] = "sites"
    """Name of the sites of an original, in the plural."""
    block_class: ClassVar[type[Originals]] = Originals
    """The class that its blocks inherit from."""
    names_items: ClassVar[bool] = False
    """Whether a coordinate names each original, as `file` does."""
    shows_negative: ClassVar[bool] = False
    """Whether grey images are shown with black and white exchanged."""

    @property
    def num_symbols(self) -> int:
        """Number of symbols: by default `vocab_size`, or 0 for data without symbols."""
        return getattr(self, "vocab_size", 0)

    @property
    def item_bytes(self) -> int:
        """Memory of a noisy datum in bytes; 0 if it is not known."""
        return 0

    @abstractmethod
    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[O]:
        """Originals of the items, in order, as one or more blocks; each depends on its item, the
        seed and `num_items` alone.
        """

    def made_by(self, backward: Backward, seed: int) -> Source[O]:
        """The source of an experiment with this backward and seed: itself, unless the originals
        are draws of the model.
        """
        return self

    def coordinates(self, seed: int, num_items: int) -> Mapping[str, ArrayLike]:
        """Further coordinates along `item`, such as labels: {name: values (num_items,)}.

        `file` and `file_digest` are texts; a run goes on only while the digests of its items are
        the same.
        """
        return {}

    def count(self) -> int | None:
        """Number of originals; None if there is no end to them."""
        return None

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

    @classmethod
    def describe(cls, options: Mapping[str, Any], count: int, seed: int) -> str:
        """The originals of a run in words, such as "3 texts of FILE".

        `options`: the table of the source in the spec of the run, which a stranger may have
        written. `count`, `seed`: the number of originals and the seed of the run.
        """
        name = options.get("path", options.get("type", "?"))
        return f"{counted(count, 'original')} of {file_name(name)}"

    def stored(self, originals: StoredItems) -> np.ndarray | None:
        """Originals of a run, read again without a model, to be shown beside its results.

        None if they cannot be read, if they have changed, or for data that are not shown. A
        stranger may have written the options of the source, so only the originals are read.
        """
        return None

    def mean_field(self) -> MeanFieldTheory | None:
        """The mean-field theory of the originals; None if there is none for their law."""
        return None


class Corruption(Part, Generic[O, N]):
    """A process that turns an original into a noisy datum."""

    required: ClassVar[tuple[str, ...]] = ("unit", "max_noise")
    process: ClassVar[str] = ""
    """The process: "channel" if the log-evidence about the original is known, "diffusion" for
    the forward process of a diffusion model.
    """
    purpose: int = Purpose.CORRUPTION
    """Purpose of the random streams of the corruption."""
    unit: ClassVar[str]
    """Quantity and unit of `noise` as text."""
    max_noise: ClassVar[float]
    """Largest noise level; the smallest is 0."""
    is_bayesian: ClassVar[bool] = True
    """Whether the evidence is the likelihood of the noisy datum. If so, the original and a
    posterior draw are exchangeable.
    """
    is_random: ClassVar[bool] = True
    """Whether the noisy datum is drawn at random. If not, all trajectories of an item have the
    same noisy datum.
    """
    needs_vocab_size: ClassVar[bool] = False
    """Whether `corrupt` needs the number of symbols, as the keyword `vocab_size`."""
    has_mean_field: ClassVar[bool] = False
    """Whether the mean-field theory of a source (`Source.mean_field`) describes its noise."""
    masks: ClassVar[bool] = False
    """Whether each symbol of the noisy datum is that of the original or masked, -1, at places
    that do not depend on the symbols. Masked language models and decoders of masked symbols undo
    every such corruption.
    """
    shows_symbols: ClassVar[bool] = True
    """Whether noisy data of symbols, if they have the form of the originals, are symbols again, or
    -1 where one is masked. False for a class that defines `log_evidence` and not this value: it
    reads its noisy data itself, so that they may be any.
    """

    def __init_subclass__(cls, **options: Any) -> None:  # as those of `type`
        super().__init_subclass__(**options)
        if "log_evidence" in vars(cls) and "shows_symbols" not in vars(cls):
            cls.shows_symbols = False

    @abstractmethod
    def corrupt(self, data: np.ndarray, noise: float, keys: np.ndarray) -> N:
        """Noisy data (batch, ..) of originals (batch, ..), by one random stream for each row,
        `keys` uint64 (batch,).
        """

    def corrupt_symbols(
        self, symbols: np.ndarray, noise: ArrayLike, keys: np.ndarray, vocab_size: int
    ) -> Noisy:
        """`corrupt` of strings or texts, int64 (batch, length), whose number of symbols is
        recorded with the noisy data.
        """
        options = {"vocab_size": vocab_size} if self.needs_vocab_size else {}
        given: object = self.corrupt(symbols, noise, keys, **options)  # type: ignore[arg-type]
        where = f"{self.own_label or 'corruption'}.corrupt"
        noisy = checked_noisy(given, where, [len(symbols)])
        if self.own_label:
            self._check_symbols(symbols, noisy.values, vocab_size)
        return replace(noisy, vocab_size=vocab_size)

    def _check_symbols(self, symbols: np.ndarray, values: np.ndarray, vocab_size: int) -> None:
        """ValueError for noisy symbols that no built-in part can read."""
        where = f"{self.own_label}.corrupt: noisy.values"
        if self.masks:
            is_form = values.shape == symbols.shape and values.dtype.kind in "iu"
            form = (values.dtype, values.shape)
            expect(is_form, f"{where}: dtype, shape", form, f"integers {symbols.shape}")
            is_wrong = (values != symbols) & (values != -1)
            expected = "the symbol of the original, or -1 where it is masked (masks = True)"
            expect(not is_wrong.any(), where, values[is_wrong].tolist(), expected)
        elif self.shows_symbols and values.shape == symbols.shape and values.dtype.kind in "iu":
            is_wrong = (values < -1) | (values >= vocab_size)
            expected = (
                f"symbols 0 .. {vocab_size - 1}, or -1 where one is masked; set shows_symbols ="
                " False for other values"
            )
            expect(not is_wrong.any(), where, values[is_wrong].tolist(), expected)

    def observe(self, originals: O, noise: float, streams: Streams) -> N:
        """Noisy data of a block of originals, one for each trajectory of each original."""
        return originals.observed_by(self, noise, streams)  # type: ignore[return-value]  # a block makes noisy data of its own kind

    def effective_epsilon(self, noise: ArrayLike, vocab_size: int) -> np.ndarray | None:
        """Effective ε (Eq. 63 of arXiv:2402.16991), v/(v-1) times the mean belief lost by the
        true symbol of a leaf, or None.
        """
        return None

    def bits_per_leaf(self, noise: ArrayLike, vocab_size: int) -> np.ndarray | None:
        """Mutual information of a uniformly distributed leaf and its observation, 0 .. log2 v
        bits; None if it is not known.
        """
        return None

    def axes(self, noise: np.ndarray, source: Source[O]) -> Axes:
        """Further coordinates of the noise levels (levels,): {name: (values (levels,),
        attributes)}.

        The attribute `clean` is the value without noise, from which `uturn.study` interpolates to
        the first level. If there is `log_snr`, then `abar`, `log_snr` and `sigma` are interpolated
        in the angle with tan(angle) = sigma.
        """
        v = source.num_symbols
        if not v:
            return {}
        axes: dict[str, Axis] = {}
        lost = self.effective_epsilon(noise, v)
        if lost is not None:
            axes["effective_epsilon"] = Axis(
                lost, {"long_name": "effective epsilon (Eq. 63)", "clean": 0.0}
            )
        kept = self.bits_per_leaf(noise, v)
        if kept is not None:
            whole = float(np.log2(v))
            axes["bits_per_leaf"] = Axis(
                kept, {"long_name": "information per leaf", "units": "bits", "clean": whole}
            )
        return axes


class Channel(Corruption[O, Noisy]):
    """A corruption of symbols with known log-evidence about every leaf, and optional reverse
    steps.
    """

    process: ClassVar[str] = "channel"
    is_reversible: ClassVar[bool] = False
    """Whether `reverse` is defined."""
    clean_noise: ClassVar[float] = 0.0
    """Largest noise at which float64 evidence determines every leaf."""
    misread: ClassVar[float] = -np.inf
    """For each symbol, the log-probability that an observed leaf has another symbol; see
    `ExactDenoiser`.
    """

    @abstractmethod
    def log_evidence(self, noisy: Noisy, dtype: DTypeLike | None = None) -> np.ndarray:
        """Log-likelihood (nats, up to a constant) of each leaf's observation for each symbol,
        (batch, num_leaves, vocab_size).
        """

    def evidence(self, noisy: Noisy) -> Evidence | np.ndarray:
        """The evidence in the form that inference reads fastest; by default its logarithms.

        A class that defines `log_evidence` anew, and not `evidence`, has this default again, so
        that both always agree.
        """
        return self.log_evidence(noisy, np.float32)

    def __init_subclass__(cls, **options: Any) -> None:  # as those of `type`
        super().__init_subclass__(**options)
        if "log_evidence" in vars(cls) and "evidence" not in vars(cls):
            cls.evidence = Channel.evidence  # type: ignore[method-assign]

    def reverse(self, denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
        """Strings int64 (batch, num_leaves) from `steps` evaluations of a denoiser; all samples
        have the same noise level.
        """
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


class Denoiser(Protocol):
    """Members of a denoiser that a reverse process needs."""

    vocab_size: int
    num_leaves: int
    corruption: Channel
    """The channel whose noise it removes; it must have reverse steps."""

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """Probability of each symbol at each leaf given the noisy datum, float32 (batch,
        num_leaves, vocab_size).
        """


class DesignParts(Protocol):
    """What a backward asks of the other parts of an experiment."""

    @property
    def source(self) -> Source[Any]:
        """The source of the originals."""

    @property
    def corruption(self) -> Corruption[Any, Any]:
        """The corruption that makes the noisy data, such as the forward process of the backward."""


class Design(Protocol):
    """What a backward asks of an experiment (`uturn.Experiment`): its sizes and parts."""

    items: int
    """Number of originals."""
    trajectories: int
    """Number of noisy data of an original at each noise level."""
    clones: int
    """Number of reconstructions of a noisy datum."""
    seed: int
    noise: list[float]
    """The noise levels."""

    @property
    def parts(self) -> DesignParts:
        """The parts, which fit together."""


class Hints:
    """How a backward is fastest: what it declares to the scheduler of tasks
    (`uturn.engine.schedule`). A hint changes which tasks are measured together and in which order,
    and never a number.
    """

    adds_trajectories: ClassVar[bool] = False
    """Whether trajectories can be reconstructed separately with the same results."""
    shares_batches: ClassVar[bool] = False
    """Whether `reconstruct_stream` reconstructs the data of several blocks together."""
    by_items: ClassVar[bool] = False
    """Whether the tasks of one block of items are best measured together, at all noise levels."""
    blocks_ahead: ClassVar[int | None] = 64
    """Largest number of blocks (at least 1) that `reconstruct_stream` may have read and not yet
    answered, before it is called again. None for backwards that read only as many as they have
    room for.
    """

    @property
    def wants_processes(self) -> bool:
        """Whether several processes are faster than one with several threads."""
        return False

    @property
    def data_in_call(self) -> int | None:
        """Number of data in a call of the network, for a backward that shares batches. None: the
        engine chooses a number for a GPU.
        """
        return None


class Backward(Part, Hints, Generic[N]):
    """A model that draws reconstructions given noisy data."""

    undoes: ClassVar[tuple[str, ...]] = ()
    """The processes (`Corruption.process`) that it undoes; empty: any."""
    asks: ClassVar[tuple[str, ...]] = ()
    """Further members that a user-defined corruption of strings needs."""
    keeps_identity: ClassVar[bool] = True
    """Whether reconstructions at noise 0 are the originals."""

    @abstractmethod
    def reconstruct(self, noisy: N, streams: Streams, clones: int = 1) -> Reconstructions:
        """`clones` reconstructions of each noisy datum, (items, trajectories * clones, ...);
        clone 0 is that of `clones=1`.
        """

    def reconstruct_stream(
        self, blocks: Iterable[tuple[K, N, Streams]], clones: int = 1
    ) -> Iterator[tuple[K, Reconstructions]]:
        """Reconstructions of blocks `(key, noisy, streams)`: `(key, reconstructions)`, each key
        once, in any order.
        """
        for key, noisy, streams in blocks:
            with portion(len(streams.items) * streams.count * clones):
                reconstructions = self.reconstruct(noisy, streams, clones)
            yield key, reconstructions

    @property
    def single_u_turn(self) -> Backward[Any]:
        """The backward of one U-turn: itself, unless it repeats another one. Sources ask it about
        its model.
        """
        return self

    def check(self, source: Source, corruption: Corruption) -> None:
        """ValueError if the backward does not fit the source and the corruption of an
        experiment. By default any do.
        """

    def forward_process(
        self, source: Source, corruption: Corruption | None = None
    ) -> Corruption | None:
        """The corruption to use in place of the `corruption` of an experiment, such as the forward
        process of a diffusion model.

        None: that of the experiment is used. ValueError if the data of the source do not fit the
        model.
        """
        return None

    def prior(self, steps: int | None = None) -> Prior | None:
        """The law of the originals of the model, for the source `generated`; None if originals
        cannot be drawn.

        `steps`: steps of the sampler that draws them, by default those of the backward. ValueError
        if the backward has no number of steps of its own.
        """
        return None

    def describe(self) -> str:
        """One line of text about the model, recorded with the results."""
        return ""

    @classmethod
    def is_safe(cls, options: Mapping[str, Any]) -> bool:
        """Whether it is safe to build the backward from options that a stranger wrote, and to read
        texts with it: no code that they name is run, and it ends soon. By default it is not safe.
        """
        return False

    def missing(self, experiment: Design) -> Mapping[str, str]:
        """Reconstructions that it cannot give, {name: reason}; ValueError for data that do not
        fit the experiment.
        """
        return {}

    def doubts(self, experiment: Design) -> Sequence[str]:
        """What is missing or seems wrong in the data that it reads for an experiment, as
        sentences ("data check: ..").
        """
        return ()


class FromFiles(Backward[N]):
    """A backward whose reconstructions were made elsewhere and are read from files.

    Reconstructions may be missing: float arrays of NaN alone. Their readings are then NaN, and
    probes do not see them.
    """

    @abstractmethod
    def stale(self, fingerprint: str, noise: Sequence[float]) -> Collection[float] | None:
        """Noise levels whose data changed since `fingerprint` was recorded. None if this cannot be
        told; the store is then not resumed.
        """


S = TypeVar("S", bound=Source, default=Source)
"""The sources that a probe reads."""


class Probe(Part, Generic[O, N, S]):
    """A comparison of originals with reconstructions, level by level.

    A class of which original and reconstruction are compared by a symmetric function inherits from
    `uturn.probes.Comparison`. The third type in brackets is the source that the probe needs, by
    default any: `Probe[Strings, NoisyStrings, StringSource]`.
    """

    least_trajectories: ClassVar[int] = 1
    """Trajectories of each original that the probe needs."""
    keeps: ClassVar[str] = ""
    """The variable that stores whole reconstructions, of all items or of the first ones (option
    `first`). Empty for a probe that stores readings.
    """
    reads_noisy: ClassVar[bool] = False
    """Whether it reads the noisy data. Chains of U-turns have none."""
    reads_in_parts: ClassVar[bool] = False
    """Whether `accumulate` and `readings` take the trajectories of a block in parts. All
    variables then pool the trajectories.
    """

    @property
    def probe_name(self) -> str:
        """Name of the probe in results: its type in specs, or the name of its class."""
        return self.type if isinstance(self, Spec) and self.type else type(self).__name__

    @property
    def network_name(self) -> str:
        """Name of the network that it reads with; empty without one."""
        return ""

    def bind(self, source: S) -> Self:
        """The probe with what it prepares for a source once, such as a network or the statistics
        of reference data: a copy with further attributes, by default the probe itself.

        An experiment calls it before all other members, and reads with the result. ValueError if
        probe and source do not fit.
        """
        return self

    @abstractmethod
    def variables(self, source: S) -> Mapping[str, Variable]:
        """The measured variables: {name: Variable}."""

    def coordinates(self, source: S) -> Mapping[str, ArrayLike]:
        """Coordinates of the dims that the probe adds: {dim: values}."""
        return {}

    @abstractmethod
    def read(self, u_turns: UTurns[O, N], source: S) -> Mapping[str, np.ndarray]:
        """Readings of a block at one noise level, {name: array (items, ..)}, with trajectories *
        clones along "trajectory".
        """

    def accumulate(
        self,
        state: Any,  # noqa: ANN401 - None, or what the method gave
        u_turns: UTurns[O, N],
        source: S,
    ) -> Any:  # noqa: ANN401 - a state of the probe's own kind
        """The running state of a block after more of its U-turns, given the state after earlier
        trajectories (None at first).
        """
        return self.read(u_turns, source)

    def readings(
        self,
        state: Any,  # noqa: ANN401 - as `accumulate` gives it
        source: S,
    ) -> Mapping[str, np.ndarray]:
        """The readings of a block, in the form of `read`, from the state of `accumulate` after
        all its trajectories.
        """
        readings: Mapping[str, np.ndarray] = state
        return readings

    def taken_from(self, source: S) -> str:
        """Identity of further data that the probe takes from the source, recorded with the
        results; empty if there are none.
        """
        return ""


BASES: Mapping[str, type[Part]] = {
    "source": Source,
    "corruption": Corruption,
    "backward": Backward,
    "probes": Probe,
}


class Spec(BaseModel, Part):
    """A part whose options are the fields of its table in a spec. Its files, identity and own
    code are those of what it reads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = ""
    """Name of the part in specs."""

    def reads(self) -> Sequence[Any]:
        """What the part reads (`uturn.core.inputs`): by default the files that its fields of
        type `File` name.
        """
        values = [(kind, getattr(self, name)) for name, kind in marked(type(self)).items()]
        return [kind(value) for kind, value in values if isinstance(value, str)]

    def files(self) -> Sequence[str | Path]:
        return [path for one in self.reads() for path in one.files()]

    def own_code(self) -> object:
        return next((code for one in self.reads() if (code := one.own_code()) is not None), None)

    def fingerprint(self) -> str:
        return " ".join(identity for one in self.reads() if (identity := one.fingerprint()))
