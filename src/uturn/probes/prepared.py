"""Probes that prepare something for their source, such as a network."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

from uturn.core.protocols import Spec


class Prepared(Spec):
    """A probe whose private attributes depend on the source that it is bound to."""

    @abstractmethod
    def prepare(self, source: Any) -> None:  # noqa: ANN401 - the source that the probe reads
        """Set the private attributes for a source; ValueError if probe and source do not fit."""

    def bind(self, source: Any) -> Self:  # noqa: ANN401 - the source that the probe reads
        bound = self.model_copy()
        bound.prepare(source)
        return bound

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as in pydantic
        """ValueError for a private attribute of a probe that is not bound."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it
        except AttributeError:
            if name not in type(self).__private_attributes__:
                raise
        raise ValueError(
            f"the probe {self.type!r} is not prepared for a source; bind the probe to its source"
            " first: probe.bind(source)"
        )
