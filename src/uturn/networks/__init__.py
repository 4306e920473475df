"""Neural networks: those that are trained here, those of other libraries, their files and their training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uturn.networks.files import load_network as load_network
    from uturn.networks.files import save_network as save_network


def __getattr__(name: str) -> Any:
    if name in ("load_network", "save_network"):  # torch is imported when they are used
        return getattr(importlib.import_module("uturn.networks.files"), name)
    raise AttributeError(f"module 'uturn.networks' has no attribute {name!r}")
