"""`uturn check-sampler` and its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import typer
from pydantic import Field, SkipValidation

import uturn
from uturn.cli.app import MODELS, command
from uturn.cli.options import OUTPUT, option
from uturn.cli.printing import console, show
from uturn.core.checks import expect
from uturn.core.files import write_json
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

    def _probes(self) -> list[dict[str, Any]]:
        return [{"type": "images", "first": 1}]


@command(MODELS)
def check_sampler(
    json_file: Annotated[
        Path | None,
        option(OUTPUT, "Write the tests with all numbers to this file.", "--json", metavar="FILE"),
    ] = None,
    *,
    chosen: SamplerOptions,
) -> None:
    """Check whether an image-to-image sampler makes the U-turns that the model, the steps and the
    noise imply.

    Five tests, since none sees every bug: the size of the change against that of uturn's own
    sampler, from the weakest noise on; an exact two-sample test against the same; the prediction
    type and the scales of the model; the variance of one reverse step against its formula; and the
    calibration with clones, which is reported and not judged. The table says what each test can see
    and what not (docs/sampler.md).

    The sampler is a function (images, noise, seed) -> reconstructions, with images in [-1, 1] as a
    float32 tensor (items, channels, height, width) and noise = k/steps; or a scheduler. With
    --recorded, image files that it has written are checked. The exit code is 0 if no test fails, 1
    if one fails, and 2 for wrong input.

    Example:

    ```
    uturn check-sampler
    uturn check-sampler --model FOLDER --data photos --size 32 --sampler pipeline:image_to_image
    uturn check-sampler --sampler ddim --scheduler ddim
    uturn check-sampler --model FOLDER --data photos \\
      --recorded 'strength_{noise}/{item}_{trajectory}.png'
    ```
    """
    from uturn.tools.check_sampler import check

    expect(json_file is None or not json_file.is_dir(), "json", str(json_file), "a file")
    report = check.check_sampler(chosen, progress=True)
    show(report.table())
    if json_file is not None:
        write_json(json_file, report.to_dict())
        console().print(f"written: {json_file}")
    failed = [row.test for row in report.rows if row.verdict == "FAILS"]
    console().print(f"fails: {', '.join(failed)}" if failed else "no test fails")
    if failed:
        raise typer.Exit(1)
