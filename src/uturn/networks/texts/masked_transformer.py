"""A small transformer that predicts masked tokens, the network of the embedded text model
(`training/text/train.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from uturn.core.checks import checked_integer, expect

_SLOWEST = 1e4  # wavelength of the slowest rotation of a pair of features, over 2 pi, in tokens


class MaskedTransformer(nn.Module):
    """Bidirectional transformer: logits of every token given the tokens that are not masked.

    The features of a position are the sum of embeddings of the tokens at distances -reach..reach,
    with a table for each distance. Blocks of attention and of a two-layer network with GELU follow,
    each normalised at its input. Positions enter through the rotation of queries and keys
    (arXiv:2104.09864). The token `vocab_size` stands for a masked token; it has an embedding but no
    logit. The noise level is no input: the law of a token given the unmasked ones does not depend
    on it (arXiv:2406.03736).

    `vocab_size`, `length`: number of tokens, without the mask token, and largest number of them in
    a sequence. `width`, `layers`, `heads`: features of a token, a multiple of `2 * heads` (a hidden
    layer has four times as many units), blocks, and heads of attention. `reach`: largest distance
    of tokens that are embedded together. `characters`: the character of every token.
    """

    probed = "blocks.*"
    """The layers read by default."""

    def __init__(
        self,
        vocab_size: int,
        length: int,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        reach: int = 2,
        characters: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        v = checked_integer("vocab_size", vocab_size, 2)
        length = checked_integer("length", length, 1)
        width = checked_integer("width", width, 2)
        num_blocks = checked_integer("layers", layers, 1)
        heads = checked_integer("heads", heads, 1)
        reach = checked_integer("reach", reach, 0)
        expect(width % (2 * heads) == 0, "width", width, f"a multiple of 2 * heads = {2 * heads}")
        if characters is not None:
            is_text = isinstance(characters, str)
            expect(
                is_text and len(characters) == len({*characters}) == v,
                "characters",
                characters,
                f"vocab_size = {v} different characters, or None",
            )
        self.options: dict[str, Any] = {  # numbers, and a text
            "vocab_size": v,
            "length": length,
            "width": width,
            "layers": num_blocks,
            "heads": heads,
            "reach": reach,
            "characters": characters,
        }
        self.mask_id = v
        self.length = length
        self.reach = reach
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(
                nn.Embedding(v + 1, width) for _ in range(2 * reach + 1)
            )
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(num_blocks))
            self.norm = nn.LayerNorm(width)
            self.readout = nn.Linear(width, v)
            for name, weights in self.named_parameters():
                if weights.ndim == 2:
                    # Blocks add 2 num_blocks such terms to the features.
                    is_added = name.endswith(("out.weight", "down.weight"))
                    std = 0.02 / (2 * num_blocks) ** 0.5 if is_added else 0.02
                    nn.init.normal_(weights, std=std)

    def forward(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (batch, length, vocab_size) of int64 ids (batch, length), `mask_id` where masked.

        `attention_mask` (batch, length): 0 for padding.
        """
        length = ids.shape[1]
        expected = f"(batch, length), length <= {self.length}"
        expect(length <= self.length, "ids: shape", tuple(ids.shape), expected)
        real = torch.ones_like(ids, dtype=torch.bool)
        if attention_mask is not None:
            real = attention_mask.bool()
        ids = ids.masked_fill(~real, self.mask_id)
        # Positions beyond the ends count as masked.
        padded = functional.pad(ids, (self.reach, self.reach), value=self.mask_id)
        terms = [table(padded[:, k : k + length]) for k, table in enumerate(self.embeddings)]
        features = torch.stack(terms).sum(0)
        rotation = _rotation(length, self.options["width"] // self.options["heads"], ids.device)
        attended = None if bool(real.all()) else real[:, None, None]
        for block in self.blocks:
            features = block(features, rotation, attended)
        logits: torch.Tensor = self.readout(self.norm(features))
        return logits


class Block(nn.Module):
    """Attention between all tokens, then a two-layer network at each token; both outputs are
    added to their inputs.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(
        self,
        features: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attended: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features (batch, length, width) after the block; `attended`: bool (batch, 1, 1,
        length), by default all.
        """
        batch, length, width = features.shape
        joint = self.queries_keys_values(self.norm1(features))
        by_head = joint.view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = by_head.permute(2, 0, 3, 1, 4)
        q = _rotated(q, rotation)
        k = _rotated(k, rotation)
        mixed = functional.scaled_dot_product_attention(q, k, v, attended)
        features = features + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        mixed_features: torch.Tensor = features + self.down(
            functional.gelu(self.up(self.norm2(features)))
        )
        return mixed_features


def _rotation(length: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, (length, size / 2), of the angles by which pairs of features are rotated
    at each position.
    """
    speeds = _SLOWEST ** -(torch.arange(size // 2, device=device) / (size // 2))
    angles = torch.arange(length, device=device)[:, None] * speeds
    return angles.cos(), angles.sin()


def _rotated(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
