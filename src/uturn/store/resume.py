"""Opens the store of an experiment: creates, resumes or extends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from contextlib import nullcontext, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import uturn
from uturn.core import random
from uturn.core.checks import expect
from uturn.core.contracts import checked_blocks
from uturn.core.files import locked_folder
from uturn.core.messages import shown
from uturn.core.own_parts import is_own
from uturn.core.protocols import Coordinates, FromFiles
from uturn.core.registry import build
from uturn.store.places import is_empty, is_url
from uturn.store.record import Blocks, MemoryStore, Store, Task

_log = logging.getLogger("uturn")


def open_store(
    experiment: Any, place: str | None, resume: bool, accept_changes: bool
) -> Store | MemoryStore:
    """The store of an experiment: a new one, or the existing one, extended if needed; in memory
    without a place.

    ValueError if the existing store holds another experiment, or if code or fingerprints changed
    without `accept_changes`.
    """
    models, layout = experiment.models(), layout_of(experiment)
    if place is None:
        return MemoryStore(*layout, attributes_of(experiment, models))
    if is_empty(place):
        if (made := Store.create(place, *layout, attributes_of(experiment, models))) is not None:
            return made
    elif not resume:
        raise ValueError(
            f"{place} exists already; choose another folder, or resume it (resume=True)"
        )
    # One process at a time extends it.
    with nullcontext() if is_url(place) else locked_folder(Path(place).resolve().parent):
        opened = Store.open(place)
        new, changes, stale = _compared(experiment, opened, models, accept_changes)
        # They are collected only to be written, since a backward may draw for them.
        attributes = attributes_of(experiment, models) if new or opened.models != models else {}
        _check_contents(layout[1], opened)
        if stale:
            levels = ", ".join(f"{level:g}" for level in sorted(stale))
            _log.info(
                f"{place}: the data of the backward at noise {levels} have changed; they are"
                " measured again"
            )
            opened.forget(
                task for task in opened.tasks() if opened.noise[task.noise_index] in stale
            )
        if new:
            _check_originals(experiment, opened)
            accepted = {
                name: opened.attributes[name]
                for name in ("accepted_changes",)
                if name in opened.attributes
            }
            opened = opened.grow(*layout, attributes | accepted)
            _log.info(f"{place} is extended by {', '.join(new)}")
        opened.mend(*layout[:2])
        if opened.models != models:
            opened.update(
                models=json.dumps(models), missing_data=attributes.get("missing_data", "{}")
            )
        if changes:
            before = json.loads(opened.attributes.get("accepted_changes", "[]"))
            opened.update(accepted_changes=json.dumps([*before, changes]))
    return opened


def trajectories_done(experiment: Any, place: str | None) -> dict[Task, int]:
    """Number of trajectories of each task of an experiment that a store already holds; damaged
    readings count as done.
    """
    blocks = Blocks(experiment.chunk, experiment.items, experiment.noise)
    if place is None or is_empty(place):
        return dict.fromkeys(blocks.tasks(), 0)
    opened = Store.open(place)
    _, _, stale = _compared(experiment, opened, experiment.models(), True)
    done = {opened.place(task): count for task, count in opened.recorded(opened.tasks()).items()}
    return {
        task: 0 if blocks.noise[task.noise_index] in stale else done.get(blocks.place(task), 0)
        for task in blocks.tasks()
    }


def layout_of(experiment: Any) -> tuple[dict[str, Any], Coordinates, int]:
    """Variables, coordinates and chunk of the store of an experiment."""
    coordinates = experiment.coordinates()  # first, since its error is the clearest
    return experiment.variables(), coordinates, experiment.chunk


def attributes_of(experiment: Any, models: dict[str, str]) -> dict[str, Any]:
    """Attributes of the store of an experiment, among them what its backward cannot give; some
    draw to find it.
    """
    source, _, backward, _ = experiment.parts
    about = {
        "skipped": source.skipped(experiment.items),
        "missing_data": backward.missing(experiment),
    }
    return {
        "spec": json.dumps(experiment.to_dict()),
        "identity": json.dumps(experiment.identity()),
        "spec_hash": experiment.hash,
        "seed": experiment.seed,
        "models": json.dumps(models),
        "versions": json.dumps(versions_used()),
        "random_version": random.VERSION,
        **({"description": text} if (text := backward.describe()) else {}),
        **{name: json.dumps(dict(values)) for name, values in about.items() if values},
    }


def _compared(
    experiment: Any, opened: Store, models: dict[str, str], accept_changes: bool
) -> tuple[list[str], dict[str, str | None], Collection[float]]:
    """The additions of the experiment to its store, {name: stored value} of changed digests of
    user-defined code, stale levels.

    ValueError for any other difference, and for changed code without `accept_changes`.
    """
    stored, mine, known = (
        opened.identity,
        json.loads(json.dumps(experiment.identity())),
        opened.models,
    )
    changed = {
        key for key in known.keys() | models.keys() if known.get(key, "") != models.get(key, "")
    }
    stale: Collection[float] | None = None
    backward = experiment.parts.backward
    if isinstance(backward, FromFiles) and "backward" in changed & known.keys():
        stale = backward.stale(known["backward"], opened.noise)
    user_defined = {str(slot) for slot, part in experiment.slots().items() if is_own(part)}
    acceptable = sorted(key for key in changed if key.endswith(".code") or key in user_defined)
    fixed = changed.difference(acceptable, {"backward"} if stale is not None else ())
    new, different = _added(stored, mine), _differences(stored, mine, "spec")
    if new:  # grammars grow with the items, whose originals are then compared
        grown = (
            (*_MAY_GROW, "spec.source.grammars ") if mine["items"] > stored["items"] else _MAY_GROW
        )
        different = [text for text in different if not text.startswith(grown)]
    if (version := opened.random_version) != random.VERSION:
        different.append(
            f"version {version} of the random numbers in the store, {random.VERSION} here"
        )
    different += [
        f"the weights or data of {key} have changed"
        for key in sorted(fixed)
        if key in known and key in models
    ]
    if different:
        hint = (
            ""
            if any(opened.recorded(opened.tasks()).values())
            else "; none of its tasks is done, so it can be deleted"
        )
        hint += "".join(
            f"; a store grows by noise levels, items and trajectories, so set {key} ="
            f" {stored.get(key, 1)} to extend it"
            for key in ("clones", "chunk")
            if stored.get(key) != mine.get(key)
        )
        raise ValueError(
            f"{opened.where} holds another experiment: {'; '.join(different[:4])}; choose another"
            f" folder{hint}"
        )
    if acceptable and not accept_changes:
        changes = [
            f"the {'code' if key.endswith('.code') else 'fingerprint'} of"
            f" {key.removesuffix('.code')} has changed since the store was made"
            f" ({shown(known.get(key))} in the store, {shown(models.get(key))} here)"
            for key in acceptable
        ]
        raise ValueError(
            f"{opened.where}: {'; '.join(changes)}; choose another folder, bring the old code back,"
            " or resume anyway with accept_changes=True (--accept-changes)"
        )
    return new, {key: known.get(key) for key in acceptable}, stale or ()


_ABSENT = type("Default", (), {"__repr__": lambda _: "its default"})()
_MAY_GROW = (
    "spec.items ",
    "spec.trajectories ",
    "spec.corruption.noise ",
    "spec.corruption.noise.",
)


def _added(stored: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Items, trajectories and noise levels that a spec adds to a stored one, as text; empty if
    it has less of any.
    """
    sizes = {key: (stored[key], mine[key]) for key in ("items", "trajectories")}
    old, noise = stored["corruption"]["noise"], mine["corruption"]["noise"]
    if any(after < before for before, after in sizes.values()) or not set(old) <= set(noise):
        return []
    levels = [f"{x:g}" for x in noise if x not in old]
    more = [
        f"{key} {before} -> {after}" for key, (before, after) in sizes.items() if after > before
    ]
    return more + (
        [f"noise {', '.join(levels[:6])}{', ..' if len(levels) > 6 else ''}"] if levels else []
    )


def _differences(stored: Any, mine: Any, where: str) -> list[str]:
    """Values in which two specs differ, one line each; `where`: path of the values in the spec."""
    if isinstance(stored, list) and isinstance(mine, list) and len(stored) == len(mine):
        stored, mine = dict(enumerate(stored)), dict(enumerate(mine))
    if isinstance(stored, dict) and isinstance(mine, dict):
        keys = sorted({**stored, **mine}, key=str)
        return [
            text
            for key in keys
            for text in _differences(
                stored.get(key, _ABSENT), mine.get(key, _ABSENT), f"{where}.{key}"
            )
        ]
    return (
        [] if stored == mine else [f"{where} is {shown(stored)} in the store, {shown(mine)} here"]
    )


def _check_contents(coordinates: Coordinates, opened: Store) -> None:
    """ValueError if files of stored items have other contents than when they were measured."""
    known = None
    with suppress(ValueError):  # a damaged coordinate is written again
        known = opened.coordinate("file_digest")
    if known is None or "file_digest" not in coordinates:
        return
    digests, names = (coordinates[name][1] for name in ("file_digest", "file"))
    changed = [
        str(name)
        for name, digest, before in zip(names, digests, known, strict=False)
        if digest != before
    ]
    where = f"{opened.where}: originals whose contents have changed since they were measured"
    expect(not changed, where, changed, "none; bring them back, or choose another folder")


def _check_originals(experiment: Any, opened: Store) -> None:
    """ValueError if the stored items would have other originals in the larger run."""
    old, new, source, seed = (
        opened.num_items,
        experiment.items,
        experiment.parts.source,
        experiment.seed,
    )
    if new == old:
        return
    before, mine, grammars = (
        source,
        experiment.to_dict()["source"],
        opened.identity["source"].get("grammars", 1),
    )
    refused = f"{opened.where} cannot be extended to items = {new}: "
    if not is_own(source) and grammars != mine.get("grammars", 1):
        before = build("source", {**mine, "grammars": grammars})
    if not is_own(source) and (grammars != 1 or "grammars" in mine):
        refused += f"expected grammars in proportion to the items ({grammars} for {old}), since "
    for name, values in source.coordinates(seed, new).items():
        if (known := opened.coordinate(name)) is None or not np.array_equal(
            known, np.asarray(values)[:old]
        ):
            raise ValueError(f"{refused}{name} of the first {old} items would change")
    # All items of a user-defined source are compared. For built-in sources, whose items are
    # independent, a sample suffices.
    items = np.arange(old) if is_own(source) else np.unique(np.linspace(0, old - 1, 16).astype(int))
    for some in np.array_split(items, -(-len(items) // 1024)):
        blocks = [
            checked_blocks(part, part.blocks(some.copy(), seed, n), some)
            for part, n in ((before, old), (source, new))
        ]
        rows = [[row for block in of_run for row in block.data] for of_run in blocks]
        for item, a, b in zip(some, *rows, strict=True):
            if not np.array_equal(a, b):
                raise ValueError(
                    f"{refused}its source gives item {item} another original than before; choose"
                    " another folder"
                )


@lru_cache(maxsize=1)
def versions_used() -> dict[str, str]:
    """Versions of uturn and the libraries that results depend on."""
    versions = {"uturn": uturn.__version__}
    for name in ("numpy", "numba", "torch", "diffusers", "zarr"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
