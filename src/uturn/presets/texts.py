"""The options of a text experiment, described once for Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

import uturn
from uturn.networks.texts.options import LanguageOptions
from uturn.presets.options import (
    SIZES,
    PresetOptions,
    Table,
    given,
    noise_levels,
    probe_names,
)

if TYPE_CHECKING:
    from uturn.backward.language import LanguageDenoiser

PASSAGES = 30
"""Passages of the package that are taken without --items."""


class TextOptions(LanguageOptions, PresetOptions):
    """U-turns of texts by a masked language model or a discrete diffusion model.

    `uturn text --help` explains the options; the method `experiment` returns the experiment that
    they describe.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": (
            *("model", "tokenizer", "split", "model_type", "trust_remote_code"),
            *("mask_id", "shift", "time", "output", "corruption"),
        ),
        "Decoding": (
            "order",
            "steps",
            "block",
            "causal",
            "temperature",
            "top_k",
            "top_p",
            "remask",
            "eta",
            "remask_given",
        ),
        "Data": ("data", "windows", "length", "segments", "keep_first"),
        "Measures": (
            *(
                "layers",
                "encoder",
                "likelihood",
                "classifier",
                "classifier_tokenizer",
                "classifier_split",
            ),
            "repetition",
        ),
        "Size and seed": SIZES,
        "Speed and memory": ("dtype", "device", "batch_size"),
    }
    flags: ClassVar[Mapping[str, str]] = {"segments": "--segment"}

    data: str = Field(
        "embedded",
        description=(
            "Text file with one text on each line; a folder of .txt files; a table (.csv, .jsonl)"
            " with the columns text, label, regions, fixed; or a .npy file of token ids (items,"
            " length)."
        ),
        examples=["embedded"],
    )
    windows: bool = Field(
        False, description="Cut the text into windows of --length tokens instead of lines."
    )
    length: int | None = Field(
        None,
        ge=1,
        description=(
            "Tokens in a window; by default the model's maximum. Longer lines are left out."
        ),
    )
    segments: list[str] = Field(
        [],
        description=(
            "Token that separates segments of a text, such as '.'; the share of unchanged segments"
            " is measured."
        ),
    )
    keep_first: int = Field(
        0,
        ge=0,
        description="Tokens at the beginning of each text that are never masked, such as a prompt.",
    )
    layers: list[str] = Field(
        [],
        description=(
            "Model whose hidden states are compared layer by layer: same (the denoising model), a"
            " folder, a hub id, or module:function."
        ),
        examples=["same"],
    )
    encoder: str | None = Field(
        None, description="Sentence encoder whose embeddings are compared: a folder or hub id."
    )
    likelihood: str | None = Field(
        None,
        description=(
            "Model that gives the likelihood of reconstructions: same, or a folder or hub id of a"
            " causal or masked one."
        ),
        examples=["same"],
    )
    classifier: str | None = Field(
        None,
        description=(
            "Classifier of texts whose predicted classes are compared: a folder or hub id of a"
            " model for sequence classification, or module:function. --layers with the same name"
            " compares its hidden states."
        ),
    )
    classifier_tokenizer: str | None = Field(None, description="As --tokenizer, for --classifier.")
    classifier_split: str | None = Field(
        None, description="As --split, for --classifier.", examples=["smiles"]
    )
    repetition: bool = Field(
        False,
        description=(
            "Measure the entropy of the n-grams of reconstructions, and how many of them repeat"
            " earlier ones."
        ),
    )
    items: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description=(
            f"Number of originals; by default all texts of --data, {PASSAGES} of the package's"
            " passages."
        ),
    )
    trajectories: int = Field(
        8, ge=1, description=PresetOptions.model_fields["trajectories"].description
    )
    keep: int = Field(8, ge=0, description=PresetOptions.model_fields["keep"].description)

    def experiment(self) -> uturn.Experiment:
        """The experiment that these options describe. Loads the model to find the corruption
        that it reverses.
        """
        if self.items is None:
            items = self.model_copy(update={"items": 1}).experiment().parts.source.count()
            if self.data == "embedded":
                items = min(items or 0, PASSAGES)
            return self.model_copy(update={"items": items}).experiment()
        return self._experiment(
            5 if self.items <= 200 else 20,
            source=self._source(),
            corruption={
                "type": self.corruption or self.denoiser().language().corruption,
                "noise": noise_levels(self.levels),
            },
            backward=self._backward(),
            probes=self._probes(),
        )

    def _source(self) -> Table:
        options = {"segments": self.segments, "keep_first": self.keep_first, "length": self.length}
        return {"type": "tokens", "path": self.data, "windows": self.windows, **given(options)}

    def denoiser(self) -> LanguageDenoiser:
        """The language model as a backward."""
        from uturn.core.registry import build

        denoiser: LanguageDenoiser = build("backward", self._backward())
        return denoiser

    def _backward(self) -> Table:
        return {"type": "language", **self._set(*LanguageOptions.model_fields)}

    def _probes(self) -> list[Table]:
        """Tables of the probes: unchanged tokens, correlated changes, second models, and the
        stored tokens.
        """
        probes: list[Table] = [{"type": "kept_tokens"}]
        if self.trajectories > 1:
            probes.append({"type": "changes"})
        for name, model in zip(probe_names(self.layers, "model"), self.layers, strict=True):
            probes.append(self._reader("text_layers", model) | given({"name": name}))
        others = {
            "text_encoder": self.encoder,
            "text_likelihood": self.likelihood,
            "text_class": self.classifier,
        }
        probes += [self._reader(kind, model) for kind, model in others.items() if model is not None]
        if self.repetition:
            probes.append({"type": "repetition"})
        probes += self._further_probes()
        if self.keep:
            probes.append({"type": "tokens", "first": self.keep})
        return probes

    def _further_probes(self) -> list[Table]:
        """Tables of the probes that options derived from these add."""
        return []

    def _reader(self, kind: str, model: str) -> Table:
        """The table of a probe that reads texts with a second model."""
        table = {"type": kind, "model": model, **self._set("trust_remote_code", "dtype", "device")}
        if model != "same":
            table |= self._set("model_type")
        if model == self.classifier:
            table |= given({"tokenizer": self.classifier_tokenizer, "split": self.classifier_split})
        return table
