"""Checks of the data that parts exchange: blocks, reconstructions, readings, coordinates."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from uturn.core.checks import expect
from uturn.core.data import O, Originals, Reconstructions
from uturn.core.inputs import plain
from uturn.core.messages import one_line, shown
from uturn.core.own_parts import is_own, name_of
from uturn.core.protocols import Backward, Corruption, Probe, Source, Spec
from uturn.core.variables import Axes, Axis, Coordinates, Variable

T = TypeVar("T")

_RESERVED = ("noise", "item", "trajectory", "clone", "tasks")
"""Names of the dims of every result, which a part cannot take."""


def checked_blocks(source: Source[O], blocks: Iterable[O], items: np.ndarray) -> list[O]:
    """The blocks of a source, read-only; ValueError unless they hold the requested items, each
    once and in order.
    """
    where = f"{name_of(source, 'source')}.blocks"
    expected = "an iterator over blocks; write `yield block`"
    expect(isinstance(blocks, Iterable), where, blocks, expected)
    checked: list[O] = []
    numbers: list[int] = []
    for block in blocks:
        _check_block(where, block, source.block_class)
        checked.append(read_only(block))
        numbers += np.atleast_1d(block.items).tolist()
        if len(numbers) > len(items):
            break
    requested = items.tolist()
    if numbers != requested:
        raise ValueError(
            f"{where}: items = {shown(numbers)}: expected {shown(requested)}, each once and in"
            " order"
        )
    return checked


def _check_block(where: str, block: Originals, base: type[Originals]) -> None:
    """ValueError unless a block inherits from `base` and has a row of data for each item."""
    home = "uturn" if base is Originals else "uturn.sources"
    expected = f"blocks of a class that inherits from {home}.{base.__name__}"
    expect(isinstance(block, base), where, type(block).__name__, expected)
    lacks = [name for name in ("items", "data") if not hasattr(block, name)]
    expect(not lacks, f"{where}: members that the block lacks", lacks, "`items` and `data`")
    batch = np.shape(block.items)
    expected = "(batch,), with at least one item"
    expect(len(batch) == 1 and batch[0] > 0, f"{where}: shape of `items`", batch, expected)
    is_array = isinstance(block.data, np.ndarray)
    expect(is_array, f"{where}: type of `data`", type(block.data).__name__, "a numpy array")
    shape = block.data.shape
    fits = shape[:1] == batch
    expect(fits, f"{where}: shape of `data`", shape, f"(batch, ..) with `items` {batch}")


def read_only(value: T) -> T:
    """A block or noisy data whose numpy arrays, also those in its tables and dataclasses, are
    read-only views.
    """
    copied: Any = value
    if isinstance(value, np.ndarray):
        copied = value.view()
        copied.flags.writeable = False
        return copied  # type: ignore[no-any-return]  # of the type of `value`, as below
    if isinstance(value, dict):
        copied = {key: read_only(entry) for key, entry in value.items()}
        return copied  # type: ignore[no-any-return]
    if isinstance(value, list | tuple):
        entries = [read_only(entry) for entry in value]
        is_namedtuple = hasattr(value, "_fields")
        copied = type(value)(*entries) if is_namedtuple else type(value)(entries)
        return copied  # type: ignore[no-any-return]
    if isinstance(value, type):
        return value
    members = {}
    for name, member in attributes(value).items():
        if isinstance(member, np.ndarray | dict) or is_dataclass(member):
            members[name] = member
    if members:
        copied = copy(value)
    for name, member in members.items():
        object.__setattr__(copied, name, read_only(member))  # works for frozen dataclasses, too
    return copied  # type: ignore[no-any-return]


def attributes(value: object) -> dict[str, object]:
    """The attributes of an object: those of its `__dict__` and of its slots."""
    state: Any = object.__getstate__(value)
    tables = state if isinstance(state, tuple) else (state,)  # attributes and slots, or one table
    members: dict[str, object] = {}
    for table in tables:
        members |= table or {}
    return members


def undoes(backward: Backward, corruption: Corruption) -> bool:
    """Whether a backward undoes the process of a corruption; parts that declare no process fit
    all.
    """
    return not backward.undoes or not corruption.process or corruption.process in backward.undoes


def checked_reconstructions(
    backward: Backward, reconstructions: Reconstructions, originals: Originals, draws: int
) -> Reconstructions:
    """Reconstructions of a block of originals, `draws` for each item, read-only."""
    where = f"{name_of(backward, 'backward')}.reconstruct"
    shapes = originals.reconstructed_shape()
    if isinstance(shapes, dict):
        _check_tree(where, reconstructions, shapes)
    arrays = [reconstructions]
    if isinstance(reconstructions, Mapping):
        arrays = list(reconstructions.values()) or [None]
    items = len(originals.items)
    expected = f"shape ({items}, {draws}, ..): items, draws, .."
    for array in arrays:
        shape = tuple(getattr(array, "shape", ()))
        expect(shape[:2] == (items, draws), where, shape or array, expected)
        is_array = isinstance(array, np.ndarray) and array.dtype != object
        expected_type = "a numpy array of numbers"
        expect(is_array, f"{where}: type", getattr(array, "dtype", array), expected_type)
    if isinstance(shapes, tuple):
        whole = (items, draws, *shapes)
        expected = f"{whole}: items, draws, and the shape of an original"
        expect(reconstructions.shape[2:] == shapes, where, reconstructions.shape, expected)
        is_rounded = originals.data.dtype.kind == "f" and reconstructions.dtype.kind not in "fc"
        expected = f"floating point numbers, as those of the originals ({originals.data.dtype})"
        expect(not is_rounded, f"{where}: dtype", str(reconstructions.dtype), expected)
    return read_only(reconstructions)


def _check_tree(
    where: str, reconstructions: Reconstructions, shapes: Mapping[int, tuple[int, ...]]
) -> None:
    """ValueError unless reconstructions have an array for each tree level."""
    levels = ", ".join(map(str, shapes))
    expected = (
        f"{{tree_level: array (items, draws, nodes)}} with the levels {levels};"
        " `noisy.parsed(strings, num_items, keys)` makes it"
    )
    expect(isinstance(reconstructions, Mapping), where, reconstructions, expected)
    given = list(reconstructions)
    expect(set(given) == set(shapes), f"{where}: tree levels", given, expected)
    for level, shape in shapes.items():
        nodes = np.shape(reconstructions[level])
        expected = f"(items, draws, {shape[0]})"
        expect(nodes[2:] == shape, f"{where}: shape of tree level {level}", nodes, expected)


def checked_readings(
    label: str,
    readings: Mapping[str, np.ndarray],
    declared: Mapping[str, Variable],
    sizes: Mapping[str, int],
    items: int,
) -> dict[str, np.ndarray]:
    """Readings of a probe, with the axis of draws split into trajectories and clones; ValueError
    unless they are as declared.

    `sizes`: lengths of all dims except noise and item.
    """
    where = f"{label}.read"
    _check_table(where, readings, "{name: array}, as `variables` declares")
    _check_twins(label, readings, declared)
    expected = f"{', '.join(declared)}, as `variables` declares"
    expect(set(readings) == set(declared), where, list(readings), expected)
    return {
        name: _checked_reading(f"{where}: ", name, readings[name], variable, sizes, items)
        for name, variable in declared.items()
    }


def _checked_reading(
    where: str,
    name: str,
    reading: np.ndarray,
    variable: Variable,
    sizes: Mapping[str, int],
    items: int,
) -> np.ndarray:
    """Readings of one variable, (items, ..) with its dims in `sizes`."""
    values = _array(f"{where}{name}", reading)
    read_dims = tuple(dim for dim in variable.dims[1:] if dim != "clone")
    lengths = dict(sizes)
    if "clone" in variable.dims:  # a probe reads all draws of an item along one axis
        lengths["trajectory"] *= sizes.get("clone", 1)
    shape = (items, *(lengths[dim] for dim in read_dims[1:]))
    fits = values.shape == shape
    expect(fits, f"{where}shape of {name}", values.shape, f"{shape}, its dims {read_dims}")
    is_real = values.dtype.kind in "biuf"
    expect(is_real, f"{where}dtype of {name}", str(values.dtype), "real numbers")
    with np.errstate(over="ignore"):
        is_finite = not np.isinf(values.astype(np.float32)).any()
    expected = "numbers that are finite in float32, NaN where there is none"
    expect(is_finite, f"{where}{name}", np.inf, expected)
    return values.reshape(items, *(sizes[dim] for dim in variable.dims[2:]))


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
    label: str, variables: Mapping[str, Variable], own_dims: Collection[str]
) -> dict[str, Variable]:
    """The variables that a probe declares; ValueError for names, dims or types that are not
    allowed.
    """
    where = f"{label}.variables"
    _check_table(where, variables, "{name: uturn.Variable(..)}")
    allowed = ("trajectory", *own_dims)
    for name, variable in variables.items():
        _check_name(where, name)
        is_variable = isinstance(variable, Variable)
        expect(is_variable, f"{where}: {name}", variable, "a uturn.Variable")
        dims = variable.dims
        begins = dims[:2] == ("noise", "item")
        fits = begins and set(dims[2:]) <= set(allowed) and len(set(dims)) == len(dims)
        expected = f"('noise', 'item', ..), then some of {allowed}; `coordinates` adds dims"
        expect(fits, f"{where}: dims of {name}", dims, expected)
        is_both = variable.symmetric and variable.ranked
        expected = "a comparison of two data, or a reading of one"
        expect(not is_both, f"{where}: {name}: symmetric and ranked", True, expected)
        has_twin = variable.symmetric or variable.ranked
        fits = "trajectory" in dims or not has_twin
        expected = "'trajectory', for symmetric and ranked"
        expect(fits, f"{where}: dims of {name}", dims, expected)
        variable.check(f"{where}: {name}: ")
    return dict(variables)


def bound_probe(probe: Probe, source: Source, index: int) -> Probe:
    """A probe as it reads the data of a source (`Probe.bind`)."""
    bound: object = probe.bind(source)
    label = name_of(probe, f"probes[{index}]")
    if not isinstance(bound, type(probe)):
        raise ValueError(
            f"{label}.bind returns {shown(bound)}; expected the probe, or a copy of it with further"
            " attributes"
        )
    if is_own(probe) and not is_own(bound):  # a new object instead of a copy
        object.__setattr__(bound, "own_label", probe.own_label)
        object.__setattr__(bound, "own_table", probe.own_table)
    return bound


@dataclass(frozen=True)
class Declared:
    """What a probe declares."""

    label: str
    """Name of the probe in messages."""
    variables: dict[str, Variable]
    dims: dict[str, np.ndarray]
    """Coordinates of the dims that the probe adds: {dim: values}."""

    def renamed(self, names: Mapping[str, str]) -> Declared:
        """The declaration with other names of its dims, {old: new}."""
        variables = {}
        for key, variable in self.variables.items():
            dims = tuple(names.get(dim, dim) for dim in variable.dims)
            order = variable.order
            if order is not None:
                order = names.get(order, order)
            variables[key] = replace(variable, dims=dims, order=order)
        dims_of_probe = {names.get(dim, dim): values for dim, values in self.dims.items()}
        return Declared(self.label, variables, dims_of_probe)


def declared_by(probes: Sequence[Probe], source: Source, clones: int) -> list[Declared]:
    """Declarations of the probes of an experiment; ValueError if two of them have a variable of the
    same name.

    A dim of a built-in probe with the name of a variable gets its probe in front:
    "changes_distance" beside `network_layers`.
    """
    declarations: list[Declared] = []
    measured: set[str] = set()
    for index, probe in enumerate(probes):
        declaration = _declaration(probe, source, clones, index)
        twice = [key for key in declaration.variables if key in measured]
        expected = "different ones; put one probe in an experiment of its own"
        expect(not twice, "probes: variables of two of them", twice, expected)
        measured.update(declaration.variables)
        declarations.append(declaration)
    for index, probe in enumerate(probes):
        if isinstance(probe, Spec) and not is_own(probe):
            declaration = declarations[index]
            names = {dim: f"{probe.type}_{dim}" for dim in declaration.dims if dim in measured}
            declarations[index] = declaration.renamed(names)
    return declarations


def _declaration(probe: Probe, source: Source, clones: int, index: int) -> Declared:
    """What a probe declares, with the twins of its variables."""
    label = name_of(probe, f"probes[{index}]")
    dims = checked_coordinates(f"{label}.coordinates", probe.coordinates(source), None)
    name = probe.probe_name
    network = probe.network_name
    expect(isinstance(name, str), f"{label}.probe_name", name, "a text")
    expect(isinstance(network, str), f"{label}.network_name", network, "a text")
    named = {}
    for key, variable in checked_variables(label, probe.variables(source), dims).items():
        named[key] = replace(variable, probe=name, model=network)
    return Declared(label, with_twins(named, clones), dims)


def joined(coordinates: Coordinates, label: str, more: Coordinates) -> Coordinates:
    """Coordinates merged with those of another part; ValueError for different values under the
    same name.
    """
    for name, new in more.items():
        present = coordinates.get(name)
        if present is None:
            continue
        is_equal = present.dims == new.dims and np.array_equal(present.values, new.values)
        expected = "another name, since it exists already with other values"
        expect(is_equal, f"{label}: coordinate", name, expected)
    return {**coordinates, **more}


def with_twins(variables: Mapping[str, Variable], clones: int) -> dict[str, Variable]:
    """The variables that an experiment stores: those declared, with the dim "clone" if there are
    several, and their twins.
    """
    stored: dict[str, Variable] = {}
    for name, variable in variables.items():
        stored[name] = _with_clones(variable, clones)
        twins = _twins(name, variable, clones)
        for twin in twins:
            expected = f"another name, since it is that of the twin of {name!r}"
            expect(twin not in variables, "probes: variable", twin, expected)
        stored |= twins
    return stored


def _with_clones(variable: Variable, clones: int) -> Variable:
    """A variable with the dim "clone" after "trajectory", if there are several clones."""
    dims = variable.dims
    if clones == 1 or "trajectory" not in dims:
        return variable
    end = dims.index("trajectory") + 1
    return replace(variable, dims=(*dims[:end], "clone", *dims[end:]))


def _twins(name: str, variable: Variable, clones: int) -> dict[str, Variable]:
    """The twins of a variable by their names: its comparison of clones, and its reading of the
    original.
    """
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
        twins[f"clone_{name}"] = replace(
            record,
            twin="clones",
            dims=_with_clones(variable, clones).dims,
            long_name=f"{variable.long_name}, compared with the other clones",
        )
    if variable.ranked:
        long_name = f"{variable.long_name}, of the original"
        twins[f"original_{name}"] = replace(record, twin="original", long_name=long_name)
    return twins


def checked_axes(corruption: Corruption, axes: Axes, count: int) -> dict[str, Axis]:
    """Further coordinates of the noise axis from a corruption; ValueError unless each has
    `count` values.
    """
    where = f"{name_of(corruption, 'corruption')}.axes"
    _check_table(where, axes, "{name: (values, attributes)}")
    for name, axis in axes.items():
        is_pair = isinstance(axis, tuple) and len(axis) == 2 and isinstance(axis[1], Mapping)
        expect(is_pair, f"{where}: {name}", axis, "(values, attributes), attributes a dict")
    values = {name: axis[0] for name, axis in axes.items()}
    levels = checked_coordinates(where, values, count)
    return {name: Axis(levels[name], plain(dict(axis[1]))) for name, axis in axes.items()}


def checked_coordinates(
    where: str,
    coordinates: Mapping[str, object],
    count: int | None,
) -> dict[str, np.ndarray]:
    """Coordinates {name: values along one axis}; ValueError unless they are numbers or text,
    `count` of them if given.
    """
    _check_table(where, coordinates, "{name: values}")
    length = "length" if count is None else str(count)
    checked = {}
    for name, values in coordinates.items():
        _check_name(where, name)
        labels = _array(f"{where}: {name}", values)
        fits = labels.ndim == 1 and count in (None, len(labels))
        expect(fits, f"{where}: shape of {name}", labels.shape, f"({length},)")
        allowed = labels.dtype.kind in "biufU" or _are_texts(labels)
        expect(allowed, f"{where}: dtype of {name}", str(labels.dtype), "numbers or text")
        checked[name] = labels
    return checked


def _are_texts(labels: np.ndarray) -> bool:
    return labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels)


def _array(where: str, values: object) -> np.ndarray:
    is_masked = isinstance(values, np.ma.MaskedArray)
    expected = "a plain array, with NaN where there is no value"
    expect(not is_masked, where, "a masked array", expected)
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, or a tensor with gradients
        raise ValueError(f"{where}: expected a numpy array ({one_line(error)})") from None


def _check_table(where: str, table: object, expected: str) -> None:
    expect(isinstance(table, Mapping), where, table, expected)


def checked_reasons(where: str, reasons: Mapping[str, str]) -> dict[str, str]:
    """What a part says of data that are missing or left out, {name: reason}."""
    expected = "{name: reason}, both texts"
    _check_table(where, reasons, expected)
    for name, reason in reasons.items():
        are_texts = isinstance(name, str) and isinstance(reason, str)
        expect(are_texts, where, {name: reason}, expected)
    return dict(reasons)


def _check_name(where: str, name: object) -> None:
    is_word = isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*", name)
    allowed = is_word and name not in _RESERVED
    expected = f"letters, digits and _, and none of {', '.join(_RESERVED)}"
    expect(allowed, f"{where}: name", name, expected)
