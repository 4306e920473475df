"""The options of a text experiment, described once for Python, TOML files and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SkipValidation

from uturn.cli.presets.options import PresetOptions, probe_names
from uturn.core.checks import checked_integer, checked_noise, shown

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment

_BACKWARD = (  # options that are fields of `uturn.backward.language.LanguageDenoiser`
    *("model", "tokenizer", "split", "trust_remote_code", "mask_id", "shift", "time", "output", "corruption"),
    *("order", "steps", "block", "temperature", "top_k", "top_p", "dtype", "device", "batch_size"),
)
_SECOND = ("trust_remote_code", "dtype", "device")  # options that second models share with the model


class TextOptions(PresetOptions):
    """U-turns of texts by a masked language model or a discrete diffusion model.

    Every option has a default. `uturn text --help` and `TextOptions.model_fields[name].description` explain the options. The
    method `experiment` returns the experiment that they describe.
    """

    lists: ClassVar[frozenset[str]] = frozenset({"segments", "layers"})
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", "tokenizer", "split", "trust_remote_code", "mask_id", "shift", "time", "output", "corruption"),
        "Decoding": ("order", "steps", "block", "temperature", "top_k", "top_p"),
        "Data": ("data", "windows", "length", "segments", "regions"),
        "Measures": ("layers", "encoder", "likelihood"),
        "Size and seed": ("levels", "items", "trajectories", "clones", "keep", "chunk", "seed"),
        "Speed and memory": ("dtype", "device", "batch_size"),
    }
    flags: ClassVar[Mapping[str, str]] = {"segments": "--segment"}

    model: str = Field(
        "embedded",
        description="embedded, a model of characters; a folder or hub id of a masked model of transformers, or of a discrete "
        "diffusion model with code of its own; a .safetensors file of uturn.networks; or module:function.",
    )
    data: str = Field(
        "embedded", description="Text file, a text in each line; a folder of .txt files; a .npy file of ids (items, length)."
    )
    tokenizer: str | None = Field(None, description="Folder or hub id of a tokenizer; by default that of the model.")
    split: str | None = Field(
        None,
        description="Split texts by smiles, characters, or a regular expression, and look the parts up in the model's vocab.txt.",
    )
    windows: bool = Field(False, description="Cut the text into windows of --length tokens, instead of lines.")
    length: int | None = Field(
        None,
        ge=1,
        description="Tokens of a window, by default what the model takes; lines with more tokens are left out.",
    )
    segments: list[str] = Field(
        [], description="Token that separates parts of a text, such as '.': the share of parts kept whole is measured."
    )
    regions: str | None = Field(
        None, description="Text file with a line for each text and a character for each token, which names its region."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with a model or tokenizer.")
    mask_id: int | None = Field(None, ge=0, description="Id of the mask token, where the tokenizer has none.")
    shift: bool | None = Field(None, description="The logits of a position are given one position before, as by Dream.")
    time: str | None = Field(None, description="What the model takes beside the ids: none, or sigma = -log(1 - noise).")
    output: str | None = Field(None, description="What the model gives: logits, or ratios of probabilities (SEDD).")
    corruption: str | None = Field(
        None, description="masking or uniform replacement of tokens; by default what the model was trained for."
    )
    order: str = Field(
        "random",
        description="Order in which tokens are drawn: random, blocks, entropy, probability (draws from the posterior of a "
        "consistent model), or confidence of the drawn token, which is none.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Calls of the model for a text, in which equal numbers of tokens are drawn; by default one token a call.",
    )
    block: int | None = Field(None, ge=1, description="Tokens of a block, for the order blocks; by default 8.")
    temperature: float = Field(1.0, description="Temperature of the draws; all but 1 is named: not a draw from the posterior.")
    top_k: int | None = Field(None, ge=1, description="Draw among the most probable tokens only, so many.")
    top_p: float | None = Field(None, description="Draw among the most probable tokens only, which have this probability.")
    layers: list[str] = Field(
        [],
        description="Model whose hidden states are compared, layer by layer: same, for the denoising one, or a folder, hub id, "
        "or module:function.",
    )
    encoder: str | None = Field(None, description="Sentence encoder, whose embeddings are compared: folder or hub id.")
    likelihood: str | None = Field(
        None, description="Model that gives the likelihood of reconstructions: same, or folder or hub id, causal or masked."
    )
    # Levels and batch size can have two types, so `noise_levels` and the backward check them.
    levels: SkipValidation[int | list[float]] = Field(
        10,
        description="Number of noise levels, evenly spaced up to 1; or the levels, such as 0.2,0.5,1.0: shares of noisy tokens.",
    )
    items: int = Field(30, ge=1, description="Number of originals; by default 30, or all if there are fewer.")
    trajectories: int = Field(
        8, ge=1, description="Noisy versions of each original at each level; 2 or more for susceptibility and correlations."
    )
    clones: int = Field(1, ge=1, description="Reconstructions of each noisy version; the run also compares them with each other.")
    keep: int = Field(8, ge=0, description="Store the tokens of this many originals, the first ones, and show them.")
    chunk: int | None = Field(
        None, ge=1, description="Originals in a task, which is stored as a whole; by default 5, or 20 for more than 200 items."
    )
    seed: int = Field(0, ge=0, description="Seed of all random numbers.")
    dtype: str = Field("float32", description="Precision of the models: float32, bfloat16 or float16.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps, ..; by default cuda if it is available.")
    batch_size: SkipValidation[int | None] = Field(None, description="Texts in a call of the model.")

    def experiment(self) -> Experiment:
        """The experiment that these options describe. Loads the model, to learn which corruption it undoes.

        Raises
        ------
        ValueError
            For options that do not fit together, and for the reasons of `Experiment.from_dict`.
        """
        from uturn.core.experiment import Experiment

        backward = {"type": "language", **self._given(*_BACKWARD)}
        experiment = Experiment.from_dict(
            {
                "seed": self.seed,
                "items": self.items,
                "trajectories": self.trajectories,
                "clones": self.clones,
                "chunk": self.chunk or (5 if self.items <= 200 else 20),
                "source": self._source(),
                "corruption": {"type": self._corruption(backward), "noise": noise_levels(self.levels)},
                "backward": backward,
                "probes": self._probes(),
            }
        )
        if "items" not in self.model_fields_set and (available := experiment.parts.source.count()) < self.items:
            return self.model_copy(update={"items": available}).experiment()
        return experiment

    def _corruption(self, backward: dict[str, Any]) -> str:
        """Type of the corruption that the model undoes."""
        from uturn.core.spec import build

        return self.corruption or build("backward", backward).language().corruption

    def _source(self) -> dict[str, Any]:
        segments = {"segments": self.segments} if self.segments else {}
        return {"type": "tokens", "path": self.data, "windows": self.windows, **segments, **self._given("length", "regions")}

    def _probes(self) -> list[dict[str, Any]]:
        """Tables of the probes: kept tokens, correlated changes, second models, and the tokens that are shown."""
        probes: list[dict[str, Any]] = [{"type": "kept_tokens"}]
        if self.trajectories > 1:
            probes.append({"type": "changes"})
        shared = self._given(*_SECOND)
        for name, model in zip(probe_names(self.layers, "model"), self.layers, strict=True):
            probes.append({"type": "text_layers", "model": model, **({"name": name} if name else {}), **shared})
        others = {"text_encoder": self.encoder, "text_likelihood": self.likelihood}
        probes += [{"type": kind, "model": one, **shared} for kind, one in others.items() if one is not None]
        if self.keep:
            probes.append({"type": "tokens", "first": self.keep})
        return probes


def noise_levels(levels: int | list[float]) -> list[float]:
    """Noise levels: that many evenly spaced shares of noisy tokens up to 1, or the given list.

    >>> noise_levels(4)
    [0.25, 0.5, 0.75, 1.0]
    """
    if isinstance(levels, list):
        return checked_noise(levels, 1).tolist()
    count = checked_integer("levels", levels, 1)
    if count > 1000:
        raise ValueError(f"levels = {shown(levels)}: expected at most 1000 noise levels")
    return [k / count for k in range(1, count + 1)]
