"""`uturn check-knob`."""

from __future__ import annotations

from pathlib import Path

from uturn.cli.app import MODELS, command
from uturn.cli.judging import CsvFile, JsonFile, check_files, end_with
from uturn.cli.options import OptionalOut
from uturn.tools.check_knob.options import KnobOptions


@command(MODELS)
def check_knob(
    out: OptionalOut = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    *,
    chosen: KnobOptions,
) -> None:
    """Check whether the noise knob of a pipeline does what a noise knob should. No model is
    needed: outputs are enough.

    Eleven tests: does a value persist into the next call, is the seed used, do originals share
    noise, does 0 change nothing, does the knob do anything, does the change ever fall, does it
    jump, are values rounded to one, are outputs louder, darker or noisy, does the original leak at
    1, is the noise as stated. The report also has the range of the knob over which 5 to 95 % of the
    change are made (docs/knob.md).

    The pipeline is a function (original, knob, seed) -> output, which is called in random order; or
    its outputs are recorded in a folder or a table. With --out, outputs are kept, so that a stopped
    check goes on, and the picture and the report are written. The exit code is 0 if no test fails,
    1 if one fails, and 2 for wrong input.

    Example:

    ```
    uturn check-knob --function mine:turn --data photos --out results/knob
    uturn check-knob --recorded outputs --change 0.3
    uturn check-knob --recorded distances.csv
    ```
    """
    from uturn.tools.check_knob.judge import judged

    check_files(json_file, csv_file)
    folder = None if out is None else Path(out)
    found = judged(chosen, None if folder is None else folder / "outputs", progress=True)
    if out is not None:
        from uturn.pages.reports import write_report
        from uturn.tools.check_knob.figure import draw

        write_report(found.report, out, "check-knob", lambda: draw(found))
    end_with(found.report, json_file, csv_file)
