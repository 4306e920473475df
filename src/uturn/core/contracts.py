"""Checks of the data that parts exchange: blocks, reconstructions, readings, coordinates."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import one_line, plain, shown
from uturn.core.own_parts import SLIPS, attributes, completed, is_own, misfits_named, name_of
from uturn.core.protocols import Coordinates, Originals, Variable
from uturn.core.reading import Instructions


def checked_blocks(source: Any, blocks: Any, items: np.ndarray) -> list[Any]:
    """The blocks of a source, read-only; ValueError unless they hold the requested items, each once and in order."""
    where = f"{name_of(source, 'source')}.blocks"
    if not isinstance(blocks, Iterable):
        raise ValueError(f"{where} gave a {type(blocks).__name__}; expected an iterator over blocks (yield them)")
    checked: list[Any] = []
    numbers: list[int] = []
    for block in blocks:
        if not hasattr(block, "items") or isinstance(block, Mapping):
            raise ValueError(f"{where} gave a {type(block).__name__} without 'items'; expected blocks with `items` (batch,)")
        data: Any = getattr(block, "data", None)
        shapes = np.shape(data), np.shape(block.items)
        if data is not None and shapes[0][:1] != shapes[1]:
            raise ValueError(f"{where}: `data` of a block has shape {shapes[0]}, its `items` {shapes[1]}; expected (batch, ..)")
        checked.append(completed(read_only(block), Originals))
        numbers += np.atleast_1d(block.items).tolist()
        if len(numbers) > len(items):
            break
    if numbers != items.tolist():
        got, expected = (", ".join(map(str, some[:6])) + (", .." if len(some) > 6 else "") for some in (numbers, items))
        raise ValueError(f"{where} gave the items [{got}]; expected [{expected}], each once and in order")
    return checked


def read_only(value: Any) -> Any:
    """A block or noisy data whose numpy arrays are read-only views, so that no part can change the data of another.

    The arrays are attributes of the object, or entries of tables and dataclasses in its attributes. The source's arrays stay
    writable.
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
        members = {name: x for name, x in attributes(value).items() if isinstance(x, np.ndarray | dict) or is_dataclass(x)}
        value = copy(value) if members else value
        for name, member in members.items():
            object.__setattr__(value, name, read_only(member))  # works for frozen dataclasses, too
    return value


def undoes(backward: Any, corruption: Any) -> bool:
    """Whether a backward undoes the process of a corruption; parts that declare no process fit all."""
    return not backward.undoes or not corruption.process or corruption.process in backward.undoes


def checked_reconstructions(backward: Any, reconstructions: Any, items: int, draws: int) -> Any:
    """Reconstructions of a backward, `draws` for each item, read-only."""
    where = f"{name_of(backward, 'backward')}.reconstruct"
    arrays = list(reconstructions.values()) if isinstance(reconstructions, Mapping) else [reconstructions]
    for array in arrays or [None]:
        shape = getattr(array, "shape", None)
        if shape is None or tuple(shape[:2]) != (items, draws):
            what = shown(array) if shape is None else f"of shape {tuple(shape)}"
            raise ValueError(f"{where} gave reconstructions {what}; expected ({items}, {draws}, ..): items, draws, ..")
    return read_only(reconstructions)


def check_first_clones(backward: Any, several: Mapping[Any, Any], alone: Mapping[Any, Any], clones: int) -> None:
    """ValueError if over 5 % of the values of clone 0, `several`, differ from the result with fewer clones, `alone`."""
    for name, values in several.items():
        same = np.isclose(values, alone[name], rtol=1e-3, atol=1e-4, equal_nan=True)
        if values.size and same.mean() < 0.95:
            what = f"{name} differs" if isinstance(name, str) else "its reconstruction differs"
            raise ValueError(
                f"{name_of(backward, 'backward')}.reconstruct: clone 0 of {clones} is not the reconstruction with fewer clones "
                f"({what}); draw each clone from a stream of its own, streams.keys(purpose, clones)"
            )


def checked_readings(
    label: str, readings: Any, declared: Mapping[str, Variable], sizes: Mapping[str, int], items: int
) -> dict[str, np.ndarray]:
    """Readings of a probe, which must be numbers with the declared names and shapes.

    The axis of draws is split into trajectories and, with several, clones. `sizes`: lengths of all dims except noise and item.
    """
    where = f"{label}.read"
    if not isinstance(readings, Mapping):
        raise ValueError(f"{where} gave a {type(readings).__name__}; expected a dict of arrays, {{variable: array (items, ..)}}")
    missing, extra = [n for n in declared if n not in readings], [n for n in readings if n not in declared]
    if missing or extra:
        what = f"did not give {missing[0]!r}" if missing else f"gave {extra[0]!r}"
        raise ValueError(f"{where} {what}; `variables` declares {', '.join(declared)}")
    checked = {}
    clones = sizes.get("clone", 1)
    for name, variable in declared.items():
        values = _array(f"{where}: {name}", readings[name])
        dims = tuple(dim for dim in variable.dims[1:] if dim != "clone")
        draws = sizes["trajectory"] * (clones if "clone" in variable.dims else 1)
        expected = (items, *(draws if dim == "trajectory" else sizes[dim] for dim in dims[1:]))
        if values.shape != expected:
            raise ValueError(f"{where}: {name} has shape {values.shape}; expected {expected}, its dims {dims}")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{where}: {name} has dtype {values.dtype}; expected real numbers")
        with np.errstate(over="ignore"):
            if np.isinf(values.astype(np.float32)).any():
                raise ValueError(f"{where}: {name} is infinite in float32; expected finite numbers, NaN where there is none")
        checked[name] = values.reshape(items, *(sizes[dim] for dim in variable.dims[2:]))
    return checked


def checked_variables(label: str, variables: Any, own_dims: Mapping[str, Any]) -> dict[str, Variable]:
    """The variables that a probe declares; ValueError for names, dims or types that are not allowed."""
    where = f"{label}.variables"
    if not isinstance(variables, Mapping) or not variables:
        raise ValueError(f"{where} gave {shown(variables)}; expected a dict {{name: Variable}} with at least one variable")
    for name, variable in variables.items():
        _check_name(where, name)
        if not isinstance(variable, Variable):
            kind = type(variable).__name__
            raise ValueError(f"{where}: {name} is a {kind}; expected a uturn.protocols.Variable(dims, long_name)")
        dims, known = variable.dims, ("trajectory", *own_dims)
        is_known = isinstance(dims, tuple) and dims[:2] == ("noise", "item") and all(dim in known for dim in dims[2:])
        if not is_known or len(set(dims)) < len(dims):
            raise ValueError(
                f"{where}: {name} has dims {shown(dims)}; expected ('noise', 'item', ..), then some of {known}: other dims need "
                f"values in `coordinates`"
            )
        checked_text(f"{where}: long_name of {name}", variable.long_name)
        try:
            Instructions.model_validate(variable.instructions()).check(dims[2:])
            if variable.symmetric and variable.ranked:
                raise ValueError("symmetric and ranked = True: expected a comparison of two data, or a reading of one")
            for key in ("symmetric", "ranked"):
                if getattr(variable, key) and "trajectory" not in dims:
                    raise ValueError(f"{key} = True needs the dim 'trajectory'")
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {one_line(error)}") from None
    return dict(variables)


class Declared(NamedTuple):
    """Declaration of a probe: its name in messages, its variables, and the coordinates of its dims."""

    label: str
    variables: dict[str, Variable]
    dims: dict[str, np.ndarray]


def declared_by(probes: Sequence[Any], source: Any, clones: int) -> list[Declared]:
    """Declarations of the probes of an experiment; ValueError if two of them have a variable of the same name.

    If a dim of a built-in probe has the name of a variable, as "distance" of `changes` beside `network_layers`, it is prefixed
    with its probe: "changes_distance". Otherwise it keeps its name.
    """
    declarations: list[Declared] = []
    for i, probe in enumerate(probes):
        label = name_of(probe, f"probes[{i}]")
        with misfits_named(f"probes[{i}] ({type(probe).__name__})", probe, (source,), SLIPS):
            dims = checked_coordinates(f"{label}.coordinates", probe.coordinates(source), None)
            variables = checked_variables(label, probe.variables(source), dims)
        name = str(getattr(probe, "name", None) or (type(probe).__name__ if is_own(probe) else probe.type))
        model = str(getattr(probe, "classifier", None) or getattr(probe, "model", ""))
        variables = {key: replace(variable, probe=name, model=model) for key, variable in variables.items()}
        variables = with_twins(variables, clones)
        for key in variables:
            if any(key in earlier.variables for earlier in declarations):
                raise ValueError(f"probes: two of them measure {key!r}; drop one, or put it in an experiment of its own")
        declarations.append(Declared(label, variables, dims))
    measured = {key for declared in declarations for key in declared.variables}
    types = [getattr(probe, "type", None) for probe in probes]
    return [_named_apart(declared, kind, measured) for declared, kind in zip(declarations, types, strict=True)]


def _named_apart(declared: Declared, kind: str | None, measured: Collection[str]) -> Declared:
    """A declaration whose dims are renamed if they have names of variables and the probe has a type."""
    names: dict[str | None, str] = {dim: f"{kind}_{dim}" for dim in declared.dims if kind and dim in measured}
    variables = {
        name: replace(
            variable,
            dims=tuple(names.get(dim, dim) for dim in variable.dims),
            order=names.get(variable.order, variable.order),
        )
        for name, variable in declared.variables.items()
    }
    return Declared(declared.label, variables, {names.get(dim, dim): values for dim, values in declared.dims.items()})


def joined(coordinates: Coordinates, label: str, more: Coordinates) -> Coordinates:
    """Coordinates merged with those of another part; ValueError for different values under the same name."""
    for name, (dims, values, _) in more.items():
        if name in coordinates and not (coordinates[name][0] == dims and np.array_equal(coordinates[name][1], values)):
            raise ValueError(f"{label}: the coordinate {name!r} exists already with other values; choose another name")
    return {**coordinates, **more}


def with_twins(variables: Mapping[str, Variable], clones: int) -> dict[str, Variable]:
    """The variables that an experiment stores: those declared, and their twins.

    Ranked ones have `original_<name>`. With several clones, "clone" follows the dim "trajectory", and symmetric ones have
    `clone_<name>`.
    """
    together = {}
    for name, variable in variables.items():
        dims = variable.dims
        if "trajectory" in dims and clones > 1:
            at = dims.index("trajectory") + 1
            variable = replace(variable, dims=(*dims[:at], "clone", *dims[at:]))
        together[name] = variable
        twins = {}
        if variable.symmetric and clones > 1:
            twins[f"clone_{name}"] = variable.dims, "compared with the other clones"
        if variable.ranked:
            twins[f"original_{name}"] = dims, "of the original"
        for twin, (of, what) in twins.items():
            if twin in variables:
                raise ValueError(f"probes: {twin} is the name of the twin of {name!r}; choose another name")
            together[twin] = replace(
                variable,
                dims=of,
                long_name=f"{variable.long_name}, {what}",
                role="record",
                symmetric=False,
                ranked=False,
                start=None,
                chance=None,
            )
    return together


def checked_axes(corruption: Any, axes: Any, count: int) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Further coordinates of the noise axis from a corruption; ValueError unless each has `count` values."""
    where = f"{name_of(corruption, 'corruption')}.axes"
    if not isinstance(axes, Mapping):
        raise ValueError(f"{where} gave {shown(axes)}; expected a dict {{name: (values, attributes)}}, perhaps empty")
    for name, entry in axes.items():
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)):
            raise ValueError(
                f"{where}: {name} is {shown(entry)}; expected (values, attributes), such as (levels, {{'units': 's'}})"
            )
        try:
            json.dumps(plain(dict(entry[1])))
        except (TypeError, ValueError):
            raise ValueError(f"{where}: the attributes of {name} are {shown(entry[1])}; expected plain data") from None
    levels = checked_coordinates(where, {name: entry[0] for name, entry in axes.items()}, count)
    return {name: (values, plain(dict(axes[name][1]))) for name, values in levels.items()}


def checked_text(where: str, value: Any) -> str:
    """A fingerprint or description, which must be a string."""
    if not isinstance(value, str):
        raise ValueError(f"{where} gave {shown(value)}; expected a string")
    return value


def checked_coordinates(where: str, coordinates: Any, count: int | None) -> dict[str, np.ndarray]:
    """Coordinates {name: values along one axis}; ValueError unless they are numbers or text, `count` of them if given."""
    if not isinstance(coordinates, Mapping):
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict of names and values, perhaps empty")
    checked = {}
    for name, values in coordinates.items():
        _check_name(where, name)
        labels = _array(f"{where}: {name}", values)
        if labels.ndim != 1 or (count is not None and len(labels) != count):
            expected = "(length,)" if count is None else (count,)
            raise ValueError(f"{where}: {name} has shape {labels.shape}; expected {expected}")
        if labels.dtype.kind not in "biufU" and not (labels.dtype.kind == "O" and all(isinstance(x, str) for x in labels)):
            raise ValueError(f"{where}: {name} has dtype {labels.dtype}; expected numbers or text")
        checked[name] = labels
    return checked


def _array(where: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{where} is a masked array; expected a plain one, with NaN where there is no value")
    try:
        return np.asarray(values)
    except Exception as error:  # user-defined values can raise any exception
        raise ValueError(f"{where} is no array ({type(error).__name__}: {one_line(error)})") from None


def _check_name(where: str, name: Any) -> None:
    """ValueError if a variable or coordinate must not have this name."""
    taken = ("noise", "item", "trajectory", "clone", "tasks")
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name) or name in taken:
        raise ValueError(f"{where}: the name {shown(name)}; expected letters, digits and _, and none of {', '.join(taken)}")
