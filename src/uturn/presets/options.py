"""Options of a study: one description for Python and the command line."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError, model_validator

import uturn
from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.inputs import plain
from uturn.core.messages import validation_words

SIZES = ("levels", "items", "trajectories", "clones", "keep", "chunk", "seed")
"""The panel "Size and seed" of the help."""
Table = dict[str, Any]
"""A table of a spec: options of a part, of all types that TOML has."""
_MOST_LEVELS = 1000
_LONGEST_NAME = 80


class PresetOptions(BaseModel):
    """Options of a study, each with a default and a description.

    `panels`: the names of all options, under the headings of the help. `flags`: options with
    another name on the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    flags: ClassVar[Mapping[str, str]] = {}

    # `noise_levels` checks this field, which has two types.
    levels: SkipValidation[int | list[float]] = Field(
        10,
        description=(
            "Number of noise levels, evenly spaced up to 1; or the levels themselves, such as"
            " 0.2,0.5,1.0."
        ),
    )
    items: int = Field(40, ge=1, description="Number of originals.")
    trajectories: int = Field(
        1,
        ge=1,
        description=(
            "Noisy versions of each original at each level; correlations of changes need at"
            " least 2."
        ),
    )
    clones: int = Field(
        1,
        ge=1,
        description=(
            "Reconstructions of each noisy version; with 2 or more, they are compared with each"
            " other."
        ),
    )
    keep: int = Field(
        16, ge=0, description="Store the reconstructions of the first N originals, and show them."
    )
    chunk: int | None = Field(
        None,
        ge=1,
        description=(
            "Originals in a task; a task is stored when it is complete. The default depends on"
            " items."
        ),
    )
    seed: int = Field(0, ge=0, description="Seed of all random numbers.")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, options: object) -> object:
        """Options from Python or the command line, converted to the types of the fields."""
        if not isinstance(options, Mapping):
            return options
        values = {}
        for name, value in options.items():
            values[name] = os.fspath(value) if isinstance(value, os.PathLike) else plain(value)
        for name, field in cls.model_fields.items():
            if field.annotation == list[str] and name in values:
                values[name] = _as_list(values[name])
        levels = values.get("levels")
        if isinstance(levels, str):
            values["levels"] = parsed_levels(levels)
        if str(values.get("batch_size")).isdecimal():
            values["batch_size"] = int(values["batch_size"])
        return values

    @classmethod
    def from_dict(cls, options: Mapping[str, object]) -> Self:
        """Check options; a ValueError of one line names the option that is wrong."""
        named = {name for names in cls.panels.values() for name in names}
        # Fields of the preset that it extends.
        unused = sorted(set(options) & set(cls.model_fields) - named)
        expect(not unused, "options", unused, f"some of {', '.join(sorted(named))}")
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ValueError(validation_words(error)) from None

    def _set(self, *names: str) -> Table:
        """Those of the options that are given."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _absent(self, partner: str, *names: str) -> None:
        """ValueError if one of these options is given, which goes with a partner that is not
        chosen.
        """
        for name, value in self._set(*names).items():
            expect(False, name, value, f"none; it goes with {partner}")

    def _experiment(self, chunk: int, **parts: Any) -> uturn.Experiment:
        """The experiment of these parts, with the default of `chunk`: larger for large runs,
        whose tasks make fewer files.
        """
        sizes = {name: getattr(self, name) for name in ("seed", "items", "trajectories", "clones")}
        return uturn.Experiment.from_dict({**sizes, "chunk": self.chunk or chunk, **parts})


def _as_list(value: object) -> object:
    """A list of texts from one text, a list, or None; other values as they are."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return ["" if text is None else text for text in value]
    return value


def given(options: Mapping[str, object]) -> Table:
    """The options that are not empty."""
    return {name: value for name, value in options.items() if value}


def noise_levels(levels: int | list[float], steps: int | None = None) -> list[float]:
    """Evenly spaced noise levels up to 1 if `levels` is their number, or the list itself.

    `steps`: number of reverse steps; levels are rounded to k/steps.

    >>> noise_levels(4), noise_levels(4, 50)
    ([0.25, 0.5, 0.75, 1.0], [0.26, 0.5, 0.76, 1.0])
    """
    if isinstance(levels, list):
        checked: list[float] = checked_noise(levels, 1).tolist()
        return checked
    count = checked_integer("levels", levels, 1)
    if steps is None:
        expect(count <= _MOST_LEVELS, "levels", levels, f"at most {_MOST_LEVELS} noise levels")
        steps = count
    expected = (
        f"at most as many as the chain has steps, {steps}; take fewer levels (--levels), or more"
        " steps (--steps)"
    )
    expect(count <= steps, "levels", count, expected)
    return [(2 * i * steps + count) // (2 * count) / steps for i in range(1, count + 1)]


def parsed_levels(text: str) -> int | list[float]:
    """Noise levels from a text: their number, as in "10", or the levels, as in "0.2,0.5,1.0".

    >>> parsed_levels("10"), parsed_levels("0.5,1.0")
    (10, [0.5, 1.0])
    """
    if text.strip().isdecimal():
        return int(text)
    try:
        return [float(level) for level in text.split(",")]
    except ValueError:
        raise ValueError(
            f"levels = {text!r}: expected a number of levels, or noise levels such as 0.2,0.5,1.0"
        ) from None


def probe_names(networks: Sequence[str], kind: str = "classifier") -> list[str]:
    """Distinct probe names, identifiers made from the strings that name the networks; "" for a
    single network.

    `kind`: prefix for names that would not be identifiers.

    >>> probe_names(["torchvision:resnet50", "nets/resnet50.safetensors", "timm:vit_tiny.augreg", "clip:openai/clip-vit"])
    ['resnet50', 'resnet50_2', 'vit_tiny_augreg', 'clip_vit']
    """
    if len(networks) == 1:
        return [""]
    names: list[str] = []
    for network in networks:
        word = _identifier(network, kind)
        name = word
        number = 1
        while name in names:
            number += 1
            name = f"{word}_{number}"
        names.append(name)
    return names


def _identifier(network: str, kind: str) -> str:
    """A text that names a network as an identifier."""
    is_of_library = ":" in network and not Path(network).exists()
    word = Path(network.rpartition(":")[2]).name if is_of_library else Path(network).stem
    word = re.sub(r"\W", "_", word, flags=re.ASCII).strip("_")[:_LONGEST_NAME] or kind
    if word[0].isdigit() or keyword.iskeyword(word):
        return f"{kind}_{word}"
    return word
