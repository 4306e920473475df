"""How a model with classes is run: without a condition, told the true class, or guided towards it."""

from __future__ import annotations

from typing import Any, NamedTuple

from uturn.core.checks import shown
from uturn.networks.images.options import DenoiserOptions


def conditioned_by(asked: DenoiserOptions, model: Any, classes: int | None, null_class: int | None = None) -> Conditioned:
    """How a model is run whose network knows so many classes, with its null class where it declares one.

    ValueError if the model cannot be run in this way.
    """
    if asked.prompt is not None:
        raise ValueError(f"prompt = {shown(asked.prompt)}: the model {model} takes no text; leave it out")
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
        given = "condition = 'null'" if asked.condition == "null" else f"guidance = {asked.guidance:g}"
        raise ValueError(
            f"{given}: the model {model} declares no null class; leave it out, or declare with null_class that its last "
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
