"""Options of `uturn check-sampler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, JsonValue, SkipValidation

import uturn
from uturn.core.checks import expect
from uturn.presets.images import ImageOptions
from uturn.presets.options import noise_levels


class SamplerOptions(ImageOptions):
    """The check of a sampler of images against uturn's own sampler with the same model, steps
    and noise.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Sampler": ("sampler", "recorded", "step", "false_alarm_rate"),
        "Model": ("model", "preset", "condition", "guidance", "null_class", "prompt", "image_size"),
        "uturn's own sampler": ("scheduler", "steps", "eta", "timestep_spacing"),
        "Data": ("data", "size", "channels", "classes", "labels"),
        "Size and seed": ("levels", "items", "clones", "seed"),
        "Speed and memory": ("dtype", "device", "batch_size", "compile", "offload"),
    }

    sampler: str = Field(
        "stored",
        description=(
            "What is checked: module:function, a function (images, noise, seed) that returns"
            " U-turns of images; or the name of a scheduler. By default the scheduler in the folder"
            " of the model."
        ),
    )
    recorded: str | None = Field(
        None,
        description=(
            "Check U-turns in image files in place of a sampler: '{noise}/{item}_{trajectory}.png',"
            " as in uturn images, two trajectories of each original; by default at all levels"
            " k/steps of the files."
        ),
    )
    step: str | None = Field(
        None,
        description=(
            "One reverse step of a sampler module:function, for the tests that need it:"
            " module:function, a function (noisy, noise, seed). Without --sampler, its steps are"
            " the sampler that is checked."
        ),
    )
    false_alarm_rate: float = Field(
        0.001,
        gt=0,
        lt=1,
        description=(
            "Probability that a right sampler fails, for the three tests of random numbers"
            " together."
        ),
    )
    steps: int = Field(
        40,
        ge=1,
        description="Number of reverse steps of the whole chain, the same as in the sampler.",
    )
    levels: SkipValidation[int | list[float]] = Field(
        [0.25, 0.5, 0.75],
        description=(
            "Noise levels t/T, or their number, beside the two weakest, 1/steps and 2/steps."
        ),
    )
    items: int = Field(32, ge=2, description="Number of originals.")
    clones: int = Field(
        2, ge=2, description="Reconstructions of each noisy original, for the calibration."
    )

    def of_files(self) -> Self:
        """The options with the levels of recorded files, if there are some; ValueError if these
        are no multiples of 1/steps.
        """
        if self.recorded is None:
            return self
        expect(
            self.sampler == "stored" and self.step is None,
            "recorded",
            self.recorded,
            "no sampler and no step beside it",
        )
        levels = self.levels
        if "levels" not in self.model_fields_set:
            from uturn.core import registry

            files = registry.build("backward", {"type": "recorded", "pattern": self.recorded}).files
            levels = [level for level in files.levels if level > 0]
        if isinstance(levels, list):
            for level in levels:
                is_step = abs(level * self.steps - round(level * self.steps)) <= 1e-6 and level <= 1
                expect(
                    is_step,
                    "level of recorded files",
                    level,
                    f"k/steps, here k/{self.steps}; give --steps",
                )
        return self.model_copy(update={"levels": levels})

    def noise(self, weakest: bool = True) -> list[float]:
        """The noise levels k/steps of the check, with or without the two weakest ones."""
        chosen = {round(level * self.steps) for level in noise_levels(self.levels, self.steps)}
        weak = {1, min(2, self.steps)} if weakest and self.recorded is None else set()
        return [k / self.steps for k in sorted(chosen | weak) if k]

    def experiment(self, originals: str | None = None) -> uturn.Experiment:
        """The experiment whose U-turns the sampler is compared with."""
        return ImageOptions.experiment(
            self.model_copy(update={"levels": self.noise(), "recorded": None}), originals
        )

    def _probes(self) -> list[dict[str, JsonValue]]:
        return [{"type": "images", "first": 1}]
