"""Decoders of masked strings on trial, with exact and trained denoisers: the measurement of the
figure `exam`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from uturn.core.progress import begun, part
from uturn.core.protocols import Denoiser
from uturn.core.random import Purpose, keys, uniforms
from uturn.corruption import Masking, Noisy
from uturn.corruption.denoising import ExactDenoiser
from uturn.corruption.unmasking import Decoder, law_of
from uturn.exact.rhm import RandomHierarchyModel, zipf
from uturn.networks.strings.denoisers import LearnedDenoiser
from uturn.paper.sampler_laws import parsed_agreement
from uturn.paper.workshop import Scale, Workshop
from uturn.tools.audit.decoder_laws import divergence, log_ratios

EXACT = {
    "random order": Decoder(),
    "random in blocks of 4": Decoder("blocks", block=4),
    "left to right": Decoder("blocks", block=1),
    "lowest entropy": Decoder("entropy"),
    "largest probability": Decoder("probability"),
}
"""Decoders that draw from the posterior, if the denoiser is exact."""
OTHERS = {
    "drawn-token confidence": Decoder("confidence"),
    "temperature 0.7": Decoder("blocks", block=1, temperature=0.7),
    "temperature 1.3": Decoder("blocks", block=1, temperature=1.3),
    "top-k 2": Decoder("blocks", block=1, top_k=2),
    "top-p 0.9": Decoder("blocks", block=1, top_p=0.9),
}
"""One token a step, but not from the posterior; the last four from left to right, as
autoregressive models do.
"""
ORDERS = {
    "random order": "random",
    "lowest entropy": "entropy",
    "drawn-token confidence": "confidence",
}
"""Decoders that are also run with several tokens a step, and their orders."""
CLONES = 2
GRAMMARS: dict[str, dict[str, Any]] = {
    "enumerated": {
        "vocab_size": 3,
        "multiplicity": 3,
        "branching": 2,
        "depth": 3,
        "zipf_exponent": 1.0,
    },
    "dense": {"vocab_size": 8, "multiplicity": 8, "branching": 2, "zipf_exponent": 1.0},
    "sparse": {"vocab_size": 8, "multiplicity": 2, "branching": 2},
}
"""Two grammars that give every string a probability above 0, so that no divergence is infinite;
in "sparse", rules are equally probable and most strings are impossible.
"""
DENOISERS = ("exact", "trained")
# `masked`: number of masked leaves of each observation. `shares` of masked leaves, cyclic over the
# items.
_TRAINING = dict(width=32, batch_size=64, learning_rate=5e-3, every=100, held_out=512)
SETTINGS: dict[Scale, dict[str, dict[str, Any]]] = {
    "smoke": {
        "enumerated": {"masked": [4, 4, 6, 6, 8], "steps": [1, 2, 4], "draws": 2000,
                       "training": {**_TRAINING, "width": 16, "strings": 4096, "steps": 400}},
        "drawn": {"depth": 6, "shares": [0.5, 0.75, 1.0], "steps": [1, 2, 4, 8, 16, 32], "items": {"exact": 384, "trained": 64},
                  "training": {**_TRAINING, "strings": 16384, "steps": 400}},
    },
    "paper": {
        "enumerated": {"masked": [4] * 4 + [6] * 4 + [8] * 2, "steps": [1, 2, 3, 4, 6], "draws": 10000,
                       "training": {**_TRAINING, "strings": 65536, "steps": 4000}},
        "drawn": {"depth": 7, "shares": [0.5, 0.75, 1.0], "steps": [1, 2, 4, 8, 16, 32, 64],
                  "items": {"exact": 1024, "trained": 256},
                  "training": {**_TRAINING, "width": 64, "strings": 65536, "steps": 4000}},
    },
}  # fmt: skip
_STREAMS = (Purpose.DENOISING, 1)
_STRINGS, _NOISE, _DRAWS, _TRAINING_SET = range(4)


class AllPossible(Masking):
    """Masking of strings that all have a probability above 0: an exact denoiser needs no misread
    leaves.
    """

    misread: ClassVar[float] = -np.inf


def in_steps(label: str, number: int) -> str:
    """Label of a decoder with a number of steps."""
    return f"{label}, {number} step{'s' if number > 1 else ''}"


def decoders(steps: list[int]) -> dict[str, Decoder]:
    """All decoders on trial by label; `steps`: numbers of steps of those that reveal several
    tokens a step.
    """
    several = {
        in_steps(label, number): Decoder(order, number)
        for label, order in ORDERS.items()
        for number in steps
    }
    return {**EXACT, **OTHERS, **several}


def settings(scale: Scale, grammar: str, denoiser: str) -> dict[str, Any]:
    """The plan of `SETTINGS` for a grammar and a denoiser."""
    table = dict(SETTINGS[scale]["enumerated" if grammar == "enumerated" else "drawn"])
    sizes = dict(GRAMMARS[grammar])
    if "depth" in table:
        sizes["depth"] = table.pop("depth")
    if "items" in table:
        table["items"] = table["items"][denoiser]
    return {**table, "grammar": sizes, "denoiser": denoiser}


def grammar_of(table: Mapping[str, Any]) -> RandomHierarchyModel:
    """The grammar with these sizes, and rules of Zipf's probabilities if they have an exponent."""
    sizes = {name: value for name, value in table.items() if name != "zipf_exponent"}
    weights = (
        zipf(table["multiplicity"], table["zipf_exponent"]) if "zipf_exponent" in table else None
    )
    return RandomHierarchyModel(**sizes, rule_probabilities=weights, seed=0)


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    """One dataset for each grammar and denoiser, "grammar-denoiser"; the networks are trained."""
    alone = replace(workshop, progress=False)
    calls = {}
    for denoiser in reversed(DENOISERS):
        for grammar in GRAMMARS:
            plan = settings(workshop.scale, grammar, denoiser)
            calls[f"exam-{grammar}-{denoiser}"] = {
                "grammar": grammar,
                "plan": plan,
                "workshop": alone,
            }
    kept = workshop.keep_all("decoders", examined, calls)
    return {label.removeprefix("exam-"): run for label, run in kept.items()}


def examined(grammar: str, plan: Mapping[str, Any], workshop: Workshop) -> xr.Dataset:
    """All decoders with the exact denoiser of a grammar, or with one that is trained on strings
    of it.
    """
    rhm = grammar_of(plan["grammar"])
    with begun(1):
        denoiser = _denoiser(grammar, rhm, plan, workshop)
        if grammar == "enumerated":
            readings = enumerated(rhm, denoiser, plan)
        else:
            readings = drawn(rhm, denoiser, plan)
    return readings.assign_attrs(plan=json.dumps(plan))


def _denoiser(
    grammar: str, rhm: RandomHierarchyModel, plan: Mapping[str, Any], workshop: Workshop
) -> Denoiser:
    """The exact denoiser of a grammar, or one that is trained on strings of it."""
    if plan["denoiser"] == "exact":
        return ExactDenoiser(rhm, Masking() if grammar == "sparse" else AllPossible())
    training = dict(plan["training"])
    count = training.pop("strings")
    recipe = {"grammar": plan["grammar"], "training": plan["training"]}

    def strings() -> np.ndarray:
        return rhm.sample(count, seed=_keys(_TRAINING_SET, range(count))).leaves

    with part(0.3):
        (network,) = workshop.denoisers(
            [f"exam-{grammar}"], recipe, rhm, "masking", strings, **training
        )
    return LearnedDenoiser(network)


def _keys(use: int, *coordinates: Any) -> np.ndarray:
    return keys(0, *_STREAMS, use, *coordinates)


# -- by enumeration --------------------------------------------------------------------------------


def enumerated(
    rhm: RandomHierarchyModel, denoiser: Denoiser, plan: Mapping[str, Any]
) -> xr.Dataset:
    """Every decoder on some masked strings, against the posterior by writing all strings out,
    (decoder, observation): exact `divergence` KL(decoder ‖ posterior) in nats, mean and standard
    error of `log_ratios` over draws, calls of the denoiser.
    """
    observations = masked_strings(rhm, plan["masked"])
    tried = decoders(plan["steps"])
    results = {
        name: np.empty((len(tried), len(observations)))
        for name in ("divergence", "estimate", "error", "calls")
    }
    for j, values in enumerate(observations):
        noisy = Noisy(
            np.tile(values, (plan["draws"], 1)),
            np.full(plan["draws"], (values < 0).mean()),
            rhm.vocab_size,
        )
        for k, decoder in enumerate(tried.values()):
            _, ratio = log_ratios(
                rhm, denoiser, noisy, _keys(_DRAWS, j, range(plan["draws"])), decoder
            )
            results["divergence"][k, j] = divergence(rhm, values, law_of(denoiser, values, decoder))
            results["estimate"][k, j] = ratio.mean()
            results["error"][k, j] = ratio.std(ddof=1) / np.sqrt(len(ratio))
            results["calls"][k, j] = decoder.sampler.calls(Noisy(values[None], np.ones(1)))[0]
    coords = {"decoder": list(tried), "masked": ("observation", plan["masked"])}
    return xr.Dataset(
        {name: (("decoder", "observation"), values) for name, values in results.items()}, coords
    )


def masked_strings(rhm: RandomHierarchyModel, numbers: list[int]) -> np.ndarray:
    """Strings of the grammar with these numbers of masked leaves, int64 (strings, num_leaves)."""
    leaves = rhm.sample(len(numbers), seed=_keys(_STRINGS, range(len(numbers)))).leaves
    place = (
        uniforms(_keys(_NOISE, range(len(numbers))), rhm.num_leaves).argsort(axis=1).argsort(axis=1)
    )
    return np.where(place < np.array(numbers)[:, None], -1, leaves)


# -- by draws --------------------------------------------------------------------------------------


def drawn(rhm: RandomHierarchyModel, denoiser: Denoiser, plan: Mapping[str, Any]) -> xr.Dataset:
    """Clones that every decoder draws from one masked string of each item: `log_ratio` (decoder,
    item, clone) of `log_ratios`; shares of equal nodes after parsing (decoder, item, clone,
    tree_level), the arguments of `calibrate`; mean calls (decoder).
    """
    items = np.arange(plan["items"])
    tried = decoders(plan["steps"])
    leaves = rhm.sample(len(items), seed=_keys(_STRINGS, items)).leaves
    shares = np.resize(plan["shares"], len(items))
    noisy = Masking().corrupt(leaves, shares, vocab_size=rhm.vocab_size, seed=_keys(_NOISE, items))
    copies = Noisy(
        np.repeat(noisy.values, CLONES, axis=0), np.repeat(noisy.noise, CLONES), rhm.vocab_size
    )
    streams = _keys(_DRAWS, items[:, None], np.arange(CLONES)).reshape(-1)
    readings = []
    for decoder in tried.values():
        strings, ratio = log_ratios(rhm, denoiser, copies, streams, decoder)
        pair = parsed_agreement(
            rhm, np.concatenate([leaves[:, None], strings.reshape(len(items), CLONES, -1)], axis=1)
        )
        readings.append(
            (ratio.reshape(len(items), CLONES), *pair, decoder.sampler.calls(noisy).mean())
        )
    ratios, first, rows, calls = map(np.array, zip(*readings, strict=True))
    dims = ("decoder", "item", "clone")
    return xr.Dataset(
        {
            "log_ratio": (dims, ratios),
            "with_original": ((*dims, "tree_level"), first),
            "with_clones": ((*dims, "tree_level"), rows),
            "calls": ("decoder", calls),
        },
        {"decoder": list(tried), "share": ("item", shares), "tree_level": range(rhm.depth + 1)},
    )
