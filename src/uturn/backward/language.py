"""Masked language models as backwards: tokens are revealed one or a few at a time, in batches
that stay full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from uturn.backward.queue import Queued, run_queue
from uturn.core.checks import expect
from uturn.core.findings import Finding
from uturn.core.imports import is_import_path
from uturn.core.protocols import Corruption, Noisy, Originals, Reconstructions, Source, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption.in_time import InTime
from uturn.corruption.masking import Masking
from uturn.corruption.orders import share_of_masked
from uturn.corruption.sampling import MASKED, Sampler, State
from uturn.corruption.uniform import Replacing, UniformReplacement
from uturn.corruption.unmasking import Decoder, InOrder
from uturn.networks.texts.options import LanguageOptions
from uturn.sources.strings import NoisyStrings, StringSource
from uturn.sources.tokens import PAD, NoisyTokens, TextSource

if TYPE_CHECKING:
    import torch

    from uturn.corruption.pieces import Pieces
    from uturn.networks.texts.language import LanguageModel

_COUNTED = 1000  # texts whose tokens are counted
_CALLS = 4  # network calls in one step of the whole queue


class TokenWork(NamedTuple):
    """A text to draw."""

    values: np.ndarray
    """ids int64 (length,), `MASKED` where masked, `PAD` beyond the end."""
    noise: float
    """Its noise level."""
    key: np.uint64
    """The random stream of the text."""
    name: object = None
    """Any value, which is returned with the result."""


class LanguageDenoiser(LanguageOptions, Spec, Queued[NoisyTokens | NoisyStrings, TokenWork]):
    """A language model that denoises tokens: a masked model, or a discrete diffusion model.

    The options that load it are those of `uturn.networks.texts.language_files.TextModel`, the
    others those of the decoder (`uturn.corruption.unmasking.Decoder`): masked tokens are revealed
    one at a time, or in `steps` calls of the network with equal numbers of tokens. The description
    says if the decoder does not draw from the posterior. For the orders "analytic" and "euler",
    remasking and uniform replacement, `steps` (default 64) is the number of steps in time. Strings
    of a grammar can be denoised too: their symbols are the ids.

    Execution-only options: `device` ("cuda" if available), `batch_size` (texts in a call),
    `trust_remote_code`. Reconstructions: int64 (items, draws, length), for strings {tree_level:
    int64 (items, draws, nodes)}.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "trust_remote_code"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens", "strings")
    undoes: ClassVar[tuple[str, ...]] = ("channel",)
    adds_trajectories: ClassVar[bool] = True
    type: Literal["language"] = "language"

    @classmethod
    def is_safe(cls, options: Mapping[str, Any]) -> bool:
        from uturn.networks.texts.tokenizers import SPLITS

        # Texts and regular expressions of a stranger may take for ever.
        has_own_code = is_import_path(str(options.get("model"))) or options.get("trust_remote_code")
        return not has_own_code and options.get("split") in (None, *SPLITS)

    @property
    def wants_processes(self) -> bool:
        """True on the CPU, where small networks scale poorly across threads."""
        return self.language().device.type == "cpu"

    @property
    def data_in_call(self) -> int | None:
        return self.batch_size

    @property
    def _sampler(self) -> InOrder | InTime | Replacing:
        """The sampler; ValueError if the decoder is not for the corruption of the model."""
        channel = self.language().channel
        is_plain = self.decoder == Decoder(steps=self.steps, block=self.block)
        if isinstance(channel, UniformReplacement) and is_plain:
            return Replacing(channel, self._steps)
        return self.decoder.sampler_for(channel)

    @model_validator(mode="after")
    def _fits(self) -> LanguageDenoiser:
        _ = self.decoder  # raises for options that do not go together
        return self

    def reads(self) -> list[Any]:
        from uturn.networks.texts.language_files import TextModel

        options = (option.name for option in fields(TextModel) if option.name != "head")
        return [TextModel(head="masked", **{name: getattr(self, name) for name in options})]

    def language(self) -> LanguageModel:
        """The model with its tokenizer, loaded once."""
        model: LanguageModel = self.reads()[0].load()
        return model

    def describe(self) -> str:
        model = self.language()
        if model.corruption == "uniform":
            euler = "Euler " if self.order == "euler" else ""
            return f"{model.description}, uniform replacement, {self._steps} {euler}steps"
        decoder = self.decoder
        description = f"{model.description}, {decoder.description}"
        if decoder.steps is None:
            description += ", one token a call"
        if decoder.is_exact:
            return description
        return description + (decoder.warning or ": not a draw from the posterior")

    @property
    def _steps(self) -> int:
        return 64 if self.steps is None else self.steps

    def works(
        self, noisy: NoisyTokens | NoisyStrings, streams: Streams, clones: int
    ) -> Iterator[TokenWork]:
        noise = noisy.noise
        if self.language().channel.masks and not isinstance(noisy.channel, Masking | None):
            noise = share_of_masked(noisy.values)  # a corruption of one's own has another unit
        for row, key in enumerate(streams.keys(Purpose.DENOISING, clones)):
            yield TokenWork(noisy.values[row // clones], float(noise[row // clones]), key)

    def queue(self, works: Iterator[TokenWork]) -> Iterator[tuple[object, np.ndarray]]:
        return run_token_queue(self.language(), self._sampler, works, self.batch_size)

    def shaped(
        self, rows: np.ndarray, noisy: NoisyTokens | NoisyStrings, streams: Streams
    ) -> Reconstructions:
        if not isinstance(noisy, NoisyStrings):
            return super().shaped(rows, noisy, streams)
        clones = len(rows) // len(noisy.values)
        return noisy.parsed(rows, len(streams.items), streams.keys(Purpose.DENOISING, clones))

    def check(self, source: Source, corruption: Corruption) -> None:
        model = self.language()
        channel = model.channel
        is_undone = corruption == channel
        expected = f"{channel!r}"
        if channel.masks:
            is_undone = corruption.masks
            expected += " or a corruption with masks = True"
        undone = (
            f"{expected}, which the model {self.model!r} undoes; take that, or say `corruption` for"
            " the model"
        )
        expect(is_undone, "corruption", corruption, undone)
        if getattr(source, "has_fixed", False):
            where = "fixed tokens (keep_first, fixed): corruption"
            is_masked = model.corruption != "uniform"  # replaced tokens are all drawn again
            expect(is_masked, where, corruption, "Masking()")
            if self.remask_given:
                raise ValueError(
                    "remask_given is only used without fixed tokens (keep_first, fixed), which it"
                    " would mask again"
                )
        _ = self._sampler  # raises for a decoder that is not for this corruption
        if isinstance(source, StringSource):
            self._check_strings(source)

    def _check_strings(self, source: StringSource) -> None:
        """ValueError if the model cannot denoise the strings of a grammar."""
        model = self.language()
        vocab_size = source.vocab_size
        length = source.num_leaves
        num_ids = model.vocab_size
        if model.mask_id is not None:
            num_ids = min(num_ids, model.mask_id)
        ids = f"at most {num_ids}, ids of tokens of {self.model!r} but its mask"
        expect(vocab_size <= num_ids, "symbols of the strings", vocab_size, ids)
        longest = model.most_tokens or length
        expected = f"at most {model.most_tokens}, for {self.model!r}"
        expect(length <= longest, "length of the strings", length, expected)

    def model_check(self, source: Source, originals: Sequence[Originals]) -> list[Finding]:
        from uturn.networks.model_check import is_checked

        model = self.language()
        if not is_checked(model.network, model.device):
            return []
        trial = _Trial.prepared(model, originals, self.batch_size)
        mistakes = trial.mistakes_in_calls(half=self.dtype != "float32")
        if isinstance(source, TextSource) and model.corruption == "masking":
            texts = np.concatenate([np.repeat(block.data, 2, axis=0) for block in originals])
            data = source.ids(np.arange(source.count())[:_COUNTED])
            mistakes += trial.mistakes_in_laws(texts, data)
        return [Finding(f"the model {self.model!r} {mistake}") for mistake in mistakes]


@dataclass(frozen=True)
class _Trial:
    """Noisy texts on which a language model is tried."""

    model: LanguageModel
    values: np.ndarray
    """int64 (rows, length), as many rows as a call takes."""
    noise: np.ndarray
    """float64 (rows,)."""
    pieces: Pieces

    @classmethod
    def prepared(
        cls, model: LanguageModel, originals: Sequence[Originals], batch_size: int | None
    ) -> _Trial:
        """Two noisy data of each original, at half of the largest noise level."""
        noise = model.channel.max_noise / 2
        noisy: list[np.ndarray] = []
        for block in originals:
            streams = Streams(0, block.items, noise, range(2))
            noisy.append(model.channel.observe(block, noise, streams).values)
        rows = np.concatenate(noisy)
        pieces = model.pieces(batch_size, rows.shape[1])
        values = rows[: pieces.batch_size]
        return cls(model, values, np.full(len(values), noise), pieces)

    def mistakes_in_calls(self, half: bool) -> list[str]:
        """Mistakes that repeated and shuffled calls show; `half`: in half precision."""
        import torch

        from uturn.networks.model_check import WRITES, check_calls, writes_into

        model = self.model
        values = torch.from_numpy(self.values)
        mistakes = list(check_calls(self._probabilities, values, half=half))
        ids = values.where(values >= 0, model.mask_id or 0).to(model.device)
        time = torch.full((len(ids),), float(self.noise[0]), device=model.device)
        padding = (torch.ones_like(ids),) if model.takes_padding else ()
        with torch.inference_mode():
            if writes_into(model.called, ids, time, *padding):
                mistakes.append(WRITES)
        return mistakes

    def _probabilities(self, values: torch.Tensor) -> torch.Tensor:
        """Probabilities (rows, length, V) for noisy texts; 0 beyond their ends."""
        import torch

        rows = values.numpy()
        place = np.nonzero(rows != PAD)
        noise = np.full(len(rows), self.noise[0])
        probabilities = np.zeros((*rows.shape, self.model.vocab_size))
        probabilities[place] = self.model.beliefs(rows, noise, self.pieces).at(*place)
        return torch.from_numpy(probabilities)

    def mistakes_in_laws(self, texts: np.ndarray, data: np.ndarray) -> list[str]:
        """Mistakes that the losses at masked tokens show; `texts` (rows, length) are the originals,
        `data` (texts, length) these and other texts of the source.
        """
        rows, positions = np.nonzero(self.values == MASKED)
        laws = self.model.beliefs(self.values, self.noise, self.pieces).at(rows, positions)
        tokens = texts[rows, positions]
        loss = -np.log(np.maximum(laws[np.arange(len(rows)), tokens], 1e-30))
        losses = _Losses(loss, rows, tokens)
        return _hardly_better(losses, texts[: len(self.values)], data, self.model.vocab_size)


@dataclass(frozen=True)
class _Losses:
    """Losses -log p at n masked tokens of some texts, in nats."""

    loss: np.ndarray
    """(n,)."""
    text: np.ndarray
    """Number of the text, (n,)."""
    token: np.ndarray
    """The true token, (n,)."""


def _hardly_better(
    losses: _Losses, texts: np.ndarray, data: np.ndarray, vocab_size: int
) -> list[str]:
    """The fault of a model whose losses at masked sites of texts are hardly below those of the
    frequencies of tokens.

    The frequencies are those of the other texts of the data, with T different tokens in N: (n_a +
    T/V)/(N + T). A model is poor if, by two standard errors over texts, it saves less than a tenth
    of their loss.
    """
    V = vocab_size
    counts = np.bincount(data[data != PAD], minlength=V)
    counts_of_others = [counts - np.bincount(text[text != PAD], minlength=V) for text in texts]
    tables = np.array(counts_of_others).clip(0)
    different = (tables > 0).sum(1)[losses.text]
    total = tables.sum(1)[losses.text]
    count = tables[losses.text, losses.token]
    shares = (count + different / V) / np.maximum(total + different, 1)
    frequencies = -np.log(np.maximum(shares, 1 / (1000 * V)))
    size = np.bincount(losses.text, minlength=len(texts))
    saved = np.bincount(losses.text, frequencies - losses.loss, minlength=len(texts))[size > 0]
    if len(saved) < 2:
        return []
    error = 2 * saved.std(ddof=1) * len(saved) ** 0.5
    is_poor = saved.sum() + error < 0.1 * frequencies.sum()
    if not is_poor:
        return []
    return [
        f"is poor on these texts: with half of the tokens masked its loss is {losses.loss.mean():.3g}"
        f" nats a token, and that of the frequencies of the tokens {frequencies.mean():.3g}; results"
        " say more about the model than the texts"
    ]


@dataclass
class _Text:
    """A text in the queue."""

    name: object
    state: State
    """The state of its sampler, with one row."""
    length: int
    """Number of tokens."""
    calls: int
    """Expected number of network calls."""
    is_done: bool

    @property
    def names(self) -> tuple[object]:
        return (self.name,)


class _TokenQueue:
    """A language model as a process of `run_queue`: each step makes a few calls and draws some
    tokens of every text.
    """

    def __init__(self, model: LanguageModel, sampler: Sampler, pieces: Pieces) -> None:
        self.model = model
        self.sampler = sampler
        self.pieces = pieces

    @property
    def places(self) -> int:
        return _CALLS * self.pieces.batch_size

    def calls(self, work: TokenWork) -> int:
        return int(self.sampler.calls(_noisy([work]))[0])

    def unchanged(self, work: TokenWork) -> np.ndarray:
        return np.array(work.values)

    def admitted(self, work: list[TokenWork]) -> list[_Text]:
        noisy = _noisy(work)
        state = self.sampler.start(noisy, np.array([new.key for new in work], np.uint64))
        calls = self.sampler.calls(noisy).tolist()
        lengths = state.lengths.tolist()
        is_waiting = self.sampler.is_waiting(state).tolist()
        texts: list[_Text] = []
        for row, new in enumerate(work):
            text = state.rows(slice(row, row + 1))
            texts.append(_Text(new.name, text, lengths[row], calls[row], not is_waiting[row]))
        return texts

    def advance(self, cohorts: list[_Text]) -> None:
        cohorts.sort(key=lambda text: -text.length)  # to reduce padding
        size = self.pieces.batch_size
        for start in range(0, len(cohorts), size):
            self._call(cohorts[start : start + size])

    def _call(self, texts: list[_Text]) -> None:
        states = [text.state for text in texts]
        state = states[0].joined(states)
        question = self.sampler.question(state)
        beliefs = self.model.beliefs(question.values, question.noise, self.pieces)
        state = self.sampler.answered(state, beliefs)
        is_waiting = self.sampler.is_waiting(state).tolist()
        for row, text in enumerate(texts):
            text.state = state.rows(slice(row, row + 1))
            text.is_done = not is_waiting[row]

    def results(self, cohort: _Text) -> tuple[np.ndarray]:
        return (cohort.state.values[0],)


def _noisy(work: list[TokenWork]) -> Noisy:
    """Texts of one array length, (texts, length)."""
    return Noisy(np.stack([new.values for new in work]), np.array([new.noise for new in work]))


def run_token_queue(
    model: LanguageModel,
    sampler: Sampler,
    work: Iterable[TokenWork],
    batch_size: int | None = None,
) -> Iterator[tuple[object, np.ndarray]]:
    """Texts `(name, ids)` in the order of completion, each as `uturn.corruption.denoising.drawn`
    draws it.

    All texts have arrays of one length, with `PAD` beyond the end of shorter ones.
    """
    queue = iter(work)
    first = next(queue, None)
    if first is None:
        return
    process = _TokenQueue(model, sampler, model.pieces(batch_size, len(first.values)))
    yield from run_queue(process, chain([first], queue))
