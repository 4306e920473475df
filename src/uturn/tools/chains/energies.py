"""Energies of data: functions of a batch (batch, ...) to numbers (batch,), for the Metropolis step of a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.imports import import_function, is_import_path
from uturn.core.inputs import Input
from uturn.core.own_parts import code_digest

Function = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class OwnFunction(Input):
    """A function of the user, "module:function", with a digest of its code as identity."""

    path: str
    name: str

    @cached_property
    def function(self) -> Any:
        return import_function(self.path, f"{self.name} = {self.path!r}", "'module:function'")

    def own_code(self) -> Any:
        return self.function

    def fingerprint(self) -> str:
        return code_digest(self.function)


def symbol(number: int = 0) -> tuple[Function, Input | None]:
    """The number of sites with this symbol, or token."""
    expect(isinstance(number, int) and number >= 0, "energy: number", number, "a symbol or a token, 0 or more")
    return lambda data: (data == number).sum(axis=1), None


def mean() -> tuple[Function, Input | None]:
    """The mean of an image or a vector."""
    return lambda data: data.reshape(len(data), -1).mean(axis=1, dtype=float), None


def class_log_loss(label: int, classifier: str = "fashion_mnist") -> tuple[Function, Input | None]:
    """Minus the log-probability (nats) of a class by a classifier of images (`load_classifier`)."""
    from uturn.networks.modules import Network, load_classifier

    def energy(data: np.ndarray) -> np.ndarray:
        import torch

        expect(data.ndim == 4, "energy: class, shape of the data", data.shape, "images")
        loaded = load_classifier(classifier, image_shape=data.shape[1:])
        expect(0 <= label < loaded.num_classes, "label", label, f"a class of {classifier}, 0 .. {loaded.num_classes - 1}")
        device = next(loaded.module.parameters()).device
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(data, np.float32)).to(device)
            inputs = images if loaded.preprocess is None else loaded.preprocess(images)
            return -loaded.module(inputs).log_softmax(1)[:, label].double().cpu().numpy()

    return energy, Network(classifier)


def text_log_loss(model: str, head: str = "causal", batch_size: int = 64) -> tuple[Function, Input | None]:
    """Minus the log-likelihood (nats) of a text by a model of the same tokens; for `head` "masked", a pseudo-likelihood."""
    from uturn.networks.texts.language import causal_log_likelihoods, pseudo_log_likelihoods
    from uturn.networks.texts.language_files import TextModel

    laws = {"causal": causal_log_likelihoods, "masked": pseudo_log_likelihoods}
    expect(head in laws, "head", head, f"one of {[*laws]}")
    loaded = TextModel(model=model, head=head)  # type: ignore[arg-type]
    return lambda data: -laws[head](loaded.load(), data, batch_size), loaded


NAMED: dict[str, Callable[..., tuple[Function, Input | None]]] = {
    "symbol": symbol,
    "mean": mean,
    "class": class_log_loss,
    "text": text_log_loss,
}
"""Energies by name."""


@dataclass(frozen=True)
class Energy(Input):
    """An energy as text: "module:function", or a name of `NAMED` with options, such as "symbol number=3"."""

    text: str

    @cached_property
    def _made(self) -> tuple[Function, Input | None]:
        name, *options = self.text.split() or [""]
        pairs = [option.partition("=") for option in options]
        is_told = all(sep for _, sep, _ in pairs) and len({key for key, *_ in pairs}) == len(pairs)
        expect(is_told, "energy", self.text, "options as name=value, each once")
        values = {key: int(value) if value.lstrip("-").isdecimal() else value for key, _, value in pairs}
        if is_import_path(name):
            own = OwnFunction(name, "energy")
            return (lambda data: own.function(data, **values)), own
        expect(name in NAMED, "energy", self.text, f"one of {[*NAMED]}, or 'module:function'")
        try:
            return NAMED[name](**values)
        except TypeError as error:
            raise ValueError(f"energy = {self.text!r}: {error}") from None

    def __call__(self, data: np.ndarray) -> Any:
        return self._made[0](data)

    def files(self) -> list[Any]:
        return [*self._made[1].files()] if self._made[1] else []

    def own_code(self) -> Any:
        return self._made[1].own_code() if self._made[1] else None

    def fingerprint(self) -> str:
        return self._made[1].fingerprint() if self._made[1] else ""


def energy_of(given: Any) -> Any:
    """The energy of a function, or of the text of one; None for None."""
    if given is None or callable(given):
        return given
    expect(isinstance(given, str), "energy", given, f"a function, 'module:function', or one of {[*NAMED]} with options")
    return Energy(given)
