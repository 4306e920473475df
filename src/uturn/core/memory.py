"""Arrays on aligned and on recycled memory, and a check that data fit into this machine."""

from __future__ import annotations

import os
from collections import deque

import numpy as np


def check_memory(what: str, size: int, instead: str) -> None:
    """ValueError if `size` bytes exceed the memory of this machine."""
    memory = 2**36
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        needed = f"{size / 2**30:.0f} GB"
        if size >= 2**60:
            needed = f"2**{size.bit_length() - 1} bytes"
        raise ValueError(
            f"{what} would take {needed}, but this machine has {memory / 2**30:.0f} GB of memory;"
            f" {instead}"
        )


def aligned(shape: tuple[int, ...], dtype: np.dtype, boundary: int = 64) -> np.ndarray:
    """np.empty aligned to a cache line, so that whole lines can be written without passing
    through the cache.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + boundary, np.uint8)
    shift = -raw.ctypes.data % boundary
    return raw[shift : shift + size].view(dtype).reshape(shape)


_free: dict[int, deque[np.ndarray]] = {}


class _Recycled:
    """Owner of the memory of arrays; it returns the memory to `_free` when the last array is
    deleted.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    # Globals may be gone at exit.
    def __del__(self, free: dict[int, deque[np.ndarray]] = _free, new: type = deque) -> None:
        size = self.memory.nbytes
        limit = 2**26
        if size <= limit:
            if sum(n * len(blocks) for n, blocks in list(free.items())) + size > limit:
                free.clear()
            free.setdefault(size, new()).append(self.memory)


def recycled(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`aligned` on the memory of deleted results, if available; at most 64 MB are retained.

    Allocating new memory pages takes as long as computing the messages stored on them.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if size < 2**17:  # malloc recycles small blocks itself
        return aligned(shape, dtype)
    try:
        memory = _free[size].pop()  # atomic, since __del__ cannot take a lock
    except (KeyError, IndexError):
        memory = aligned((size,), np.dtype(np.uint8))
    return np.asarray(_Recycled(memory)).view(dtype).reshape(shape)
