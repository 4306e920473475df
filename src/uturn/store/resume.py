"""Opens the run of an experiment: creates, resumes or extends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import uturn
from uturn.core import random
from uturn.core.checks import expect
from uturn.core.contracts import checked_blocks, checked_reasons
from uturn.core.experiment import Experiment
from uturn.core.files import locked_folder
from uturn.core.messages import shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.protocols import Coordinates, FromFiles, Source, Variable
from uturn.core.registry import build
from uturn.store.blocks import Blocks, Task
from uturn.store.folders import is_empty, is_url
from uturn.store.run_file import RunFile
from uturn.store.run_folder import RunFolder

_log = logging.getLogger("uturn")
_MOST_SHOWN = 4  # differences in a message
_MOST_LEVELS_SHOWN = 6
_SAMPLE = 16  # originals that are compared before a run grows, if its items are independent
_ORIGINALS_AT_ONCE = 1024
_LIBRARIES = ("numpy", "numba", "torch", "diffusers")
"""Libraries on which results depend, whose versions are recorded."""


@dataclass(frozen=True)
class Layout:
    """What a run of an experiment stores."""

    variables: Mapping[str, Variable]
    coordinates: Coordinates


@dataclass(frozen=True)
class Difference:
    """A value in which a stored spec and the spec of an experiment differ."""

    path: tuple[str | int, ...]
    """Keys that lead to it in the spec."""
    stored: object
    mine: object

    def __str__(self) -> str:
        where = ".".join(map(str, ("spec", *self.path)))
        return f"{where} is {shown(self.stored)} in the store, {shown(self.mine)} here"


@dataclass(frozen=True)
class Additions:
    """What an experiment adds to a stored one."""

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{"items" or "trajectories": (stored, wanted)}, where more are wanted."""
    levels: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts or self.levels)

    def __str__(self) -> str:
        texts = [f"{key} {stored} -> {wanted}" for key, (stored, wanted) in self.counts.items()]
        if self.levels:
            levels = ", ".join(f"{level:g}" for level in self.levels[:_MOST_LEVELS_SHOWN])
            more = ", .." if len(self.levels) > _MOST_LEVELS_SHOWN else ""
            texts.append(f"noise {levels}{more}")
        return ", ".join(texts)


@dataclass(frozen=True)
class Comparison:
    """How an experiment differs from its stored run, when the run can be resumed."""

    additions: Additions
    changed_code: dict[str, str | None]
    """{name: stored digest} of code and fingerprints of users that have changed."""
    stale_levels: Collection[float]
    """Noise levels whose data have changed and are measured again."""


def open_store(
    experiment: Experiment, location: str | None, resume: bool, accept_changes: bool
) -> RunFolder:
    """The store of an experiment: a new one, or the existing one, extended if needed; in memory
    without a location.

    ValueError if the existing store holds another experiment, or if code or fingerprints changed
    without `accept_changes`.
    """
    models = experiment.models()
    layout = layout_of(experiment)
    if location is None:
        attributes = attributes_of(experiment, models)
        return RunFolder.in_memory(layout.variables, layout.coordinates, attributes)
    if is_empty(location):
        attributes = attributes_of(experiment, models)
        made = RunFolder.create(location, layout.variables, layout.coordinates, attributes)
        if made is not None:
            return made
    elif not resume:
        raise ValueError(
            f"{location} exists already; choose another folder, or resume it (resume=True)"
        )
    # One process at a time extends it.
    with nullcontext() if is_url(location) else locked_folder(Path(location).resolve().parent):
        return _resumed(experiment, RunFolder.open(location), layout, models, accept_changes)


def _resumed(
    experiment: Experiment,
    run: RunFolder,
    layout: Layout,
    models: dict[str, str],
    accept_changes: bool,
) -> RunFolder:
    """An existing run, extended if the experiment is larger."""
    compared = _compared(experiment, run, models, accept_changes)
    attributes: dict[str, Any] = {}
    if compared.additions or run.models != models:
        # They are collected only to be written, since a backward may draw for them.
        attributes = attributes_of(experiment, models)
    _check_contents(layout.coordinates, run)
    file = RunFile.made(
        layout.variables, layout.coordinates, attributes or run.attributes, run.file.key
    )
    run.check_alike(file)
    if compared.stale_levels:
        levels = ", ".join(f"{level:g}" for level in sorted(compared.stale_levels))
        _log.info(
            f"{run.location}: the data of the backward at noise {levels} have changed; they are"
            " measured again"
        )
        run.forget(
            task for task in run.tasks() if run.noise[task.noise_index] in compared.stale_levels
        )
    if compared.additions:
        _check_originals(experiment, run)
        if "accepted_changes" in run.attributes:
            accepted = {"accepted_changes": run.attributes["accepted_changes"]}
            file = file.with_attributes(accepted)
        run = run.grow(file)
        _log.info(f"{run.location} is extended by {compared.additions}")
    if run.models != models:
        run.update(models=models, missing_data=attributes.get("missing_data", {}))
    if compared.changed_code:
        before = run.attributes.get("accepted_changes", [])
        run.update(accepted_changes=[*before, compared.changed_code])
    return run


def trajectories_done(experiment: Experiment, location: str | None) -> dict[Task, int]:
    """Number of trajectories of each task of an experiment that a store already holds; damaged
    readings count as done.
    """
    blocks = Blocks(experiment.chunk, experiment.items, experiment.noise)
    if location is None or is_empty(location):
        return dict.fromkeys(blocks.tasks(), 0)
    run = RunFolder.open(location)
    stale = _compared(experiment, run, experiment.models(), accept_changes=True).stale_levels
    stored = {run.extent(task): count for task, count in run.recorded(run.tasks()).items()}
    done = {}
    for task in blocks.tasks():
        extent = blocks.extent(task)
        done[task] = 0 if extent.noise in stale else stored.get(extent, 0)
    return done


def layout_of(experiment: Experiment) -> Layout:
    """Variables and coordinates of the store of an experiment."""
    coordinates = experiment.coordinates()  # first, since its error is the clearest
    return Layout(experiment.variables(), coordinates)


def attributes_of(experiment: Experiment, models: dict[str, str]) -> dict[str, Any]:
    """Attributes of the store of an experiment, among them what its backward cannot give; some
    draw to find it.
    """
    parts = experiment.parts
    skipped = checked_reasons(
        f"{name_of(parts.source, 'source')}.skipped", parts.source.skipped(experiment.items)
    )
    missing = checked_reasons(
        f"{name_of(parts.backward, 'backward')}.missing", parts.backward.missing(experiment)
    )
    description = parts.backward.describe()
    attributes: dict[str, Any] = {
        "spec": experiment.to_dict(),
        "identity": experiment.identity(),
        "spec_hash": experiment.hash,
        "seed": experiment.seed,
        "models": models,
        "versions": versions_used(),
        "random_version": random.VERSION,
    }
    if description:
        attributes["description"] = description
    if skipped:
        attributes["skipped"] = skipped
    if missing:
        attributes["missing_data"] = missing
    return attributes


def _compared(
    experiment: Experiment, run: RunFolder, models: dict[str, str], accept_changes: bool
) -> Comparison:
    """The experiment beside its run; ValueError for any difference but an addition, and for
    changed code without `accept_changes`.
    """
    stored = run.identity
    mine = json.loads(json.dumps(experiment.identity()))
    known = run.models
    changed = {key for key in {**known, **models} if known.get(key, "") != models.get(key, "")}

    stale: Collection[float] | None = None
    backward = experiment.parts.backward
    if isinstance(backward, FromFiles) and "backward" in changed and "backward" in known:
        stale = backward.stale(known["backward"], run.noise)
    own = {str(slot) for slot, part in experiment.slots().items() if is_own(part)}
    acceptable = sorted(key for key in changed if key.endswith(".code") or key in own)

    additions = _additions(stored, mine)
    different = [
        str(difference)
        for difference in _differences(stored, mine)
        if not _is_growth(difference, additions)
    ]
    stored_version = run.attributes["random_version"]
    if stored_version != random.VERSION:
        different.append(
            f"version {stored_version} of the random numbers in the store, {random.VERSION} here"
        )
    for key in sorted(changed.difference(acceptable)):
        is_stale = key == "backward" and stale is not None
        if key in known and key in models and not is_stale:
            different.append(f"the weights or data of {key} have changed")
    if different:
        texts = "; ".join(different[:_MOST_SHOWN])
        hint = _hint(run, stored, mine)
        raise ValueError(
            f"{run.location} holds another experiment: {texts}; choose another folder{hint}"
        )
    if acceptable and not accept_changes:
        texts = "; ".join(_change(key, known, models) for key in acceptable)
        raise ValueError(
            f"{run.location}: {texts}; choose another folder, bring the old code back, or resume"
            " anyway with accept_changes=True (--accept-changes)"
        )
    return Comparison(additions, {key: known.get(key) for key in acceptable}, stale or ())


def _change(key: str, known: Mapping[str, str], models: Mapping[str, str]) -> str:
    """A sentence about changed code of a user."""
    part = key.removesuffix(".code")
    kind = "fingerprint" if part == key else "code"
    before = shown(known.get(key))
    now = shown(models.get(key))
    return (
        f"the {kind} of {part} has changed since the store was made ({before} in the store, {now}"
        " here)"
    )


def _hint(run: RunFolder, stored: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Ways out for a run that holds another experiment."""
    hint = ""
    if not any(run.recorded(run.tasks()).values()):
        hint = "; none of its tasks is done, so it can be deleted"
    for key in ("clones", "chunk"):
        if stored.get(key) != mine.get(key):
            hint += (
                "; a store grows by noise levels, items and trajectories, so set"
                f" {key} = {stored.get(key, 1)} to extend it"
            )
    return hint


def _additions(stored: Mapping[str, Any], mine: Mapping[str, Any]) -> Additions:
    """What a spec adds to a stored one; nothing if it has less of anything."""
    counts = {}
    for key in ("items", "trajectories"):
        if mine[key] < stored[key]:
            return Additions()
        if mine[key] > stored[key]:
            counts[key] = (stored[key], mine[key])
    old = stored["corruption"]["noise"]
    noise = mine["corruption"]["noise"]
    if not set(old) <= set(noise):
        return Additions()
    return Additions(counts, [level for level in noise if level not in old])


def _is_growth(difference: Difference, additions: Additions) -> bool:
    """Whether a difference is one of those in which a run may grow."""
    if not additions:
        return False
    path = difference.path
    if path in (("items",), ("trajectories",)) or path[:2] == ("corruption", "noise"):
        return True
    # Grammars grow with the items, whose originals are then compared.
    return path == ("source", "grammars") and "items" in additions.counts


class _Default:
    """Stands for an option that a spec leaves out."""

    def __repr__(self) -> str:
        return "its default"


_DEFAULT = _Default()


def _differences(
    stored: object, mine: object, path: tuple[str | int, ...] = ()
) -> Iterator[Difference]:
    """The values in which two specs differ."""
    if isinstance(stored, list) and isinstance(mine, list) and len(stored) == len(mine):
        stored = dict(enumerate(stored))
        mine = dict(enumerate(mine))
    if isinstance(stored, dict) and isinstance(mine, dict):
        for key in sorted({**stored, **mine}, key=str):
            yield from _differences(
                stored.get(key, _DEFAULT), mine.get(key, _DEFAULT), (*path, key)
            )
    elif stored != mine:
        yield Difference(path, stored, mine)


def _check_contents(coordinates: Coordinates, run: RunFolder) -> None:
    """ValueError if files of stored items have other contents than when they were measured."""
    known = run.coordinate("file_digest")
    if known is None or "file_digest" not in coordinates:
        return
    changed = []
    names = coordinates["file"].values
    digests = coordinates["file_digest"].values
    for name, digest, before in zip(names, digests, known, strict=False):
        if digest != before:
            changed.append(str(name))
    where = f"{run.location}: originals whose contents have changed since they were measured"
    expect(not changed, where, changed, "none; bring them back, or choose another folder")


def _check_originals(experiment: Experiment, run: RunFolder) -> None:
    """ValueError if the stored items would have other originals in the larger run."""
    old = run.num_items
    new = experiment.items
    if new == old:
        return
    source = experiment.parts.source
    options = experiment.to_dict()["source"]
    grammars = run.identity["source"].get("grammars", 1)
    refused = f"{run.location} cannot be extended to items = {new}: "
    before = source
    if not is_own(source):
        if grammars != options.get("grammars", 1):
            before = build("source", {**options, "grammars": grammars})
        if grammars != 1 or "grammars" in options:
            refused += (
                f"expected grammars in proportion to the items ({grammars} for {old}), since "
            )
    for name, values in source.coordinates(experiment.seed, new).items():
        known = run.coordinate(name)
        if known is None or not np.array_equal(known, np.asarray(values)[:old]):
            raise ValueError(f"{refused}{name} of the first {old} items would change")
    # All items of a user-defined source are compared. For built-in sources, whose items are
    # independent, a sample suffices.
    items = np.arange(old)
    if not is_own(source):
        items = np.unique(np.linspace(0, old - 1, _SAMPLE).astype(int))
    for part in np.array_split(items, -(-len(items) // _ORIGINALS_AT_ONCE)):
        originals_before = _originals(before, part, experiment.seed, old)
        originals_now = _originals(source, part, experiment.seed, new)
        for item, original, now in zip(part, originals_before, originals_now, strict=True):
            if not np.array_equal(original, now):
                raise ValueError(
                    f"{refused}its source gives item {item} another original than before; choose"
                    " another folder"
                )


def _originals(source: Source, items: np.ndarray, seed: int, num_items: int) -> list[np.ndarray]:
    """The data of each item."""
    blocks = checked_blocks(source, source.blocks(items.copy(), seed, num_items), items)
    originals: list[np.ndarray] = []
    for block in blocks:
        originals += list(block.data)
    return originals


@lru_cache(maxsize=1)
def versions_used() -> dict[str, str]:
    """Versions of uturn and the libraries that results depend on."""
    versions = {"uturn": uturn.__version__}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
