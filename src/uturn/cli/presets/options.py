"""Options of a study: one description for Python, TOML files and the command line."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from uturn.core.checks import checked_path, plain, shown, validation_words
from uturn.core.files import read_table


class PresetOptions(BaseModel):
    """Options of a study, each with a default and a description.

    `lists`: names of those that are lists of texts. `panels`: all names, under the headings of the help. `flags`: those options
    of the command line that are named otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    lists: ClassVar[frozenset[str]] = frozenset()
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    flags: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, options: Any) -> Any:
        """Options from Python, TOML files or command lines, converted to the types of the fields."""
        if not isinstance(options, Mapping):
            return options
        found = {name: os.fspath(value) if isinstance(value, os.PathLike) else plain(value) for name, value in options.items()}
        for name in cls.lists & found.keys():
            found[name] = _texts(name, found[name])
        if isinstance(found.get("levels"), str):
            found["levels"] = parsed_levels(found["levels"])
        if str(found.get("batch_size")).isdecimal():
            found["batch_size"] = int(found["batch_size"])
        return found

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Check options; a ValueError of one line names the option that is wrong."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ValueError(validation_words(error)) from None

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read options from a TOML file with one line `name = value` for each option that is not the default."""
        path = Path(checked_path("options", path))
        try:
            return cls.from_dict(read_table(path))
        except OSError as error:
            raise ValueError(f"cannot read the options {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _given(self, *names: str) -> dict[str, Any]:
        """The named options that are not None."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parsed_levels(text: str) -> int | list[float]:
    """Noise levels from a text: their number, as in "10", or the levels, as in "0.2,0.5,1.0".

    >>> parsed_levels("10"), parsed_levels("0.5,1.0")
    (10, [0.5, 1.0])
    """
    try:
        return int(text) if text.strip().isdecimal() else [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"levels = {text!r}: expected a number of levels, or noise levels such as 0.2,0.5,1.0") from None


def probe_names(networks: Sequence[str], kind: str = "classifier") -> list[str]:
    """Different names for the probes of several networks, identifiers made from their strings; "" for a single one.

    `kind`: first word of names that would be no identifiers.

    >>> probe_names(["torchvision:resnet50", "nets/resnet50.safetensors", "timm:vit_tiny.augreg", "clip:openai/clip-vit"])
    ['resnet50', 'resnet50_2', 'vit_tiny_augreg', 'clip_vit']
    """
    if len(networks) == 1:
        return [""]
    names: list[str] = []
    for text in networks:
        word = Path(text.rpartition(":")[2]).name if ":" in text and not Path(text).exists() else Path(text).stem
        word = re.sub(r"\W", "_", word, flags=re.ASCII).strip("_")[:80] or kind
        if word[0].isdigit() or keyword.iskeyword(word):
            word = f"{kind}_{word}"
        number = next(n for n in range(1, len(networks) + 1) if (word if n == 1 else f"{word}_{n}") not in names)
        names.append(word if number == 1 else f"{word}_{number}")
    return names


def _texts(name: str, values: Any) -> list[str]:
    """A list of texts from a text, a list of texts, or None; None inside a list becomes an empty text."""
    found = [values] if isinstance(values, str) else [] if values is None else values
    if not isinstance(found, list) or not all(value is None or isinstance(value, str) for value in found):
        raise ValueError(f"{name} = {shown(values)}: expected a list of texts")
    return [value or "" for value in found]
