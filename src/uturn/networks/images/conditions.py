"""Conditions of a model: none, the true class or the prompt of an item, or guidance towards these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import shown
from uturn.networks.images.options import DenoiserOptions
from uturn.networks.libraries import reading


class Conditioned(NamedTuple):
    """The condition with which a model is run.

    `null_class`: the label for no class, if the network is called with it. `num_classes`: number of classes, if the network is
    called with the true labels; for text-conditioned models, a label is the number of a prompt, and the null class is the null
    prompt. `words`: the condition as text.
    """

    null_class: int | None = None
    num_classes: int | None = None
    guidance: float = 1.0
    words: str = ""


UNCONDITIONAL = Conditioned()


def conditioned_by(asked: DenoiserOptions, model: Any, classes: int | None, null_class: int | None = None) -> Conditioned:
    """The condition of a network with `classes` classes (None for no classes) and, if it declares one, a null class.

    ValueError if the model cannot be run with these options.
    """
    if asked.prompt is not None:
        raise ValueError(f"prompt = {shown(asked.prompt)}: the model {model} takes no text; leave it out")
    if asked.image_size is not None:
        raise ValueError(f"image_size = {asked.image_size}: for text-conditioned models, but {model} is none; leave it out")
    if asked.guidance != 1 and asked.condition != "label":
        raise ValueError(
            f"guidance = {asked.guidance:g}: guides towards the true label of every image, so it needs condition = 'label'"
        )
    if asked.null_class is not None:
        if classes is None or null_class is not None:
            has = "has no classes" if classes is None else f"declares its null class itself, {null_class}"
            raise ValueError(f"null_class = {asked.null_class}: the model {model} {has}; leave it out")
        if asked.null_class != classes - 1 or classes < 2:
            raise ValueError(
                f"null_class = {asked.null_class}: the model {model} has the classes 0 .. {classes - 1}; expected the last "
                f"one (a function module:function can number them in another way)"
            )
        classes, null_class = classes - 1, asked.null_class
    if asked.condition is not None and classes is None:
        raise ValueError(f"condition = {asked.condition!r}: the model {model} has no classes; leave it out")
    if null_class is None and (asked.condition == "null" or asked.guidance != 1):
        option = "condition = 'null'" if asked.condition == "null" else f"guidance = {asked.guidance:g}"
        raise ValueError(
            f"{option}: the model {model} declares no null class; leave it out, or declare with null_class that its last "
            f"class is one"
        )
    if classes is None:
        return Conditioned(None, None, 1.0, "unconditional")
    if null_class is not None and asked.condition != "label":
        return Conditioned(null_class, None, 1.0, f"null class {null_class}")
    description = f"conditioned on the true label ({classes} classes)"
    if asked.guidance == 1:
        return Conditioned(None, classes, 1.0, description)
    return Conditioned(null_class, classes, float(asked.guidance), f"{description} and guided with {asked.guidance:g}")


def prompted(asked: DenoiserOptions, model: Any, count: int, prompts: str, distilled: str, takes_scale: bool) -> Conditioned:
    """The condition of a text-conditioned model with `count` different prompts.

    `prompts`: the prompts as text. `distilled`: "guidance", "step" or "". `takes_scale`: whether the network takes the scale of
    guidance as an input. ValueError if the model cannot be run with these options.
    """
    for name, value in (("condition", asked.condition), ("null_class", asked.null_class)):
        if value is not None:
            raise ValueError(f"{name} = {shown(value)}: the model {model} has prompts, and no classes; leave it out")
    prompts = f"with {prompts}"
    if distilled:
        prompts += f", {distilled}-distilled: it has no unconditional law"
    if takes_scale:
        prompts += f", told the guidance {asked.guidance:g}"
    elif asked.guidance != 1:
        if distilled == "step":
            raise ValueError(
                f"guidance = {asked.guidance:g}: the model {model} was distilled to make images in a few steps, without "
                f"guidance; leave it out"
            )
        if not asked.prompt:
            raise ValueError(f"guidance = {asked.guidance:g}: guides towards a prompt, and none is given; give a prompt")
        return Conditioned(count, count, float(asked.guidance), f"{prompts} and guided with {asked.guidance:g}")
    return Conditioned(None, count if count > 1 else None, 1.0, prompts)


# -- prompts ----------------------------------------------------------------------------------------------------------


class Prompts(NamedTuple):
    """The prompts of a run.

    `texts`: the different prompts, in the order of their first item. `rows`: for each item the number of its text, or None if all
    items have the same. `encoders`: digest of the text encoders. `given`: the user's option, a prompt or a file.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...] | None
    encoders: str = ""
    given: str = ""

    def rows_of(self, items: Any) -> np.ndarray:
        """Numbers of the texts of items, int64; ValueError if the file has no line for an item."""
        items = np.asarray(items)
        if self.rows is None:
            return np.zeros(len(items), np.int64)
        if len(items) and int(items.max()) >= len(self.rows):
            raise ValueError(
                f"prompt = {shown(self.given)}: the file has {len(self.rows)} prompts, but the run has an item "
                f"{int(items.max())}; expected one line for each item"
            )
        return np.array(self.rows, np.int64)[items]

    @property
    def words(self) -> str:
        """The prompts as text for a description."""
        if self.rows is not None:
            return f"{len(self.rows)} prompts of {Path(self.given).name}"
        return f"the prompt {shown(self.given)}" if self.given else "the empty prompt"


def read_prompts(prompt: str) -> Prompts:
    """The prompts of the option `prompt`: a text, or a file NAME.txt with one line for each item.

    >>> read_prompts("a cat").texts
    ('a cat',)
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt = {shown(prompt)}: expected a text, or the name of a .txt file with one prompt a line")
    if not prompt.endswith(".txt"):
        return Prompts((prompt,), None, given=prompt)
    with reading(f"prompt = {shown(prompt)}", "expected a text file with one prompt a line"):
        lines = Path(prompt).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    texts = dict.fromkeys(line.removesuffix("\r") for line in lines)
    numbers = {text: row for row, text in enumerate(texts)}
    return Prompts(tuple(texts), tuple(numbers[line.removesuffix("\r")] for line in lines), given=prompt)
