"""Measure the embedded masked model of characters on the held-out novel; writes manifest.json and
the table of the README.

    python training/text/evaluate.py

Measured are the cross-entropy and the accuracy of masked characters, on all windows of the novel
and on the embedded passages, and the mean of the cross-entropy over all numbers of masked
characters: the negative log-likelihood per character of a text that is unmasked in random order,
one character at a time, which is an upper bound of -log p. The windows of the novel follow each
other without overlap; in each, a given share of the characters is masked, at random places.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from torch.nn import functional

from uturn.core.random import keys, uniforms
from uturn.networks.files import load_network
from uturn.sources import embedded_text

EVALUATION = 101  # purpose of the random numbers; numbers above 99 are not used by the package
SHARES = (0.15, 0.3, 0.5, 0.8, 1.0)
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def held_out_windows(tokens: np.ndarray, count: int | None = None) -> np.ndarray:
    """Windows without overlap, int64 (count, length): all of them, or `count` at even spacing."""
    windows = tokens[: len(tokens) // data.LENGTH * data.LENGTH].reshape(-1, data.LENGTH)
    return (
        windows if count is None else windows[np.linspace(0, len(windows) - 1, count).astype(int)]
    )


def masks(share: Any, windows: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Which tokens of windows (count, length) are masked: a share (a number, or one a window),
    rounded up, at random places.
    """
    scores = uniforms(keys(seed, EVALUATION, number, range(len(windows))), windows.shape[1])
    return scores.argsort(1).argsort(1) < np.ceil(np.asarray(share) * windows.shape[1]).reshape(
        -1, 1
    )


@torch.inference_mode()
def read(
    model: torch.nn.Module,
    windows: np.ndarray,
    masked: np.ndarray,
    batch_size: int = 64,
    bf16: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy in nats of the tokens of windows (count, length), and whether the most
    probable token is the true one.
    """
    costs, right = [], []
    for x, hidden in zip(
        torch.from_numpy(windows).split(batch_size),
        torch.from_numpy(masked).split(batch_size),
        strict=True,
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(x.masked_fill(hidden, model.mask_id)).float()
        costs.append(functional.cross_entropy(logits.transpose(1, 2), x, reduction="none"))
        right.append(logits.argmax(-1) == x)
    return torch.cat(costs).numpy(), torch.cat(right).numpy()


def measure(
    model: torch.nn.Module, windows: np.ndarray, seed: int = 0, **options: Any
) -> dict[float, tuple[float, float]]:
    """{share masked: (mean cross-entropy in nats, accuracy)} of the masked tokens of windows
    (count, length).
    """
    found = {}
    for number, share in enumerate(SHARES):
        masked = masks(share, windows, seed, number)
        costs, right = read(model, windows, masked, **options)
        found[share] = float(costs[masked].mean()), float(right[masked].mean())
    return found


def random_order(model: torch.nn.Module, windows: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mean over windows, and over 1..length masked tokens at even spacing, of the cross-entropy
    in nats; its standard error.
    """
    order = uniforms(keys(seed, EVALUATION, len(SHARES), [0]), len(windows))[0].argsort()
    masked = masks((order + 0.5) / len(windows), windows, seed, len(SHARES) + 1)
    costs, _ = read(model, windows, masked)
    each = (costs * masked).sum(1) / masked.sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def by_frequency(training: np.ndarray, novel: np.ndarray) -> float:
    """Cross-entropy in nats of the tokens of the novel, predicted by their frequencies in the
    training text.
    """
    counts = np.bincount(training, minlength=len(data.CHARACTERS)) + 1
    return float(-np.log(counts / counts.sum())[novel].mean())


def table(measured: dict[str, Any]) -> str:
    lines = [
        "| share masked | nats, novel | accuracy, novel | nats, passages | accuracy, passages |",
        "|---|---|---|---|---|",
    ]
    for share in SHARES:
        numbers = [*measured["novel"][str(share)], *measured["passages"][str(share)]]
        lines.append(f"| {share} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    nats, error = measured["random_order"]
    words = [
        f"Frequencies of characters in the training text: {measured['frequencies']:.3f} nats.",
        (
            f"Unmasked in random order: {nats:.3f} ± {error:.3f} nats ({nats / np.log(2):.2f} bits)"
            " per character."
        ),
    ]
    return "\n".join([*lines, "", *words])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=None,
        help="folder of the R data file; that of the Debian package by default",
    )
    parser.add_argument("--model", default=embedded_text.model_file(), type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--windows", type=int, default=None, help="number of windows of the novel; all by default"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the numbers, write no file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = load_network(args.model, "masked_transformer")
    novel = held_out_windows(data.encode(data.load("held_out", args.data)), args.windows)
    passages = np.stack([data.encode(line) for line in embedded_text.passages()])
    measured: dict[str, Any] = {
        "seed": args.seed,
        "fingerprints": embedded_text.fingerprints(),
        "windows": len(novel),
    }
    for name, windows in (("novel", novel), ("passages", passages)):
        measured[name] = {
            str(share): [round(x, 4) for x in found]
            for share, found in measure(model, windows, args.seed).items()
        }
    measured["random_order"] = [round(x, 4) for x in random_order(model, novel, args.seed)]
    measured["frequencies"] = round(
        by_frequency(data.encode(data.load("training", args.data)), novel), 4
    )
    print(table(measured))
    if args.dry_run:
        return
    folder = embedded_text.FOLDER
    (folder / "manifest.json").write_text(json.dumps(measured, indent=1) + "\n")
    page = folder / "README.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(measured)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
