"""The exact posterior, and reverse processes of channels of strings with an exact or a learned
denoiser of single leaves.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.inputs import File
from uturn.core.protocols import (
    Backward,
    Corruption,
    Denoiser,
    Design,
    Reconstructions,
    Source,
    Spec,
)
from uturn.core.random import Purpose, Streams
from uturn.corruption.denoising import ExactDenoiser, check_channel, denoise
from uturn.corruption.unmasking import Decoder
from uturn.networks.texts.options import DecoderOptions
from uturn.sources.strings import NoisyStrings, StringSource


class ExactPosterior(Spec, Backward):
    """Draws from the exact posterior: by belief propagation for strings, by a formula for vectors
    of a Gaussian mixture.

    The formula holds for Gaussian diffusion, and for a linear operator with Gaussian noise.

    The draws are made by the method `posterior_draws(streams, clones)` of the noisy data, (items,
    draws, ...). User-defined noisy data with such a method can be drawn too, if their source
    declares no kind.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings", "vectors")
    undoes: ClassVar[tuple[str, ...]] = ("channel", "operator")
    asks: ClassVar[tuple[str, ...]] = ("log_evidence",)
    batch_invariant: ClassVar[bool] = True
    adds_trajectories: ClassVar[bool] = True
    type: Literal["exact"] = "exact"

    def reconstruct(
        self,
        noisy: Any,  # noqa: ANN401 - noisy data of any kind with `posterior_draws`
        streams: Streams,
        clones: int = 1,
    ) -> Reconstructions:
        return noisy.posterior_draws(streams, clones)

    def missing(self, experiment: Design) -> dict[str, str]:
        """No reconstruction is missing; ValueError if a measurement has no exact posterior."""
        source = experiment.parts.source
        corruption = experiment.parts.corruption
        if corruption.process == "operator":
            block = next(iter(source.blocks(np.arange(1), experiment.seed, 1)))
            for noise in experiment.noise:
                streams = Streams(experiment.seed, block.items, noise)
                measured: Any = corruption.observe(block, noise, streams)  # by an operator
                measured.posterior(0)
        return {}


class StringDenoiser(DecoderOptions, Spec, Backward[NoisyStrings]):
    """Reverse process of a Bayesian channel of strings, with a denoiser of single leaves
    (`uturn.corruption.denoising.denoise`).

    `model`: "exact" for belief propagation, or the file of a trained denoiser (`uturn.networks`) of
    the same channel. `steps`: evaluations of the denoiser, >= 1. For masking, `order`, `block`,
    `causal`, `temperature`, `top_k`, `top_p`, `remask`, `eta`, `remask_given` choose how leaves are
    unmasked (`uturn.corruption.unmasking.Decoder`); the description says if the decoder does not
    draw from the posterior. For uniform replacement, `order` may be "analytic", its default there,
    or "euler" (SEDD).

    Probes of beliefs read the exact ones for every denoiser. Reconstructions: {tree_level: int64
    (items, draws, nodes)}, -1 where a node is ungrammatical.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    undoes: ClassVar[tuple[str, ...]] = ("channel",)
    asks: ClassVar[tuple[str, ...]] = ("log_evidence",)
    adds_trajectories: ClassVar[bool] = True
    type: Literal["denoiser"] = "denoiser"
    model: File = "exact"
    steps: int = Field(default=64, ge=1, le=2**20)

    @model_validator(mode="after")
    def _fits(self) -> StringDenoiser:
        _ = self.decoder  # raises for options that do not go together
        return self

    @property
    def _reveals(self) -> bool:
        """Whether the decoder reveals leaves; with its defaults, the reverse process of the
        channel draws them.
        """
        return self.decoder != Decoder(steps=self.steps)

    def describe(self) -> str:
        if not self._reveals:
            return ""
        return self.decoder.description + self.decoder.warning

    def reconstruct(
        self, noisy: NoisyStrings, streams: Streams, clones: int = 1
    ) -> dict[int, np.ndarray]:
        keys = streams.keys(Purpose.DENOISING, clones)
        sampler = self.decoder.sampler_for(noisy.channel) if self._reveals else None
        denoiser = self._denoiser(noisy)
        strings = denoise(denoiser, noisy.repeated(clones), self.steps, keys, sampler)
        return noisy.parsed(strings, len(streams.items), keys)

    def check(self, source: Source, corruption: Corruption) -> None:
        check_channel(corruption)
        if self._reveals:
            self.decoder.sampler_for(corruption)
        if self.model == "exact" or not isinstance(source, StringSource):
            return
        denoiser = self._learned(corruption)
        sizes = (source.num_leaves, source.vocab_size)
        expected = (denoiser.num_leaves, denoiser.vocab_size)
        of_model = f"{expected}, as those of model = {self.model!r}"
        expect(sizes == expected, "leaves and symbols of the strings", sizes, of_model)

    def _denoiser(self, noisy: NoisyStrings) -> Denoiser:
        if self.model == "exact":
            return ExactDenoiser(noisy.rhm, noisy.channel)
        return self._learned(noisy.channel)

    def _learned(self, corruption: Corruption) -> Denoiser:
        denoiser = _learned_denoiser(self.model)
        undone = denoiser.corruption
        expected = f"{undone!r}, which the model {self.model!r} undoes"
        expect(undone == corruption, "corruption", corruption, expected)
        return denoiser


@cached_while_unchanged(files=lambda path: [path], maxsize=4)
def _learned_denoiser(path: str) -> Denoiser:
    from uturn.networks.files import load_network
    from uturn.networks.strings.denoisers import LearnedDenoiser, TreeNetwork

    network = load_network(path, "tree_denoiser")
    assert isinstance(network, TreeNetwork)
    return LearnedDenoiser(network)
