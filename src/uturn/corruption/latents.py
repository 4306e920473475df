"""Latents of images, computed once for each image."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from uturn.core.pieces import Pieces, half_precision_words

if TYPE_CHECKING:
    import torch

_MOST_BYTES = 2**28  # of latents that are kept


class Latents:
    """Encodes images by `codec.encode`; the latents of the last 256 MB are kept, since an original has many noisy versions."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __call__(self, images: torch.Tensor, pieces: Pieces) -> torch.Tensor:
        """Latents (batch, channels, height, width), on the device, of images (batch, ...) in main memory."""
        import torch

        names = [hashlib.sha256(memoryview(image.numpy()).cast("B")).digest() for image in images]
        missing = {name: row for row, name in enumerate(names) if name not in self._kept}
        found = {name: self._kept[name] for name in names if name not in missing}
        if missing:
            latents = pieces(self.codec.encode, images[list(missing.values())].to(pieces.device))
            if not bool(latents.isfinite().all()):
                advice = half_precision_words(getattr(self.codec, "dtype", None))
                raise ValueError(f"the autoencoder gives NaN or infinity for the originals{advice}")
            found |= dict(zip(missing, latents.cpu(), strict=True))
        self._kept |= found
        for name in names:
            self._kept.move_to_end(name)
        one = found[names[0]]
        while len(self._kept) * one.numel() * one.element_size() > _MOST_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return torch.stack([found[name] for name in names]).to(pieces.device)
