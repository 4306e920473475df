"""Which strength for image-to-image and augmentation: the largest at which the class is kept in 95
%, and the diversity it buys.

    python examples/recipes/strength.py [--items 600] [--steps 20] [--out results/strength]

Images are noised and denoised at several strengths, and a classifier reads the class of original
and reconstruction. Diversity is the squared distance of both in the first layer of the classifier:
0 if nothing has changed, 1 for two unrelated images. The model, the classifier and the images are
those of the package; docs/images.md says how to name others.
"""

import argparse
from pathlib import Path

import numpy as np

import uturn as ut
from uturn.studies.plotting.style import save_figure, style

GOAL = 0.95
STEPS_BACK = (1, 2, 3, 5)  # of the chain: the strengths measured


def measure(out, items, steps, levels, reference):
    """The run, which resumes if it is interrupted; item i has the label i % 10, and a guarantee
    by class needs 59 of each.
    """
    return ut.run(
        ut.Experiment.from_dict({
            "items": items,
            "chunk": 100,
            "source": {"type": "fashion_mnist"},
            "corruption": {"type": "diffusion", "noise": [k / steps for k in levels]},
            "backward": {"type": "diffusion", "steps": steps},
            "probes": [{"type": "network_layers", "reference": reference}],
        }),
        f"{out}/run",
        progress=True,
    )  # fmt: skip


def diversity(run, noise, label=None):
    """Mean distance in the first layer at a noise, of all items or of those with a label; NaN
    without a noise.
    """
    if np.isnan(noise):
        return np.nan
    distance = run.distance.sel(noise=noise, method="nearest").isel(network_layer=0)
    return float(
        distance.isel(item=slice(None) if label is None else run.label.values == label).mean()
    )


def draw(run, choice):
    """Curves of all images with their bounds, and the choice by class."""
    with style() as plt:
        figure, (curves, classes) = plt.subplots(
            1, 2, figsize=(9, 3.6), width_ratios=(1, 1.2), constrained_layout=True
        )
        keep, x = choice.keep, choice.keep.levels
        curves.plot(x, keep.mean, "o-", label="class kept, mean")
        curves.plot(x, keep.bound, "v:", color="C0", label="class kept, guaranteed")
        curves.plot(x, [diversity(run, noise) for noise in x], "s-", color="C1", label="diversity")
        curves.axhline(GOAL, color="0.6", lw=0.8, label="goal")
        if choice.answer == "chosen":
            curves.axvline(choice.noise, color="C2", label="chosen")
        curves.set(xlabel="strength", ylabel="share kept; diversity", ylim=(0, 1.02))
        curves.legend(loc="center right")
        for label, part in choice.by.items():
            chosen = part.answer == "chosen"
            y = part.noise if chosen else 0
            classes.barh(label, y, color="C2")
            note = f"diversity {diversity(run, part.noise, label):.2f}" if chosen else part.answer
            classes.annotate(note, (y, label), (4, 0), textcoords="offset points", va="center")
        names = [ut.fashion_mnist.CLASS_NAMES[label] for label in choice.by]
        classes.set(
            yticks=list(choice.by),
            yticklabels=names,
            xlabel=f"largest strength that keeps the class in {100 * GOAL:g} %",
        )
        classes.set_xlim(0, 1.45 * x[-1])
        classes.invert_yaxis()
        return figure


def main(out="results/strength", items=600, steps=20, levels=STEPS_BACK, reference=1000):
    run = measure(out, items, steps, levels, reference)
    choice = ut.choose(run, "same_class", keep=GOAL, by="label")
    print(choice)
    print(f"\n{'':12s}  strength  class kept  diversity")
    for label, part in {None: choice, **choice.by}.items():
        name = "all" if label is None else ut.fashion_mnist.CLASS_NAMES[label]
        kept = part.keep.mean[part.keep.levels == part.noise]
        if len(kept):
            print(
                f"{name:12s}  {part.at['strength']:8.3g}  {kept[0]:10.3f} "
                f" {diversity(run, part.noise, label):9.3f}"
            )
        else:
            print(f"{name:12s}  {part.answer}")
    save_figure(draw(run, choice), Path(out) / "strength.png")
    return choice


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="results/strength")
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--steps", type=int, default=20)
    main(**vars(parser.parse_args()))
