"""The parts of an experiment: built from the tables of its spec, checked, and named in errors.

Built-in parts are named in a registry. A user-defined part is named by its import path, "module:Class", and importing it runs its
code, so only a spec that the user hands over may name one (`trusted`); a spec read from a store may not. User-defined parts are
wrapped in `OwnPart`, which turns every error in their code into one line that names part and member.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from uturn.backward import BACKWARDS
from uturn.checks import one_line, shown
from uturn.corruption import CORRUPTIONS
from uturn.probes import PROBES
from uturn.sources import SOURCES

if TYPE_CHECKING:
    from uturn.store import Variable

DOCS = "docs/own-parts.md"
REGISTRIES: dict[str, dict[str, type]] = {
    "source": SOURCES,
    "corruption": CORRUPTIONS,
    "backward": BACKWARDS,
    "probes": PROBES,
}
# What every user-defined part must have: methods, looked for in the class before it is called, and values.
_METHODS = {
    "source": ("blocks", "coordinates"),
    "corruption": ("corrupt",),
    "backward": ("u_turn", "noise_coordinates", "fingerprint"),
    "probes": ("variables", "coordinates", "read", "fingerprint"),
}
_VALUES: dict[str, dict[str, tuple[Any, str]]] = {
    "source": {},
    "corruption": {"unit": (str, "string"), "max_noise": (Real, "number")},
    "backward": {},
    "probes": {"outputs": ((tuple, list), "tuple of strings")},
}
# What the built-in backward processes of strings ask of a corruption besides.
STRING_CHANNEL = ("log_evidence", "effective_epsilon", "bits_per_leaf", "is_random")
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_OUTPUTS = ("marginals", "upward", "downward")


class OwnPart:
    """A user-defined part. It behaves as the part itself, but an error in one of its members names the part and the member."""

    def __init__(self, part: Any, label: str) -> None:
        self._part, self._label = part, label

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._part)

    def __eq__(self, other: object) -> bool:
        return self._part is getattr(other, "_part", other)

    def __hash__(self) -> int:
        return id(self._part)

    def __repr__(self) -> str:
        return self._label

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(self._part, name)
        except AttributeError:
            raise
        except Exception as error:  # of a property
            with errors_named(f"{self._label}.{name}", type(self._part)):
                raise error
        if not inspect.isroutine(value):
            return value

        def member(*args: Any, **kwargs: Any) -> Any:
            with errors_named(f"{self._label}.{name}", value):
                # User-defined parts see each other as they are.
                result = value(*map(unwrapped, args), **{key: unwrapped(arg) for key, arg in kwargs.items()})
            return self._iterated(name, result, value) if inspect.isgenerator(result) else result

        return member

    def _iterated(self, name: str, generator: Iterator[Any], code: Any) -> Iterator[Any]:
        with errors_named(f"{self._label}.{name}", code):
            yield from generator


def unwrapped(part: Any) -> Any:
    """The part itself, without `OwnPart` around it."""
    return part._part if type(part) is OwnPart else part


def is_own(part: Any) -> bool:
    """Whether a part is user-defined."""
    return type(part) is OwnPart


@contextmanager
def errors_named(label: str, code: Any) -> Iterator[None]:
    """Errors of user-defined code as a ValueError of one line: label, error, and the line of the user's file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        words = one_line(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{label}: {kind if words != type(error).__name__ else ''}{words}{_place(error, code)}") from error


def _place(error: BaseException, code: Any) -> str:
    """` (file.py, line 12)`: the last line of the user's file that was reached, if any."""
    try:
        file = inspect.getfile(inspect.unwrap(code))
    except (TypeError, OSError):
        return ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


# -- from a table of the spec to a part -------------------------------------------------------------------------------


def build(name: str, table: Mapping[str, Any], trusted: bool = True) -> Any:
    """The part that a table of a spec describes.

    Parameters
    ----------
    name : "source", "corruption", "backward" or "probes[i]"
    table : mapping with a `type`; its other keys are the arguments of the part
    trusted : bool
        Whether the table may name user-defined parts, whose code is then run.

    Raises
    ------
    ValueError
        If there is no such part, if it lacks a member, or if it does not take its arguments.
    """
    idea = name.partition("[")[0]
    kind = table.get("type")
    options = {key: value for key, value in table.items() if key != "type"}
    known = REGISTRIES[idea]
    if isinstance(kind, str) and kind in known:
        try:
            return known[kind](**options)
        except ValidationError as error:
            raise ValueError(f"{name}: {validation_words(error)}") from None
        except TypeError as error:
            raise ValueError(f"{name}: {one_line(error)}") from None
    if not (isinstance(kind, str) and _IMPORT_PATH.fullmatch(kind)):
        raise ValueError(f"{name}.type = {kind!r}: expected one of {list(known)}, or 'module:Class'")
    if not trusted:
        raise ValueError(
            f"{name}.type = {kind!r} names code by its import path; a stored spec may not, hand over the spec file instead"
        )
    label = f"{name} ({kind!r})"
    cls = _imported(name, kind)
    with errors_named(label, cls):
        missing = [member for member in _METHODS[idea] if inspect.isclass(cls) and not callable(getattr(cls, member, None))]
    if missing or not inspect.isclass(cls):
        found = f"a class without {missing[0]!r}" if missing else f"a {type(cls).__name__}"
        wanted = ", ".join(_METHODS[idea])
        raise ValueError(f"{name}.type = {kind!r} is {found}; expected a class with the methods {wanted} (see {DOCS})")
    try:
        part = cls(**options)
    except ValidationError as error:
        raise ValueError(f"{label}: {validation_words(error)}") from None
    except (Exception, SystemExit) as error:
        with errors_named(label, cls):
            raise error from None
    own: Any = part
    for member, (types, words) in _VALUES[idea].items():
        with errors_named(f"{label}.{member}", cls):
            found = getattr(own, member)
        if not isinstance(found, types) or isinstance(found, bool) or found != found:
            raise ValueError(f"{label}.{member} = {shown(found)}: expected a {words} (see {DOCS})")
    if idea == "probes" and not all(isinstance(output, str) and output in _OUTPUTS for output in own.outputs):
        raise ValueError(f"{label}.outputs = {shown(own.outputs)}: expected some of {_OUTPUTS}, or none")
    execution = getattr(own, "execution", ())
    if not isinstance(execution, Collection) or not all(isinstance(name, str) for name in execution):
        raise ValueError(f"{label}.execution = {shown(execution)}: expected names of options that do not change the results")
    return OwnPart(own, label)


def _imported(name: str, kind: str) -> Any:
    module, _, attribute = kind.partition(":")
    try:
        found = importlib.import_module(module)
        for word in attribute.split("."):
            found = getattr(found, word)
        return found
    except (Exception, SystemExit) as error:  # the code of a module can fail in any way
        raise ValueError(
            f"{name}.type = {kind!r} cannot be imported ({type(error).__name__}: {one_line(error)}); expected 'module:Class'"
        ) from error


def validation_words(error: ValidationError) -> str:
    """What pydantic found wrong, in one line."""

    def words(entry: Any) -> str:
        where = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"].removeprefix("Value error, ")
        value = "" if entry["type"] in ("missing", "value_error") else f" = {shown(entry['input'])}"
        return f"{where}{value}: {message}" if where else message

    return "; ".join(words(entry) for entry in error.errors())


@contextmanager
def missing_members_named(parts: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """A member that a user-defined part, or an object made by one, lacks is a ValueError that names both and who needs it."""
    try:
        yield
    except AttributeError as error:
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        asking = [f"{name} ({type(part).__name__})" for name, part in parts if not is_own(part) and part in frames]
        needs = f"{asking[-1] if asking else 'an experiment'} needs it (see {DOCS})"
        # Most objects that pass from part to part are blocks of originals, so the source is the first to be asked.
        for _, part in sorted(parts, key=lambda entry: entry[0] != "source"):
            owner = unwrapped(part)
            if is_own(part) and error.obj is owner:
                raise ValueError(f"{part!r} has no {error.name!r}; {needs}") from error
        for _, part in sorted(parts, key=lambda entry: entry[0] != "source"):
            if is_own(part) and type(error.obj).__module__ == type(unwrapped(part)).__module__:
                kind = type(error.obj).__name__
                raise ValueError(f"the {kind} that {part!r} gives has no {error.name!r}; {needs}") from error
        raise


@contextmanager
def misfits_named(label: str, part: Any, others: Iterable[Any]) -> Iterator[None]:
    """An error of a built-in part that works on what user-defined ones give is a ValueError that names all of them."""
    own = [repr(other) for other in others if is_own(other)]
    try:
        yield
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        if is_own(part) or not own:
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{label} fails on what {' and '.join(own)} give: {kind}{one_line(error)}") from error


# -- the code of a part -----------------------------------------------------------------------------------------------


def code_digest(part: Any) -> str:
    """SHA-256 (hexadecimal) of the code of a user-defined part or function.

    It is that of the file of its module, or where there is no file of the source of its class, or else of its code objects. Other
    modules that it imports are not looked at.
    """
    code = unwrapped(part)
    code = code if inspect.isfunction(code) else type(code)
    for read in (lambda: Path(inspect.getfile(code)).read_bytes(), lambda: inspect.getsource(code).encode()):
        try:
            return hashlib.sha256(read()).hexdigest()
        except (TypeError, OSError):
            continue
    digest = hashlib.sha256()
    for function in _functions(code):
        defaults = _plain_bytes((function.__defaults__, function.__kwdefaults__))
        digest.update(function.__qualname__.encode() + _code_bytes(function.__code__) + defaults)
    if inspect.isclass(code):
        digest.update(b"".join(name.encode() + _plain_bytes(value) for name, value in sorted(vars(code).items())))
    return digest.hexdigest()


def _plain_bytes(value: Any) -> bytes:
    """A plain value in bytes that are the same in every process; nothing of other objects, whose text may hold their address."""
    if isinstance(value, frozenset | set):
        return b"".join(sorted(map(_plain_bytes, value)))
    if isinstance(value, tuple | list):
        return b"(" + b",".join(map(_plain_bytes, value)) + b")"
    if isinstance(value, dict):
        return _plain_bytes(sorted(value.items()))
    return repr(value).encode() if value is None or isinstance(value, bool | int | float | complex | str | bytes) else b""


def _functions(code: Any) -> Iterator[FunctionType]:
    """A function itself, or all functions of a class."""
    if inspect.isfunction(code):
        yield code
        return
    for base in code.__mro__[:-1]:
        for _, member in sorted(vars(base).items()):
            for function in (member, getattr(member, "fget", None), getattr(member, "__func__", None)):
                if inspect.isfunction(function):
                    yield function


def _code_bytes(code: CodeType) -> bytes:
    constants = [_code_bytes(c) if isinstance(c, CodeType) else _plain_bytes(c) for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])


# -- what parts give --------------------------------------------------------------------------------------------------


def checked_blocks(source: Any, blocks: Any, items: np.ndarray) -> list[Any]:
    """The blocks of a source, which must hold the items that were asked for, each once and in order."""
    where = f"{_name(source, 'source')}.blocks"
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
        found.append(block)
        given += numbers.tolist()
        if len(given) > len(items):
            break
    if given != items.tolist():
        raise ValueError(f"{where} gave the items {_listed(given)}; expected {_listed(items)}, each once and in order")
    return found


def checked_u_turns(backward: Any, u_turns: Any, originals: Any, trajectories: int) -> Any:
    """U-turns of a backward, which must be of the originals it was given, `trajectories` of each; probes may not change them."""
    where = f"{_name(backward, 'backward')}.u_turn"
    for member in ("originals", "reconstructions", "beliefs"):
        if not hasattr(u_turns, member):
            raise ValueError(f"{where} gave a {type(u_turns).__name__} without {member!r}; expected a uturn.backward.UTurns")
    given: Any = getattr(u_turns.originals, "items", None)
    if not np.array_equal(given, originals.items):
        raise ValueError(f"{where} gave U-turns of other items than it was given")
    values = u_turns.reconstructions
    shape = (len(originals.items), trajectories)
    for array in values.values() if isinstance(values, Mapping) else [values]:
        if array is None or np.isscalar(array) or (isinstance(array, np.ndarray) and array.shape[:2] != shape):
            what = f"of shape {array.shape}" if isinstance(array, np.ndarray) else shown(array)
            raise ValueError(
                f"{where} gave reconstructions {what}; expected ({shape[0]}, {shape[1]}, ..): items, trajectories, .."
            )
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return u_turns


def checked_stream(
    backward: Any, batches: Iterable[tuple[Any, Any, float]], seed: int, trajectories: Any, count: int
) -> Iterator[tuple[Any, Any]]:
    """`backward.u_turns` of batches `(name, originals, noise)`: every batch must come back once, under its name."""
    where = f"{_name(backward, 'backward')}.u_turns"
    pending: dict[Any, Any] = {}

    def noted() -> Iterator[tuple[Any, Any, float]]:
        for name, originals, noise in batches:
            pending[name] = originals
            yield name, originals, noise

    stream = backward.u_turns(noted(), seed, trajectories)
    if not isinstance(stream, Iterable):
        raise ValueError(f"{where} gave a {type(stream).__name__}; expected an iterator over (name, UTurns)")
    for entry in stream:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], tuple) and entry[0] in pending):
            raise ValueError(f"{where} gave {shown(entry)}; expected (name, UTurns), with each name of a batch once")
        yield entry[0], checked_u_turns(backward, entry[1], pending.pop(entry[0]), count)
    if pending:
        raise ValueError(f"{where} ended before the U-turns of {len(pending)} batches; expected (name, UTurns) of every batch")


def checked_readings(
    label: str, readings: Any, declared: Mapping[str, Variable], sizes: Mapping[str, int], items: int
) -> dict[str, np.ndarray]:
    """Readings of a probe, which must be numbers of the declared names and shapes."""
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
        expected = (items, *(sizes[dim] for dim in variable.dims[2:]))
        if values.shape != expected:
            raise ValueError(
                f"{where}: {name} has shape {values.shape}; expected {expected}, its dims {('item', *variable.dims[2:])}"
            )
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{where}: {name} has dtype {values.dtype}; expected real numbers")
        with np.errstate(over="ignore"):
            if np.isinf(values.astype(np.float32)).any():
                raise ValueError(f"{where}: {name} is infinite in float32; expected finite numbers, NaN where there is none")
        found[name] = values
    return found


def checked_variables(label: str, variables: Any, own_dims: Mapping[str, Any]) -> dict[str, Variable]:
    """What a probe declares to measure."""
    from uturn.store import Variable

    where = f"{label}.variables"
    if not isinstance(variables, Mapping) or not variables:
        raise ValueError(f"{where} gave {shown(variables)}; expected a dict {{name: Variable}} with at least one variable")
    for name, variable in variables.items():
        _check_name(where, name)
        if not isinstance(variable, Variable):
            raise ValueError(f"{where}: {name} is a {type(variable).__name__}; expected a uturn.store.Variable(dims, long_name)")
        dims = variable.dims
        if not isinstance(dims, tuple) or not all(isinstance(word, str) for word in (*dims, variable.long_name)):
            raise ValueError(
                f"{where}: {name} is {shown(variable)}; expected Variable(dims, long_name): a tuple of strings, a string"
            )
        known = ("trajectory", *own_dims)
        if tuple(dims[:2]) != ("noise", "item") or len(set(dims)) < len(dims) or not set(dims[2:]) <= set(known):
            raise ValueError(
                f"{where}: {name} has dims {dims}; expected ('noise', 'item', ..), then some of {known}: other dims need values "
                f"in `coordinates`"
            )
    return dict(variables)


def checked_dims(label: str, coordinates: Any) -> dict[str, np.ndarray]:
    """Values along the dims of a probe."""
    where = f"{label}.coordinates"
    if not isinstance(coordinates, Mapping):
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict {{dim: values}}")
    found = {}
    for dim, values in coordinates.items():
        _check_name(where, dim)
        found[dim] = _labels(f"{where}: {dim}", values, None)
    return found


def checked_noise_coordinates(
    backward: Any, coordinates: Any, grid: Sequence[float]
) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Coordinates of the noise axis from a backward: `noise`, which is the grid itself, and others as long as it."""
    where = f"{_name(backward, 'backward')}.noise_coordinates"
    if not isinstance(coordinates, Mapping) or "noise" not in coordinates:
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict {{name: (values, attributes)}} with 'noise' in it")
    found = {}
    for name, entry in coordinates.items():
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping)):
            raise ValueError(
                f"{where}: {name} is {shown(entry)}; expected (values, attributes), such as (levels, {{'units': 's'}})"
            )
        if name != "noise":
            _check_name(where, name)
        try:
            json.dumps(dict(entry[1]))
        except (TypeError, ValueError):
            raise ValueError(f"{where}: the attributes of {name} are {shown(entry[1])}; expected plain data") from None
        found[str(name)] = (_labels(f"{where}: {name}", entry[0], len(grid)), dict(entry[1]))
    if not np.array_equal(found["noise"][0], grid):
        raise ValueError(
            f"{where}: noise is {shown(found['noise'][0].tolist())}; expected the levels of the spec, {shown(list(grid))}; other "
            f"axes go under other names"
        )
    return found


def checked_item_coordinates(source: Any, coordinates: Any, count: int) -> dict[str, np.ndarray]:
    """Coordinates of the items from a source."""
    where = f"{_name(source, 'source')}.coordinates"
    if not isinstance(coordinates, Mapping):
        raise ValueError(f"{where} gave {shown(coordinates)}; expected a dict {{name: values of all items}}, perhaps empty")
    for name in coordinates:
        _check_name(where, name)
    return {name: _labels(f"{where}: {name}", values, count) for name, values in coordinates.items()}


def checked_text(where: str, value: Any) -> str:
    """A fingerprint or description."""
    if not isinstance(value, str):
        raise ValueError(f"{where} gave {shown(value)}; expected a string")
    return value


def _labels(where: str, values: Any, count: int | None) -> np.ndarray:
    """Values along one axis: numbers or text, as many as there should be."""
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
    except Exception as error:  # of whatever type the values are
        raise ValueError(f"{where} is no array ({type(error).__name__}: {one_line(error)})") from None


def _check_name(where: str, name: Any) -> None:
    """ValueError if a variable or coordinate cannot have this name."""
    taken = ("noise", "item", "trajectory", "clone", "tasks")
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name) or name in taken:
        raise ValueError(f"{where}: the name {shown(name)}; expected letters, digits and _, and none of {', '.join(taken)}")


def _name(part: Any, idea: str) -> str:
    return repr(part) if is_own(part) else idea


def _listed(items: Sequence[Any] | np.ndarray) -> str:
    shown = ", ".join(map(str, items[:6]))
    return f"[{shown}{', ..' if len(items) > 6 else ''}]"
