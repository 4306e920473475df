"""Checks of the data that parts exchange: blocks, reconstructions, readings, coordinates."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import expect, plain
from uturn.core.data import O, Originals, Reconstructions
from uturn.core.messages import shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.protocols import Backward, Corruption, Probe, Source, Spec
from uturn.core.variables import Axes, Axis, Coordinates, Variable


def checked_blocks(source: Source[O], blocks: Iterable[O], items: np.ndarray) -> list[O]:
    """The blocks of a source, read-only; ValueError unless they hold the requested items, each
    once and in order.
    """
    where = f"{name_of(source, 'source')}.blocks"
    checked: list[O] = []
    numbers: list[int] = []
    for block in blocks:
        kind = type(block).__name__
        expect(
            isinstance(block, Originals),
            where,
            kind,
            "blocks of a class that inherits from uturn.Originals",
        )
        shape, batch = np.shape(getattr(block, "data", block.items)), np.shape(block.items)
        expect(
            shape[:1] == batch,
            f"{where}: shape of `data`",
            shape,
            f"(batch, ..) with `items` {batch}",
        )
        checked.append(read_only(block))
        numbers += np.atleast_1d(block.items).tolist()
        if len(numbers) > len(items):
            break
    if numbers != items.tolist():
        raise ValueError(
            f"{where}: items = {shown(numbers)}: expected {shown(items.tolist())}, each once and in"
            " order"
        )
    return checked


def read_only(value: Any) -> Any:
    """A block or noisy data whose numpy arrays, also those in its tables and dataclasses, are
    read-only views.
    """
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    elif isinstance(value, dict):
        return {key: read_only(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        parts = map(read_only, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif not isinstance(value, type):
        members = {
            name: x
            for name, x in attributes(value).items()
            if isinstance(x, np.ndarray | dict) or is_dataclass(x)
        }
        value = copy(value) if members else value
        for name, member in members.items():
            object.__setattr__(value, name, read_only(member))  # works for frozen dataclasses, too
    return value


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object: those of its `__dict__` and of its slots."""
    state = object.__getstate__(value)
    # (attributes, slots), or attributes alone.
    tables = state if isinstance(state, tuple) else (state,)
    return {name: attribute for table in tables for name, attribute in (table or {}).items()}


def undoes(backward: Backward, corruption: Corruption) -> bool:
    """Whether a backward undoes the process of a corruption; parts that declare no process fit
    all.
    """
    return not backward.undoes or not corruption.process or corruption.process in backward.undoes


def checked_reconstructions(
    backward: Backward, reconstructions: Reconstructions, items: int, draws: int
) -> Reconstructions:
    """Reconstructions of a backward, `draws` for each item, read-only."""
    where = f"{name_of(backward, 'backward')}.reconstruct"
    arrays = (
        list(reconstructions.values())
        if isinstance(reconstructions, Mapping)
        else [reconstructions]
    )
    for array in arrays or [None]:
        shape = tuple(getattr(array, "shape", ()))
        expect(
            shape[:2] == (items, draws),
            where,
            shape or array,
            f"shape ({items}, {draws}, ..): items, draws, ..",
        )
    return read_only(reconstructions)


def checked_readings(
    label: str,
    readings: Any,
    declared: Mapping[str, Variable],
    sizes: Mapping[str, int],
    items: int,
) -> dict[str, np.ndarray]:
    """Readings of a probe, with the axis of draws split into trajectories and clones; ValueError
    unless they are as declared.

    `sizes`: lengths of all dims except noise and item.
    """
    where = f"{label}.read"
    checked: dict[str, np.ndarray] = {}
    clones = sizes.get("clone", 1)
    _check_twins(label, readings, declared)
    expect(
        set(readings) == set(declared),
        where,
        list(readings),
        f"{', '.join(declared)}, as `variables` declares",
    )
    for name, variable in declared.items():
        values = _array(f"{where}: {name}", readings[name])
        dims = tuple(dim for dim in variable.dims[1:] if dim != "clone")
        draws = sizes["trajectory"] * (clones if "clone" in variable.dims else 1)
        shape = (items, *(draws if dim == "trajectory" else sizes[dim] for dim in dims[1:]))
        expect(
            values.shape == shape,
            f"{where}: shape of {name}",
            values.shape,
            f"{shape}, its dims {dims}",
        )
        expect(
            values.dtype.kind in "biuf",
            f"{where}: dtype of {name}",
            str(values.dtype),
            "real numbers",
        )
        with np.errstate(over="ignore"):
            is_finite = not np.isinf(values.astype(np.float32)).any()
        expect(
            is_finite,
            f"{where}: {name}",
            np.inf,
            "numbers that are finite in float32, NaN where there is none",
        )
        checked[name] = values.reshape(items, *(sizes[dim] for dim in variable.dims[2:]))
    return checked


def _check_twins(label: str, readings: Collection[str], declared: Mapping[str, Variable]) -> None:
    """ValueError if a probe reads a symmetric variable without comparing the clones."""
    for twin, variable in declared.items():
        if variable.twin == "clones" and twin not in readings:
            raise ValueError(
                f"{label}: {variable.twin_of!r} is declared symmetric, so with several clones"
                f" {twin!r} is needed too; let the class inherit from uturn.probes.Comparison,"
                " which computes both"
            )


def checked_variables(
    label: str, variables: Any, own_dims: Mapping[str, Any]
) -> dict[str, Variable]:
    """The variables that a probe declares; ValueError for names, dims or types that are not
    allowed.
    """
    where, known = f"{label}.variables", ("trajectory", *own_dims)
    for name, variable in variables.items():
        _check_name(where, name)
        dims = variable.dims
        is_known = (
            dims[:2] == ("noise", "item")
            and set(dims[2:]) <= set(known)
            and len(set(dims)) == len(dims)
        )
        expected = f"('noise', 'item', ..), then some of {known}; `coordinates` adds dims"
        expect(is_known, f"{where}: dims of {name}", dims, expected)
        is_both, has_twin = (
            variable.symmetric and variable.ranked,
            variable.symmetric or variable.ranked,
        )
        expect(
            not is_both,
            f"{where}: {name}: symmetric and ranked",
            True,
            "a comparison of two data, or a reading of one",
        )
        expect(
            "trajectory" in dims or not has_twin,
            f"{where}: dims of {name}",
            dims,
            "'trajectory', for symmetric and ranked",
        )
        variable.check(f"{where}: {name}: ")
    return dict(variables)


def bound_probe(probe: Probe, source: Source, index: int) -> Probe:
    """A probe as it reads the data of a source (`Probe.bind`)."""
    bound: object = probe.bind(source)
    label = name_of(probe, f"probes[{index}]")
    if not isinstance(bound, Probe):
        raise ValueError(
            f"{label}.bind returns {shown(bound)}; expected the probe, or a copy of it with further"
            " attributes"
        )
    return bound


class Declared(NamedTuple):
    """Declaration of a probe: its name in messages, its variables, and the coordinates of its
    dims.
    """

    label: str
    variables: dict[str, Variable]
    dims: dict[str, np.ndarray]


def declared_by(probes: Sequence[Probe], source: Source, clones: int) -> list[Declared]:
    """Declarations of the probes of an experiment; ValueError if two of them have a variable of the
    same name.

    A dim of a built-in probe with the name of a variable gets its probe in front:
    "changes_distance" beside `network_layers`.
    """
    declarations: list[Declared] = []
    for i, probe in enumerate(probes):
        label = name_of(probe, f"probes[{i}]")
        dims = checked_coordinates(f"{label}.coordinates", probe.coordinates(source), None)
        variables = checked_variables(label, probe.variables(source), dims)
        named = {
            key: replace(variable, probe=probe.probe_name, model=probe.network_name)
            for key, variable in variables.items()
        }
        variables = with_twins(named, clones)
        twice = [
            key for key in variables if any(key in earlier.variables for earlier in declarations)
        ]
        expect(
            not twice,
            "probes: variables of two of them",
            twice,
            "different ones; put one probe in an experiment of its own",
        )
        declarations.append(Declared(label, variables, dims))
    measured = {key for declared in declarations for key in declared.variables}
    for k, (probe, (label, variables, dims)) in enumerate(zip(probes, declarations, strict=True)):
        if isinstance(probe, Spec) and not is_own(probe):
            kind = probe.type
            names: dict[Any, str] = {dim: f"{kind}_{dim}" for dim in dims if dim in measured}
            apart = {
                key: replace(
                    one,
                    dims=tuple(names.get(dim, dim) for dim in one.dims),
                    order=names.get(one.order, one.order),
                )
                for key, one in variables.items()
            }
            declarations[k] = Declared(
                label, apart, {names.get(dim, dim): values for dim, values in dims.items()}
            )
    return declarations


def joined(coordinates: Coordinates, label: str, more: Coordinates) -> Coordinates:
    """Coordinates merged with those of another part; ValueError for different values under the
    same name.
    """
    for name, new in more.items():
        known = coordinates.get(name, new)
        same = known.dims == new.dims and np.array_equal(known.values, new.values)
        expect(
            same,
            f"{label}: coordinate",
            name,
            "another name, since it exists already with other values",
        )
    return {**coordinates, **more}


def with_twins(variables: Mapping[str, Variable], clones: int) -> dict[str, Variable]:
    """The variables that an experiment stores: those declared, with the dim "clone" if there are
    several, and their twins.
    """
    together = {}
    for name, variable in variables.items():
        dims, several = variable.dims, "trajectory" in variable.dims and clones > 1
        at = dims.index("trajectory") + 1 if several else 0
        together[name] = replace(
            variable, dims=(*dims[:at], "clone", *dims[at:]) if several else dims
        )
        record = replace(
            variable,
            role="record",
            symmetric=False,
            ranked=False,
            start=None,
            chance=None,
            twin_of=name,
        )
        twins: dict[str, Variable] = {}
        if variable.symmetric and clones > 1:
            told = f"{variable.long_name}, compared with the other clones"
            twins[f"clone_{name}"] = replace(
                record, twin="clones", dims=together[name].dims, long_name=told
            )
        if variable.ranked:
            told = f"{variable.long_name}, of the original"
            twins[f"original_{name}"] = replace(record, twin="original", long_name=told)
        for twin in twins:
            expect(
                twin not in variables,
                "probes: variable",
                twin,
                f"another name, since it is that of the twin of {name!r}",
            )
        together |= twins
    return together


def checked_axes(corruption: Corruption, axes: Axes, count: int) -> dict[str, Axis]:
    """Further coordinates of the noise axis from a corruption; ValueError unless each has
    `count` values.
    """
    where = f"{name_of(corruption, 'corruption')}.axes"
    levels = checked_coordinates(where, {name: entry[0] for name, entry in axes.items()}, count)
    return {name: Axis(values, plain(dict(axes[name][1]))) for name, values in levels.items()}


def checked_coordinates(where: str, coordinates: Any, count: int | None) -> dict[str, np.ndarray]:
    """Coordinates {name: values along one axis}; ValueError unless they are numbers or text,
    `count` of them if given.
    """
    checked = {}
    for name, values in coordinates.items():
        _check_name(where, name)
        labels = checked[name] = _array(f"{where}: {name}", values)
        fits = labels.ndim == 1 and count in (None, len(labels))
        expect(
            fits,
            f"{where}: shape of {name}",
            labels.shape,
            "(length,)" if count is None else f"({count},)",
        )
        is_text = labels.dtype.kind == "U" or (
            labels.dtype.kind == "O" and all(isinstance(x, str) for x in labels)
        )
        expect(
            is_text or labels.dtype.kind in "biuf",
            f"{where}: dtype of {name}",
            str(labels.dtype),
            "numbers or text",
        )
    return checked


def _array(where: str, values: Any) -> np.ndarray:
    expect(
        not isinstance(values, np.ma.MaskedArray),
        where,
        "a masked array",
        "a plain array, with NaN where there is no value",
    )
    return np.asarray(values)


def _check_name(where: str, name: Any) -> None:
    taken = ("noise", "item", "trajectory", "clone", "tasks")
    allowed = isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*", name) and name not in taken
    expect(
        allowed, f"{where}: name", name, f"letters, digits and _, and none of {', '.join(taken)}"
    )
