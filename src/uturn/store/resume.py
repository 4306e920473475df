"""Opens the store of an experiment: creates, resumes or extends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from uturn.core import random
from uturn.core.checks import shown
from uturn.core.contracts import checked_blocks, checked_text
from uturn.core.own_parts import is_own
from uturn.core.protocols import Coordinates
from uturn.core.spec import added, build, differences, filled, with_size_of
from uturn.store.places import Place
from uturn.store.record import Blocks, MemoryStore, Store, Task

_log = logging.getLogger("uturn")


def open_store(experiment: Any, store: Place | None, resume: bool, accept_changes: bool) -> Store | MemoryStore:
    """The store of an experiment: a new one if there is none, the existing one, or the existing one extended.

    Without a place the results are kept in memory.

    ValueError if the existing store holds another experiment, or if code or fingerprints changed without `accept_changes`.
    """
    models = experiment.models()
    layout = layout_of(experiment, models)
    if store is None:
        return MemoryStore(*layout)
    if store.is_empty():
        opened = Store.create(store, *layout)
        if opened is not None:
            return opened
    elif not resume:
        raise ValueError(f"{store.where} exists already; choose another folder, or resume it (resume=True)")
    with store.locked():  # only one process at a time extends the store
        opened = Store.open(store)
        new, changes, stale = _compared(experiment, opened, models, accept_changes)
        _check_contents(layout[1], opened)
        store.remove_unfinished()
        if stale:
            levels = ", ".join(f"{level:g}" for level in sorted(stale))
            _log.info(f"{store.where}: the data of the backward at noise {levels} have changed; they are measured again")
            opened.forget(task for task in opened.tasks() if opened.noise[task.noise_index] in stale)
        if new:
            _check_originals(experiment, opened, filled(json.loads(opened.attributes["identity"])))
            accepted = opened.attributes.get("accepted_changes")
            opened = opened.extend(*layout)
            if accepted is not None:
                opened.update(accepted_changes=accepted)
            _log.info(f"{store.where} is extended by {', '.join(new)}")
        opened.restore(*layout[:2])
        if json.loads(opened.attributes["models"]) != models:
            opened.update(models=json.dumps(models), missing_data=layout[3].get("missing_data", "{}"))
        if changes:
            before = json.loads(opened.attributes.get("accepted_changes", "[]"))
            opened.update(accepted_changes=json.dumps([*before, changes]))
    return opened


def trajectories_done(experiment: Any, store: Place | None) -> dict[Task, int]:
    """Number of trajectories of each task of an experiment that a store already holds. Changes nothing.

    Readings are not checked, so damaged ones count as done. ValueError if the store holds another experiment.
    """
    blocks = Blocks(experiment.chunk, experiment.items, experiment.noise)
    if store is None or store.is_empty():
        return dict.fromkeys(blocks.tasks(), 0)
    opened = Store.open(store)
    _, _, stale = _compared(experiment, opened, experiment.models(), True)
    held = opened.held_of(blocks, experiment.clones)
    return {task: 0 if blocks.noise[task.noise_index] in stale else count for task, count in held.items()}


def layout_of(experiment: Any, models: dict[str, str]) -> tuple[Any, Any, int, dict[str, Any]]:
    """Variables, coordinates, chunk and attributes of the store of an experiment."""
    source, _, backward, _ = experiment.parts
    attributes = {
        "spec": json.dumps(experiment.to_dict()),
        "identity": json.dumps(experiment.identity()),
        "spec_hash": experiment.hash,
        "seed": experiment.seed,
        "models": json.dumps(models),
        "versions": json.dumps(versions_used()),
        "random_version": random.VERSION,
    }
    description, skipped = checked_text("backward.describe", backward.describe()), source.skipped(experiment.items)
    attributes |= {"description": description} if description else {}
    attributes |= {"skipped": json.dumps(dict(skipped))} if skipped else {}
    coordinates = experiment.coordinates()  # first, since its error is the clearest
    missing = backward.missing(experiment)
    attributes |= {"missing_data": json.dumps(dict(missing))} if missing else {}
    return experiment.variables(), coordinates, experiment.chunk, attributes


def _compared(
    experiment: Any, opened: Store, models: dict[str, str], accept_changes: bool
) -> tuple[list[str], dict[str, str | None], Collection[float]]:
    """The additions of the experiment to its store, {name: stored value} of changed digests of user-defined code, stale levels.

    Noise levels are stale if the data that the backward reads for them have changed.

    ValueError for any other difference, and for changed code without `accept_changes`.
    """
    store, made = opened.where, opened.attributes.get("random_version", 1)
    if made != random.VERSION:
        raise ValueError(
            f"{store} was made with version {shown(made)} of the random numbers, and this version of uturn draws version "
            f"{random.VERSION}; choose another folder"
        )
    stored, mine = (filled(identity) for identity in (json.loads(opened.attributes["identity"]), experiment.identity()))
    new = added(stored, mine)
    known = json.loads(opened.attributes["models"])
    user_defined = {name for name, part in experiment.labelled() if is_own(part)}
    changed = {key for key in known.keys() | models.keys() if known.get(key, "") != models.get(key, "")}
    stale = experiment.parts.backward.stale(known["backward"], opened.noise) if "backward" in changed & known.keys() else None
    if stale is not None:
        changed.remove("backward")
    acceptable = sorted(key for key in changed if key.endswith(".code") or key in user_defined)
    before, now = ({key: prints[key] for key in changed.difference(acceptable) if key in prints} for prints in (known, models))
    different = differences(with_size_of(mine, stored) if new else stored, mine, "spec") + differences(before, now, "models")
    if different:
        empty = all(state == "missing" for state, _ in opened.states().values())
        hint = "; none of its tasks is done, so it can be deleted" if empty else ""
        what = " (models: digests of weights and data, which have changed)" if before != now else ""
        raise ValueError(f"{store} holds another experiment: {'; '.join(different[:4])}{what}; choose another folder{hint}")
    if acceptable and not accept_changes:
        changes = [
            f"the {'code' if key.endswith('.code') else 'fingerprint'} of {key.removesuffix('.code')} has changed since the "
            f"store was made ({shown(known.get(key))} in the store, {shown(models.get(key))} here)"
            for key in acceptable
        ]
        raise ValueError(
            f"{store}: {'; '.join(changes)}; choose another folder, bring the old code back, or resume anyway with "
            f"accept_changes=True (--accept-changes)"
        )
    return new, {key: known.get(key) for key in acceptable}, stale or ()


def _check_contents(coordinates: Coordinates, opened: Store) -> None:
    """ValueError if files of stored items have other contents than when they were measured."""
    known = None
    with suppress(ValueError):  # a damaged coordinate is written again
        known = opened.coordinate("file_digest")
    if known is None or "file_digest" not in coordinates:
        return
    digests, names = (coordinates[name][1] for name in ("file_digest", "file"))
    changed = [str(name) for name, digest, before in zip(names, digests, known, strict=False) if digest != before]
    if changed:
        raise ValueError(
            f"{opened.where}: the contents of {len(changed)} of its originals have changed since they were measured: "
            f"{', '.join(changed[:3])}{', ..' if len(changed) > 3 else ''}; bring them back, or choose another folder"
        )


def _check_originals(experiment: Any, opened: Store, stored: dict[str, Any]) -> None:
    """ValueError if the items of a stored run would have other originals in the larger run."""
    old, new, store = stored["items"], experiment.items, opened.where
    if new == old:
        return
    source, table = experiment.parts.source, filled(experiment.to_dict())["source"]
    before = source
    if "grammars" in table and not is_own(source):
        grammars = stored["source"]["grammars"]
        wanted, rest = (1, 0) if grammars == 1 else divmod(grammars * new, old)
        if table["grammars"] != wanted or rest:
            way_out = (
                f"grammars = {wanted}" if not rest else "items in a multiple of those in the store, and grammars in proportion"
            )
            raise ValueError(
                f"{store} cannot be extended to items = {new} with grammars = {table['grammars']}: the first {old} items would "
                f"be of other grammars; expected {way_out}"
            )
        before = build("source", {**table, "grammars": grammars})
    for name, values in source.coordinates(experiment.seed, new).items():
        known: Any = opened.coordinate(name)
        if not np.array_equal(known, np.asarray(values)[:old]):
            raise ValueError(f"{store} cannot be extended to items = {new}: {name} of the first {old} items would change")
    # All items of a user-defined source are compared. For built-in sources, whose items are independent, a sample suffices.
    items = np.arange(old) if is_own(source) else np.unique(np.linspace(0, old - 1, 16).astype(int))
    for some in np.array_split(items, -(-len(items) // 1024)):
        data = [_data_of(part, some, experiment.seed, count, store) for part, count in ((before, old), (source, new))]
        different = [item for item, a, b in zip(some, *data, strict=True) if not np.array_equal(a, b)]
        if different:
            raise ValueError(
                f"{store} cannot be extended to items = {new}: its source gives item {different[0]} another original than before"
                "; choose another folder"
            )


def _data_of(source: Any, items: np.ndarray, seed: int, num_items: int, store: str) -> list[Any]:
    """The originals of the items, one for each."""
    blocks = checked_blocks(source, source.blocks(items.copy(), seed, num_items), items)
    if not all(hasattr(block, "data") for block in blocks):
        raise ValueError(f"{store} cannot get more items: the blocks of {source!r} have no `data` to compare the originals by")
    return [original for block in blocks for original in block.data]


@lru_cache(maxsize=1)
def versions_used() -> dict[str, str]:
    """Versions of uturn and the libraries that results depend on."""
    versions = {}
    for name in ("uturn", "numpy", "numba", "torch", "diffusers", "zarr"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
