"""Which noise for anomaly detection: what rewrites regions of which size, while the rest of the
image stays.

    python examples/recipes/anomalies.py [--items 60] [--steps 20] [--out results/anomalies]

Two measurements. (1) Normal images: how many patches of 4 pixels change together in a U-turn
(susceptibility chi), which is a region with sides of 4 sqrt(chi) pixels, and over which distance
(correlation length xi). (2) Images with an anomaly, a square in which black and white are
exchanged: the share of it that is left after the U-turn, 1 untouched and 0 rewritten as the normal
image, and the change of the rest of the image. An anomaly is detected by comparing an image with
its U-turn, at a noise in the window between both. Model and images are those of the package.
"""

import argparse
from pathlib import Path

import numpy as np

import uturn as ut
from uturn.studies.plotting.style import save_figure, style

SIDES = (4, 8, 12)  # pixels
KEEP, LOSE = 0.25, 0.5
PATCH = 4  # pixels
STEPS_BACK = (1, 2, 4, 6, 8, 10)  # of the chain: the noise levels measured


def planted(images, seed=0):
    """Images with a square each, item i of the side SIDES[i % 3], at random places of the
    middle; and masks of the squares.
    """
    rng, masks = np.random.default_rng(seed), np.zeros(images.shape, bool)
    for i, mask in enumerate(masks):
        side = SIDES[i % len(SIDES)]
        row, column = rng.integers(4, 24 - side + 1, 2)
        mask[:, row : row + side, column : column + side] = True
    return np.where(masks, -images, images), masks


def measure(source, probes, items, trajectories, steps, levels, store):
    return ut.run(
        ut.Experiment.from_dict({
            "items": items,
            "trajectories": trajectories,
            "chunk": 30,
            "source": source,
            "corruption": {"type": "diffusion", "noise": [k / steps for k in levels]},
            "backward": {"type": "diffusion", "steps": steps},
            "probes": probes,
        }),
        store,
        progress=True,
    )  # fmt: skip


def readings(out, items, steps, levels):
    """Readings of the planted images: `left`, the share of the square that is left, and `rest`, the
    change of the other pixels.

    left = <x̂ - x, a - x> / |a - x|² over the square, with the normal image x, the planted one a,
    and the reconstruction x̂ of a. rest: mean size of x̂ - x over the other pixels; white minus
    black is 2.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    normal = ut.fashion_mnist.load_test_set()[0][:items]
    images, masks = planted(normal)
    np.save(f"{out}/planted.npy", images)
    run = measure(
        {"type": "array", "path": f"{out}/planted.npy"},
        [{"type": "images"}],
        items,
        1,
        steps,
        levels,
        f"{out}/planted",
    )
    change = run.image.values - normal[:, None]  # (noise, item, trajectory, channel, row, column)
    sides, pixels = (images - normal)[:, None], (-3, -2, -1)
    left = (change * sides).sum(pixels) / (sides**2).sum(pixels)
    rest = np.abs(change).mean(pixels, where=~masks[:, None])

    axes = {
        name: ("noise", of.values)
        for name, of in run.coords.items()
        if of.dims == ("noise",) and name != "noise"
    }
    return ut.readings(
        {"left": left, "rest": rest},
        run.noise.values,
        unit="t/T",
        start={"left": 1, "rest": 0},
        bounds={"left": (None, None), "rest": (0, None)},
        coords={**axes, "side": ("item", np.resize(SIDES, items))},
    )


def draw(run, choice, study):
    """Left: the share of each square that is left, and the rest. Right: the region that changes
    together in normal images.
    """
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
        for k, (side, part) in enumerate(choice.by.items()):
            left.plot(
                part.lose.levels,
                part.lose.mean,
                "o-",
                color=f"C{k}",
                label=f"left of squares of {side} pixels",
            )
            if part.window:
                left.plot(part.window, [1.06 + 0.05 * k] * 2, "d-", color=f"C{k}", lw=4)
            half = part.lose.crossing["noise"].value
            right.plot(
                half,
                side,
                "D",
                color=f"C{k}",
                ms=8,
                label=f"half of a square of {side} pixels is left",
            )
        left.plot(
            choice.keep.levels, choice.keep.mean, "s--", color="0.4", label="change of the rest"
        )
        left.axhline(LOSE, color="0.7", lw=0.8)
        left.annotate("noise in the window:", (0.02, 0.945), xycoords="axes fraction", fontsize=9)
        left.set(xlabel="noise, t/T", ylabel="share left; change of the rest", ylim=(-0.02, 1.2))
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2)
        right.plot(
            study.noise.values[1:],
            region(study),
            "o-",
            color="0.3",
            label=r"$4 \sqrt{\chi}$: region that changes together",
        )
        right.set(xlabel="noise, t/T", ylabel="side (pixels)", ylim=(0, 16))
        right.legend(loc="upper left", fontsize=9)
        return figure


def region(study):
    """Side in pixels of a square of chi patches, at each noise measured."""
    return PATCH * np.sqrt(np.maximum(study.chi.values[0, 1:, 0], 0))


def length(study, k):
    """The correlation length in pixels, or its lower bound where it is not finite."""
    xi, low, _ = PATCH * study.xi.values[0, k]
    return f"{xi:.1f}" if np.isfinite(xi) else f"> {low:.1f}"


def main(out="results/anomalies", items=60, steps=20, levels=STEPS_BACK):
    run = readings(out, items, steps, levels)
    changes = [{"type": "changes", "patch": PATCH}]
    normal = measure(
        {"type": "fashion_mnist"},
        changes,
        max(items // 3, 2),
        4,
        steps,
        levels,
        f"{out}/normal",
    )
    study = ut.study(normal)
    choice = ut.choose(run, "rest", keep=KEEP, lose={"left": LOSE}, by="side")
    print(choice)
    print("\n  t/T   chi  4 sqrt(chi)  xi (pixels)   left of squares of", *SIDES, "pixels")
    for k, noise in enumerate(run.noise.values):
        shares = " ".join(f"{part.lose.mean[k]:5.2f}" for part in choice.by.values())
        chi = study.chi.values[0, k + 1, 0]
        print(
            f"{noise:5.2f} {chi:5.1f} {region(study)[k]:12.1f} {length(study, k + 1):>12s}  "
            f" {shares}"
        )
    save_figure(draw(run, choice, study), Path(out) / "anomalies.png")
    return choice


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="results/anomalies")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    main(**vars(parser.parse_args()))
