"""`uturn check-sampler`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uturn.cli.app import MODELS, command
from uturn.cli.options import OUTPUT, option
from uturn.cli.printing import console, show
from uturn.core.checks import expect
from uturn.core.files import write_json
from uturn.tools.check_sampler.options import SamplerOptions


@command(MODELS)
def check_sampler(
    json_file: Annotated[
        Path | None,
        option(OUTPUT, "Write the tests with all numbers to this file.", "--json", metavar="FILE"),
    ] = None,
    *,
    chosen: SamplerOptions,
) -> None:
    """Check a sampler of image-to-image: does it make the U-turns that the model, the steps and the noise imply?

    Five tests, since none sees every bug: the size of the change against that of uturn's own sampler, from the weakest noise on;
    an exact two-sample test against the same; the prediction type and the scales of the model; the variance of one reverse step
    against its formula; and the calibration with clones, which is reported and not judged. The table says what each test can see
    and what not (docs/sampler.md).

    The sampler is a function (images, noise, seed) -> reconstructions, with images in [-1, 1] as a float32 tensor (items,
    channels, height, width) and noise = k/steps; or a scheduler. With --recorded, image files that it has written are checked.
    The exit code is 0 if no test fails, 1 if one fails, and 2 for wrong input.

    Example:

    ```
    uturn check-sampler
    uturn check-sampler --model FOLDER --data photos --size 32 --sampler pipeline:image_to_image
    uturn check-sampler --sampler ddim --scheduler ddim
    uturn check-sampler --model FOLDER --data photos --recorded 'strength_{noise}/{item}_{trajectory}.png'
    ```
    """
    expect(json_file is None or not json_file.is_dir(), "json", str(json_file), "a file")
    from uturn.tools.check_sampler import check

    report = check.check_sampler(chosen, progress=True)
    show(report.table())
    if json_file is not None:
        write_json(json_file, report.to_dict())
        console().print(f"written: {json_file}")
    failed = [row.test for row in report.rows if row.verdict == "FAILS"]
    console().print(f"fails: {', '.join(failed)}" if failed else "no test fails")
    if failed:
        raise typer.Exit(1)
