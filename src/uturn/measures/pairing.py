"""Pairs of originals whose reconstructions seem to be swapped."""

from __future__ import annotations

import numpy as np

_SIDE = 32  # pixels of a side of the images that are compared


def pairing(originals: np.ndarray, reconstructions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each original i the smallest (c_ij + c_ji) / (c_ii + c_jj) over other originals j, and that j.

    c_ij: mean Euclidean distance of the reconstructions of i to original j. If the files of i and j are swapped, c_ij and c_ji
    are small at weak noise, and the ratio is far below 1. `originals` (items, d), `reconstructions` (items, draws, d) with NaN
    where they are missing. Ratios are infinite without other originals.

    >>> x = np.eye(3)
    >>> ratio, partner = pairing(x, 0.9 * x[[1, 0, 2], None])
    >>> ratio.round(2), partner
    (array([0.07, 0.07, 1.86]), array([1, 0, 0]))
    """
    x = np.asarray(originals, float)
    squares = (x**2).sum(axis=1)
    sums, counts = np.zeros((len(x), len(x))), np.zeros((len(x), 1))
    for y in np.moveaxis(np.asarray(reconstructions, float), 1, 0):
        distances = np.sqrt(np.maximum(squares - 2 * y @ x.T + (y**2).sum(axis=1, keepdims=True), 0))
        sums += np.nan_to_num(distances)
        counts += ~np.isnan(distances[:, :1])
    with np.errstate(invalid="ignore", divide="ignore"):
        c = sums / counts  # NaN for items without reconstructions
        ratios = (c + c.T) / (c.diagonal()[:, None] + c.diagonal())
    ratios[np.isnan(ratios) | np.eye(len(x), dtype=bool)] = np.inf
    partner = ratios.argmin(axis=1)
    return ratios[np.arange(len(x)), partner], partner


def coarse(images: np.ndarray) -> np.ndarray:
    """Images (items, draws, channels, height, width) averaged to at most 32 pixels a side, (items, draws, numbers)."""
    factor = -(-max(images.shape[-2:]) // _SIDE)
    height, width = (max(1, side // factor) for side in images.shape[-2:])
    cut = images[..., : height * factor, : width * factor]
    means = cut.reshape(*images.shape[:3], height, -1, width, cut.shape[-1] // width).mean(axis=(4, 6))
    return means.reshape(*images.shape[:2], -1)
