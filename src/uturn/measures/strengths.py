"""The strength of image-to-image pipelines, in their own rounding."""

from __future__ import annotations

_DIGITS = 4  # of a strength


def steps_of(strength: float, steps: int, counts_down: bool) -> int:
    """Number of steps that a pipeline makes for a strength in [0, 1], in the arithmetic of the
    pipelines.
    """
    if counts_down:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def strength_of(k: int, steps: int, counts_down: bool) -> float:
    """The strength with 4 digits nearest to k/N that gives k steps; k/N itself may be rounded to
    another number of steps.

    >>> strength_of(29, 100, counts_down=False), int(100 * 0.29)
    (0.2901, 28)
    """
    near = round(k / steps, _DIGITS)
    for digits in (0, 1, -1, 2, -2):
        strength = round(near + digits * 10.0**-_DIGITS, _DIGITS)
        if 0 <= strength <= 1 and steps_of(strength, steps, counts_down) == k:
            return strength
    return float("nan")
