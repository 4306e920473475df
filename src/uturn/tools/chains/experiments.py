"""The chains of `uturn chains`: an experiment of U-turns, repeated at several noise levels."""

from __future__ import annotations

from typing import Any

from uturn.core.checks import checked_integer, expect
from uturn.core.experiment import Experiment

_NOISY = {"tree_levels", "tree_nodes", "messages", "posterior", "tokens"}  # probes that read the noisy datum
EVERY = 64  # chains of at most so many U-turns are read after each of them


def readings_at(steps: int) -> list[int]:
    """The numbers of U-turns after which chains are read: all up to 64, then powers of two, and the last.

    >>> readings_at(4), readings_at(200)[62:]
    ([1, 2, 3, 4], [63, 64, 128, 200])
    """
    return sorted({*range(1, min(steps, EVERY) + 1), *(2**k for k in range(steps.bit_length())), steps})


def repeated(
    base: Experiment, noise: float, steps: int, *, energy: str | None = None, beta: float = 1.0, chains: int | None = None
) -> Experiment:
    """The experiment whose U-turns at one noise level are repeated `steps` times; `chains`: of each original."""
    spec = base.to_dict()
    corruption = {key: value for key, value in spec["corruption"].items() if key != "noise"}
    again = spec["backward"]["type"]
    expect(again not in ("recorded", "repeated"), "backward", again, "one that makes single U-turns")
    of_energy: dict[str, Any] = {} if energy is None else {"energy": energy, "beta": beta}
    probes = [table for table in spec["probes"] if table["type"] not in {*_NOISY, "chain"}]
    made = Experiment.from_dict(
        spec
        | {"clones": 1, "trajectories": chains or spec["trajectories"]}
        | {
            "corruption": {"type": "repeated", "of": corruption, "noise": readings_at(checked_integer("steps", steps, 1))},
            "backward": {"type": "repeated", "of": spec["backward"], "noise": float(noise), **of_energy},
            "probes": [*probes, {"type": "chain", "has_energy": energy is not None}],
        }
    )
    readings = made.variables().values()
    has_level = energy is not None or any(of.role == "reading" and of.start is not None for of in readings)
    expect(has_level, "probes", [table["type"] for table in spec["probes"]], "one whose readings have a start, such as 'scales'")
    return made
