"""Language models: networks that denoise tokens, behind one protocol (`TokenNetwork`), and networks
that read texts.

Only `LanguageModel` converts what networks give to a common form, `log p(x_0^i = a | x_t)` up to a
constant.

A model of another library is a function of the user, "module:function", that returns a
`TokenNetwork`: an object with `logits` and `mask_id` that calls the model. A kind of models of
transformers whose output has another form than its configuration says is a row of `_FORMS` in
`uturn.networks.texts.language_files`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch

from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.protocols import Channel
from uturn.corruption import Masking, UniformReplacement
from uturn.corruption.pieces import Pieces, half_precision_words, is_out_of_memory
from uturn.corruption.sampling import MASKED
from uturn.networks.layers import as_tensor
from uturn.networks.texts.tokenizers import Tokenizer
from uturn.sources.tokens import PAD, TextSource

CHANNELS: dict[str, Channel] = {"masking": Masking(), "uniform": UniformReplacement()}
_TOTAL = 1 - 1e-3  # sigma = -log(1 - _TOTAL noise) stays finite, as in the code of MDLM and SEDD
_NUMBERS = 2**28  # default number of logits in memory
_ON_CPU = 2**11  # tokens in a call on the CPU
# Kinds whose code takes no `attention_mask` (batch, length), and does not report missing weights.
PLAIN = ("dream",)
_TIME_NAMES = ("timesteps", "sigma", "noise", "t")


class TokenNetwork(Protocol):
    """A network that denoises tokens; a function "module:function" may return any object with these
    members.

    Only `logits` and, for masking, `mask_id` are required.
    """

    mask_id: int | None
    """Id of the mask token."""
    shift: bool
    """Whether the logits of position i are at position i - 1, as in networks made from causal
    ones; False by default.
    """
    time: str
    """"none", the default: the noise is not used; "sigma": the network takes sigma = -log(1 -
    noise), arXiv:2406.07524.
    """
    output: str
    """"logits" of the clean token, the default; "ratios": log p_t(x with a at i) - log p_t(x),
    arXiv:2310.16834.
    """
    corruption: str
    """"masking", the default, or "uniform"."""
    length: int | None
    """Largest number of ids in a call; None, the default, for no limit."""
    takes_padding: bool
    """Whether `logits` takes a third argument, int64 (batch, length), that is 0 beyond the end
    of a row. If not (the default), all rows of a call have the same length.
    """
    tokenizer: Tokenizer | None
    """A `uturn.networks.Vocabulary`, or a `uturn.networks.PretrainedTokenizer` of transformers;
    by default data are ids.
    """

    def logits(self, ids: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, vocab) for ids int64 (batch, length) and noise float32
        (batch,), the share of noisy tokens.
        """


def model_type(config: object) -> str:
    """The kind of a model of transformers in lower case; "" without a configuration."""
    return str(getattr(config, "model_type", "")).lower()


class TokenBatch(NamedTuple):
    """Texts in one call of a network."""

    rows: np.ndarray
    """Row numbers of the texts."""
    ids: torch.Tensor
    """int64 (rows, length), with what stands before and after each text."""
    real: torch.Tensor
    """bool (rows, length), False for padding."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A network with its tokenizer and the form of its output.

    `mask_id`, `shift`, `time`, `output`, `corruption` and `length` are as in `TokenNetwork`. With
    `takes_ids` the network is no `TokenNetwork`, but a torch module called with ids, whose further
    arguments, such as a time, are found by their names.
    """

    network: Any  # a `TokenNetwork`, or a torch module of any class
    vocab_size: int = 0
    """Number of symbols V with a probability; 0 if it is not known, as for encoders."""
    tokenizer: Tokenizer | None = None
    """None if the network reads the ids of the data."""
    mask_id: int | None = None
    shift: bool = False
    time: str = "none"
    output: str = "logits"
    corruption: str = "masking"
    length: int | None = None
    forbidden: tuple[int, ...] = ()
    """Ids that are never drawn: mask, padding and the like."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    identity: str = ""
    """SHA-256 of the weights."""
    description: str = "the model"
    takes_ids: bool = False

    @property
    def channel(self) -> Channel:
        """The corruption that the model reverses."""
        return CHANNELS[self.corruption]

    @property
    def prefix(self) -> tuple[int, ...]:
        return getattr(self.tokenizer, "prefix", ())

    @property
    def suffix(self) -> tuple[int, ...]:
        return getattr(self.tokenizer, "suffix", ())

    @property
    def most_tokens(self) -> int | None:
        """Largest number of tokens of a text, without prefix and suffix; None for no limit."""
        return None if self.length is None else self.length - len(self.prefix) - len(self.suffix)

    @property
    def config(self) -> Any:  # noqa: ANN401 - its attributes depend on the kind of the model
        """The configuration of a model of transformers, which can return hidden states; None for
        other models.
        """
        if self.takes_ids and hasattr(self.network, "base_model"):
            return getattr(self.network, "config", None)
        return None

    @cached_property
    def _arguments(self) -> list[str]:
        return list(inspect.signature(self.network.forward).parameters)

    @cached_property
    def takes_padding(self) -> bool:
        """Whether a call may contain texts of different lengths."""
        if not self.takes_ids:
            return getattr(self.network, "takes_padding", False)
        is_plain = model_type(getattr(self.network, "config", None)) in PLAIN
        return "attention_mask" in self._arguments and not is_plain

    @property
    def pad_id(self) -> int:
        """The id beyond the end of a text: that of the network, which may look for it."""
        ids = (getattr(self.config, "pad_token_id", None), getattr(self.tokenizer, "pad_id", None))
        return next((pad_id for pad_id in ids if pad_id is not None and pad_id >= 0), 0)

    def fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer and form of the output (hexadecimal)."""
        form = (
            self.vocab_size,
            self.mask_id,
            self.shift,
            self.time,
            self.output,
            self.corruption,
            self.forbidden,
            self.prefix,
            self.suffix,
        )
        tokenizer = "" if self.tokenizer is None else self.tokenizer.fingerprint()
        identity = " ".join([self.identity, tokenizer, *map(str, form)])
        return hashlib.sha256(identity.encode()).hexdigest()

    def encoder(self) -> LanguageModel:
        """The model without the head that computes logits from hidden states, for models of
        transformers.
        """
        expect(
            isinstance(self.network, torch.nn.Module),
            self.description,
            type(self.network).__name__,
            "a torch module, which has layers; name another model",
        )
        if not self.takes_ids:
            return self
        return replace(self, network=getattr(self.network, "base_model", self.network))

    def pieces(self, batch_size: int | None, tokens: int) -> Pieces:
        """Calls with `batch_size` rows; by default a gigabyte of logits, at most 256 rows, and
        on the CPU 2,048 tokens.
        """
        if batch_size is None:
            most = 256 if self.device.type != "cpu" else _ON_CPU // max(1, tokens)
            in_memory = _NUMBERS // max(1, tokens * self.vocab_size)
            batch_size = max(1, min(most, in_memory))
        return Pieces(self.device, batch_size)

    def batches(
        self,
        values: np.ndarray,
        batch_size: int | None = None,
        frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> Iterator[TokenBatch]:
        """Batches of ids for the network, from texts int64 (count, longest), `MASKED` where masked
        and `PAD` beyond their end.

        `frame`: ids before and after each text, by default the prefix and suffix of the tokenizer.
        A batch has `batch_size` texts of similar length, by default all; a network that takes no
        padding gets one batch for each length.
        """
        prefix, suffix = (self.prefix, self.suffix) if frame is None else frame
        begin = len(prefix)
        num_tokens = (values != PAD).sum(1)
        for numbers in self._groups(num_tokens, batch_size):
            lengths = num_tokens[numbers]
            longest = int(lengths.max())
            tokens = values[numbers, :longest]
            is_token = tokens != PAD
            symbols = np.where(tokens == MASKED, self.mask_id or 0, tokens)
            ids = np.full((len(numbers), begin + longest + len(suffix)), self.pad_id, np.int64)
            ids[:, :begin] = prefix
            ids[:, begin : begin + longest][is_token] = symbols[is_token]
            for k, token in enumerate(suffix):
                ids[np.arange(len(ids)), begin + lengths + k] = token
            real = np.arange(ids.shape[1]) < (begin + lengths + len(suffix))[:, None]
            yield TokenBatch(
                numbers,
                torch.from_numpy(ids).to(self.device),
                torch.from_numpy(real).to(self.device),
            )

    def _groups(self, num_tokens: np.ndarray, batch_size: int | None) -> list[np.ndarray]:
        """The row numbers of the texts of each batch, from the lengths of all texts."""
        if batch_size is None:
            order = np.arange(len(num_tokens))
        else:
            order = np.argsort(num_tokens, kind="stable")
        size = batch_size or max(1, len(num_tokens))
        groups = [order[start : start + size] for start in range(0, len(num_tokens), size)]
        if self.takes_padding:
            return groups
        of_one_length = []
        for group in groups:
            lengths = num_tokens[group]
            of_one_length += [group[lengths == length] for length in np.unique(lengths)]
        return of_one_length

    def rows(
        self, texts: np.ndarray, batch_size: int, read: Callable[[Any, torch.Tensor], torch.Tensor]
    ) -> np.ndarray:
        """What `read(output, real)`, (rows, width), gives of each text, finite float64 (count,
        width); texts as in `batches`.
        """
        rows: list[np.ndarray] = [np.empty(0)] * len(texts)
        for numbers, ids, real in self.batches(texts, batch_size):
            values = read(self.read(ids, real), real)
            num_bad = int((~values.isfinite()).sum())
            expect(
                num_bad == 0,
                f"{self.description}: outputs that are not finite",
                num_bad,
                f"none{half_precision_words(values.dtype)}",
            )
            for number, row in zip(numbers, values.detach().double().cpu().numpy(), strict=True):
                rows[number] = row
        return np.array(rows, float).reshape(len(texts), -1)

    def read(
        self,
        ids: torch.Tensor,
        real: torch.Tensor,
        time: torch.Tensor | None = None,
        **options: bool,
    ) -> Any:  # noqa: ANN401 - the output of any network
        """The output of the network for a batch, at noise 0 by default, called with `options`;
        MemoryError if it does not fit.
        """
        if time is None:
            time = torch.zeros(len(ids), device=self.device)
        padding = [real.long()] if self.takes_padding else []
        try:
            with torch.inference_mode(), noted(f"{self.description}, ids {tuple(ids.shape)}"):
                # Copies, as the network may modify its inputs.
                return self.called(ids.clone(), time.clone(), *padding, **options)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(
                    f"not enough memory on {self.device} for {len(ids)} texts; lower batch_size"
                ) from None
            raise

    def called(
        self, ids: torch.Tensor, time: torch.Tensor, *real: torch.Tensor, **options: bool
    ) -> Any:  # noqa: ANN401 - the output of any network
        """The output of the network for these very tensors."""
        if not self.takes_ids:
            return self.network.logits(ids, time, *real, **options)
        names = self._arguments
        inputs = {"input_ids" if "input_ids" in names else names[0]: ids}
        if real:
            inputs["attention_mask"] = real[0]
        time_name = next((name for name in _TIME_NAMES if name in names), None)
        if time_name is not None:
            inputs[time_name] = time
        return self.network(**inputs, **options)

    def logits(
        self, ids: torch.Tensor, real: torch.Tensor, time: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logits of the network for a batch, (rows, length, V); ValueError if they have
        another shape.
        """
        logits = as_tensor(self.read(ids, real, time), f"{self.description}: logits")
        is_of_tokens = logits.ndim == 3 and logits.shape[:2] == ids.shape
        is_of_symbols = is_of_tokens and self.vocab_size in (0, logits.shape[2])
        shape = (*ids.shape, self.vocab_size or "vocab")
        expect(
            is_of_symbols and logits.is_floating_point(),
            f"{self.description}: logits",
            (logits.dtype, tuple(logits.shape)),
            f"floating point numbers {shape} = (batch, length, vocab)",
        )
        return logits

    def beliefs(
        self, values: np.ndarray, noise: np.ndarray, pieces: Pieces | None = None
    ) -> TokenBeliefs:
        """The network's beliefs about sequences; ValueError if it returns another shape, or NaN.

        `values`: ids int64 (batch, length), `MASKED` where masked, `PAD` beyond the end of a
        sequence. `noise`: float64 (batch,), share of masked tokens, or noise level of uniform
        replacement. `pieces`: largest number of rows in a call.
        """
        if pieces is None:
            pieces = self.pieces(None, values.shape[1])
        time = -np.log1p(-_TOTAL * noise) if self.time == "sigma" else noise
        levels = torch.from_numpy(np.stack([time, noise], 1).astype(np.float32)).to(self.device)
        with torch.inference_mode():
            rows = []
            calls = []
            for numbers, ids, real in self.batches(values):
                rows.append(numbers)
                calls.append(pieces(self._clean, ids, real, levels[numbers]))
            logits = _joined(rows, calls)
            if self.forbidden:
                forbidden = torch.tensor(self.forbidden, device=logits.device)
                logits = logits.index_fill(-1, forbidden, -math.inf)
        dtype = None
        if isinstance(self.network, torch.nn.Module):
            dtype = getattr(next(self.network.parameters(), None), "dtype", None)
        return TokenBeliefs(logits, values.shape[1], self.description, dtype)

    def _clean(self, ids: torch.Tensor, real: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Log-probabilities up to a constant (rows, longest, V) of the clean tokens; `levels`
        (rows, 2): time and noise.
        """
        time, noise = levels.T
        logits = self.logits(ids, real, time)
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        tokens = slice(len(self.prefix), ids.shape[1] - len(self.suffix))
        logits = logits[:, tokens]
        if self.output == "ratios":
            return self._from_ratios(logits, ids[:, tokens], noise)
        return logits

    def _from_ratios(
        self, log_ratios: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of the clean token, from s_a = p_t(x with a at i) / p_t(x).

        Masking: s_a is proportional to p(x_0^i = a | x_t) for a other than the mask. Uniform
        replacement with share alpha kept: with q(a | b) = alpha 1[a = b] + (1 - alpha)/V and w_b =
        p(x_0^i = b, other tokens) / p_t(x), s_a = sum_b q(a | b) w_b, so that w_a = (s_a - (1 -
        alpha) sum(s) / V) / alpha, and p(x_0^i = a | x_t) is proportional to w_a q(x^i | a).
        """
        if self.corruption == "masking":
            return log_ratios
        V = self.vocab_size
        alpha = (1 - noise.double())[:, None, None]
        is_current = torch.nn.functional.one_hot(ids, V).bool()
        s = log_ratios.double().exp().masked_fill(is_current, 1.0)
        w = ((s - (1 - alpha) / V * s.sum(-1, keepdim=True)) / alpha.clamp(min=1e-12)).clamp(min=0)
        law = w * torch.where(is_current, alpha + (1 - alpha) / V, (1 - alpha) / V)
        return law.log()


def _joined(rows: Sequence[np.ndarray], calls: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits (count, longest, V) in the order of the texts, from the logits of batches and their
    row numbers.
    """
    if len(calls) == 1:
        return calls[0]
    longest = max(logits.shape[1] for logits in calls)
    pad = torch.nn.functional.pad
    padded = [pad(logits, (0, 0, 0, longest - logits.shape[1])) for logits in calls]
    return torch.cat(padded)[np.argsort(np.concatenate(rows))]


def language_of(source: TextSource) -> LanguageModel:
    """The language model of the backward of an experiment with texts, which networks of this
    package read with.
    """
    return cast(LanguageModel, source.language())


class TokenBeliefs:
    """Beliefs of a language model, stored on its device as log-probabilities up to a constant
    (`uturn.corruption.sampling.SymbolBeliefs`).
    """

    def __init__(
        self, logits: torch.Tensor, width: int, name: str, dtype: torch.dtype | None
    ) -> None:
        self._logits = logits
        self._width = width
        self._name = name
        self._dtype = dtype
        self.vocab_size = logits.shape[-1]

    def entropies(self) -> np.ndarray:
        """Entropies in nats, float64 (rows, positions)."""
        return self._of_each_position(lambda logs: -(logs.exp() * logs.clamp(min=-1e9)).sum(-1))

    def largest(self) -> np.ndarray:
        """Largest probabilities of a token, float64 (rows, positions)."""
        return self._of_each_position(lambda logs: logs.amax(-1).exp())

    def _of_each_position(self, read: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """What is read of the log-probabilities (rows, longest, V), float64 (rows, positions); 0
        beyond the longest text.
        """
        out = np.zeros((len(self._logits), self._width))
        size = max(1, _NUMBERS // 8 // max(1, self._logits[0].numel()))
        with torch.inference_mode():
            for start in range(0, len(out), size):
                logs = self._logits[start : start + size].float().log_softmax(-1)
                values = read(logs)
                out[start : start + size, : values.shape[1]] = values.cpu().numpy()
        return out

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Probabilities, float64 (n, V)."""
        device = self._logits.device
        with torch.inference_mode():
            place = (torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device))
            law = self._logits[place].cpu().double().softmax(-1).numpy()
        reason = half_precision_words(self._dtype)
        if not reason:
            reason = "; a logit is NaN or infinite, or all of a token are -inf"
        num_bad = int(np.isnan(law).sum())
        where = f"{self._name}: probabilities that are NaN"
        expect(num_bad == 0, where, num_bad, f"none{reason}")
        return law


def causal_log_likelihoods(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Log-likelihood of texts, ids int64 (count, length), under a causal model, in nats, float64
    (count,).

    log p(x) = sum_i log p(x_i | x_1, .., x_{i-1}), in one call for each batch. The first token is
    conditioned on the tokenizer's prefix, or else on the model's begin token; without either, the
    first token is not counted.
    """
    prefix = beginning(model)
    first = max(1, len(prefix))
    log_likelihoods = np.zeros(len(texts))
    for numbers, ids, real in model.batches(texts, batch_size, (prefix, ())):
        logs = model.logits(ids, real)[:, first - 1 : -1].float().log_softmax(-1)
        log_probabilities = logs.gather(2, ids[:, first:, None])[..., 0].double()
        log_probabilities = log_probabilities.masked_fill(~real[:, first:], 0)
        log_likelihoods[numbers] = log_probabilities.sum(1).cpu().numpy()
    return log_likelihoods


def beginning(model: LanguageModel) -> tuple[int, ...]:
    """Ids before a text in a causal model."""
    if model.prefix:
        return model.prefix
    token = getattr(model.config, "bos_token_id", None)
    size = getattr(model.config, "vocab_size", None)
    if isinstance(token, int) and size is not None and 0 <= token < size:
        return (token,)
    return ()


def pseudo_log_likelihoods(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Pseudo-log-likelihood of texts, ids int64 (count, length), under a masked model, in nats,
    float64 (count,).

    PLL(x) = sum_i log p(x_i | all other tokens) (Eq. 1 of arXiv:1910.14659), each token masked in
    turn; no log-probability of x.
    """
    log_likelihoods = np.zeros(len(texts))
    pieces = Pieces(model.device, batch_size)
    for k, text in enumerate(texts):
        tokens = text[text != PAD]
        n = len(tokens)
        for start in range(0, n, batch_size):
            places = np.arange(start, min(start + batch_size, n))
            rows = np.arange(len(places))
            masked = np.tile(tokens, (len(places), 1))
            masked[rows, places] = MASKED
            beliefs = model.beliefs(masked, np.full(len(places), 1 / n), pieces)
            law = beliefs.at(rows, places)
            with np.errstate(divide="ignore"):
                log_likelihoods[k] += np.log(law[rows, tokens[places]]).sum()
    return log_likelihoods


def class_logits(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of the classes, float64 (count, classes), of texts as ids int64 (count, longest),
    `PAD` beyond their end.
    """

    def logits_of(output: object, real: torch.Tensor) -> torch.Tensor:
        where = f"{model.description}: shape of the output for {len(real)} texts"
        logits = as_tensor(output, where)
        has_classes = logits.ndim == 2 and logits.shape[1] > 1
        expected = "logits (texts, classes) of two or more classes"
        fits = has_classes and len(logits) == len(real)
        expect(fits, where, tuple(logits.shape), expected)
        return logits

    return model.rows(texts, batch_size, logits_of)
