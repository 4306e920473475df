"""Checks of the data that parts exchange: blocks, reconstructions, readings, coordinates."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from uturn.core.checks import OwnCodeError, one_line, place, shown, validation_words
from uturn.core.own_parts import SLIPS, attributes, completed, is_own, misfits_named, name_of
from uturn.core.protocols import Coordinates, Originals, Variable
from uturn.core.reading import Instructions


def checked_blocks(source: Any, blocks: Any, items: np.ndarray) -> list[Any]:
    """The blocks of a source, read-only, which must hold the items asked for, each once and in order; else a ValueError."""
    where = f"{name_of(source, 'source')}.blocks"
    if not isinstance(blocks, Iterable):
        raise ValueError(f"{where} gave a {type(blocks).__name__}; expected an iterator over blocks (yield them)")
    found: list[Any] = []
    given: list[int] = []
    for block in blocks:
        if not hasattr(block, "items") or isinstance(block, Mapping):
            raise ValueError(f"{where} gave a {type(block).__name__} without 'items'; expected blocks with `items` (batch,)")
        numbers = _array(f"{where}: `items` of a block", block.items)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError(f"{where}: `items` of a block is {shown(block.items)}; expected integers (batch,)")
        data = getattr(block, "data", None)
        if data is not None and np.shape(data)[:1] != numbers.shape:
            raise ValueError(
                f"{where}: `data` of a block has shape {np.shape(data)}, its `items` {numbers.shape}; expected (batch, ..)"
            )
        found.append(completed(read_only(block), Originals))
        given += numbers.tolist()
        if len(given) > len(items):
            break
    if given != items.tolist():
        raise ValueError(f"{where} gave the items {_listed(given)}; expected {_listed(items)}, each once and in order")
    return found


def read_only(value: Any) -> Any:
    """A block or noisy data whose numpy arrays are views that cannot be written to, so that no part changes them for another.

    Arrays are found in the attributes of an object, also in a table or a dataclass there. The arrays of the source stay writable.
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
        arrays = {name: one for name, one in attributes(value).items() if isinstance(one, np.ndarray | dict) or is_dataclass(one)}
        value = copy(value) if arrays else value
        for name, one in arrays.items():
            object.__setattr__(value, name, read_only(one))  # also of a frozen dataclass
    return value


def observed(originals: Any, corruption: Any, noise: float, streams: Any) -> Any:
    """Noisy data of a block, read-only; a ValueError names a user-defined corruption whose output the block cannot read."""
    try:
        return read_only(corruption.observe(originals, noise, streams))
    except SLIPS as error:
        if not is_own(corruption) or getattr(error, "obj", None) is originals:
            raise
        raise OwnCodeError(
            f"{corruption!r}.corrupt gave what `observed_by` of the block, a {type(originals).__name__}, cannot read "
            f"({type(error).__name__}: {one_line(error)}){place(error, type(originals))}"
        ) from error


def undoes(backward: Any, corruption: Any) -> bool:
    """Whether a backward undoes the process of a corruption; parts that declare none go with all."""
    return not backward.undoes or not corruption.process or corruption.process in backward.undoes


def checked_reconstructions(backward: Any, reconstructions: Any, items: int, draws: int) -> Any:
    """Reconstructions of a backward, `draws` of each of the items, read-only, so that no probe changes them."""
    where = f"{name_of(backward, 'backward')}.reconstruct"
    arrays = list(reconstructions.values()) if isinstance(reconstructions, Mapping) else [reconstructions]
    for array in arrays or [None]:
        shape = getattr(array, "shape", None)
        if shape is None or tuple(shape[:2]) != (items, draws):
            what = shown(array) if shape is None else f"of shape {tuple(shape)}"
            raise ValueError(f"{where} gave reconstructions {what}; expected ({items}, {draws}, ..): items, draws, ..")
    return read_only(reconstructions)


def check_first_clones(backward: Any, found: Mapping[Any, Any], alone: Mapping[Any, Any], clones: int) -> None:
    """ValueError if clone 0 of several, `found`, differs in more than a twentieth from what fewer clones gave, `alone`."""
    for name, values in found.items():
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
    found = {}
    for name, variable in declared.items():
        values = _array(f"{where}: {name}", readings[name])
        dims = variable.dims[2:]
        final = (items, *(sizes[dim] for dim in dims))
        draws = sizes["trajectory"] * sizes.get("clone", 1)
        expected = (items, *(draws if dim == "trajectory" else sizes[dim] for dim in dims if dim != "clone"))
        if values.shape != expected:
            shown_dims = ("item", *(dim for dim in dims if dim != "clone"))
            raise ValueError(f"{where}: {name} has shape {values.shape}; expected {expected}, its dims {shown_dims}")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{where}: {name} has dtype {values.dtype}; expected real numbers")
        with np.errstate(over="ignore"):
            if np.isinf(values.astype(np.float32)).any():
                raise ValueError(f"{where}: {name} is infinite in float32; expected finite numbers, NaN where there is none")
        found[name] = values.reshape(final)
    return found


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
        dims = variable.dims
        if not isinstance(dims, tuple) or not all(isinstance(word, str) for word in (*dims, variable.long_name)):
            raise ValueError(
                f"{where}: {name} is {shown(variable)}; expected Variable(dims, long_name): a tuple of strings, a string"
            )
        if not isinstance(variable.symmetric, bool) or (variable.symmetric and "trajectory" not in dims):
            raise ValueError(f"{where}: {name} is {shown(variable)}; symmetric = True needs the dim 'trajectory'")
        known = ("trajectory", *own_dims)
        if tuple(dims[:2]) != ("noise", "item") or len(set(dims)) < len(dims) or not set(dims[2:]) <= set(known):
            raise ValueError(
                f"{where}: {name} has dims {dims}; expected ('noise', 'item', ..), then some of {known}: other dims need values "
                f"in `coordinates`"
            )
        try:
            Instructions.model_validate(variable.instructions()).check(dims[2:])
        except ValidationError as error:
            raise ValueError(f"{where}: {name}: {validation_words(error)}") from None
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}") from None
    return dict(variables)


class Declared(NamedTuple):
    """Declaration of a probe: its name in messages, its variables, and the coordinates of its dims."""

    label: str
    variables: dict[str, Variable]
    dims: dict[str, np.ndarray]


def declared_by(probes: Sequence[Any], source: Any, clones: int) -> list[Declared]:
    """Declarations of the probes of an experiment; ValueError if two of them have a variable of the same name.

    A dim of a built-in probe that is called like a variable, as "distance" of `changes` beside `network_layers`, is named after
    its probe, "changes_distance". Alone it keeps its name, so that stores keep theirs.
    """
    found: list[Declared] = []
    for i, probe in enumerate(probes):
        label = name_of(probe, f"probes[{i}]")
        with misfits_named(f"probes[{i}] ({type(probe).__name__})", probe, (source,), SLIPS):
            dims = checked_dims(label, probe.coordinates(source))
            variables = checked_variables(label, probe.variables(source), dims)
        probe_name, model = _probe_name(probe), str(getattr(probe, "classifier", None) or getattr(probe, "model", ""))
        variables = {name: replace(variable, probe=probe_name, model=model) for name, variable in variables.items()}
        variables = with_clones(variables) if clones > 1 else variables
        for name in variables:
            if any(name in one.variables for one in found):
                raise ValueError(f"probes: two of them measure {name!r}; drop one, or put it in an experiment of its own")
        found.append(Declared(label, variables, dims))
    measured = {name for one in found for name in one.variables}
    return [_named_apart(one, getattr(probe, "type", None), measured) for one, probe in zip(found, probes, strict=True)]


def _named_apart(declared: Declared, kind: str | None, measured: Collection[str]) -> Declared:
    """A declaration whose dims do not have the names of variables, if the probe has a type."""
    names = {dim: f"{kind}_{dim}" if kind and dim in measured else dim for dim in declared.dims}
    variables = {
        name: replace(
            variable,
            dims=tuple(names.get(dim, dim) for dim in variable.dims),
            order=None if variable.order is None else names.get(variable.order, variable.order),
        )
        for name, variable in declared.variables.items()
    }
    return Declared(declared.label, variables, {names[dim]: values for dim, values in declared.dims.items()})


def _probe_name(probe: Any) -> str:
    """Name of a probe in the spec, by default its type, or its class if it is user-defined."""
    return str(getattr(probe, "name", None) or (type(probe).__name__ if is_own(probe) else probe.type))


def joined(coordinates: Coordinates, label: str, more: Coordinates) -> Coordinates:
    """Coordinates together with those of another part; ValueError if they have different values under the same name."""
    for name, (dims, values, _) in more.items():
        if name in coordinates and not (coordinates[name][0] == dims and np.array_equal(coordinates[name][1], values)):
            raise ValueError(f"{label}: the coordinate {name!r} exists already with other values; choose another name")
    return {**coordinates, **more}


def with_clones(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """Variables of an experiment with several clones: dim "clone" after "trajectory", and `clone_<name>` of symmetric ones."""
    found = {}
    for name, variable in variables.items():
        dims = variable.dims
        if "trajectory" in dims:
            at = dims.index("trajectory") + 1
            variable = replace(variable, dims=(*dims[:at], "clone", *dims[at:]))
        found[name] = variable
        if variable.symmetric:
            if f"clone_{name}" in variables:
                raise ValueError(f"probes: clone_{name} is the name of the twin of {name!r}; choose another name")
            words = f"{variable.long_name}, compared with the other clones"
            found[f"clone_{name}"] = replace(variable, long_name=words, role="record", symmetric=False, start=None, chance=None)
    return found


def checked_dims(label: str, coordinates: Any) -> dict[str, np.ndarray]:
    """Coordinates of the dims that a probe adds; ValueError for names or values that are not allowed."""
    where = f"{label}.coordinates"
    if not isinstance(coordinates, Mapping):
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict {{dim: values}}")
    found = {}
    for dim, values in coordinates.items():
        _check_name(where, dim)
        found[dim] = _labels(f"{where}: {dim}", values, None)
    return found


def checked_axes(corruption: Any, axes: Any, count: int) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Further coordinates of the noise axis from a corruption, each with `count` values; else a ValueError."""
    where = f"{name_of(corruption, 'corruption')}.axes"
    if not isinstance(axes, Mapping):
        raise ValueError(f"{where} gave {shown(axes)}; expected a dict {{name: (values, attributes)}}, perhaps empty")
    found = {}
    for name, entry in axes.items():
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)):
            raise ValueError(
                f"{where}: {name} is {shown(entry)}; expected (values, attributes), such as (levels, {{'units': 's'}})"
            )
        _check_name(where, name)
        try:
            json.dumps(dict(entry[1]))
        except (TypeError, ValueError):
            raise ValueError(f"{where}: the attributes of {name} are {shown(entry[1])}; expected plain data") from None
        found[str(name)] = (_labels(f"{where}: {name}", entry[0], count), dict(entry[1]))
    return found


def checked_item_coordinates(source: Any, coordinates: Any, count: int) -> dict[str, np.ndarray]:
    """Further coordinates of the items from a source, each with `count` values; else a ValueError."""
    where = f"{name_of(source, 'source')}.coordinates"
    if not isinstance(coordinates, Mapping):
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict {{name: values of all items}}, perhaps empty")
    for name in coordinates:
        _check_name(where, name)
    return {name: _labels(f"{where}: {name}", values, count) for name, values in coordinates.items()}


def checked_text(where: str, value: Any) -> str:
    """A fingerprint or description, which must be a string."""
    if not isinstance(value, str):
        raise ValueError(f"{where} gave {shown(value)}; expected a string")
    return value


def _labels(where: str, values: Any, count: int | None) -> np.ndarray:
    """Values along one axis, which must be numbers or text, `count` of them if given."""
    array = _array(where, values)
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise ValueError(f"{where} has shape {array.shape}; expected {'(length,)' if count is None else (count,)}")
    if array.dtype.kind not in "biufU" and not (array.dtype.kind == "O" and all(isinstance(x, str) for x in array)):
        raise ValueError(f"{where} has dtype {array.dtype}; expected numbers or text")
    return array


def _array(where: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{where} is a masked array; expected a plain one, with NaN where there is no value")
    try:
        return np.asarray(values)
    except Exception as error:  # user-defined values can fail in any way
        raise ValueError(f"{where} is no array ({type(error).__name__}: {one_line(error)})") from None


def _check_name(where: str, name: Any) -> None:
    """ValueError if a variable or coordinate must not have this name."""
    taken = ("noise", "item", "trajectory", "clone", "tasks")
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name) or name in taken:
        raise ValueError(f"{where}: the name {shown(name)}; expected letters, digits and _, and none of {', '.join(taken)}")


def _listed(items: Sequence[Any] | np.ndarray) -> str:
    shown = ", ".join(map(str, items[:6]))
    return f"[{shown}{', ..' if len(items) > 6 else ''}]"
