"""Write the embedded test set: the first images of each class of the test split, classes
interleaved.

python training/fashion_mnist/export_test_set.py --out
src/uturn/assets/fashion_mnist/test_set.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import torch
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="folder with the idx.gz files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--per-class", type=int, default=100)
    args = parser.parse_args()

    images, labels = data.load("test", args.data)
    by_class = torch.stack([torch.nonzero(labels == c)[: args.per_class, 0] for c in range(10)])
    indices = by_class.T.reshape(-1)  # item i has class i % 10, so that every prefix is balanced
    content = {
        "images": images[indices],
        "labels": labels[indices].to(torch.uint8),
        "test_indices": indices.to(torch.int16),
    }
    save_file(
        content, args.out, metadata={"source": "Fashion-MNIST test split (Zalando SE, MIT licence)"}
    )
    args.out.chmod(0o644)  # safetensors writes files that only their owner can read
    print(f"{len(indices)} images, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
