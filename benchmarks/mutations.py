"""What the verdicts of whole figures notice of errors put into the package on purpose: the table of
`tests/mutations.py`.

    python benchmarks/mutations.py [NAME ...] [--figures [FIGURE ...]] [--workers N]

Every figure that has to notice an error is made at smoke scale with that error, in a process of its
own and a folder of its own, and once without it. NAME selects errors that contain the text;
`--figures` takes other figures than those of the table, or none. Errors are also tried on the tests
that are named: `python benchmarks/mutations.py --figures` says in a few minutes which test catches
which error. The exit code is 1 if something named did not fail, or failed without the error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from mutations import MUTATIONS, Mutation  # noqa: E402


def reproduced(figure: str, name: str | None) -> list[tuple[str, bool]]:
    """Verdicts of a figure, as (quantity, passed), made in another process with the error of
    that name, or without any.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", json.dumps([figure, name, folder])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [(f"{figure} stops: {(done.stderr.strip().splitlines() or ['?'])[-1]}", False)]
        return [tuple(row) for row in json.loads(done.stdout.strip().splitlines()[-1])]


def child(figure: str, name: str | None, folder: str) -> None:
    from uturn.paper import reproduce

    def verdicts() -> list[tuple[str, bool]]:
        # One worker: processes of their own would import the right package.
        return [(v.quantity, v.passed) for v in reproduce([figure], folder, workers=1)[0].verdicts]

    if name is None:
        print(json.dumps(verdicts()))
        return
    (mutation,) = [m for m in MUTATIONS if m.name == name]
    with mutation.applied():
        print(json.dumps(verdicts()))


def failing_test(mutation: Mutation) -> list[tuple[str, bool]]:
    """The tests that are named, as (name, passed) under the error."""
    from test_mutations import named_test

    found = []
    for name, arguments in mutation.tests:
        named_test(name, arguments)()
        with mutation.applied():
            try:
                named_test(name, arguments)()
                found.append((name, True))
            except AssertionError:
                found.append((name, False))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of the names of errors; all by default")
    parser.add_argument(
        "--figures",
        nargs="*",
        help="figures to make instead of those of the table; none are named: no figure",
    )
    parser.add_argument("--workers", type=int, default=1, help="figures made at a time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*json.loads(arguments.child))
        return 0
    chosen = [
        m
        for m in MUTATIONS
        if not arguments.names or any(name in m.name for name in arguments.names)
    ]
    if not chosen:
        parser.error(
            f"no error is called {arguments.names}; expected parts of"
            f" {', '.join(m.name for m in MUTATIONS)}"
        )
    figures = {
        m.name: list(m.figures) if arguments.figures is None else arguments.figures for m in chosen
    }
    jobs = [
        (figure, None) for figure in dict.fromkeys(f for each in figures.values() for f in each)
    ]
    jobs += [(figure, m.name) for m in chosen for figure in figures[m.name]]
    start = time.monotonic()
    found = {}
    with ThreadPoolExecutor(arguments.workers) as pool:
        for job, verdicts in zip(jobs, pool.map(lambda job: reproduced(*job), jobs), strict=True):
            found[job] = verdicts
            failed = [words[:60] for words, passed in verdicts if not passed]
            seconds = f"{time.monotonic() - start:5.0f} s"
            print(
                f"{seconds}  {job[0]}, {job[1] or 'right'}: {len(failed)} of {len(verdicts)} fail"
                f" {failed}",
                file=sys.stderr,
            )
    table = Table(title="Errors put in on purpose, figures at smoke scale")
    for heading in ("error", "the change", "figure or test", "verdicts that fail"):
        table.add_column(heading, overflow="fold")
    wrong = 0
    for figure in [figure for figure, name in jobs if name is None]:
        failed = [words for words, passed in found[figure, None] if not passed]
        wrong += bool(failed)
        table.add_row(
            "none",
            "",
            figure,
            f"{len(failed)} of {len(found[figure, None])}"
            + "".join(f"\n- {w[:70]}" for w in failed),
        )
    for m in chosen:
        table.add_section()
        rows = []
        for figure in figures[m.name]:
            verdicts = found[figure, m.name]
            failed = [words for words, passed in verdicts if not passed]
            expected = m.figures.get(figure)
            missed = expected is not None and not any(
                words.startswith((expected, f"{figure} stops")) for words in failed
            )
            wrong += missed
            rows.append(
                (
                    figure,
                    f"{len(failed)} of {len(verdicts)}"
                    + "".join(f"\n- {w[:70]}" for w in failed)
                    + "\nMISSED" * missed,
                )
            )
        for name, passed in failing_test(m):
            wrong += passed
            rows.append((name, "MISSED" if passed else "fails"))
        for k, row in enumerate(rows):
            table.add_row(*((m.name, m.change) if k == 0 else ("", "")), *row)
    Console(width=190, markup=False).print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
