"""Measure the embedded Fashion-MNIST models, and write the numbers to manifest.json, the sample
sheets and README.md.

    python training/fashion_mnist/evaluate.py --threads 2

Measured are the accuracy of the classifier on all 10,000 test images, the classes and the
confidence of unconditional samples, and, for U-turns of test images against the inversion step, the
share with the same predicted class (ten classes, five coarse classes, class by class) and the
similarity of the hidden layers. Every random number is a function of --seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from sheet import save_sheet

from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.core.random import keys
from uturn.probes.hidden_layers import HiddenLayers
from uturn.sources import fashion_mnist

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def measure_classifier(probe: HiddenLayers, folder: str | None) -> dict[str, Any]:
    images, labels = data.load("test", folder)
    predictions = probe.predict(data.to_signed(images))
    truth = labels.numpy()
    right = predictions.classes == truth
    coarse = fashion_mnist.COARSE_CLASS
    return {
        "test_images": len(truth),
        "test_accuracy": right.mean(),
        "test_accuracy_coarse": (coarse[predictions.classes] == coarse[truth]).mean(),
        "test_accuracy_by_class": [right[truth == c].mean() for c in range(10)],
        "test_mean_confidence": predictions.probabilities.max(1).mean(),
        "test_share_confident": (predictions.probabilities.max(1) > 0.9).mean(),
        "test_mean_pixel": data.to_signed(images).mean().item(),
    }


def measure_samples(
    probe: HiddenLayers, backward: ReverseDiffusion, count: int, seed: int, sheet: Path
) -> dict[str, Any]:
    samples = backward.generate(keys(seed, 0, range(count)))
    predictions = probe.predict(samples)
    columns = 16
    rows = []
    for c in range(10):
        # As drawn: the first of each class, not the best.
        chosen = samples[predictions.classes == c][:columns, 0]
        blank = np.ones((columns - len(chosen), 28, 28), np.float32)
        rows.append(np.concatenate([chosen, blank]))
    save_sheet(np.stack(rows), sheet)
    return {
        "count": count,
        "steps": backward.sampler.steps,
        "predicted_classes": np.bincount(predictions.classes, minlength=10),
        "mean_confidence": predictions.probabilities.max(1).mean(),
        "share_confident": (predictions.probabilities.max(1) > 0.9).mean(),
        "mean_pixel": samples.mean(dtype=np.float64),
    }


def measure_u_turns(
    probe: HiddenLayers,
    backward: ReverseDiffusion,
    count: int,
    steps: list[int],
    seed: int,
    sheet: Path,
) -> dict[str, Any]:
    every_image = fashion_mnist.load_test_set()[0]
    probe.fit(every_image)
    images = every_image[:count]
    before = probe.predict(images).classes
    coarse = fashion_mnist.COARSE_CLASS
    result: dict[str, Any] = {
        "count": count,
        "num_steps": backward.sampler.steps,
        "step": steps,
        "layers": probe.layers,
    }
    similarity, same, same_coarse, by_class, shown = [], [], [], [], [images[:10, 0]]
    for step in steps:
        started = time.monotonic()
        rebuilt = backward.u_turn(images, step, keys(seed, 1, range(count), step))
        after = probe.predict(rebuilt).classes
        similarity.append(probe.similarity(images, rebuilt).mean(0))
        same.append((before == after).mean())
        same_coarse.append((coarse[before] == coarse[after]).mean())
        by_class.append([(before == after)[before == c].mean() for c in range(10)])
        shown.append(rebuilt[:10, 0])
        print(
            f"U-turn at step {step}: same class {same[-1]:.3f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    save_sheet(np.stack(shown, axis=1), sheet)
    levels = backward.forward.noise_levels
    result |= {
        "abar": levels["abar"][steps],
        "similarity": similarity,
        "same_class": same,
        "same_coarse_class": same_coarse,
        "same_class_by_class": by_class,
    }
    return result


def crossing(steps: list[int], values: Any, level: float) -> float | None:
    """First step at which a falling curve goes below `level`, by linear interpolation; None if
    it never does.
    """
    for (s0, v0), (s1, v1) in zip(
        zip(steps, values, strict=False), zip(steps[1:], values[1:], strict=False), strict=False
    ):
        if v0 >= level > v1:
            return s0 + (s1 - s0) * (v0 - level) / (v0 - v1)
    return None


def summary(u_turns: dict[str, Any]) -> dict[str, Any]:
    """Where the class is lost, and where the order of first block and logits inverts, in steps."""
    steps, similarity = u_turns["step"], np.array(u_turns["similarity"])
    # Half-way between full agreement and that of independent draws (ten classes: 0.1; coarse: 0.4^2
    # + 0.4^2 + 3 * 0.1^2).
    return {
        "class_lost_at_step": crossing(steps, u_turns["same_class"], (1 + 0.1) / 2),
        "coarse_class_lost_at_step": crossing(steps, u_turns["same_coarse_class"], (1 + 0.35) / 2),
        "inversion_at_step": crossing(steps, similarity[:, -1] - similarity[:, 0], 0),
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(measured: dict[str, Any]) -> str:
    classifier, samples, u_turns = (measured[part] for part in ("classifier", "samples", "u_turns"))
    where = measured["transition"]
    names, steps = fashion_mnist.CLASS_NAMES, u_turns["step"]
    by_class = np.array(u_turns["same_class_by_class"])
    head = ["inversion step", *map(str, steps)]
    u_turn_rows = [
        ["abar", *(number(a, 3) for a in u_turns["abar"])],
        ["same class", *map(number, u_turns["same_class"])],
        ["same coarse class", *map(number, u_turns["same_coarse_class"])],
    ]
    for layer, values in zip(u_turns["layers"], np.array(u_turns["similarity"]).T, strict=True):
        u_turn_rows.append([f"similarity, {layer}", *map(number, values)])
    return "\n\n".join(
        [
            f"Seed {measured['seed']}; weights by SHA-256 in `src/uturn/assets/fashion_mnist/manifest.json`.",
            "### Classifier",
            f"Accuracy on the {classifier['test_images']:,} test images: **{100 * classifier['test_accuracy']:.2f} %** "
            f"({100 * classifier['test_accuracy_coarse']:.2f} % for the five coarse classes).",
            table(
                ["class", "accuracy", f"share of {samples['count']:,} samples"],
                [
                    [name, number(a, 3), number(n / samples["count"], 3)]
                    for name, a, n in zip(
                        names, classifier["test_accuracy_by_class"], samples["predicted_classes"], strict=True
                    )
                ],
            ),
            "### Unconditional samples",
            f"{samples['count']:,} samples in {samples['steps']} DDPM steps, against the test images:",
            table(
                ["", "samples", "test images"],
                [
                    ["mean confidence of the classifier", number(samples["mean_confidence"], 3),
                     number(classifier["test_mean_confidence"], 3)],
                    ["share with confidence above 0.9", number(samples["share_confident"], 3),
                     number(classifier["test_share_confident"], 3)],
                    ["mean pixel in [-1, 1]", number(samples["mean_pixel"], 3), number(classifier["test_mean_pixel"], 3)],
                ],
            ),
            "### U-turns",
            f"{u_turns['count']} test images, {u_turns['num_steps']} DDPM steps in all; similarity is the cosine of "
            "standardised post-activations, statistics from the 1,000 embedded test images.",
            table(head, u_turn_rows),
            f"The class is lost (half-way to chance) at step {number(where['class_lost_at_step'], 0)} of "
            f"{u_turns['num_steps']}, the coarse class at step {number(where['coarse_class_lost_at_step'], 0)}; the logits "
            f"fall below the first block at step {number(where['inversion_at_step'], 0)}.",
            f"Same class, by the class predicted for the original (about {u_turns['count'] // 10} images each):",
            table(head, [[name, *map(number, by_class[:, c])] for c, name in enumerate(names)]),
        ]
    )  # fmt: skip


def plain(value: Any) -> Any:
    """Numpy values as JSON values, rounded to six digits; a share of no images (NaN) as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), 6)
    return int(value) if isinstance(value, np.integer) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="folder with the idx.gz files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--num-steps", type=int, default=100, help="steps of the whole reverse chain"
    )
    parser.add_argument("--samples", type=int, default=1000, help="unconditional samples")
    parser.add_argument("--items", type=int, default=200, help="test images that make U-turns")
    parser.add_argument(
        "--u-turn-steps", type=int, nargs="+", default=[10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the numbers, write no file but the sheets in /tmp",
    )
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    pictures = Path("/tmp") if args.dry_run else ROOT / "docs" / "images"
    probe = HiddenLayers(fashion_mnist.load_classifier(), batch_size=250)
    backward = ReverseDiffusion.from_pretrained(
        fashion_mnist.generator_folder(), num_steps=args.num_steps
    )
    measured: dict[str, Any] = {"seed": args.seed, "fingerprints": fashion_mnist.fingerprints()}
    measured["classifier"] = measure_classifier(probe, args.data)
    print(f"test accuracy {measured['classifier']['test_accuracy']:.4f}", flush=True)
    measured["samples"] = measure_samples(
        probe, backward, args.samples, args.seed, pictures / "fashion-mnist-samples.png"
    )
    print(f"classes of samples {measured['samples']['predicted_classes']}", flush=True)
    measured["u_turns"] = measure_u_turns(
        probe,
        backward,
        args.items,
        args.u_turn_steps,
        args.seed,
        pictures / "fashion-mnist-u-turns.png",
    )
    measured["transition"] = summary(measured["u_turns"])
    report = markdown(measured)
    print(report)
    if args.dry_run:
        return
    manifest = fashion_mnist.generator_folder().parent / "manifest.json"
    manifest.write_text(json.dumps(plain(measured), indent=1) + "\n")
    page = Path(__file__).parent / "README.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{report}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
