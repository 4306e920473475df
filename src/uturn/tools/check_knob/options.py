"""Options of `uturn check-knob`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from uturn.core.checks import expect
from uturn.presets.options import PresetOptions

_QUICK = "0,0.1,0.3,0.6,1"
_VALUES = "0,0.05,0.1,0.3,0.5,0.7,0.85,1"


class KnobOptions(PresetOptions):
    """The check of a noise knob by its outputs."""

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Pipeline": ("function", "recorded", "reading", "deterministic", "own_outputs", "floor"),
        "Data": ("data", "kind", "distance", "items", "seeds", "seed"),
        "Knob": ("knobs", "start", "end", "unit", "stated", "steps", "change"),
        "Judgement": ("false_alarm_rate", "quick"),
    }

    function: str | None = Field(
        None,
        description="module:function, a function (original, knob, seed) that returns an output.",
    )
    recorded: str | None = Field(
        None,
        description=(
            "Outputs of another program: a folder with KNOB/ORIGINAL/SEED.png (.npy, .wav, .txt,"
            " .pdb) and the folder originals beside them; or a table of distances (.csv)."
        ),
    )
    reading: str | None = Field(
        None, description="Column of the table of distances; by default its only one."
    )
    deterministic: bool = Field(
        False, description="The pipeline draws no random numbers: two seeds may agree."
    )
    own_outputs: bool = Field(
        False,
        description=(
            "Take outputs at the end of the knob as originals: is the knob itself right, whatever"
            " the data?"
        ),
    )
    floor: str | None = Field(
        None,
        description=(
            "module:function, original to what codec or autoencoder alone make of it; outputs are"
            " compared with that."
        ),
    )
    data: str | None = Field(
        None,
        description=(
            "Originals: a folder of files, a .npy file, or module:function, a function without"
            " arguments. Images become float32 (channels, height, width) in [-1, 1]."
        ),
    )
    kind: str | None = Field(
        None,
        description=(
            "images, series, tokens or structures, whose distance is taken after superposition. By"
            " default guessed."
        ),
        examples=["images", "series", "tokens", "structures"],
    )
    distance: str | None = Field(
        None, description="module:function, a distance of two data in place of that of the kind."
    )
    items: int | None = Field(
        None, ge=1, description="Number of originals; by default 32, or all that are recorded."
    )
    seeds: int = Field(2, ge=1, description="Outputs of each original at each value.")
    knobs: str = Field(_VALUES, description="Values of the knob, separated by commas.")
    start: float = Field(0.0, description="Value that should change nothing.")
    end: float = Field(1.0, description="Value that should forget the original.")
    unit: str | None = Field(
        None,
        description=(
            "What the noise of a value is: sigma, the standard deviation of the added noise in"
            " units of the data, or share, the share of positions that are noised."
        ),
        examples=["sigma", "share"],
    )
    stated: str | None = Field(
        None,
        description=(
            "Noise at each value: numbers separated by commas, or module:function of the knob. By"
            " default the knob itself."
        ),
    )
    steps: int | None = Field(
        None,
        ge=2,
        description="Steps N of the sampler: 1/N and 2/N are added, where one step off shows.",
    )
    change: float | None = Field(
        None,
        gt=0,
        description=(
            "Report the value with this mean change, in units of the distance of two originals."
        ),
    )
    false_alarm_rate: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="Probability that a right knob fails, for all random tests together.",
    )
    quick: bool = Field(
        False, description="16 originals, 5 values and a false-alarm rate of 0.01, where not given."
    )

    @property
    def values(self) -> list[float]:
        """The values of the knob, with those of the first two steps."""
        text = self.knobs
        if self.quick and "knobs" not in self.model_fields_set:
            text = _QUICK
        try:
            values = [float(number) for number in text.split(",")]
        except ValueError:
            raise ValueError(f"knobs = {text!r}: expected numbers such as 0,.1,.5,1") from None
        if self.steps is not None:
            values = sorted({*values, 1 / self.steps, 2 / self.steps})
        return values

    @property
    def count(self) -> int:
        """Number of originals of a function."""
        return self.items or (16 if self.quick else 32)

    @property
    def rate(self) -> float:
        """The false-alarm rate."""
        is_default = "false_alarm_rate" not in self.model_fields_set
        return 0.01 if self.quick and is_default else self.false_alarm_rate

    def check_one(self) -> None:
        """ValueError unless there is one of function and recorded outputs."""
        pair = (self.function, self.recorded)
        words = "one of them: --function module:function, or --recorded FOLDER"
        expect(pair.count(None) == 1, "function, recorded", pair, words)
        if self.function is not None:
            expect(self.data is not None, "data", None, "originals for the function: --data FOLDER")
        else:
            used = self.own_outputs
            expect(not used, "own_outputs", used, "a function, which makes them: --function")
