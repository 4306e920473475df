"""`uturn audit`."""

from __future__ import annotations

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import Out, Running
from uturn.cli.running import results_into
from uturn.core.checks import expect
from uturn.tools.audit.options import AuditOptions


@command(STUDIES)
def audit(out: Out = "results/audit", *, chosen: AuditOptions, running: Running) -> None:
    """Test whether a masked model's conditionals are consistent with one joint distribution, and
    measure the cost of each decoder.

    Does the probability of two tokens depend on which is drawn first (nats a pair)? How many nats
    of a text's likelihood depend on the order? What does each of twelve decoders cost (calls, kept
    tokens, calibration gap, entropy, repetition)? Options and study are those of `uturn text`, by
    default with 4 noise levels and 2 noisy versions of each text.

    Writes the files of `uturn text`, `audit.json`, `audit.png`, the report `audit-report.json`, a
    section of the page, and a store for each decoder. The command can be stopped at any time;
    running it again resumes. By default it audits the package's character model, in a few minutes,
    and judges nothing. With --tolerance the exit code is 1 if the model is less consistent.

    Example:

    ```
    uturn audit --out results/audit
    uturn audit --model out/reactions --split smiles --data out/reactions.txt \\
      --out results/reactions
    ```
    """
    from uturn.tools.audit.measure import Audit

    expected = "1/1, since an audit compares finished runs; leave out --shard"
    expect(running.shard == "1/1", "shard", running.shard, expected)
    procedure = Audit(chosen)
    results_into(out, procedure, running)
    if procedure.exit_code:
        raise typer.Exit(procedure.exit_code)
