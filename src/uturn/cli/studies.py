"""`uturn images`, `text` and `inverse`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from uturn.cli.app import STUDIES, command
from uturn.cli.options import OUTPUT, Out, Place, Running, option
from uturn.cli.printing import console
from uturn.cli.running import check_out, end, originals_in, runs_into
from uturn.core.checks import expect
from uturn.core.lazy import later
from uturn.presets.images import ImageOptions
from uturn.presets.inverse import InverseOptions
from uturn.presets.texts import TextOptions

with later():
    from uturn.cli import locating
    from uturn.core import experiment as experiments
    from uturn.pages import page, results
    from uturn.presets import inverse_results
    from uturn.store import outputs
    from uturn.studies import tables


@command(STUDIES)
def images(
    out: Out,
    save_images: Annotated[bool, option(OUTPUT, "Also write the stored reconstructions as PNG files.")] = False,
    *,
    place: Place,
    chosen: ImageOptions,
    running: Running,
) -> None:
    """Measure where U-turns of images lose their class, in the layers of classifiers: Figs. 1, 2 and 16 for your own model.

    Images are noised to a fraction t/T of a diffusion chain and denoised back. At each t/T the command measures the share of
    reconstructions that keep the predicted class, and the cosine similarity of reconstruction and original in each layer of the
    classifier.

    The study gives, with 95 % intervals: t\\*, where half of the class is lost; the width of this transition; the half-life of
    each layer; and the t/T at which the logits fall below the first layer. With --clones 2 or more, it tests whether
    reconstructions are draws from the posterior. --recorded studies images that another program has noised and denoised.

    Writes the page `index.html`, `study.png`, `grid.png`, `curves.csv`, `numbers.csv`, `items.csv` (a row for each
    image) and the run, `run.zarr`. The command can be stopped at any time; running it again resumes. Larger numbers of items,
    levels or trajectories extend the run. Without options, the command runs the package's Fashion-MNIST model, in a few
    minutes.

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
    check_out(out, save_images, chosen.keep)
    experiment = chosen.experiment(originals_in(out))
    if place.until is not None:
        expect(not save_images, "save_images", save_images, "no --until, whose runs are studied together")
        return locating.locate_into(out, experiment, running, replace(place, reading=place.reading or "same_class"), out)
    looks: Any = {"title": "U-turns of images", "groups": ("class", "layers"), "save_images": save_images}
    _study(out, experiment, running, **looks)


@command(STUDIES)
def text(
    out: Out,
    *,
    place: Place,
    chosen: TextOptions,
    running: Running,
) -> None:
    """Measure the share of tokens that U-turns of texts keep and how many tokens change together, for your masked language model.

    A share of the tokens of each text is masked (or replaced), and the model draws them again, one at a time. At each noise level
    the command measures: the share of tokens that are kept, alone and in runs of 2, 4, 8, ..; the susceptibility chi, which is
    the number of tokens that change together, and the noise of its peak; the correlation C(r) of changes at distance r, and its
    length xi. Options add the unchanged share of regions and segments, and the readings of other models (--layers, --encoder,
    --likelihood), or the share of texts that keep their predicted class (--classifier), whose half-life is called t\\*. With
    --clones 2 or more, the study tests whether reconstructions are draws from the posterior. Numbers have 95 % intervals.

    Writes the page `index.html`, `study.png`, `tokens.html` (originals and reconstructions with changes marked),
    `curves.csv`, `numbers.csv`, `items.csv` and the run, `run.zarr`. The command can be stopped at any time;
    running it again resumes. Larger numbers of items, levels or trajectories extend the run. Without options, the command
    runs the package's character model, in a few minutes.

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
    check_out(out)
    if place.until is not None:
        return locating.locate_into(out, chosen.experiment(), running, place, out)
    _study(out, chosen.experiment(), running, title="U-turns of texts", groups=("tokens",))


@command(STUDIES)
def inverse(out: Out, *, chosen: InverseOptions, running: Running) -> None:
    """Test whether posterior samplers of an inverse problem draw from the posterior, without ground truth about it.

    Images are measured, y = A(x) + noise, at several strengths of the operator A. Each sampler draws several reconstructions of
    each measurement. Given y, the original and exact draws from p(x | y) are exchangeable, so any reading that tells them apart
    shows an error. The command tests the distance of two images, their class, the likelihood log p(y | x) and the ranks of the
    original among its reconstructions, and says which kind of error it is: too sure, not sure enough, shifted, wrong modes, deaf
    to the data. Beside the tests stand what reconstructions keep of the class, t\\*, and calls of the network.

    With real images, sampler and model are judged together; --data generated, originals drawn by the model, judges the sampler
    alone, as do vectors of a law of your own, which need no model. Several can be given. Samplers and operators are those of
    deepinv by name, or your own: module:function. A function without a denoiser needs no model either.

    Writes the page `index.html` (truth, measurement, reconstructions and their spread at each strength), `inverse.json`,
    `inverse.csv`, `errors/`, the files of `uturn images`, and a store for each sampler. The command can be stopped at any
    time; running it again resumes. More samplers, items or levels extend the results. Without options, it tests two
    samplers of deepinv on the package's Fashion-MNIST model, behind hidden boxes, in five minutes. Needs uturn[inverse].

    Example:

    ```
    uturn inverse --out results/inverse
    uturn inverse --data fashion_mnist --data generated --sampler deepinv:DPS --out results/inverse
    uturn inverse --model google/ddpm-cifar10-32 --data photos --size 32 --operator blur --levels 0.5,1,2 \\
      --sampler 'deepinv:DiffPIR steps=50 zeta=0.3' --sampler own:langevin --out results/blur
    ```
    """
    check_out(out)
    runs = chosen.runs(originals_in(out))
    calls = inverse_results.calls_of(runs)
    datasets = runs_into(out, {run.store: run.experiment for run in runs}, running)
    if datasets is None:
        return
    readings = {run.name: datasets[run.store] for run in runs}
    several = len(runs) > 1
    title = "Posterior samplers" if several else f"Posterior sampler {runs[0].name}"
    studied: Any = readings if several else readings[runs[0].name]
    studies = results.write_study(studied, out, title=title, groups=("class", "distance"), page=False)
    with outputs.output_folder("out", out) as folder:
        tests = inverse_results.write_inverse(runs, readings, studies if several else {runs[0].name: studies}, calls, folder)
    page.report([out])
    table = tables.for_terminal(tables.TextTable(**tests["table"]))
    end(out, [table], *tests["notes"], files=inverse_results.RESULTS)


def _study(out: str, experiment: experiments.Experiment, running: Running, save_images: bool = False, **looks: Any) -> None:
    """Run an experiment into OUT/run.zarr and study it; nothing is studied while other shares have unfinished tasks."""
    datasets = runs_into(out, {"run.zarr": experiment}, running)
    if datasets is None:
        return
    study = results.write_study(datasets["run.zarr"], out, source=experiment.parts.source, save_images=save_images, **looks)
    end(out, tables.summary(study, width=console().width), study.attrs["description"], save_images=save_images)
