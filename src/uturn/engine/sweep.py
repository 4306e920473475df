"""Sweeps: the experiments of a grid of options, and their runs into one folder."""

from __future__ import annotations

import builtins
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.experiment import Experiment, checked_experiment
from uturn.core.inputs import plain
from uturn.engine.executors import Executor, Processes, ThisProcess
from uturn.engine.run import (
    Workers,
    begin,
    check_without_cluster,
    chosen_workers,
    measure,
    run,
)

if TYPE_CHECKING:
    import xarray as xr

_LONGEST = 50
"""Bytes of a value in a name."""
_LONGEST_NAME = 200
"""Bytes of a name; file systems take 255."""
_MOST = 10_000  # experiments of a sweep


def sweep(
    experiment: Experiment, values: Mapping[str, Sequence[Any]], zip: bool = False
) -> dict[str, Experiment]:
    """The experiments of a grid, by name: an experiment with all combinations of the values of some
    keys of its spec.

    `values`: {key: values}. A key is a path in the spec, with dots between its parts and the
    position in lists: "items", "source.multiplicity", "probes.0.type". Options that the spec leaves
    at their defaults can be set too. `zip`: combine the first values of all keys, the second ones,
    and so on, instead of all with all. The last key varies fastest. A name, such as
    "multiplicity=4,type=masking", holds the values and is valid as the name of a folder. It does
    not depend on the other values, so that a sweep can be enlarged.

    Examples
    --------
    >>> source = {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3}
    >>> corruption, probe = {"type": "epsilon", "noise": [0.0, 1.0]}, {"type": "tree_levels"}
    >>> spec = Experiment(items=4, source=source, corruption=corruption, backward={"type": "exact"}, probes=[probe])
    >>> list(sweep(spec, {"source.multiplicity": [2, 4], "corruption.type": ["masking", "epsilon"]}))
    ['multiplicity=2,type=masking', 'multiplicity=2,type=epsilon', 'multiplicity=4,type=masking',
    'multiplicity=4,type=epsilon']
    >>> list(sweep(spec, {"source.multiplicity": [2, 4], "items": [8, 16]}, zip=True))
    ['multiplicity=2,items=8', 'multiplicity=4,items=16']
    """
    checked_experiment(experiment)
    lists = _checked_lists(values)
    combinations = list(_combinations(lists, zip))
    number = len(combinations)
    expect(number <= _MOST, "experiments of the sweep", number, f"at most {_MOST}")
    labels = _labels(list(lists))
    experiments: dict[str, Experiment] = {}
    for combination in combinations:
        texts = [f"{labels[key]}={_text(value)}" for key, value in combination.items()]
        name = _short(",".join(texts), _LONGEST_NAME)
        expected = "different values; two have this name"
        expect(name not in experiments, "experiments of the sweep", name, expected)
        spec = deepcopy(experiment.to_dict())
        for key, value in combination.items():
            _put(spec, key, value)
        with _named(name):
            experiments[name] = Experiment.from_dict(spec)
    return experiments


def _checked_lists(values: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The values of each key as a list of plain data; ValueError for anything else."""
    expected = "lists of values by key, such as {'source.multiplicity': [4, 6]}"
    expect(isinstance(values, Mapping) and values, "values", values, expected)
    lists: dict[str, list[Any]] = {}
    for key, entries in values.items():
        is_list = isinstance(entries, list | tuple | range | np.ndarray) and len(entries)
        expect(is_list, "values", values, expected)
        lists[key] = plain(list(entries))
    return lists


def _combinations(lists: Mapping[str, list[Any]], zip: bool) -> Iterator[dict[str, Any]]:
    """All combinations of values, {key: value}, or with `zip` the first of all, the second, .."""
    rows: Iterable[tuple[Any, ...]]
    if zip:
        lengths = {key: len(entries) for key, entries in lists.items()}
        is_even = len(set(lengths.values())) == 1
        expect(is_even, "zip: numbers of values", lengths, "as many for each key")
        rows = builtins.zip(*lists.values(), strict=True)
    else:
        count = math.prod(len(entries) for entries in lists.values())
        expect(count <= _MOST, "experiments of the sweep", count, f"at most {_MOST}")
        rows = itertools.product(*lists.values())
    for row in rows:
        yield dict(builtins.zip(lists, row, strict=True))


def _labels(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole key if another one ends alike."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    numbers = Counter(ends.values())
    return {key: end if numbers[end] == 1 else key for key, end in ends.items()}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Context whose ValueErrors begin with the name of an experiment."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _put(spec: dict[str, Any], key: str, value: object) -> None:
    """Set a value of a spec, in place; ValueError if a table or list on the way to it does not
    exist.
    """
    place: Any = spec
    *path, last = key.split(".")
    try:
        for name in path:
            place = place[_index(place, name)]
        place[_index(place, last)] = value
    except (LookupError, TypeError, ValueError):
        raise ValueError(
            f"{key}: the spec has no such place; expected names in tables and positions in lists"
        ) from None


def _index(place: object, name: str) -> str | int:
    """A part of a key as an index of a table or of a list."""
    if isinstance(place, list):
        return int(name)
    return name


def _text(value: object) -> str:
    """A value in the name of an experiment."""
    text = value
    if not isinstance(text, str):
        text = json.dumps(value, default=str)
    return _short(re.sub(r"[^\w.+\[\]:@-]+", "_", text), _LONGEST)


def _short(text: str, most: int) -> str:
    """A text of at most `most` bytes; a longer one ends in its digest."""
    content = text.encode()
    if len(content) <= most:
        return text
    digest = hashlib.sha256(content).hexdigest()[:8]
    beginning = content[: most - len(digest) - 1].decode(errors="ignore")
    return f"{beginning}-{digest}"


def parsed_values(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Keys and their values, separated by commas: numbers, true, false, null, lists and tables as
    in JSON or TOML, or else texts.

    >>> parsed_values(["source.multiplicity=4,6,8", "corruption.type=masking,gaussian", "corruption.noise=[0.1,0.5],[0.2,0.4]"])
    {'source.multiplicity': [4, 6, 8], 'corruption.type': ['masking', 'gaussian'],
    'corruption.noise': [[0.1, 0.5], [0.2, 0.4]]}
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        key, _, listed = (part.strip() for part in text.partition("="))
        expected = "KEY=VALUE or KEY=VALUE,VALUE,.., such as source.multiplicity=4,6,8"
        expect(key and listed, "set", text, expected)
        expected = f"{key} once; give all of its values at once, {key}=A,B"
        expect(key not in values, "set", text, expected)
        entries = parsed_value(f"[{listed}]")
        if not isinstance(entries, list):
            parts = re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', listed)  # at commas outside of quotes
            entries = [parsed_value(part.strip()) for part in parts]
        values[key] = entries
    return values


def parsed_value(text: str) -> Any:  # noqa: ANN401 - of any type of JSON
    """A value of JSON or TOML, or else the text itself."""
    with suppress(ValueError):
        return json.loads(text)
    # A date of TOML is a text here, such as the name of a folder.
    with suppress(ValueError, TypeError):
        return json.loads(json.dumps(tomllib.loads(f"value = {text}")["value"]))
    return text


def run_all(
    experiments: Mapping[str, Experiment],
    folder: str | Path,
    *,
    resume: bool = True,
    workers: Workers | None = None,
    progress: bool = False,
    shard: tuple[int, int] = (1, 1),
    accept_changes: bool = False,
    cluster: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
) -> dict[str, xr.Dataset]:
    """Run experiments into the stores `folder/name`, {name: dataset of the run}; the other
    arguments are those of `run`.

    Several processes share the tasks of all experiments; on a cluster the experiments are run one
    after the other. ValueError before anything is measured, if the noise levels or coordinates of
    an experiment are wrong; and for the reasons of `run`.
    """
    for name, experiment in experiments.items():
        with _named(name):
            experiment.coordinates()
    stores = {name: f"{str(folder).rstrip('/')}/{name}" for name in experiments}
    if cluster:
        datasets = {}
        for name, experiment in experiments.items():
            datasets[name] = run(
                experiment,
                stores[name],
                resume,
                workers=workers,
                cluster=cluster,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                shard=shard,
                progress=progress,
                accept_changes=accept_changes,
            )
        return datasets
    check_without_cluster(cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)
    number = chosen_workers("auto" if workers is None else workers, *experiments.values())
    executor: Executor = ThisProcess()
    if number > 1:
        executor = Processes(number)
    runs = {
        name: begin(experiment, stores[name], resume, accept_changes, shard, executor)
        for name, experiment in experiments.items()
    }
    measure(list(runs.values()), executor, progress, str(folder))
    return {name: begun.end() for name, begun in runs.items()}
