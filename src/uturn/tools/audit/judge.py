"""The audit of a masked model, from Python."""

from __future__ import annotations

import os
from pathlib import Path

import uturn
from uturn.engine.run import Workers
from uturn.measures.report import Report
from uturn.tools.audit.measure import Audit
from uturn.tools.audit.options import AuditOptions


def audit(
    model: str | os.PathLike[str] | None = None,
    store: str | Path | None = None,
    *,
    workers: Workers | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Test whether a masked model's conditionals are consistent with one joint distribution, and
    measure the cost of each decoder.

    If they are, the probability of two tokens does not depend on which is drawn first, the
    likelihood of a text does not depend on the order of its tokens, and exact decoders agree. No
    trained network is quite consistent: the report says by how many nats. docs/decoders.md
    describes the measures.

    Parameters
    ----------
    model
        Folder or name of a masked model, as in `uturn audit --model`. By default the package's
        model of characters.
    store
        Folder of the stores of all runs, which a second call resumes. In memory if not given.
    workers
        Processes of each run, as in `uturn.run`.
    progress
        Whether progress bars are shown.
    **options
        Options of `uturn audit` by their names, such as data, split, length, items, levels,
        tolerance, false_alarm_rate, seed.

    Returns
    -------
    Report
        The inconsistency of two tokens in nats a pair, which is judged if a `tolerance` is given;
        the difference of two orders of a text, the likelihood and the calibration gap of each
        decoder, which are reported.

    Raises
    ------
    ValueError
        For wrong options, a model that cannot be read or that has no masks, and texts to which the
        model gives the probability 0.
    """
    if model is not None:
        options["model"] = os.fspath(model)
    procedure = Audit(AuditOptions.from_dict(options))
    runs = {}
    for name, experiment in procedure.experiments("").items():
        place = None if store is None else Path(store, name)
        runs[name] = uturn.run(experiment, place, workers=workers, progress=progress)
    return procedure.report(procedure.numbers(runs), runs)
