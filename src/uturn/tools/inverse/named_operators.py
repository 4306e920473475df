"""Operators by name, made from deepinv's physics.

All have a singular value decomposition (`deepinv.physics.DecomposablePhysics`), which some samplers
need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.core.checks import expect
from uturn.core.files import checked_path, read_array
from uturn.exact.laws import hartley
from uturn.tools.inverse.deepinv_physics import Shape, deepinv
from uturn.tools.inverse.operators import Operator

if TYPE_CHECKING:
    import torch


_CENTRAL = 0.08  # share of the Fourier coefficients, the lowest, that are hidden last


def boxes(
    shape: Shape, generator: np.random.Generator, hidden: float, place: str = "centre"
) -> Operator:
    """Hides a box, of the proportions of the image, that covers a share `hidden` of it, rounded
    to whole pixels.
    """
    _, height, width = shape
    rows = 1 if height == 1 else round(height * np.sqrt(hidden))
    columns = round(hidden * height * width / rows) if rows else 0
    expect(place in ("centre", "random"), "place", place, "'centre' or 'random'")
    room = np.array([height - rows, width - columns])
    top, left = room // 2 if place == "centre" else generator.integers(room + 1)
    mask = np.zeros(shape, bool)
    mask[:, top : top + rows, left : left + columns] = True
    return _masked(mask)


def inpainting(
    shape: Shape, generator: np.random.Generator, hidden: float | None = None, mask: Any = None
) -> Operator:
    """Hides a share of the pixels, drawn at random, in all channels; or those that a mask leaves
    out (0 hidden, 1 seen).
    """
    expect(
        (hidden is None) != (mask is None),
        "hidden, mask",
        (hidden, mask),
        "either the share that is drawn, or a mask",
    )
    if mask is None:
        pixels = shape[1] * shape[2]
        drawn = np.zeros(pixels, bool)
        drawn[generator.permutation(pixels)[: round(float(hidden) * pixels)]] = True  # type: ignore[arg-type]
        return _masked(np.broadcast_to(drawn.reshape(1, *shape[1:]), shape))
    seen = read_array(checked_path("mask", mask)) if isinstance(mask, str) else np.asarray(mask)
    expect(np.isin(seen, (0, 1)).all(), "mask", seen, "0 (hidden) and 1 (seen)")
    return _masked(np.broadcast_to(seen == 0, shape))


def blur(shape: Shape, generator: Any, width: float) -> Operator:
    """Convolution with a Gaussian of standard deviation `width`, in pixels, on the periodic
    image.
    """
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in shape[1:]), indexing="ij")
    passed = np.exp(-2 * np.pi**2 * width**2 * sum(f**2 for f in frequencies))
    return _spectral(np.broadcast_to(passed, shape), hartley, hartley)


def downsampling(shape: Shape, generator: Any, factor: float) -> Operator:
    """Means over blocks of factor x factor pixels."""
    import torch

    channels, height, width = shape
    f = int(factor)
    rows = min(f, height)  # vectors have one row
    fits = f == factor and f > 0 and height % rows == 0 and width % f == 0
    expect(fits, "factor", factor, f"an integer that divides the size {height} x {width}")
    # An orthonormal basis of each block, whose first vector is constant.
    directions = np.linalg.qr(np.c_[np.ones(rows * f), np.eye(rows * f)[:, 1:]])[0]
    basis = torch.from_numpy((directions * np.sign(directions[0, 0])).astype(np.float32))

    def to_blocks(x: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(len(x), channels, height // rows, rows, width // f, f).permute(
            0, 1, 3, 5, 2, 4
        )
        return torch.einsum(
            "pq,bcphw->bcqhw",
            basis.to(x),
            blocks.reshape(len(x), channels, rows * f, height // rows, width // f),
        )

    def from_blocks(z: torch.Tensor) -> torch.Tensor:
        blocks = torch.einsum("pq,bcqhw->bcphw", basis.to(z), z).reshape(
            len(z), channels, rows, f, height // rows, width // f
        )
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(len(z), channels, height, width)

    def extended(y: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [y[:, :, None], y.new_zeros(len(y), channels, rows * f - 1, *y.shape[2:])], 2
        )

    values = np.zeros((channels, rows * f, height // rows, width // f))
    values[:, 0] = (rows * f) ** -0.5
    return _spectral(
        values, to_blocks, from_blocks, U=lambda z: z[:, :, 0], U_adjoint=extended, img_size=shape
    )


def fourier(shape: Shape, generator: np.random.Generator, hidden: float) -> Operator:
    """Hides a share of the Fourier coefficients of a real image: lines of k-space, drawn at random;
    of vectors, points.

    The 8 % of the lowest frequencies are hidden last. k and -k are hidden together, since they are
    complex conjugates. y holds (Re F - Im F) / sqrt(pixels) at every k that is not hidden. It is
    real and determines F there, since k comes with -k.
    """
    _, height, width = shape
    rows, columns = np.indices((height, width))
    if height > 1:
        columns *= 0
    pairs = np.minimum(rows * width + columns, -rows % height * width + -columns % width)
    radius = np.hypot(np.fft.fftfreq(height)[rows], np.fft.fftfreq(width)[columns])
    _, first, pair_of, counts = np.unique(
        pairs, return_index=True, return_inverse=True, return_counts=True
    )
    radii = radius.reshape(-1)[first]
    by_radius = np.argsort(radii, kind="stable")
    is_central = np.zeros(len(counts), bool)
    is_central[by_radius] = np.cumsum(counts[by_radius]) <= _CENTRAL * height * width
    order = np.lexsort((np.where(is_central, -radii, generator.random(len(counts))), is_central))
    is_hidden = np.zeros(len(counts), bool)
    is_hidden[order] = np.cumsum(counts[order]) - counts[order] / 2 < hidden * height * width
    seen = np.broadcast_to(~is_hidden[pair_of.reshape(height, width)], shape)
    return _spectral(seen, hartley, hartley, U=lambda z: z, U_adjoint=lambda y: y, measured=seen)


def denoising(shape: Shape, generator: Any) -> Operator:
    """The identity."""
    physics = deepinv("the operator").physics.Denoising()
    return Operator(physics.A, 0.0, physics=physics)


class Named(NamedTuple):
    """An operator by name: the function that makes it, the option that the noise level sets, its
    unit and its largest value.
    """

    make: Callable[..., Operator]
    swept: str
    unit: str
    most: float
    is_random: Callable[[dict[str, Any]], bool]


NAMED = {
    "boxes": Named(
        boxes,
        "hidden",
        "share of the image hidden by a box",
        1.0,
        lambda options: options.get("place") == "random",
    ),
    "inpainting": Named(
        inpainting, "hidden", "share of hidden pixels", 1.0, lambda options: "mask" not in options
    ),
    "blur": Named(blur, "width", "width of the blur, pixels", np.inf, lambda options: False),
    "downsampling": Named(
        downsampling, "factor", "factor of the downsampling", np.inf, lambda options: False
    ),
    "fourier": Named(
        fourier, "hidden", "share of hidden Fourier coefficients", 1.0, lambda options: True
    ),
    "denoising": Named(
        denoising, "sigma", "sigma of the measurement", np.inf, lambda options: False
    ),
}


def _masked(hidden: np.ndarray) -> Operator:
    import torch

    hidden = np.ascontiguousarray(hidden)
    physics = deepinv("the operator").physics.Inpainting(
        hidden.shape, mask=torch.from_numpy(~hidden).float()
    )
    return Operator(physics.A, 0.0, hidden=hidden, measured=~hidden, physics=physics)


def _spectral(
    values: np.ndarray,
    to_basis: Any,
    from_basis: Any,
    *,
    measured: np.ndarray | None = None,
    **options: Any,
) -> Operator:
    """The operator U diag(values) V^T with V^T = to_basis, V = from_basis; by default U = V."""
    import torch

    both = {"U": from_basis, "U_adjoint": to_basis} | options
    mask = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
    physics = deepinv("the operator").physics.DecomposablePhysics(
        V_adjoint=to_basis, V=from_basis, mask=mask, **{"img_size": values.shape} | both
    )
    return Operator(physics.A, 0.0, measured=measured, physics=physics)
