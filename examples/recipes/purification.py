"""Which noise purifies: the window in which a perturbation is removed and the class of clean images
is kept.

    python examples/recipes/purification.py [--items 200] [--steps 20] [--epsilon 0.1] [--out
    results/purification]

Each image is moved by one step of size epsilon along the sign of the gradient of the classifier's
loss (FGSM, Goodfellow et al. 2014), which changes its class in most cases. Clean and perturbed
images make U-turns, and the same classifier reads both. A perturbation that knows of the U-turn (an
adaptive attack) is another question, which this does not answer. Model, classifier and images are
those of the package.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import uturn as ut
from uturn.studies.plotting.style import save_figure, style

KEEP, LOSE = 0.8, 0.5
STEPS_BACK = (1, 2, 3, 5)  # of the chain: the noise levels measured


def perturbed(images, epsilon):
    """Images (n, 1, 28, 28) in [-1, 1], moved by epsilon along the sign of the gradient of the
    loss of their own class.
    """
    classifier, images = (
        ut.fashion_mnist.load_classifier(),
        torch.from_numpy(images).requires_grad_(),
    )
    logits = classifier(images)
    torch.nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    return (images + epsilon * images.grad.sign()).clamp(-1, 1).detach().numpy()


def measure(source, items, steps, levels, store):
    """U-turns of the images of a source."""
    return ut.run(
        ut.Experiment.from_dict({
            "items": items,
            "chunk": 100,
            "source": source,
            "corruption": {"type": "diffusion", "noise": [k / steps for k in levels]},
            "backward": {"type": "diffusion", "steps": steps},
            "probes": [{"type": "network_layers", "reference": 100}],
        }),
        store,
        progress=True,
    )  # fmt: skip


def readings(out, items, steps, epsilon, levels):
    """The run of the clean images, with two readings of the perturbed ones; images whose class has
    not changed have none.

    `same_class`: a clean image keeps its class. `still_fooled`: a perturbed image keeps its wrong
    class. `restored`: it gets back the class of the clean image.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    images = perturbed(ut.fashion_mnist.load_test_set()[0][:items], epsilon)
    np.save(f"{out}/perturbed.npy", images)
    clean = measure({"type": "fashion_mnist"}, items, steps, levels, f"{out}/clean")
    moved = measure(
        {"type": "array", "path": f"{out}/perturbed.npy"},
        items,
        steps,
        levels,
        f"{out}/perturbed",
    )
    # (noise, item), the same at each noise.
    fooled = moved.original_class.values != clean.original_class.values
    print(f"epsilon {epsilon:g} changes the class of {fooled[0].sum()} of {items} images")
    restored = moved.predicted_class.values == clean.original_class.values[..., None]
    still = moved.same_class.where(fooled[..., None])
    return clean.assign(
        still_fooled=still, restored=still.copy(data=np.where(fooled[..., None], restored, np.nan))
    )


def draw(run, choice):
    """The curves and the window."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(6, 3.6), constrained_layout=True)
        keep, lose, x = choice.keep, choice.lose, choice.keep.levels
        for test, colour, text in (
            (keep, "C0", "clean class kept, at least"),
            (lose, "C3", "still fooled, at most"),
        ):
            axes.plot(x, test.mean, "o-", color=colour, label=text.partition(",")[0])
            axes.plot(x, test.bound, ":", color=colour, label=text)
        axes.plot(
            x,
            run.restored.mean(("item", "trajectory")),
            "s--",
            color="C1",
            label="right class restored",
        )
        if choice.window:
            axes.axvspan(*choice.window, color="C2", alpha=0.25, lw=0, label="window")
        axes.set(xlabel="noise, t/T", ylabel="share of the images", ylim=(0, 1.02))
        axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
        return figure


def main(out="results/purification", items=200, steps=20, epsilon=0.1, levels=STEPS_BACK):
    run = readings(out, items, steps, epsilon, levels)
    choice = ut.choose(run, "same_class", keep=KEEP, lose={"still_fooled": LOSE})
    print(choice)
    print(
        "right class restored:",
        *(
            f"{x:.2f}: {y:.2f}"
            for x, y in zip(
                run.noise.values, run.restored.mean(("item", "trajectory")).values, strict=True
            )
        ),
    )
    print("Not measured: adaptive attacks, which know of the U-turn.")
    save_figure(draw(run, choice), Path(out) / "purification.png")
    return choice


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="results/purification")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=0.1)
    main(**vars(parser.parse_args()))
