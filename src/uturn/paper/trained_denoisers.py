"""Denoisers trained on strings of a grammar, and their readings on new strings: the measurement of the figure `learning`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.progress import begun, part
from uturn.core.random import Purpose, keys
from uturn.corruption.denoising import ExactDenoiser, denoise
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.networks.strings import denoisers as trained
from uturn.paper.workshop import Scale, Workshop

# Grammars with a transition: s f = 1/2; the first of their seeds is measured in every way. `training`: `steps` are the least
# number of optimisation steps, the number for each training string, and the largest number. `reading`: `levels` of noise, `items`
# test strings, `generated` strings, and the `steps` of U-turns; generation takes twice as many.
SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {
        "grammar": {"vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 4},
        "seeds": [0, 1, 2],
        "sizes": [8, 32, 64, 128, 256, 1024],
        "other_size": 1024,
        "training": dict(width=32, steps=[400, 6, 4000], batch_size=64, learning_rate=2.5e-3, every=50, held_out=1024),
        "reading": {"levels": 10, "items": 512, "generated": 1024, "steps": 32},
    },
    "paper": {
        "grammar": {"vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4},
        "seeds": [0, 1, 2],
        "sizes": [16, 64, 256, 1024, 4096, 16384, 65536, 262144],
        "other_size": 65536,
        "training": dict(width=128, steps=[4000, 12, 40000], batch_size=256, learning_rate=2e-3, every=200, held_out=4096),
        "reading": {"levels": 16, "items": 2048, "generated": 8192, "steps": 64},
    },
}  # fmt: skip
SWEPT, OTHERS = "gaussian", ("masking", "uniform")
# First coordinates of the random streams with the purpose DENOISER; 0 and 1 are those of training.
_STRINGS, _TESTS, _FULL_NOISE, _LOSS_NOISE, _U_TURN_NOISE, _GENERATION, _U_TURN = range(2, 9)


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    """One dataset for each channel's exact denoiser, and one for each network, which is trained unless its file exists."""
    jobs, plan, runs = networks(workshop.scale), SETTINGS[workshop.scale], {}
    for channel in (SWEPT, *OTHERS):
        settings = {"channel": channel, "grammar": {**plan["grammar"], "seed": plan["seeds"][0]}, **plan["reading"]}
        runs[f"{channel}-exact"] = workshop.keep(f"learning-{channel}-exact", settings, partial(exact_readings, settings))
    few = {key: plan["reading"][key] for key in ("levels", "items")}
    tasks = [(x, job, plan["reading"] if job["grammar"]["seed"] == plan["seeds"][0] else few) for x, job in jobs.items()]
    workshop.each("networks", _network, [task for task in tasks if not workshop.trained(_files(task[0]), task[1])])
    return runs | {task[0]: _network(workshop, *task) for task in tasks}


def networks(scale: Scale) -> dict[str, dict[str, Any]]:
    """All networks by name, "channel-size-seed", with the settings of their training; largest first."""
    plan, made = SETTINGS[scale], {}
    wanted = [(channel, plan["other_size"], plan["seeds"][0]) for channel in OTHERS]
    wanted += [(SWEPT, size, seed) for size in reversed(plan["sizes"]) for seed in plan["seeds"]]
    for channel, size, seed in wanted:
        grammar, training = {**plan["grammar"], "seed": seed}, plan["training"]
        made[f"{channel}-{size}-{seed}"] = {"grammar": grammar, "channel": channel, "size": size, "training": training}
    return made


def _network(workshop: Workshop, name: str, job: Mapping[str, Any], reading: Mapping[str, Any]) -> xr.Dataset:
    rhm, size = RandomHierarchyModel(**job["grammar"]), job["size"]
    least, each, most = job["training"]["steps"]
    training = {**job["training"], "steps": min(max(each * size, least), most)}
    with begun(1):
        with part(0.8):
            strings = partial(training_strings, rhm, size)
            models = workshop.denoisers(_files(name), job, rhm, job["channel"], strings, **training)
        return workshop.keep(f"learning-{name}", {**job, **reading}, partial(network_readings, models, job, reading)).load()


def _files(name: str) -> list[str]:
    return [f"learning-{name}-{state}" for state in ("best", "last")]


def training_strings(rhm: RandomHierarchyModel, size: int) -> np.ndarray:
    """The first `size` strings of one sequence: smaller training sets are part of the larger ones."""
    return rhm.sample(size, seed=_keys(_STRINGS, range(size))).leaves


def network_readings(models: list[Any], job: Mapping[str, Any], reading: Mapping[str, Any]) -> xr.Dataset:
    """Readings of a network on new strings, dims state (best, last), ...: its distance from the exact denoiser
    (`compare_denoisers`), the `weight` of each tree level in its evidence, and, if any strings are to be `generated`, these and
    U-turns (best state only).

    `tried` (string, tree_level) counts the nodes whose children are all grammatical, `obeyed` those of them that are grammatical
    too; `copied` (string) is 1 for a copy of a training string.
    """
    rhm = RandomHierarchyModel(**job["grammar"])
    tests, noise = _tests(rhm, reading), _noise(job["channel"], reading)
    denoisers = [trained.LearnedDenoiser(model) for model in models]
    states = []
    for learned in denoisers:
        judged = (tests.leaves, noise, _keys(_LOSS_NOISE, range(reading["items"])))
        readings = trained.compare_denoisers(learned, ExactDenoiser(rhm, learned.corruption), *judged)
        readings["weight"] = "learned_level", trained.level_weights(learned, rhm, *judged)
        states.append(readings.assign(_generated(learned, rhm, job["size"], reading)) if "generated" in reading else readings)
    both = xr.concat(states, xr.Variable("state", ["best", "last"])).assign_coords(learned_level=range(1, rhm.depth + 1))
    return both.assign(unchanged=u_turns(denoisers[0], rhm, job["channel"], reading)) if "generated" in reading else both


def _generated(learned: Any, rhm: RandomHierarchyModel, size: int, reading: Mapping[str, Any]) -> dict[str, Any]:
    count = range(reading["generated"])
    nothing = trained.full_noise(learned.corruption, len(count), rhm.num_leaves, rhm.vocab_size, _keys(_FULL_NOISE, count))
    strings = denoise(learned, nothing, 2 * reading["steps"], _keys(_GENERATION, count))
    known = {string.tobytes() for string in training_strings(rhm, size)}
    return {"copied": ("string", [float(string.tobytes() in known) for string in strings]), **grammaticality(rhm, strings)}


def grammaticality(rhm: RandomHierarchyModel, strings: np.ndarray) -> dict[str, Any]:
    """Of every string and tree level: nodes whose children are all grammatical, and nodes that are so themselves."""
    valid = rhm.parse(strings).valid
    tried = [valid[0]] + [valid[k].reshape(len(strings), -1, rhm.branching).all(-1) for k in range(rhm.depth)]
    levels: dict[str, list[Any]] = {"tried": tried, "obeyed": list(valid.values())}
    return {x: (("string", "tree_level"), np.stack([nodes.sum(1, dtype=float) for nodes in of], 1)) for x, of in levels.items()}


def exact_readings(settings: Mapping[str, Any]) -> xr.Dataset:
    """U-turns by belief propagation: probabilities (`belief`), and draws by the sampler that the networks use (`unchanged`)."""
    rhm, corruption = RandomHierarchyModel(**settings["grammar"]), trained.CHANNELS[settings["channel"]]()
    latents, beliefs = _tests(rhm, settings).latents, []
    for noisy in _noisy(corruption, rhm, settings["channel"], settings):
        marginals = infer(rhm, corruption.log_evidence(noisy, np.float32)).marginals
        right = [np.take_along_axis(marginals[k], latents[k][..., None], 2).mean((1, 2)) for k in range(rhm.depth + 1)]
        beliefs.append(np.stack(right, 1))
    unchanged = u_turns(ExactDenoiser(rhm, corruption), rhm, settings["channel"], settings)
    return xr.Dataset({"belief": unchanged.copy(data=np.array(beliefs)), "unchanged": unchanged})


def u_turns(denoiser: Any, rhm: RandomHierarchyModel, channel: str, reading: Mapping[str, Any]) -> xr.DataArray:
    """Share of nodes that keep their symbol, (noise, item, tree_level); a node that is not grammatical any more has changed."""
    unchanged, before = [], _tests(rhm, reading).latents
    for k, noisy in enumerate(_noisy(denoiser.corruption, rhm, channel, reading)):
        after = rhm.parse(denoise(denoiser, noisy, reading["steps"], _keys(_U_TURN, k, range(reading["items"])))).latents
        unchanged.append(np.stack([(after[j] == before[j]).mean(1) for j in range(rhm.depth + 1)], 1))
    coords = {"noise": _noise(channel, reading), "tree_level": range(rhm.depth + 1)}
    return xr.DataArray(np.array(unchanged), coords, ("noise", "item", "tree_level"))


def _keys(use: int, *coordinates: Any) -> np.ndarray:
    return keys(0, Purpose.DENOISER, use, *coordinates)


def _tests(rhm: RandomHierarchyModel, reading: Mapping[str, Any]) -> Any:
    return rhm.sample(reading["items"], seed=_keys(_TESTS, range(reading["items"])))


def _noise(channel: str, reading: Mapping[str, Any]) -> np.ndarray:
    """Quantiles of the training distribution, so that a mean over them is a mean over that distribution."""
    return trained.training_noise(channel, (np.arange(reading["levels"]) + 0.5) / reading["levels"])


def _noisy(corruption: Any, rhm: RandomHierarchyModel, channel: str, reading: Mapping[str, Any]) -> list[Any]:
    leaves, items = _tests(rhm, reading).leaves, range(reading["items"])
    levels = enumerate(_noise(channel, reading))
    return [corruption.corrupt(leaves, level, rhm.vocab_size, _keys(_U_TURN_NOISE, k, items)) for k, level in levels]
