"""A run: `run.json` says what is measured, and one file for each task has its readings.

    RUN/run.json
    RUN/tasks/noise_0.4-items_0_15-trajectories_2.safetensors

A task is done if its file exists and is whole. A file is written under another name and then
renamed, so a process that is killed leaves no part of it under its own name. A run grows by another
`run.json`, and then by the files of its new tasks. Files of fewer items or trajectories are ignored,
and removed at the end of a run.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.errors import StoreError
from uturn.core.files import check_plain, whole_folder
from uturn.core.messages import one_line
from uturn.core.protocols import Coordinates, Variable
from uturn.core.registry import READINGS
from uturn.store import folders, run_file
from uturn.store.blocks import Blocks, Task
from uturn.store.folders import (
    AT_ONCE,
    Folder,
    LocalFolder,
    MemoryFolder,
    check_no_file,
    checked_location,
    each,
    folder_at,
    is_empty,
    is_url,
)
from uturn.store.limits import (
    MOST_BYTES_BESIDE_READINGS,
    MOST_BYTES_OF_RUN,
    MOST_CHARACTERS_OF_WARNING,
    MOST_WARNINGS,
)
from uturn.store.run_file import RunFile
from uturn.store.task_files import About, TaskFile, narrowed

TASKS = "tasks/"
_MOST_KEPT = 2**24
"""Readings of the largest run whose tasks are read only once."""
_TRAJECTORIES = "-trajectories_"
_SUFFIX = ".safetensors"


class State(StrEnum):
    """What a run holds of a task."""

    done = "done"
    part = "part"
    """Trajectories were added to the run since the task was measured."""
    missing = "missing"
    damaged = "damaged"
    """The file is not whole, or belongs to another task."""


@dataclass(frozen=True)
class Progress:
    """The state of a task, and how many of its trajectories are done."""

    state: State
    trajectories: int = 0


@dataclass(frozen=True)
class _Kept:
    """Readings of the first trajectories of a task."""

    trajectories: int
    readings: dict[str, np.ndarray]


class RunFolder(Blocks):
    """The run in a folder: created once, filled task by task."""

    def __init__(self, folder: Folder, file: RunFile) -> None:
        super().__init__(file.chunk, file.items, file.noise)
        self.folder = folder
        self.location = folder.location
        self.file = file
        self._kept: dict[Task, _Kept] = {}
        """Tasks of a small run that this object has read or written."""
        self._pool: ThreadPoolExecutor | None = None  # for writing in the background
        self._pending: deque[Future[None]] = deque()

    # -- making and opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        location: str | Path | Folder,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        attributes: Mapping[str, Any],
    ) -> RunFolder | None:
        """Make a run without readings; None if another process has made another one meanwhile."""
        folder = location
        if isinstance(folder, str | Path):
            folder = folder_at(checked_location("store", folder))
        file = RunFile.made(variables, coordinates, attributes)
        is_ours = folder.create(run_file.NAME, file.content())
        return cls(folder, file) if is_ours else None

    @classmethod
    def in_memory(
        cls,
        variables: Mapping[str, Variable],
        coordinates: Coordinates,
        attributes: Mapping[str, Any],
    ) -> RunFolder:
        """A run without readings in memory."""
        file = RunFile.made(variables, coordinates, attributes)
        folder = MemoryFolder()
        folder.write(run_file.NAME, file.content())
        return cls(folder, file)

    @classmethod
    def open(cls, location: str | Path) -> RunFolder:
        """The run at a path or URL; ValueError if there is none, or if `run.json` is damaged."""
        location = checked_location("store", location)
        if not is_url(location):
            check_no_file("store", location)
        with _readable(location):
            if is_url(location) or not is_empty(location):
                if not is_url(location):
                    check_plain(os.path.realpath(location))
                folder = folder_at(location)
                return cls(folder, _file_in(folder))
        raise ValueError(f"no store at {location}; `uturn run SPEC --store {location}` makes one")

    def grow(self, file: RunFile) -> RunFolder:
        """The folder of a larger run, which has all levels, items and trajectories of this one."""
        self._check_current()
        self.folder.write(run_file.NAME, file.content())
        return RunFolder(self.folder, file)

    def check_alike(self, file: RunFile) -> None:
        """ValueError unless a file has the variables and coordinates of this run."""
        mine = self.file.layout()
        other = file.layout()
        different = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
        where = f"{self.location} was made by another version of uturn: what differs"
        expected = "the variables and coordinates of this one; choose another folder"
        expect(not different, where, different, expected)

    @property
    def attributes(self) -> dict[str, Any]:
        """Plain data about the run, such as `spec` and `models`."""
        return self.file.attributes

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of the spec that determine the readings."""
        return self.file.identity

    @property
    def models(self) -> dict[str, str]:
        """Fingerprints of weights and data, and digests of the code of users."""
        models: dict[str, str] = self.file.attributes["models"]
        return models

    @property
    def trajectories(self) -> int:
        return self.file.trajectories

    @property
    def warnings(self) -> list[str]:
        """What seems wrong with the run, as sentences of a readable length."""
        return _readable_sentences(self.attributes.get("warnings", []))

    def coordinate(self, name: str) -> np.ndarray | None:
        """Labels of a coordinate; None if there is no coordinate of this name."""
        coordinate = self.file.coordinates.get(name)
        return None if coordinate is None else coordinate.labels

    @property
    def is_made_elsewhere(self) -> bool:
        """Whether it holds readings that `uturn.readings` stored."""
        return self.identity.get("backward") == {"type": READINGS}

    def update(self, **attributes: Any) -> None:
        """Write attributes; StoreError if another process has extended the run meanwhile."""
        self.file = self._check_current().with_attributes(attributes)
        self.folder.write(run_file.NAME, self.file.content())

    def _check_current(self) -> RunFile:
        """`run.json`, in which another process may have changed attributes, but not the run."""
        file = _file_in(self.folder)
        if file.identity != self.identity:
            raise StoreError(
                f"{self.location}: another process has extended the store in the meantime; run it"
                " again to resume"
            )
        return file

    # -- tasks -------------------------------------------------------------------------------------

    def file_of(self, task: Task, trajectories: int | None = None) -> str:
        """Name of the file of a task, by default with all trajectories."""
        count = self.trajectories if trajectories is None else trajectories
        return f"{TASKS}{self._stem(task)}{_TRAJECTORIES}{count}{_SUFFIX}"

    def _stem(self, task: Task) -> str:
        extent = self.extent(task)
        return f"noise_{extent.noise!r}-items_{extent.first_item}_{extent.last_item}"

    def recorded(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories in the files of tasks, by their names; damage is not noticed."""
        counts: Counter[str] = Counter()
        for name in self.folder.names(TASKS):
            stem, _, count = name.removesuffix(_SUFFIX).rpartition(_TRAJECTORIES)
            is_count = count.isdecimal() and len(count) < 10
            if is_count and int(count) <= self.trajectories:
                counts[stem] = max(counts[stem], int(count))
        return {task: counts[f"{TASKS}{self._stem(task)}"] for task in tasks}

    def is_done(self, task: Task) -> bool:
        """Whether a task has its file."""
        return self.folder.has(self.file_of(task))

    def states(
        self, tasks: Iterable[Task] | None = None, *, look: bool = True
    ) -> dict[Task, Progress]:
        """What the run holds of each task, by default of all. `look`: whether the files are read,
        which finds damaged ones.
        """
        counts = self.recorded(self.tasks() if tasks is None else tasks)

        def progress(task: Task) -> Progress:
            count = counts[task]
            if count == 0:
                return Progress(State.missing)
            if look and self.read(task, count) is None:
                return Progress(State.damaged)
            return Progress(State.done if count == self.trajectories else State.part, count)

        return dict(zip(counts, each(self.location, progress, counts), strict=True))

    def done(self, tasks: Iterable[Task]) -> dict[Task, int]:
        """Number of trajectories done of each task; warns of damaged files, and removes them."""
        states = self.states(tasks)
        damaged = [task for task, progress in states.items() if progress.state == State.damaged]
        for task in damaged:
            warnings.warn(
                f"{self.location}: the file of {self.words(task)} is damaged: it cannot be read, or"
                " holds the values of another noise level or other items; it is computed again",
                stacklevel=2,
            )
        self.forget(damaged)
        return {task: progress.trajectories for task, progress in states.items()}

    def forget(self, tasks: Iterable[Task]) -> None:
        """Remove the files of tasks."""
        for task, count in self.recorded(tasks).items():
            self._kept.pop(task, None)
            if count:
                self.folder.remove(self.file_of(task, count))

    def read(self, task: Task, trajectories: int) -> dict[str, np.ndarray] | None:
        """Readings of a task with so many trajectories, {variable: float32 (items, ..)}; None if
        they are damaged.
        """
        kept = self._kept.get(task)
        if kept is not None and kept.trajectories == trajectories:
            return kept.readings
        most = 4 * self.file.numbers_of_task + MOST_BYTES_BESIDE_READINGS
        try:
            content = self.folder.read(self.file_of(task, trajectories), most)
        except StoreError:  # the storage failed; the readings may be intact
            raise
        except ValueError:  # more bytes than a task has
            return None
        file = None if content is None else TaskFile.parsed(content)
        if file is None or file.about != self._about(task, trajectories):
            return None
        readings = self._checked_readings(file.readings, len(self.items(task)), trajectories)
        if readings is not None:
            self._keep(task, _Kept(trajectories, readings))
        return readings

    def _keep(self, task: Task, kept: _Kept) -> None:
        if self.file.numbers <= _MOST_KEPT:
            self._kept[task] = kept

    def _checked_readings(
        self, readings: Mapping[str, np.ndarray], items: int, trajectories: int
    ) -> dict[str, np.ndarray] | None:
        """Readings of all variables as float32; None for other variables, shapes or types."""
        if set(readings) != set(self.file.variables):
            return None
        checked = {}
        for name in self.file.variables:
            values = readings[name]
            if values.shape != self.file.shape_of(name, items, trajectories):
                return None
            if values.dtype not in (np.float32, np.uint8):
                return None
            checked[name] = values.astype(np.float32, copy=False)
        return checked

    def write(self, task: Task, readings: Mapping[str, np.ndarray]) -> None:
        """Store the readings of a task, {variable: array (items, ..)}."""
        arrays = {name: narrowed(readings[name]) for name in self.file.variables}
        file = TaskFile(self._about(task, self.trajectories), arrays)
        as_read = {name: values.astype(np.float32, copy=False) for name, values in arrays.items()}
        self._keep(task, _Kept(self.trajectories, as_read))
        if self._pool is None:
            self.folder.write(self.file_of(task), file.content())
            return
        self._pending.append(
            self._pool.submit(self.folder.write, self.file_of(task), file.content())
        )
        if len(self._pending) > AT_ONCE:
            self._pending.popleft().result()

    def _about(self, task: Task, trajectories: int) -> About:
        extent = self.extent(task)
        return About(self.file.key, extent.noise, extent.first_item, extent.last_item, trajectories)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context in which `write` may store readings in the background, at a URL. Its end waits
        for them, and removes files that are no longer needed.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            if is_url(self.location):
                self._pool = pool
            try:
                yield
                while self._pending:
                    self._pending.popleft().result()
            except BaseException:
                self.folder.patience = folders.INTERRUPTED_PATIENCE
                raise
            finally:
                self._pool = None
        self._remove_superseded()
        self.folder.clean()

    def _remove_superseded(self) -> None:
        """Remove files of tasks that have another file with more items or trajectories."""
        names = set(self.folder.names(TASKS))
        final = names.intersection(self.file_of(task) for task in self.tasks())
        starts = {_start_of(name) for name in final}
        for name in names - final:
            if _start_of(name) in starts:
                self.folder.remove(name)


def runs_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The runs in a folder whose names fit a pattern, in alphabetical order; links are left out."""
    return [
        path
        for path in sorted(folder.glob(pattern))
        if (path / run_file.NAME).is_file() and not path.is_symlink()
    ]


def write_run(location: str, run: RunFolder) -> None:
    """Write a run that is in memory to a location, whose content it replaces at the end."""
    contents = {name: run.folder.read(name) or b"" for name in run.folder.names()}
    if is_url(location):
        folders.replace(location, contents)
        return
    # A run behind a link stays where it is.
    with whole_folder(os.path.realpath(location)) as path:
        folder = LocalFolder(path)
        for name, content in contents.items():
            folder.write(name, content)


def fill(run: RunFolder, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all tasks of a run from the readings of all, {variable: array (noise, items, ..)}."""
    for task in run.tasks():
        items = run.items(task)
        run.write(task, {name: values[task.noise_index, items] for name, values in arrays.items()})


def warnings_of(attributes: Mapping[str, Any]) -> list[str]:
    """The sentences in the attribute `warnings` of a dataset, a JSON list, cut to a readable
    length; empty if it is damaged.
    """
    try:
        return _readable_sentences(json.loads(str(attributes.get("warnings", "[]"))))
    except (ValueError, RecursionError):
        return []


def _readable_sentences(sentences: object) -> list[str]:
    """The texts in a list, cut to a readable length; none if it is not a list."""
    if not isinstance(sentences, list):
        return []
    longest = MOST_CHARACTERS_OF_WARNING
    texts = [sentence for sentence in sentences if isinstance(sentence, str)][:MOST_WARNINGS]
    return [text if len(text) <= longest else f"{text[:longest]} .." for text in texts]


def _start_of(name: str) -> str:
    """Noise level and first item in the name of a file."""
    stem = name.rpartition(_TRAJECTORIES)[0]
    return stem.rpartition("_")[0]


class _OlderFormat(ValueError):
    """A run has a format that this version does not read."""


def _file_in(folder: Folder) -> RunFile:
    content = folder.read(run_file.NAME, MOST_BYTES_OF_RUN)
    if content is not None:
        return RunFile.parsed(content)
    if folder.has(folders.DATASET_ROOT):
        raise _OlderFormat(
            f"{folder.location} is a folder of zarr, as uturn 0.4 and earlier wrote runs; measure again"
            " in another folder, or read it with uturn 0.4"
        )
    raise ValueError(f"it has no {run_file.NAME}")


@contextmanager
def _readable(location: str) -> Iterator[None]:
    """Context that turns all errors of damaged files into a ValueError of one line."""
    try:
        yield
    except (StoreError, _OlderFormat):
        raise
    except Exception as error:
        reason = one_line(error, most=300)
        if isinstance(error, KeyError):
            reason = f"it has no {error}"
        raise ValueError(
            f"{location} is not a readable store: {reason}; copy it again, or choose another folder"
        ) from None
