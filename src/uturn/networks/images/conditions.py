"""How a conditioned model is run: without a condition, told the true class or the prompt of an item, or guided towards it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import shown
from uturn.networks.images.options import DenoiserOptions
from uturn.networks.libraries import reading


class Conditioned(NamedTuple):
    """How a model is run.

    `null_class`: the label for no class, if the network is called with it. `num_classes`: number of classes of the true labels,
    if it is called with them; for text-conditioned models a label is the number of a prompt, and the null class the null prompt.
    `words`: the condition in a description.
    """

    null_class: int | None = None
    num_classes: int | None = None
    guidance: float = 1.0
    words: str = ""


UNCONDITIONAL = Conditioned()


def conditioned_by(asked: DenoiserOptions, model: Any, classes: int | None, null_class: int | None = None) -> Conditioned:
    """How a model is run whose network knows so many classes, with its null class where it declares one.

    ValueError if the model cannot be run in this way.
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
    words = f"conditioned on the true label ({classes} classes)"
    if asked.guidance == 1:
        return Conditioned(None, classes, 1.0, words)
    return Conditioned(null_class, classes, float(asked.guidance), f"{words} and guided with {asked.guidance:g}")


def prompted(asked: DenoiserOptions, model: Any, count: int, words: str, distilled: str, told: bool) -> Conditioned:
    """How a text-conditioned model is run with so many different prompts.

    `words`: the prompts in a description. `distilled`: "guidance", "step" or "". `told`: whether the network takes the scale
    of guidance as an input. ValueError if the model cannot be run in this way.
    """
    for name, value in (("condition", asked.condition), ("null_class", asked.null_class)):
        if value is not None:
            raise ValueError(f"{name} = {shown(value)}: the model {model} has prompts, and no classes; leave it out")
    words = f"with {words}"
    if distilled:
        words += f", {distilled}-distilled: it has no unconditional law"
    if told:
        words += f", told the guidance {asked.guidance:g}"
    elif asked.guidance != 1:
        if distilled == "step":
            raise ValueError(
                f"guidance = {asked.guidance:g}: the model {model} was distilled to make images in a few steps, without "
                f"guidance; leave it out"
            )
        if not asked.prompt:
            raise ValueError(f"guidance = {asked.guidance:g}: guides towards a prompt, and none is given; give a prompt")
        return Conditioned(count, count, float(asked.guidance), f"{words} and guided with {asked.guidance:g}")
    return Conditioned(None, count if count > 1 else None, 1.0, words)


# -- prompts ----------------------------------------------------------------------------------------------------------


class Prompts(NamedTuple):
    """The prompts of a run.

    `texts`: the different ones, in the order of their first item. `rows`: the number of its text for each item, or None if all
    items have the same. `encoders`: digest of what encodes the texts. `given`: the prompt, or the file, as the user gave it.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...] | None
    encoders: str = ""
    given: str = ""

    def rows_of(self, items: Any) -> np.ndarray:
        """Rows of the texts of items, int64; ValueError if the file has no line for one of them."""
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
        """The prompts in a description."""
        if self.rows is not None:
            return f"{len(self.rows)} prompts of {Path(self.given).name}"
        return f"the prompt {shown(self.given)}" if self.given else "the empty prompt"


def read_prompts(prompt: str) -> Prompts:
    """The prompts that the option `prompt` stands for: a text, or a file NAME.txt with the prompt of one item in each line.

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
