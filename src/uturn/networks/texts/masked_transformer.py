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
        sizes = {
            "vocab_size": vocab_size,
            "length": length,
            "width": width,
            "layers": layers,
            "heads": heads,
            "reach": reach,
        }
        least = {"vocab_size": 2, "width": 2, "reach": 0}
        sizes = {
            name: checked_integer(name, size, least.get(name, 1)) for name, size in sizes.items()
        }
        v, d, w, n, h, r = sizes.values()
        expect(w % (2 * h) == 0, "width", w, f"a multiple of 2 * heads = {2 * h}")
        are_known = characters is None or (
            isinstance(characters, str) and len(characters) == len({*characters}) == v
        )
        expect(
            are_known, "characters", characters, f"vocab_size = {v} different characters, or None"
        )
        self.options: dict[str, Any] = {**sizes, "characters": characters}
        self.mask_id, self.length = v, d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(nn.Embedding(v + 1, w) for _ in range(2 * r + 1))
            self.blocks = nn.ModuleList(Block(w, h) for _ in range(n))
            self.norm = nn.LayerNorm(w)
            self.readout = nn.Linear(w, v)
            for name, weights in self.named_parameters():
                if weights.ndim == 2:
                    # Blocks add 2 n such terms to the features.
                    added = name.endswith(("out.weight", "down.weight"))
                    nn.init.normal_(weights, std=0.02 / (2 * n) ** 0.5 if added else 0.02)

    def forward(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (batch, length, vocab_size) of int64 ids (batch, length), `mask_id` where masked.

        `attention_mask` (batch, length): 0 for padding.
        """
        v, d, reach = (self.options[name] for name in ("vocab_size", "length", "reach"))
        length = ids.shape[1]
        expect(length <= d, "ids: shape", tuple(ids.shape), f"(batch, length), length <= {d}")
        real = (
            torch.ones_like(ids, dtype=torch.bool)
            if attention_mask is None
            else attention_mask.bool()
        )
        ids = ids.masked_fill(~real, v)
        # Positions beyond the ends count as masked.
        padded = functional.pad(ids, (reach, reach), value=v)
        features = torch.stack(
            [table(padded[:, k : k + length]) for k, table in enumerate(self.embeddings)]
        ).sum(0)
        rotation = _rotation(length, self.options["width"] // self.options["heads"], ids.device)
        attended = None if bool(real.all()) else real[:, None, None]
        for block in self.blocks:
            features = block(features, rotation, attended)
        return self.readout(self.norm(features))


class Block(nn.Module):
    """Attention between all tokens, then a two-layer network at each token; both outputs are
    added to their inputs.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

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
        joint = self.queries_keys_values(self.norm1(features)).view(
            batch, length, 3, self.heads, width // self.heads
        )
        q, k, v = joint.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            _rotated(q, rotation), _rotated(k, rotation), v, attended
        )
        features = features + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return features + self.down(functional.gelu(self.up(self.norm2(features))))


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
