"""`uturn images` and `text`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from uturn import pages, studies
from uturn.cli.app import STUDIES, command
from uturn.cli.options import OUTPUT, Out, Place, Running, option
from uturn.cli.printing import console
from uturn.cli.running import (
    Experiments,
    Finished,
    Printed,
    Procedure,
    begin,
    locate_into,
    originals_in,
    results_into,
)
from uturn.core.checks import expect
from uturn.presets.images import ImageOptions
from uturn.presets.texts import TextOptions


@command(STUDIES)
def images(
    out: Out = "results/images",
    save_images: Annotated[
        bool, option(OUTPUT, "Also write the stored reconstructions as PNG files.")
    ] = False,
    *,
    place: Place,
    chosen: ImageOptions,
    running: Running,
) -> None:
    """Measure where U-turns of images lose their class, in the layers of classifiers: Figs. 1, 2
    and 16 for your own model.

    Images are noised to a fraction t/T of a diffusion chain and denoised back. At each t/T the
    command measures the share of reconstructions that keep the predicted class, and the cosine
    similarity of reconstruction and original in each layer of the classifier.

    The study gives, with 95 % intervals: t\\*, where the class is half-way to chance; the width of
    this transition; the half-life of each layer; and the t/T at which the logits fall below the
    first layer. With --clones 2 or more, it tests whether reconstructions are draws from the
    posterior. --recorded studies images that another program has noised and denoised.

    Writes the page `index.html`, `study.png`, `grid.png`, `curves.csv`, `numbers.csv`, `items.csv`
    (a row for each image) and the run in the folder `run`. The command can be stopped at any time; running
    it again resumes. Larger numbers of items, levels or trajectories extend the run. Without
    options, the command runs the package's Fashion-MNIST model, in a few minutes.

    Example:

    ```
    uturn images --out results/fashion
    uturn images --model google/ddpm-cifar10-32 --data photos --size 32 \\
      --classifier torchvision:resnet50 --no-compare-labels --out results/cifar
    uturn images --recorded 'out/strength_{noise}/{item}_{trajectory}.png' --unit strength \\
      --data originals --classifier torchvision:resnet50 --no-compare-labels --out results/recorded
    uturn images --until 0.05 --out results/located
    ```
    """
    if place.until is not None:
        expected = "no --until, whose runs are studied together"
        expect(not save_images, "save_images", save_images, expected)
        begin(out)
        place = replace(place, reading=place.reading or "same_class")
        locate_into(out, chosen.experiment(originals_in(out)), running, place, out)
        return
    procedure = StudyOfImages(chosen, save_images)
    results_into(out, procedure, running, save_images=save_images, kept=chosen.keep)


@command(STUDIES)
def text(out: Out = "results/text", *, place: Place, chosen: TextOptions, running: Running) -> None:
    """Measure the share of tokens that U-turns of texts keep and how many tokens change together,
    for your masked language model.

    A share of the tokens of each text is masked (or replaced), and the model draws them again, one
    at a time. At each noise level the command measures: the share of tokens that are kept, alone
    and in runs of 2, 4, 8, ..; the susceptibility chi, which is the number of tokens that change
    together, and the noise of its peak; the correlation C(r) of changes at distance r, and its
    length xi. Options add the unchanged share of regions and segments, and the readings of other
    models (--layers, --encoder, --likelihood), or the share of texts that keep their predicted
    class (--classifier), whose half-life is called t\\*. With --clones 2 or more, the study tests
    whether reconstructions are draws from the posterior. Numbers have 95 % intervals.

    Writes the page `index.html`, `study.png`, `tokens.html` (originals and reconstructions with
    changes marked), `curves.csv`, `numbers.csv`, `items.csv` and the run in the folder `run`. The command
    can be stopped at any time; running it again resumes. Larger numbers of items, levels or
    trajectories extend the run. Without options, the command runs the package's character model, in
    a few minutes.

    Example:

    ```
    uturn text --out results/text
    uturn text --model google-bert/bert-base-uncased --data sentences.txt \\
      --items 100 --out results/bert
    uturn text --model out/reactions --split smiles --data out/reactions.txt \\
      --segment . --segment ">>" --clones 2 --out results/reactions
    uturn text --until 0.05 --reading "kept, span = 1" --out results/located
    ```
    """
    if place.until is not None:
        begin(out)
        locate_into(out, chosen.experiment(), running, place, out)
        return
    results_into(out, StudyOfTexts(chosen), running)


class _Study(Procedure):
    """One run, and its study."""

    title: str
    """Of the page."""
    groups: tuple[str, ...]
    """Of readings that are drawn first."""
    save_images: bool = False

    def write(self, finished: Finished) -> Printed:
        study = pages.write_study(
            finished.runs[RUN],
            finished.out,
            source=finished.experiments[RUN].parts.source,
            title=self.title,
            groups=self.groups,
            save_images=self.save_images,
            page=False,
        )
        tables = studies.summary(study, width=console().width)
        return Printed([*tables, study.attrs["description"]])


RUN = "run"
"""Name of the store in a folder of results."""


class StudyOfImages(_Study):
    """The procedure of `uturn images`."""

    title = "U-turns of images"
    groups = "class", "layers"

    def __init__(self, options: ImageOptions, save_images: bool) -> None:
        self.options = options
        self.save_images = save_images

    def experiments(self, out: str) -> Experiments:
        return {RUN: self.options.experiment(originals_in(out))}


class StudyOfTexts(_Study):
    """The procedure of `uturn text`."""

    title = "U-turns of texts"
    groups = ("tokens",)

    def __init__(self, options: TextOptions) -> None:
        self.options = options

    def experiments(self, out: str) -> Experiments:
        return {RUN: self.options.experiment()}
