"""Reading instructions: the role of a stored variable, the start and end of its curve, and its place in figures.

They are stored as plain JSON in the attribute `reading` of an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr

from uturn.core.checks import LARGEST, shown

_SHARED_DIMS = ("noise", "item", "trajectory", "clone")  # all other dims are a variable's own


_Level = Annotated[float, Field(strict=True, allow_inf_nan=False)] | StrictStr | None  # strict, so that True is not a number


class Instructions(BaseModel):
    """The reading instructions of `uturn.protocols.Variable`, checked."""

    model_config = ConfigDict(frozen=True)

    start: _Level = None
    chance: _Level = None
    bounds: tuple[FiniteFloat | None, FiniteFloat | None] = (None, None)
    group: StrictStr = ""
    order: StrictStr | None = None
    role: Literal["reading", "record", "changes"] = "reading"
    family: StrictStr | None = None
    unit: StrictStr = ""
    symmetric: bool = False
    ranked: bool = False
    probe: StrictStr = ""
    model: StrictStr = ""
    guessed: bool = False

    def check(self, dims: Sequence[str]) -> None:
        """ValueError for bounds that are not increasing, a start or chance beyond them, and an `order` that is not an own dim."""
        low, high = self.bounds
        if low is not None and high is not None and not low < high:
            raise ValueError(f"bounds = {self.bounds}: expected a smaller and a larger number, or None")
        for name, level in (("start", self.start), ("chance", self.chance)):
            if not isinstance(level, float):
                continue
            if not (low is None or low <= level) & (high is None or level <= high):
                raise ValueError(f"{name} = {level:g}: expected a number in its bounds {self.bounds}")
            if abs(level) >= LARGEST:
                raise ValueError(f"{name} = {level:g}: expected a number below {LARGEST:g}")
        own_dims = tuple(dim for dim in dims if dim not in _SHARED_DIMS)
        if self.order is not None and self.order not in own_dims:
            raise ValueError(f"order = {shown(self.order)}: expected one of its own dims {own_dims}")

    @property
    def about_start(self) -> str:
        """A remark on a start that is a guess; "" for others."""
        return f"its start is taken as {self.start:g}, which is a guess: give start" if self.guessed else ""

    @property
    def is_share(self) -> bool:
        """Whether readings lie in [0, 1], so that their mean is a proportion."""
        return self.bounds == (0.0, 1.0)


def is_kept_if_large(name: str) -> bool:
    """Whether the name of a reading says that large values are those without changes."""
    return any(word in name.lower() for word in ("kept", "same", "accuracy", "unchanged"))
