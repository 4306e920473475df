"""Small classifiers of strings, vectors and images. Their blocks are the layers that a
hidden-layer probe reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from uturn.core.checks import checked_integer, expect


class _Blocks(nn.Module):
    """Blocks in a row, `blocks.0`, `blocks.1`, .., and a linear map `logits`, with the initial
    weights of a seed.

    Weights are normal with variance 2 / (number of inputs of a unit), biases zero
    (arXiv:1502.01852).
    """

    def __init__(
        self,
        options: dict[str, Any],  # numbers, and lists of them
        blocks: Iterable[Sequence[nn.Module]],
        width: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.options = options
        self.blocks = nn.Sequential(*(nn.Sequential(*layers) for layers in blocks))
        self.logits = nn.Linear(width, options["num_classes"])
        if self.logits.weight.is_meta:  # values are read from a file later
            return
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class TreeClassifier(_Blocks):
    """Convolutional network with the shape of the tree: one convolution and ReLU for each tree
    level (Fig. 8, arXiv:2402.16991).

    For strings with `vocab_size` v, `branching` s and `depth` L; by default v classes. Filters have
    size and stride s, so that the output of `blocks.k` (k = 0 .. L-1) has one position for each
    node of tree level k + 1, and `width` channels. With PyTorch's smaller initial weights, or
    without whitening of the one-hot input, deep trees stay at chance.
    """

    def __init__(
        self,
        vocab_size: int,
        branching: int,
        depth: int,
        num_classes: int | None = None,
        width: int = 256,
        seed: int = 0,
    ) -> None:
        num_classes = vocab_size if num_classes is None else num_classes
        sizes = {
            "vocab_size": vocab_size,
            "branching": branching,
            "depth": depth,
            "num_classes": num_classes,
            "width": width,
        }
        options = {name: checked_integer(name, size, 1) for name, size in sizes.items()}
        blocks = []
        for before, after in pairwise([vocab_size] + [width] * depth):
            convolution = nn.Conv1d(before, after, kernel_size=branching, stride=branching)
            blocks.append((convolution, nn.ReLU()))
        super().__init__(options, blocks, width, seed)

    def forward(self, leaves: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_classes) of strings, int64 (batch, branching**depth)."""
        v = self.options["vocab_size"]
        num_leaves = self.options["branching"] ** self.options["depth"]
        expect(
            leaves.shape[1:] == (num_leaves,) and not leaves.is_floating_point(),
            "leaves: dtype, shape",
            (leaves.dtype, tuple(leaves.shape)),
            f"integers (batch, {num_leaves})",
        )
        if leaves.numel():
            symbols = [int(leaves.min()), int(leaves.max())]
            is_inside = 0 <= symbols[0] and symbols[1] < v
            expect(is_inside, "leaves", symbols, f"symbols 0 .. {v - 1}")
        # Whitened: each input has mean 0 and variance close to 1 under uniform symbols.
        onehot = nn.functional.one_hot(leaves.long(), v).to(self.logits.weight.dtype)
        hidden = self.blocks((onehot - 1 / v).transpose(1, 2) * v**0.5)
        logits: torch.Tensor = self.logits(hidden.squeeze(2))
        return logits


class VectorClassifier(_Blocks):
    """Fully connected network for vectors: `num_layers` blocks of a linear map and ReLU with
    `width` units, and a linear map.
    """

    def __init__(
        self,
        num_inputs: int,
        num_classes: int,
        width: int = 256,
        num_layers: int = 4,
        seed: int = 0,
    ) -> None:
        options = {
            "num_inputs": num_inputs,
            "num_classes": num_classes,
            "width": width,
            "num_layers": num_layers,
        }
        sizes = pairwise([num_inputs] + [width] * num_layers)
        blocks = [(nn.Linear(before, after), nn.ReLU()) for before, after in sizes]
        super().__init__(options, blocks, width, seed)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_classes) of vectors, floating point (batch, num_inputs)."""
        logits: torch.Tensor = self.logits(self.blocks(vectors))
        return logits


class ImageClassifier(_Blocks):
    """Convolutional network for images: blocks of a 3x3 convolution, normalisation and ReLU, and a
    linear map of the mean.

    `widths`, `strides`: channels and stride of each block. Channels are normalised in groups of
    eight, or all together if their number is no multiple of eight (arXiv:1803.08494).
    """

    def __init__(
        self,
        image_channels: int,
        num_classes: int,
        widths: Sequence[int],
        strides: Sequence[int],
        seed: int = 0,
    ) -> None:
        options = {
            "image_channels": image_channels,
            "num_classes": num_classes,
            "widths": [*widths],
            "strides": [*strides],
        }
        blocks = []
        channels = pairwise([image_channels, *widths])
        for (before, after), stride in zip(channels, strides, strict=True):
            convolution = nn.Conv2d(
                before, after, kernel_size=3, stride=stride, padding=1, bias=False
            )
            groups = after // 8 if after % 8 == 0 else 1
            blocks.append((convolution, nn.GroupNorm(groups, after), nn.ReLU()))
        super().__init__(options, blocks, widths[-1], seed)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_classes) of images, floating point (batch, image_channels, height,
        width).
        """
        logits: torch.Tensor = self.logits(self.blocks(images).mean(dim=(2, 3)))
        return logits
