"""Shared options of probes that read with a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import Field

from uturn.core.protocols import Spec

V = TypeVar("V")


class Named(Spec):
    """Options of a probe that an experiment can use several times, with different networks: `name`
    is a prefix of its variables and dims.
    """

    name: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)

    @property
    def probe_name(self) -> str:
        return self.name or self.type

    @property
    def prefix(self) -> str:
        """Prefix of the variables, and of the dims that the probe adds."""
        return "" if self.name is None else f"{self.name}_"

    def prefixed(
        self, entries: Mapping[str, V], twins: Mapping[str, V] | None = None
    ) -> dict[str, V]:
        """Variables or readings by their names in results. `twins`: readings that compare clones
        with each other.
        """
        named = {f"{self.prefix}{name}": entry for name, entry in entries.items()}
        for name, entry in (twins or {}).items():
            named[f"clone_{self.prefix}{name}"] = entry
        return named
