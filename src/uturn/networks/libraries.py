"""Other libraries: errors while reading with them, models on their hub, their progress bars, and
the devices of torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from uturn.core.errors import origin
from uturn.core.messages import one_line

if TYPE_CHECKING:
    import torch


@contextmanager
def reading(what: str, instead: str, extra: str = "text-to-image") -> Iterator[None]:
    """Context for reading a file: any error becomes a ValueError of one line, WHAT cannot be read
    (..); INSTEAD.

    `extra`: the extra of this package that installs the library.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is missing ({one_line(error)}); pip install"
            f" 'uturn[{extra}]'"
        ) from error
    except Exception as error:  # of many undocumented kinds, for damaged files
        kind = f"{type(error).__name__}: "
        if isinstance(error, ValueError):
            kind = ""
        raised_by = origin(error)
        place = ""
        if raised_by is not None:
            place = raised_by.place
        reason = f"{kind}{one_line(error)}{place}"
        raise ValueError(f"{what} cannot be read ({reason}); {instead}") from error


def library(name: str, what: str, extra: str = "text-to-image") -> Any:  # noqa: ANN401 - a module
    """Import a module of an optional library; ValueError names the option `what` that needs it,
    and the way to install it.
    """
    with reading(what, "install it again", extra):
        return importlib.import_module(name)


class Logging(Protocol):
    """A module such as `transformers.utils.logging`."""

    def is_progress_bar_enabled(self) -> bool: ...

    def disable_progress_bar(self) -> None: ...

    def enable_progress_bar(self) -> None: ...

    def get_verbosity(self) -> int: ...

    def set_verbosity(self, verbosity: int) -> None: ...

    def set_verbosity_error(self) -> None: ...


@contextmanager
def without_bars(*libraries: Logging) -> Iterator[None]:
    """Context in which libraries draw no progress bars."""
    drawing = [logging for logging in libraries if logging.is_progress_bar_enabled()]
    for logging in drawing:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in drawing:
            logging.enable_progress_bar()


@contextmanager
def without_lists(logging: Logging) -> Iterator[None]:
    """Context in which a library does not list missing or unused weights."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_hub(name: str, file: str = "model_index.json") -> None:
    """ValueError if there is no such model in the cache or on the hub. The hub is asked once;
    libraries would retry for 25 s.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    with fetching(name):
        try:
            if not isinstance(try_to_load_from_cache(name, file), str):
                # Times out after 10 s, or HF_HUB_ETAG_TIMEOUT.
                get_hf_file_metadata(hf_hub_url(name, file))
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status not in (408, 429) and status < 500:  # a busy hub may answer a retry
                raise


def fetching(name: str) -> AbstractContextManager[None]:
    """Context for fetching a model from a hub: any error becomes a ValueError of one line with
    advice.
    """
    advice = (
        f"log in if it has a licence; `hf download {name} --local-dir FOLDER` fetches it where"
        " there is a network"
    )
    return reading(f"{name}: no such folder, and on the hub it", advice)


def checked_device(device: str | None) -> torch.device:
    """The device with this name, by default "cuda" if available, otherwise "cpu"; ValueError if
    it cannot be used.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
        torch.ones(1, device=checked).cpu()  # fails for devices without values ("meta")
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"device = {device!r} cannot be used here ({one_line(error)}); expected cpu, cuda, mps"
            " or None"
        ) from error
    return checked
