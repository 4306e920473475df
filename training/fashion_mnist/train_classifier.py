"""Train the convolutional classifier of Fashion-MNIST whose hidden layers are probed, on a CPU.

    python training/fashion_mnist/train_classifier.py --minutes 8 --threads 1 \
        --checkpoint /tmp/classifier.pt --out src/uturn/assets/fashion_mnist/classifier.safetensors

It is trained on the train split only; the test split is read once, at the end. An interrupted run
is resumed from its checkpoint by the same command.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import data
import torch
from safetensors.torch import save_file
from torch.nn import functional

from uturn.core.files import whole_file
from uturn.sources.fashion_mnist import build_classifier, load_classifier

LARGEST_SHIFT = 2


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random left-right flip and shift by up to two pixels, background filled in; images (batch,
    1, 28, 28).
    """
    count = len(images)
    flipped = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flipped, images.flip(-1), images)
    padded = functional.pad(images, (LARGEST_SHIFT,) * 4, value=-1.0)
    down, right = torch.randint(2 * LARGEST_SHIFT + 1, (2, count), generator=generator)
    rows = down[:, None] + torch.arange(28)
    columns = right[:, None] + torch.arange(28)
    item = torch.arange(count)[:, None, None]
    return padded[item, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    correct = sum(
        (model(x).argmax(1) == y).sum().item()
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return correct / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="folder with the idx.gz files")
    parser.add_argument(
        "--out", required=True, type=Path, help="safetensors file to write (float16)"
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="file to resume from and to write"
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="wall time over which the learning rate falls to 0"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 32, 64, 64, 128, 128])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 1, 2, 1, 2, 1])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = data.load("train", args.data)
    images = data.to_signed(images)
    architecture = {"channels": args.channels, "strides": args.strides}
    model = build_classifier(**architecture)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay
    )
    generator = torch.Generator().manual_seed(args.seed)
    step, earlier_seconds = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, earlier_seconds = state["step"], state["seconds"]
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters; starting at step {step}",
        flush=True,
    )

    started = time.monotonic()
    losses: list[float] = []
    model.train()
    while True:
        seconds = earlier_seconds + time.monotonic() - started
        progress = seconds / (60 * args.minutes)
        if progress >= 1:
            break
        learning_rate = (
            args.learning_rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        chosen = torch.randint(len(images), (args.batch_size,), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            logits = model(augment(images[chosen], generator))
        loss = functional.cross_entropy(logits.float(), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        losses.append(loss.item())
        if step % 100 == 0:
            print(
                f"step {step} {seconds / 60:.1f} min loss {sum(losses) / len(losses):.4f}",
                flush=True,
            )
            losses.clear()
        if step % 500 == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "step": step,
                "seconds": seconds,
            }
            with whole_file(args.checkpoint) as file:
                torch.save(state, file)

    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.eval().state_dict().items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out, metadata={"architecture": json.dumps(architecture)})
    args.out.chmod(0o644)  # safetensors writes files that only their owner can read
    test_images, test_labels = data.load("test", args.data)
    test_accuracy = accuracy(load_classifier(args.out), data.to_signed(test_images), test_labels)
    print(
        f"{step} steps; test accuracy {test_accuracy:.4f} (float16 weights, {len(test_images)}"
        " images)"
    )


if __name__ == "__main__":
    main()
