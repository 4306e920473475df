"""Energies by name: functions of data (batch, ...) to numbers (batch,), for the Metropolis step
of a chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from uturn.core.checks import expect
from uturn.core.imports import is_import_path
from uturn.core.inputs import Input
from uturn.engine.sweep import parsed_value
from uturn.networks.modules import Network, load_classifier
from uturn.tools.chains.probe import OwnFunction


@dataclass(frozen=True)
class SymbolNumber(Input):
    """The number of sites with a symbol, or token."""

    number: int = 0
    kinds: ClassVar[tuple[str, ...]] = ("strings", "tokens")

    def __call__(self, data: np.ndarray) -> np.ndarray:
        return (data == self.number).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class ClassLoss(Network):
    """Minus the log-probability (nats) of a class by a classifier of images (`load_classifier`)."""

    label: int
    classifier: str = "fashion_mnist"
    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def __call__(self, data: np.ndarray) -> np.ndarray:
        loaded = load_classifier(self.classifier, self.weights, image_shape=data.shape[1:])
        last = loaded.num_classes - 1
        expect(
            self.label in range(last + 1),
            "energy: label",
            self.label,
            f"a class of {self.classifier}, 0 .. {last}",
        )
        images = torch.from_numpy(np.array(data, np.float32)).to(
            next(loaded.module.parameters()).device
        )
        with torch.inference_mode():
            inputs = images if loaded.preprocess is None else loaded.preprocess(images)
            return -loaded.module(inputs).log_softmax(1)[:, self.label].double().cpu().numpy()


NAMED: dict[str, Any] = {"symbol": SymbolNumber, "class": ClassLoss}
"""Energies by name."""


def energy_of(text: Any, source: Any = None) -> Any:
    """The energy of a text: "module:function", or a name with options, such as "symbol number=3".

    ValueError if there is none, or if it does not go with the data of `source`.
    """
    expect(
        isinstance(text, str),
        "energy",
        text,
        f"a function, 'module:function', or one of {[*NAMED]} with options",
    )
    name, _, options = text.strip().partition(" ")
    values = options_in("energy", options)
    if is_import_path(name):
        return OwnFunction(name, "energy", tuple(values.items()))
    expect(name in NAMED, "energy", text, f"one of {[*NAMED]}, or 'module:function'")
    try:
        energy = NAMED[name](**values)
    except TypeError as error:
        raise ValueError(f"energy = {text!r}: {error}") from None
    expect(
        source is None or source.kind in energy.kinds,
        "energy",
        text,
        f"one of {getattr(source, 'kind', '')}",
    )
    if isinstance(energy, SymbolNumber):
        number = energy.number
        most = 2**62 if source is None else source.num_symbols
        is_symbol = isinstance(number, int) and 0 <= number < most
        expect(is_symbol, "energy: number", number, f"a symbol or token, 0 .. {most - 1}")
    return energy


def options_in(name: str, text: str) -> dict[str, Any]:
    """The options in a text "KEY=VALUE KEY=VALUE .."."""
    pairs = [pair.partition("=") for pair in text.split()]
    is_told = all(key and value for key, _, value in pairs) and len(
        {key for key, *_ in pairs}
    ) == len(pairs)
    expect(is_told, name, text, "KEY=VALUE, separated by blanks, each key once")
    return {key: parsed_value(value) for key, _, value in pairs}
