"""Conditions of a model: none, the true class or the prompt of an item, or guidance towards these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import expect, shown
from uturn.networks.images.options import DenoiserOptions
from uturn.networks.libraries import reading


class Conditioned(NamedTuple):
    """The condition with which a model is run; for text-conditioned models, a label is the number of a prompt."""

    null_class: int | None = None  # the label for no class, or for the null prompt, if the network is called with it
    num_classes: int | None = None  # number of classes, or of prompts, if the network is called with labels
    guidance: float = 1.0
    words: str = ""


UNCONDITIONAL = Conditioned()


def conditioned_by(asked: DenoiserOptions, model: Any, classes: int | None, null_class: int | None = None) -> Conditioned:
    """The condition of a network with `classes` classes (None for no classes) and, if it declares one, a null class."""
    last = None if classes is None or classes < 2 else classes - 1
    given = asked.null_class is not None
    declares = given or null_class is not None
    rules = (
        ("prompt", asked.prompt is None, "None, as it takes no text"),
        ("image_size", asked.image_size is None, "None, as it is not conditioned on texts"),
        ("guidance", asked.guidance == 1 or asked.condition == "label", "1, or condition = 'label', towards which it guides"),
        ("null_class", not given or classes is not None, "None, as it has no classes"),
        ("null_class", not given or null_class is None, f"None, as it declares its null class itself, {null_class}"),
        ("null_class", not given or asked.null_class == last, f"the last of its {classes} classes, or a module:function"),
        ("condition", asked.condition is None or classes is not None, "None, as it has no classes"),
        ("condition", asked.condition != "null" or declares, "'label' or None, as it declares no null class, or its null_class"),
        ("guidance", asked.guidance == 1 or declares, "1, as it declares no null class, or its null_class"),
    )
    _check(asked, model, rules)
    if given:
        classes, null_class = last, asked.null_class
    if classes is None:
        return Conditioned(None, None, 1.0, "unconditional")
    if null_class is not None and asked.condition != "label":
        return Conditioned(null_class, None, 1.0, f"null class {null_class}")
    description = f"conditioned on the true label ({classes} classes)"
    if asked.guidance == 1:
        return Conditioned(None, classes, 1.0, description)
    return Conditioned(null_class, classes, float(asked.guidance), f"{description} and guided with {asked.guidance:g}")


def prompted(asked: DenoiserOptions, model: Any, count: int, prompts: str, distilled: str, takes_scale: bool) -> Conditioned:
    """The condition of a text-conditioned model with `count` different prompts, described by `prompts`.

    `distilled`: "guidance", "step" or "". `takes_scale`: whether the network takes the scale of guidance as an input.
    """
    guides = asked.guidance != 1 and not takes_scale
    rules = (
        ("condition", asked.condition is None, "None, as it has prompts, and no classes"),
        ("null_class", asked.null_class is None, "None, as it has prompts, and no classes"),
        ("guidance", not guides or distilled != "step", "1, as it was distilled to make images in a few steps"),
        ("guidance", not guides or bool(asked.prompt), "1, or a prompt, towards which it guides"),
    )
    _check(asked, model, rules)
    prompts = f"with {prompts}"
    if distilled:
        prompts += f", {distilled}-distilled: it has no unconditional law"
    if takes_scale:
        prompts += f", told the guidance {asked.guidance:g}"
    elif guides:
        return Conditioned(count, count, float(asked.guidance), f"{prompts} and guided with {asked.guidance:g}")
    return Conditioned(None, count if count > 1 else None, 1.0, prompts)


def _check(asked: DenoiserOptions, model: Any, rules: tuple[tuple[str, bool, str], ...]) -> None:
    """ValueError for the first option that is not allowed; `rules`: option, whether it is allowed, what is expected instead."""
    for option, allowed, expected in rules:
        expect(allowed, f"the model {model}: {option}", getattr(asked, option), expected)


class Prompts(NamedTuple):
    """The prompts of a run."""

    texts: tuple[str, ...]  # the different prompts, in the order of their first item
    rows: tuple[int, ...] | None  # for each item the number of its text; None if all items have the same
    encoders: str = ""  # digest of the text encoders
    given: str = ""  # the user's option, a prompt or a file

    def rows_of(self, items: Any) -> np.ndarray:
        """Numbers of the texts of items, int64; ValueError if the file has no line for an item."""
        items = np.asarray(items)
        if self.rows is None:
            return np.zeros(len(items), np.int64)
        expected = f"a file with one line for each item, but it has {len(self.rows)}"
        expect(items.max(initial=0) < len(self.rows), "prompt", self.given, expected)
        return np.array(self.rows, np.int64)[items]

    @property
    def words(self) -> str:
        """The prompts as text for a description."""
        if self.rows is not None:
            return f"{len(self.rows)} prompts of {Path(self.given).name}"
        return f"the prompt {shown(self.given)}" if self.given else "the empty prompt"


def read_prompts(prompt: str) -> Prompts:
    """The prompts of the option `prompt`: a text, or a file NAME.txt with one line for each item."""
    if not prompt.endswith(".txt"):
        return Prompts((prompt,), None, given=prompt)
    with reading(f"prompt = {shown(prompt)}", "expected a text file with one prompt a line"):
        lines = Path(prompt).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    numbers = {text: row for row, text in enumerate(dict.fromkeys(lines))}
    return Prompts(tuple(numbers), tuple(numbers[line] for line in lines), given=prompt)
