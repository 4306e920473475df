"""The options of a text experiment, described once for Python, TOML files and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from uturn.cli.presets.options import SIZES, PresetOptions, noise_levels, probe_names
from uturn.networks.texts.options import LanguageOptions

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


class TextOptions(LanguageOptions, PresetOptions):
    """U-turns of texts by a masked language model or a discrete diffusion model.

    Every option has a default. `uturn text --help` and `TextOptions.model_fields[name].description` explain the options. The
    method `experiment` returns the experiment that they describe.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", "tokenizer", "split", "trust_remote_code", "mask_id", "shift", "time", "output", "corruption"),
        "Decoding": ("order", "steps", "block", "causal", "temperature", "top_k", "top_p", "remask", "eta", "remask_given"),
        "Data": ("data", "windows", "length", "segments", "regions"),
        "Measures": ("layers", "encoder", "likelihood"),
        "Size and seed": SIZES,
        "Speed and memory": ("dtype", "device", "batch_size"),
    }
    flags: ClassVar[Mapping[str, str]] = {"segments": "--segment"}

    data: str = Field(
        "embedded",
        description="Text file with one text on each line; a folder of .txt files; or a .npy file of token ids (items, length).",
        examples=["embedded"],
    )
    windows: bool = Field(False, description="Cut the text into windows of --length tokens instead of lines.")
    length: int | None = Field(
        None, ge=1, description="Tokens in a window; by default the model's maximum. Longer lines are left out."
    )
    segments: list[str] = Field(
        [], description="Token that separates segments of a text, such as '.'; the share of unchanged segments is measured."
    )
    regions: str | None = Field(
        None, description="Text file with one line for each text; each character names the region of a token."
    )
    layers: list[str] = Field(
        [],
        description="Model whose hidden states are compared layer by layer: same (the denoising model), a folder, a hub id, or "
        "module:function.",
        examples=["same"],
    )
    encoder: str | None = Field(None, description="Sentence encoder whose embeddings are compared: a folder or hub id.")
    likelihood: str | None = Field(
        None,
        description="Model that gives the likelihood of reconstructions: same, or a folder or hub id of a causal or masked one.",
        examples=["same"],
    )
    items: int = Field(30, ge=1, description="Number of originals; without this option, all originals if there are fewer.")
    trajectories: int = Field(8, ge=1, description=PresetOptions.model_fields["trajectories"].description)
    keep: int = Field(8, ge=0, description=PresetOptions.model_fields["keep"].description)

    def experiment(self) -> Experiment:
        """The experiment that these options describe. Loads the model to find the corruption that it reverses.

        Raises
        ------
        ValueError
            For options that do not fit together, and for the reasons of `Experiment.from_dict`.
        """
        from uturn.core.spec import build

        backward = {"type": "language", **self._set(*LanguageOptions.model_fields)}
        segments = {"segments": self.segments} if self.segments else {}
        experiment = self._experiment(
            5 if self.items <= 200 else 20,
            source={"type": "tokens", "path": self.data, "windows": self.windows, **segments, **self._set("length", "regions")},
            corruption={
                "type": self.corruption or build("backward", backward).language().corruption,
                "noise": noise_levels(self.levels),
            },
            backward=backward,
            probes=self._probes(),
        )
        if "items" not in self.model_fields_set and (available := experiment.parts.source.count()) < self.items:
            return self.model_copy(update={"items": available}).experiment()
        return experiment

    def _probes(self) -> list[dict[str, Any]]:
        """Tables of the probes: unchanged tokens, correlated changes, second models, and the stored tokens."""
        probes: list[dict[str, Any]] = [{"type": "kept_tokens"}]
        if self.trajectories > 1:
            probes.append({"type": "changes"})
        shared = self._set("trust_remote_code", "dtype", "device")
        for name, model in zip(probe_names(self.layers, "model"), self.layers, strict=True):
            probes.append({"type": "text_layers", "model": model, **({"name": name} if name else {}), **shared})
        others = {"text_encoder": self.encoder, "text_likelihood": self.likelihood}
        probes += [{"type": kind, "model": model, **shared} for kind, model in others.items() if model is not None]
        if self.keep:
            probes.append({"type": "tokens", "first": self.keep})
        return probes
