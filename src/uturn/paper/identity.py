"""The identity of a computation: a text that changes with all that its result depends on, for
results that are kept.

It holds the arguments of the function, the code of the function and of all that it reaches in the
same part of the package (functions, classes, values of constants), and the versions of the package
and of its random numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pydantic

import uturn
from uturn.core import random
from uturn.core.caches import digest_of_file
from uturn.core.experiment import Experiment

OF_FIGURES = ("uturn.paper", "uturn.tools")
"""Packages whose code is followed. All other code of `uturn` is identified by the version of the
package.
"""


def identity_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The identity of `function(**arguments)`.

    Arguments are plain data, arrays, experiments, files (identified by their content), objects with
    a method `identity`, and lists, mappings and dataclasses of these.
    """
    described = {
        "function": _Description(function).of(function),
        "arguments": _Description(function).of(arguments),
        "version": uturn.__version__,
        "random_version": random.VERSION,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class _Description:
    """Values as plain data, for one computation; functions and classes that are met again are
    named only.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        own = getattr(_unwrapped(function), "__module__", None) or ""
        self._followed = (
            (*OF_FIGURES, own.partition(".")[0]) if not own.startswith("uturn.") else OF_FIGURES
        )
        self._met: dict[int, Any] = {}  # by id, with a reference, so that no id is used twice

    def of(self, value: Any) -> Any:
        value = _unwrapped(value)
        if value is None or isinstance(
            value, str | int | float | bool | complex | bytes | range | np.generic
        ):
            return repr(value)
        if isinstance(value, np.ndarray):
            return [
                str(value.dtype),
                value.shape,
                hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
            ]
        if isinstance(value, Mapping):
            return ["mapping", *([self.of(key), self.of(value[key])] for key in value)]
        if isinstance(value, set | frozenset):
            return sorted(repr(entry) for entry in value)
        if isinstance(value, Path):
            return [value.name, digest_of_file(str(value)) if value.is_file() else "no file"]
        if isinstance(value, Experiment):
            return self.of({"experiment": value.identity(), "models": value.models()})
        if isinstance(value, partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, ModuleType):
            return value.__name__
        return self._of_object(value)

    def _of_object(self, value: Any) -> Any:
        """An object by its class and its attributes, or the entries of a sequence."""
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, Sequence):
            return [name, *(self.of(entry) for entry in value)]
        if id(value) in self._met:
            return name
        self._met[id(value)] = value
        if callable(getattr(value, "identity", None)):
            content = value.identity()
        elif isinstance(value, pydantic.BaseModel):
            content = value.model_dump()
        elif is_dataclass(value):
            content = {field.name: getattr(value, field.name) for field in fields(value)}
        else:
            content = _attributes(value)
        return [name, self.of(content)]

    def _of_function(self, function: FunctionType) -> Any:
        name = f"{function.__module__}.{function.__qualname__}"
        if not self._is_followed(function.__module__) or id(function) in self._met:
            return name
        self._met[id(function)] = function
        closure = [cell.cell_contents for cell in function.__closure__ or ()]
        defaults = [function.__defaults__, function.__kwdefaults__]
        reached = {
            name: self.of(value)
            for name, value in _reached(function.__code__, function.__globals__)
        }
        return [
            name,
            self._of_code(function.__code__),
            self.of(closure),
            self.of(defaults),
            reached,
        ]

    def _of_class(self, kind: type) -> Any:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if not self._is_followed(kind.__module__) or id(kind) in self._met:
            return name
        self._met[id(kind)] = kind
        members = {}
        for key, member in vars(kind).items():
            # __module__, __doc__, ..
            is_of_python = key.startswith("__") and not isinstance(_unwrapped(member), FunctionType)
            if not is_of_python:
                members[key] = self.of(member)
        return [name, members]

    def _of_code(self, code: CodeType) -> Any:
        """Instructions, names and constants of compiled code, without documentation and numbers
        of lines.
        """
        constants = [
            self._of_code(one) if isinstance(one, CodeType) else self.of(one)
            for one in code.co_consts
        ]
        if code.co_consts and isinstance(code.co_consts[0], str):
            constants[0] = "documentation"
        return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants]

    def _is_followed(self, module: str) -> bool:
        return any(
            module == package or module.startswith(f"{package}.") for package in self._followed
        )


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, without what its cached properties remember."""
    attributes = getattr(value, "__dict__", {})
    return {
        name: one
        for name, one in attributes.items()
        if not isinstance(getattr(type(value), name, None), cached_property)
    }


def _unwrapped(value: Any) -> Any:
    """The function in a method, in a property, in a cache or in a compiled kernel."""
    for member in ("__func__", "fget", "func", "py_func", "__wrapped__"):
        inner = getattr(value, member, None) if not isinstance(value, partial | type) else None
        if isinstance(inner, FunctionType):
            return inner
    return value


def _reached(code: CodeType, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Module-level values that code names, and members of modules of `uturn` that it names."""
    for name in sorted(_names(code)):
        value = known.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith(OF_FIGURES):
            for member in sorted(_names(code) & vars(value).keys()):
                yield f"{name}.{member}", getattr(value, member)
        elif name in known:
            yield name, value


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
