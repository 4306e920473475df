"""Masked language models as backwards: tokens are revealed one or a few at a time, in batches
that stay full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from uturn.backward.denoiser import reverse_process
from uturn.backward.queue import Queued, run_queue
from uturn.core.checks import expect
from uturn.core.findings import Finding
from uturn.core.protocols import Backward, Corruption, Noisy, Spec
from uturn.core.random import Purpose, Streams, streams, uniforms
from uturn.corruption.denoising import ORDER, denoise
from uturn.corruption.unmasking import MASKED, Decoder, reveal
from uturn.networks.texts.options import LanguageOptions
from uturn.sources.strings import NoisyStrings
from uturn.sources.tokens import PAD

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel

_COUNTED = 1000  # texts whose tokens are counted
_CALLS = 4  # network calls in one step of the whole queue


class LanguageDenoiser(LanguageOptions, Spec, Queued):
    """A language model that denoises tokens: a masked model, or a discrete diffusion model.

    The options that load it are those of `uturn.networks.texts.language_files.TextModel`, the
    others those of the decoder (`uturn.corruption.unmasking.Decoder`): masked tokens are revealed
    one at a time, or in `steps` calls of the network with equal numbers of tokens. The description
    says if the decoder does not draw from the posterior. For the orders "analytic" and "euler",
    remasking and uniform replacement, `steps` (default 64) is the number of steps in time; their
    calls are not shared by several blocks of texts. Strings of a grammar can be denoised too: their
    symbols are the ids.

    Execution-only options: `device` ("cuda" if available), `batch_size` (texts in a call),
    `trust_remote_code`. Reconstructions: int64 (items, draws, length), for strings {tree_level:
    int64 (items, draws, nodes)}.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "trust_remote_code"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens", "strings")
    undoes: ClassVar[tuple[str, ...]] = ("channel",)
    adds_trajectories: ClassVar[bool] = True
    type: Literal["language"] = "language"

    @property
    def wants_processes(self) -> bool:
        """True on the CPU, where small networks scale poorly across threads."""
        return self.language().device.type == "cpu"

    @property
    def _is_queued(self) -> bool:
        return self.language().corruption == "masking" and not self.decoder.in_time

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
        return self.reads()[0].load()

    def describe(self) -> str:
        model = self.language()
        if model.corruption == "uniform":
            euler = "Euler " if self.order == "euler" else ""
            return f"{model.description}, uniform replacement, {self._steps} {euler}steps"
        decoder = self.decoder
        warning = decoder.warning or ("" if decoder.is_exact else ": not a draw from the posterior")
        speed = ", one token a call" if decoder.steps is None else ""
        return f"{model.description}, {decoder.description}{speed}{warning}"

    @property
    def _steps(self) -> int:
        return 64 if self.steps is None else self.steps

    def reconstruct(self, noisy: Noisy, streams: Streams, clones: int = 1) -> Any:
        if not self._is_queued:
            return self.shaped(
                self._denoised(self.language(), noisy, streams, clones), noisy, streams
            )
        return super().reconstruct(noisy, streams, clones)

    def reconstruct_stream(
        self, blocks: Iterable[tuple[Any, Noisy, Streams]], clones: int = 1
    ) -> Iterator[tuple[Any, Any]]:
        stream = Queued.reconstruct_stream if self._is_queued else Backward.reconstruct_stream
        yield from stream(self, blocks, clones)

    def works(self, noisy: Noisy, streams: Streams, clones: int) -> Iterator[TokenWork]:
        for row, key in enumerate(streams.keys(Purpose.DENOISING, clones)):
            yield TokenWork(noisy.values[row // clones], float(noisy.noise[row // clones]), key)

    def queue(self, works: Iterator[TokenWork]) -> Iterator[tuple[Any, np.ndarray]]:
        return run_token_queue(self.language(), self.decoder, works, self.batch_size)

    def shaped(self, rows: np.ndarray, noisy: Noisy, streams: Streams) -> Any:
        if not isinstance(noisy, NoisyStrings):
            return super().shaped(rows, noisy, streams)
        clones = len(rows) // len(noisy.values)
        return noisy.parsed(rows, len(streams.items), streams.keys(Purpose.DENOISING, clones))

    def _denoised(
        self, model: LanguageModel, noisy: Noisy, streams: Streams, clones: int
    ) -> np.ndarray:
        """Draws from a reverse process in time, for texts of one length after the other."""
        from uturn.networks.texts.language import TokenDenoiser

        values = np.repeat(noisy.values, clones, axis=0)
        noise, keys = np.repeat(noisy.noise, clones), streams.keys(Purpose.DENOISING, clones)
        lengths, out = (values != PAD).sum(1), values.copy()
        reverse = reverse_process(self.decoder, model.channel) if self.decoder.in_time else None
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            denoiser = TokenDenoiser(model, int(length), model.pieces(self.batch_size, int(length)))
            texts = Noisy(values[rows, :length], noise[rows], noisy.vocab_size)
            out[rows, :length] = denoise(denoiser, texts, self._steps, keys[rows], reverse)
        return out

    def check(self, source: Any, corruption: Corruption) -> None:
        model = self.language()
        own = " or a corruption with masks = True" if model.channel.masks else ""
        undone = (
            f"{model.channel!r}{own}, which the model {self.model!r} undoes; take that, or say"
            " `corruption` for the model"
        )
        is_undone = corruption.masks if model.channel.masks else corruption == model.channel
        expect(is_undone, "corruption", corruption, undone)
        if getattr(source, "has_fixed", False):
            is_masked = model.corruption != "uniform"  # replaced tokens are all drawn again
            expect(
                is_masked, "fixed tokens (keep_first, fixed): corruption", corruption, "Masking()"
            )
            expect(
                not self.remask_given,
                "remask_given",
                True,
                "False, as it masks the fixed tokens (keep_first, fixed) again",
            )
        if model.corruption == "uniform" and self.decoder != Decoder(
            steps=self.steps, block=self.block
        ):
            reverse_process(self.decoder, model.channel)
        if source.kind == "strings":
            v, d = source.vocab_size, source.num_leaves
            most = (
                model.vocab_size if model.mask_id is None else min(model.vocab_size, model.mask_id)
            )
            expect(
                v <= most,
                "symbols of the strings",
                v,
                f"at most {most}, ids of tokens of {self.model!r} but its mask",
            )
            expect(
                d <= (model.most_tokens or d),
                "length of the strings",
                d,
                f"at most {model.most_tokens}, for {self.model!r}",
            )

    def model_check(self, source: Any, originals: Sequence[Any]) -> list[Finding]:
        import torch

        from uturn.networks.model_check import WRITES, check_calls, is_checked, writes_into

        model = self.language()
        if not is_checked(model.network, model.device):
            return []
        noise = model.channel.max_noise / 2
        noisy = [
            model.channel.observe(block, noise, Streams(0, block.items, noise, range(2)))
            for block in originals
        ]
        rows = np.concatenate([block.values for block in noisy])
        pieces = model.pieces(self.batch_size, rows.shape[1])
        values = torch.from_numpy(rows[: pieces.batch_size])

        def probabilities(values: torch.Tensor) -> torch.Tensor:
            out, there = (
                np.zeros((*values.shape, model.vocab_size)),
                np.nonzero(values.numpy() != PAD),
            )
            out[there] = model.beliefs(values.numpy(), np.full(len(values), noise), pieces).at(
                *there
            )
            return torch.from_numpy(out)

        ids = values.where(values >= 0, model.mask_id or 0).to(model.device)
        time = torch.full((len(ids),), noise, device=model.device)
        padding = (torch.ones_like(ids),) if model.takes_padding else ()
        mistakes = list(check_calls(probabilities, values, half=self.dtype != "float32"))
        with torch.inference_mode():
            mistakes += [WRITES] if writes_into(model.called, ids, time, *padding) else []
        if source.kind == "tokens" and model.corruption == "masking":
            texts = np.concatenate([np.repeat(block.data, 2, axis=0) for block in originals])[
                : len(values)
            ]
            row, site = np.nonzero(values.numpy() == MASKED)
            laws = model.beliefs(values.numpy(), np.full(len(values), noise), pieces).at(row, site)
            loss = -np.log(np.maximum(laws[np.arange(len(row)), texts[row, site]], 1e-30))
            mistakes += _hardly_better(
                loss,
                texts,
                row,
                site,
                source.ids(np.arange(source.count())[:_COUNTED]),
                model.vocab_size,
            )
        return [Finding(f"the model {self.model!r} {mistake}") for mistake in mistakes]


def _hardly_better(
    loss: np.ndarray, texts: np.ndarray, row: np.ndarray, site: np.ndarray, data: np.ndarray, V: int
) -> list[str]:
    """The fault of a model whose losses at masked sites of texts are hardly below those of the
    frequencies of tokens.

    The frequencies are those of the other texts of the data, with T different tokens in N: (n_a +
    T/V)/(N + T). A model is poor if, by two standard errors over texts, it saves less than a tenth
    of their loss.
    """
    counts = np.bincount(data[data != PAD], minlength=V)
    others = np.array(
        [counts - np.bincount(text[text != PAD], minlength=V) for text in texts]
    ).clip(0)
    different, total, own = (
        (others > 0).sum(1)[row],
        others.sum(1)[row],
        others[row, texts[row, site]],
    )
    frequencies = -np.log(
        np.maximum((own + different / V) / np.maximum(total + different, 1), 1 / (1000 * V))
    )
    size = np.bincount(row, minlength=len(texts))
    saved = np.bincount(row, frequencies - loss, minlength=len(texts))[size > 0]
    if (
        len(saved) < 2
        or not saved.sum() + 2 * saved.std(ddof=1) * len(saved) ** 0.5 < 0.1 * frequencies.sum()
    ):
        return []
    losses = (
        f"its loss is {loss.mean():.3g} nats a token, and that of the frequencies of the tokens"
        f" {frequencies.mean():.3g}"
    )
    return [
        f"is poor on these texts: with half of the tokens masked {losses}; results say more about"
        " the model than the texts"
    ]


class TokenWork(NamedTuple):
    """A text to reveal: ids int64 (length,) with -1 where masked, its noise level, uint64 key,
    and a name that is returned.
    """

    values: np.ndarray
    noise: float
    key: Any
    name: Any = None


@dataclass
class _Text:
    """A text in the queue, with the numbers of tokens `revealed` before each of its calls, and
    after the last one.
    """

    work: TokenWork
    values: np.ndarray
    chance: np.ndarray
    revealed: np.ndarray
    step: int = 0

    @property
    def names(self) -> tuple[Any]:
        return (self.work.name,)

    @property
    def length(self) -> int:
        return int((self.values != PAD).sum())

    @property
    def calls(self) -> int:
        """Number of calls that reveal its tokens."""
        return len(self.revealed) - 1


class _TokenQueue:
    """A language model as a process of `run_queue`: each step makes a few calls and reveals some
    tokens of every text.
    """

    def __init__(self, model: LanguageModel, decoder: Decoder, pieces: Any) -> None:
        self.model, self.decoder, self.pieces = model, decoder, pieces

    @property
    def places(self) -> int:
        return _CALLS * self.pieces.batch_size

    def calls(self, work: TokenWork) -> int:
        return int(self.decoder.numbers(work.values[None] == MASKED)[0][0])

    def unchanged(self, work: TokenWork) -> np.ndarray:
        return np.array(work.values)

    def admitted(self, work: list[TokenWork]) -> list[_Text]:
        chance = uniforms(
            streams(np.array([new.key for new in work], np.uint64), len(work), ORDER),
            len(work[0].values),
        )
        calls, revealed = self.decoder.numbers(np.stack([new.values for new in work]) == MASKED)
        numbers = [
            revealed(np.full(count + 1, row), np.arange(count + 1))
            for row, count in enumerate(calls)
        ]
        return [
            _Text(new, np.array(new.values), chance[row], numbers[row])
            for row, new in enumerate(work)
        ]

    def advance(self, cohorts: list[_Text]) -> None:
        cohorts.sort(key=lambda text: -text.length)  # to reduce padding
        size = self.pieces.batch_size
        for start in range(0, len(cohorts), size):
            self._call(cohorts[start : start + size])

    def _call(self, texts: list[_Text]) -> None:
        values = np.stack([text.values for text in texts])
        steps = np.array([text.step for text in texts], np.uint64)
        heights = uniforms(
            streams(np.array([text.work.key for text in texts], np.uint64), len(texts), steps),
            values.shape[1],
        )
        count = np.array(
            [text.revealed[text.step + 1] - text.revealed[text.step] for text in texts]
        )
        seen, chance = self.decoder.shown(values), np.stack([text.chance for text in texts])
        noise = self.decoder.told(
            np.array([text.work.noise for text in texts]), steps, seen, chance
        )
        values = reveal(
            self.decoder,
            self.model.beliefs(seen, noise, self.pieces),
            values,
            count,
            chance,
            heights,
        )
        for text, revealed in zip(texts, values, strict=True):
            text.values, text.step = revealed, text.step + 1

    def results(self, cohort: _Text) -> tuple[np.ndarray]:
        return (cohort.values,)


def run_token_queue(
    model: LanguageModel, decoder: Decoder, work: Iterable[TokenWork], batch_size: int | None = None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Texts `(name, ids)` in the order of completion, each drawn as
    `uturn.corruption.unmasking.unmask` draws it.

    All texts have arrays of one length, with `PAD` beyond the end of shorter ones.
    """
    queue = iter(work)
    if (first := next(queue, None)) is not None:
        process = _TokenQueue(model, decoder, model.pieces(batch_size, len(first.values)))
        yield from run_queue(process, chain([first], queue))
