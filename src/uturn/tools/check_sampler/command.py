"""`uturn check-sampler`."""

from __future__ import annotations

from uturn.cli.app import MODELS, command
from uturn.cli.judging import CsvFile, JsonFile, check_files, end_with
from uturn.tools.check_sampler.options import SamplerOptions


@command(MODELS)
def check_sampler(
    json_file: JsonFile = None, csv_file: CsvFile = None, *, chosen: SamplerOptions
) -> None:
    """Check whether an image-to-image sampler makes the U-turns that the model, the steps and the
    noise imply.

    Five tests, since none sees every bug: the size of the change against that of uturn's own
    sampler, from the weakest noise on; an exact two-sample test against the same; the prediction
    type and the scales of the model; the variance of one reverse step against its formula; and the
    calibration with clones, which is reported and not judged. The table says what each test can see
    and what not (docs/sampler.md).

    The sampler is a function (images, noise, seed) -> reconstructions, with images in [-1, 1] as a
    float32 tensor (items, channels, height, width) and noise = k/steps; or a scheduler. With
    --recorded, image files that it has written are checked. The exit code is 0 if no test fails, 1
    if one fails, and 2 for wrong input.

    Example:

    ```
    uturn check-sampler
    uturn check-sampler --model FOLDER --data photos --size 32 --sampler pipeline:image_to_image
    uturn check-sampler --sampler ddim --scheduler ddim
    uturn check-sampler --model FOLDER --data photos \\
      --recorded 'strength_{noise}/{item}_{trajectory}.png'
    ```
    """
    from uturn.tools.check_sampler.check import checked

    check_files(json_file, csv_file)
    end_with(checked(chosen, progress=True), json_file, csv_file)
