"""Language models as denoisers of masked or replaced tokens, behind one protocol (`TokenNetwork`).

A network says what the clean token of every position may be. Networks differ in small ways: logits that belong to the next
position, a time as a second argument, ratios of probabilities in the place of logits. `LanguageModel` is the one place where
these are brought to one form, `log p(x_0^i = a | x_t)` up to a constant.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from uturn.core.checks import errors_named, shown
from uturn.core.pieces import Pieces, half_precision_words, is_out_of_memory
from uturn.core.protocols import Channel, Noisy
from uturn.corruption import Masking, UniformReplacement
from uturn.corruption.unmasking import MASKED, Decoder
from uturn.networks.texts.tokenizers import Framed, Tokenizer
from uturn.sources.tokens import PAD

TIMES = ("none", "sigma")
OUTPUTS = ("logits", "ratios")
CHANNELS: dict[str, Channel] = {"masking": Masking(), "uniform": UniformReplacement()}
_TOTAL = 1 - 1e-3  # sigma = -log(1 - _TOTAL noise) stays finite, as in the code of MDLM and SEDD
_NUMBERS = 2**28  # logits in memory together, by default
_ON_CPU = 2**11  # tokens in a call


class TokenNetwork(Protocol):
    """A network that denoises tokens; a function "module:function" may return any object with these members.

    Only `logits` and, for masking, `mask_id` are required.

    Attributes
    ----------
    mask_id : int or None
        Id of the mask token.
    shift : bool
        Whether the logits of position i are given at position i - 1, as by former causal networks; False by default.
    time : str
        "none": the noise is not used, the default; "sigma": it is given as sigma = -log(1 - noise), arXiv:2406.07524.
    output : str
        "logits" of the clean token, the default; "ratios": log p_t(x with a at i) - log p_t(x), arXiv:2310.16834.
    corruption : str
        "masking", the default, or "uniform".
    length : int or None
        Largest number of ids in a call; None, the default, if there is none.
    takes_padding : bool
        Whether `logits` takes a third argument, int64 (batch, length), that is 0 where a row has ended. If not, the default, only
        rows of equal length go into a call.
    tokenizer : Tokenizer or None
        A `uturn.networks.Vocabulary`, or `uturn.networks.PretrainedTokenizer` with one of transformers; by default data are ids.
    """

    mask_id: int | None
    shift: bool
    time: str
    output: str
    corruption: str
    length: int | None
    takes_padding: bool
    tokenizer: Tokenizer | None

    def logits(self, ids: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, vocab) for ids int64 (batch, length) and noise float32 (batch,), the share of noisy tokens."""
        ...


@dataclass(frozen=True, eq=False)
class LanguageModel(Framed):
    """A network with its tokenizer, and how its output is read.

    Attributes
    ----------
    network : TokenNetwork
    vocab_size : int
        Number of symbols V that the network gives probabilities of.
    tokenizer : Tokenizer, optional
    mask_id, shift, time, output, corruption, length
        As in `TokenNetwork`.
    forbidden : tuple of int
        Ids that are never drawn: mask, padding and the like.
    device : torch.device
    identity : str
        SHA-256 of the weights.
    description : str
    """

    network: Any
    vocab_size: int
    tokenizer: Tokenizer | None = None
    mask_id: int | None = None
    shift: bool = False
    time: str = "none"
    output: str = "logits"
    corruption: str = "masking"
    length: int | None = None
    forbidden: tuple[int, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    identity: str = ""
    description: str = ""

    @property
    def channel(self) -> Channel:
        """The corruption that it undoes."""
        return CHANNELS[self.corruption]

    def fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer and the way in which the output is read (hexadecimal)."""
        words = [self.identity, "" if self.tokenizer is None else self.tokenizer.fingerprint()]
        words += [str(x) for x in (self.vocab_size, self.mask_id, self.shift, self.time, self.output, self.corruption)]
        words += [str(x) for x in (self.forbidden, self.prefix, self.suffix)]
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def pieces(self, batch_size: int | None, tokens: int) -> Pieces:
        """Calls with at most so many rows.

        By default with as many as fit into a gigabyte of logits, at most 256, and on the CPU with at most 2,048 tokens.
        """
        most = 256 if self.device.type != "cpu" else _ON_CPU // max(1, tokens)
        return Pieces(self.device, batch_size or max(1, min(most, _NUMBERS // max(1, tokens * self.vocab_size))))

    def beliefs(self, values: np.ndarray, noise: np.ndarray, pieces: Pieces | None = None) -> TokenBeliefs:
        """What the network believes about sequences.

        Parameters
        ----------
        values : int64 (batch, length)
            Ids, `MASKED` where masked, `PAD` beyond the end of a sequence.
        noise : float64 (batch,)
            Share of masked tokens, or noise level of uniform replacement.
        pieces : Pieces, optional
            Largest number of rows in a call.

        Raises
        ------
        ValueError
            If the network gives another shape, or NaN.
        """
        pieces = self.pieces(None, values.shape[1]) if pieces is None else pieces
        lengths = (values != PAD).sum(1)
        with torch.inference_mode():
            if getattr(self.network, "takes_padding", False) or len(np.unique(lengths)) == 1:
                logits = self._called(values, noise, lengths, pieces)
            else:
                found: list[Any] = [None] * len(values)
                for one in np.unique(lengths):
                    rows = np.flatnonzero(lengths == one)
                    for row, part in zip(rows, self._called(values[rows], noise[rows], lengths[rows], pieces), strict=True):
                        found[row] = torch.nn.functional.pad(part, (0, 0, 0, int(lengths.max() - one)))
                logits = torch.stack(found)
            if self.forbidden:
                logits = logits.index_fill(-1, torch.tensor(self.forbidden, device=logits.device), -math.inf)
        return TokenBeliefs(logits, values.shape[1], self._name, getattr(self.network, "dtype", None))

    @property
    def _name(self) -> str:
        """The model in errors."""
        return self.description or "the model"

    def _called(self, values: np.ndarray, noise: np.ndarray, lengths: np.ndarray, pieces: Pieces) -> torch.Tensor:
        """Log-probabilities up to a constant (rows, longest, V) of rows that go into calls together."""
        longest, begin = int(lengths.max()), len(self.prefix)
        ids = np.zeros((len(values), begin + longest + len(self.suffix)), np.int64)
        pad = None if self.tokenizer is None else self.tokenizer.pad_id
        ids[:] = 0 if pad is None else pad
        ids[:, :begin] = self.prefix
        here = np.arange(longest) < lengths[:, None]
        masked = values[:, :longest] == MASKED
        ids[:, begin : begin + longest][here] = np.where(masked, self.mask_id or 0, values[:, :longest])[here]
        for k, token in enumerate(self.suffix):
            ids[np.arange(len(ids)), begin + lengths + k] = token
        real = (np.arange(ids.shape[1]) < (begin + lengths + len(self.suffix))[:, None]).astype(np.int64)
        time = -np.log1p(-_TOTAL * noise) if self.time == "sigma" else noise
        given = [torch.from_numpy(ids), torch.from_numpy(np.asarray(time, np.float32)), torch.from_numpy(real)]
        given += [torch.from_numpy(np.asarray(noise, np.float32))]

        def logits(ids: torch.Tensor, time: torch.Tensor, real: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            out = self._output(ids, time, real)
            if self.shift:
                out = torch.cat([out[:, :1], out[:, :-1]], 1)
            out = out[:, begin : begin + longest]
            return self._from_ratios(out, ids[:, begin : begin + longest], noise) if self.output == "ratios" else out

        return pieces(logits, *(tensor.to(self.device) for tensor in given))

    def _output(self, ids: torch.Tensor, time: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """What the network gives; errors in it become a ValueError of one line."""
        network: Any = self.network
        given = (ids, time, real) if getattr(network, "takes_padding", False) else (ids, time)
        try:
            out = network.logits(*(tensor.clone() for tensor in given))  # it may write into them
        except Exception as error:
            if is_out_of_memory(error):
                raise
            with errors_named(self._name, type(network)):
                raise
        wanted = (*ids.shape, self.vocab_size)
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted or not out.is_floating_point():
            what = f"{out.dtype} of shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"{self._name}: logits give {what}; expected floating point numbers {wanted} = (batch, length, vocab)"
            )
        return out

    def _from_ratios(self, log_ratios: torch.Tensor, ids: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the clean token, from s_a = p_t(x with a at i) / p_t(x).

        Masking: s_a is proportional to p(x_0^i = a | x_t) for a other than the mask. Uniform replacement with share alpha kept:
        with q(a | b) = alpha 1[a = b] + (1 - alpha)/V and w_b = p(x_0^i = b, other tokens) / p_t(x), s_a = sum_b q(a | b) w_b, so
        that w_a = (s_a - (1 - alpha) sum(s) / V) / alpha, and p(x_0^i = a | x_t) is proportional to w_a q(x^i | a).
        """
        if self.corruption == "masking":
            return log_ratios
        V, alpha = self.vocab_size, (1 - noise.double())[:, None, None]
        own = torch.nn.functional.one_hot(ids, V).bool()
        s = log_ratios.double().exp().masked_fill(own, 1.0)
        w = ((s - (1 - alpha) / V * s.sum(-1, keepdim=True)) / alpha.clamp(min=1e-12)).clamp(min=0)
        law = w * torch.where(own, alpha + (1 - alpha) / V, (1 - alpha) / V)
        return law.log()


class TokenBeliefs:
    """Beliefs of a language model, kept as log-probabilities up to a constant on its device (`unmasking.NetworkBeliefs`)."""

    def __init__(self, logits: torch.Tensor, width: int, name: str = "the model", dtype: Any = None) -> None:
        self._logits, self._width, self._name, self._dtype = logits, width, name, dtype
        self.vocab_size = logits.shape[-1]

    def ranks(self, decoder: Decoder) -> np.ndarray:
        """float64 (rows, positions): entropies in nats, or minus the largest probabilities."""
        out = np.zeros((len(self._logits), self._width))
        size = max(1, _NUMBERS // 8 // max(1, self._logits[0].numel()))
        with torch.inference_mode():
            for start in range(0, len(out), size):
                logs = self._logits[start : start + size].float().log_softmax(-1)
                if decoder.order == "entropy":
                    found = -(logs.exp() * logs.clamp(min=-1e9)).sum(-1)
                else:
                    found = -logs.amax(-1).exp()
                out[start : start + size, : found.shape[1]] = found.cpu().numpy()
        return out

    def at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Probabilities, float64 (n, V)."""
        with torch.inference_mode():
            where = (torch.from_numpy(rows).to(self._logits.device), torch.from_numpy(positions).to(self._logits.device))
            law = self._logits[where].cpu().double().softmax(-1).numpy()
        if np.isnan(law).any():
            words = half_precision_words(self._dtype) or ": a logit is NaN or infinite, or all of a token are -inf"
            raise ValueError(f"{self._name} gives NaN{words}")
        return law


class TokenDenoiser:
    """A language model as a denoiser of sequences of one length (`uturn.corruption.denoising.Denoiser`)."""

    def __init__(self, model: LanguageModel, num_leaves: int, pieces: Pieces | None = None) -> None:
        self.model, self.num_leaves, self._pieces = model, num_leaves, pieces
        self.vocab_size, self.corruption = model.vocab_size, model.channel

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """Probability of each token at each position, float32 (batch, length, V)."""
        found = self.model.beliefs(noisy.values, noisy.noise, self._pieces)
        rows, positions = (index.ravel() for index in np.indices(noisy.values.shape))
        return found.at(rows, positions).astype(np.float32).reshape(*noisy.values.shape, self.vocab_size)

    def fingerprint(self) -> str:
        return self.model.fingerprint()


def checked_choice(where: str, name: str, value: Any, known: Any) -> Any:
    """`value`, or a ValueError if it is none of the known ones."""
    if value not in known:
        raise ValueError(f"{where}: {name} = {shown(value)}; expected one of {', '.join(map(repr, known))}")
    return value
