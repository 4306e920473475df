"""Objects given by their import path, "module:name"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from uturn.core.messages import one_line

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether a text is an import path "module:name" and not the name of an existing file."""
    return bool(_PATH.fullmatch(text)) and not Path(text).exists()


def import_object(path: str, where: str, expected: str) -> Any:  # noqa: ANN401 - of a user
    """The object with an import path "module:name"; importing it runs the code of its module.

    A ValueError begins with `where`, which names the option, and ends with the `expected` forms of
    its value.
    """
    module, _, name = path.partition(":")
    try:
        value = importlib.import_module(module)
        for word in name.split("."):
            value = getattr(value, word)
        return value
    except (Exception, SystemExit) as error:  # the code of a module can raise any exception
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{where} cannot be imported ({reason}); expected {expected}") from error


def import_function(
    path: str, where: str, expected: str, form: str = "a function without arguments"
) -> Callable[..., Any]:
    """The user's function with an import path; errors as in `import_object`, and for what is no
    function of the `form`.
    """
    function = import_object(path, where, expected)
    if not callable(function):
        raise ValueError(f"{where} is a {type(function).__name__}; expected {form}")
    return cast(Callable[..., Any], function)
