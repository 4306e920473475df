"""Reverse processes of channels of strings, with an exact or a learned denoiser of single leaves."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import Backward, Spec
from uturn.core.random import Purpose, Streams
from uturn.corruption import Masking
from uturn.corruption.denoising import Denoiser, ExactDenoiser, check_channel, denoise, strings_at_once
from uturn.corruption.unmasking import Decoder, unmask
from uturn.sources.strings import NoisyStrings

# Options of the decoder with the defaults, which are those of the reverse process of masking.
_DECODER = {option.name: option.default for option in fields(Decoder) if option.name != "steps"}


class StringDenoiser(Spec, Backward):
    """Reverse process of a Bayesian channel of strings, with a denoiser of single leaves (`uturn.corruption.denoising.denoise`).

    `model`: "exact" for belief propagation, or the file of a trained denoiser (`uturn.networks`) of the same channel. `steps`:
    evaluations of the denoiser, >= 1. For masking, `order`, `block`, `temperature`, `top_k` and `top_p` choose how leaves are
    unmasked (`uturn.corruption.unmasking.Decoder`); the description says if the decoder does not draw from the posterior.

    Probes of beliefs read the exact ones for every denoiser. Reconstructions: {tree_level: int64 (items, draws, nodes)}, -1 where
    a node is ungrammatical.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    undoes: ClassVar[tuple[str, ...]] = ("channel",)
    asks: ClassVar[tuple[str, ...]] = ("log_evidence",)
    adds_trajectories: ClassVar[bool] = True
    type: Literal["denoiser"] = "denoiser"
    model: str = "exact"
    steps: int = Field(default=64, ge=1)
    order: Literal["random", "blocks", "entropy", "probability", "confidence"] = "random"
    block: int = Field(default=8, ge=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)

    @property
    def decoder(self) -> Decoder | None:
        """The decoder of masked leaves; None for the reverse process of the channel."""
        options = {name: getattr(self, name) for name in _DECODER}
        return None if options == _DECODER else Decoder(steps=self.steps, **options)

    def describe(self) -> str:
        if self.decoder is None:
            return ""
        exact = Decoder(**{name: getattr(self, name) for name in _DECODER}).is_exact
        return self.decoder.description + ("" if exact else ": not a draw from the posterior")

    def reconstruct(self, noisy: NoisyStrings, streams: Streams, clones: int = 1) -> dict[int, np.ndarray]:
        denoiser = ExactDenoiser(noisy.rhm, noisy.channel) if self.model == "exact" else self._learned(noisy.channel)
        keys = streams.keys(Purpose.DENOISING, clones)
        reverse = None if self.decoder is None else partial(unmask, decoder=self.decoder)
        strings = denoise(denoiser, noisy.repeated(clones), self.steps, keys, reverse)
        return noisy.parsed(strings, len(streams.items))

    def undone(self, corruption: Any, source: Any) -> Any:
        check_channel(corruption)
        if self.decoder is not None and not isinstance(corruption, Masking):
            raise ValueError(
                f"{self.decoder.description}: for masked strings, but the corruption is {corruption!r}; leave the options of the "
                f"decoder out"
            )
        if self.model != "exact":
            denoiser = self._learned(corruption)
            v, d = source.vocab_size, source.branching**source.depth
            if (denoiser.vocab_size, denoiser.num_leaves) != (v, d):
                raise ValueError(
                    f"model = {self.model!r} denoises {denoiser.num_leaves} leaves over {denoiser.vocab_size} symbols, but the "
                    f"strings have {d} over {v}"
                )
        return corruption

    def network_calls(self, noise: float, corruption: Any, source: Any) -> tuple[int, int]:
        num_leaves = source.branching**source.depth
        at_once = strings_at_once(num_leaves, source.vocab_size)
        if self.model != "exact":
            at_once = min(at_once, getattr(self._learned(corruption), "batch_size", at_once))
        return corruption.evaluations(noise, self.steps, num_leaves), at_once

    def trial(self, calls: int, noise: float) -> tuple[Any, float]:
        return self.model_copy(update={"steps": min(calls, self.steps)}), noise

    def fingerprint(self) -> str:
        return "" if self.model == "exact" else _learned_denoiser(self.model).fingerprint()

    def _learned(self, corruption: Any) -> Denoiser:
        denoiser = _learned_denoiser(self.model)
        if denoiser.corruption != corruption:
            raise ValueError(f"model = {self.model!r} undoes {denoiser.corruption!r}, but the corruption is {corruption!r}")
        return denoiser


@cached_while_unchanged(files=lambda path: [path], maxsize=4)
def _learned_denoiser(path: str) -> Denoiser:
    from uturn.networks.files import load_network
    from uturn.networks.strings.denoisers import LearnedDenoiser

    return LearnedDenoiser(load_network(path, "tree_denoiser"))
