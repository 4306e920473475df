"""Calls on batches in pieces that fit into the memory of a device."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Pieces:
    """Calls functions of tensors on pieces of a batch, halved for the rest of the run when the
    device runs out of memory.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.batch_size = batch_size
        self._limits: dict[str, int] = {}

    def limit(self, function: Callable[..., torch.Tensor]) -> int:
        """Largest number of rows in a call of a function."""
        return self._limits.get(function.__name__, self.batch_size)

    def restrict(self, function: Callable[..., torch.Tensor], rows: int) -> None:
        """Limit the calls of a function to `rows` rows."""
        self._limits[function.__name__] = rows

    def __call__(
        self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor
    ) -> torch.Tensor:
        """`function(*tensors)`, for a function with independent rows."""
        import torch

        def called(rows: int) -> torch.Tensor:
            if rows == len(tensors[0]):
                return function(*tensors)
            return torch.cat(
                [function(*piece) for piece in zip(*(t.split(rows) for t in tensors), strict=True)]
            )

        while True:
            rows = max(1, min(self.limit(function), len(tensors[0])))
            try:
                return called(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = (str(error) or type(error).__name__).splitlines()[0][:200]
            # Outside the handler, since the error keeps the tensors in memory.
            gc.collect()
            if self.device.type in ("cuda", "mps"):
                getattr(torch, self.device.type).empty_cache()
            if rows == 1:
                try:  # another process, or the collection above, may have freed memory
                    return called(1)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                raise MemoryError(
                    f"not enough memory on {self.device} for a single image: {message}"
                )
            self.restrict(function, rows // 2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch means that the device has no memory left."""
    phrases = (
        "out of memory|allocate memory|not enough memory|alloc_failed|unable to find a valid cudnn"
        " algorithm"
    )
    return (
        isinstance(error, MemoryError) or re.search(phrases, str(error), re.IGNORECASE) is not None
    )


def half_precision_words(dtype: object) -> str:
    """Advice in an error about NaN in half precision; "" for other dtypes and None."""
    import torch

    if dtype not in (torch.float16, torch.bfloat16):
        return ""
    others = "'bfloat16' or 'float32'" if dtype == torch.float16 else "'float32'"
    return f" in {str(dtype).removeprefix('torch.')}; take dtype = {others}"
