"""Train the embedded masked model of characters on five novels by Jane Austen, on a CPU.

    python training/text/train.py --threads 2 --checkpoint /tmp/text.pt --out
    src/uturn/assets/text/model.safetensors

In a window of 128 characters, k of them are masked, k uniform in 1..128; the k of the windows of a
batch are evenly spaced. The loss is the mean over windows of the mean cross-entropy of the masked
characters. Its expected value is the negative log-likelihood per character of a text that is
unmasked in random order, one character at a time, which is an upper bound of -log p
(arXiv:2110.02037): it weighs all shares of masked characters as a U-turn over all noise levels
does.

An interrupted run is resumed from its checkpoint by the same command. `evaluate.py` measures the
result.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from evaluate import held_out_windows, measure
from torch.nn import functional

from uturn.core.random import keys, uniforms
from uturn.networks.files import save_network
from uturn.networks.texts.masked_transformer import MaskedTransformer
from uturn.networks.training import train

# Purpose of the random numbers of a batch; numbers above 99 are not used by the package.
BATCH = 100


class Windows:
    """Random windows of a text, and which of their characters are masked, as a function of the
    step.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seed: int) -> None:
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, int64 (batch, length), and whether each is masked, bool of that shape."""
        B, d = self.batch_size, data.LENGTH
        numbers = uniforms(keys(self.seed, BATCH, step, range(B)), d + 2)
        starts = (numbers[:, 0] * (len(self.tokens) - d + 1)).astype(int)
        # One number for the batch: its shares are evenly spaced.
        shares = (np.arange(B) + numbers[0, 1]) / B
        masked = numbers[:, 2:].argsort(1).argsort(1) < 1 + np.floor(shares * d)[:, None]
        return torch.from_numpy(self.tokens[starts[:, None] + np.arange(d)]), torch.from_numpy(
            masked
        )


def masked_loss(
    model: torch.nn.Module, tokens: torch.Tensor, masked: torch.Tensor, bf16: bool
) -> torch.Tensor:
    """Mean over windows of the mean cross-entropy of the masked tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(tokens.masked_fill(masked, model.mask_id))
    costs = functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return ((costs * masked).sum(1) / masked.sum(1)).mean()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=None,
        help="folder of the R data file; that of the Debian package by default",
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="safetensors file to write (float16)"
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="file to resume from and to write"
    )
    parser.add_argument("--steps", type=int, default=4250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument(
        "--average", type=float, default=0.999, help="decay of the moving average of the weights"
    )
    parser.add_argument(
        "--every",
        type=int,
        default=500,
        help="steps from one checkpoint and evaluation to the next",
    )
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    architecture: dict[str, Any] = {
        "vocab_size": len(data.CHARACTERS), "length": data.LENGTH, "width": args.width, "layers": args.layers,
        "heads": args.heads, "characters": data.CHARACTERS,
    }  # fmt: skip
    model = MaskedTransformer(**architecture, seed=args.seed)
    windows = Windows(data.encode(data.load("training", args.data)), args.batch_size, args.seed)
    held_out = held_out_windows(data.encode(data.load("held_out", args.data)), 128)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(windows.tokens):,}"
        " characters",
        flush=True,
    )
    started = time.monotonic()

    def save(average: torch.nn.Module, **facts: Any) -> None:
        copy = MaskedTransformer(**architecture)
        copy.load_state_dict(average.state_dict())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save_network(copy.half(), args.out, **facts)

    def evaluate(average: torch.nn.Module) -> dict[str, float]:
        measured = measure(average, held_out, batch_size=32, bf16=args.bf16)
        found = {f"nats_{share}": nats for share, (nats, _) in measured.items()}
        words = " ".join(
            f"{share}: {nats:.3f} ({accuracy:.3f})" for share, (nats, accuracy) in measured.items()
        )
        print(
            f"{(time.monotonic() - started) / 60:.1f} min; held out, nats (accuracy): {words}",
            flush=True,
        )
        save(average)
        return found

    history = train(
        model,
        lambda network, step: masked_loss(network, *windows(step), bf16=args.bf16),
        args.steps,
        recipe=architecture | {"batch_size": args.batch_size, "seed": args.seed, "bf16": args.bf16},
        checkpoint=args.checkpoint,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        evaluate=evaluate,
        every=args.every,
        average=args.average,
    )
    save(model, steps=history.steps, batch_size=args.batch_size, seed=args.seed)
    print(f"{history.steps} steps; loss {history.records['loss'][-1][1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
