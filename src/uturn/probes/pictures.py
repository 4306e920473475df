"""The probe that stores the reconstructed images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.sources.images import Images, ImageSource, NoisyImages


class KeepImages(Spec, Probe[Images, NoisyImages, ImageSource]):
    """The reconstructed images, float32 (.., channel, row, column) in [-1, 1]; with `first`, NaN
    for all later items.

    `observation`: also the measurement y of trajectory 0 (corruption `operator`), if it has the
    shape of an image, else its reference (`Measured.reference`). Hidden values are NaN.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    type: Literal["images"] = "images"
    keeps: ClassVar[str] = "image"
    first: int | None = Field(default=None, ge=1)
    observation: bool = False

    def variables(self, source: ImageSource) -> dict[str, Variable]:
        dims = ("channel", "row", "column")
        records = {
            "image": Variable(
                ("noise", "item", "trajectory", *dims),
                "reconstructed image, in [-1, 1]",
                role="record",
            )
        }
        if self.observation:
            long_name = "measurement in the form of an image, in [-1, 1]"
            records["observation"] = Variable(
                ("noise", "item", *dims), long_name, role="record", pooled=False
            )
        return records

    def coordinates(self, source: ImageSource) -> dict[str, np.ndarray]:
        return {
            dim: np.arange(size)
            for dim, size in zip(("channel", "row", "column"), source.image_shape(), strict=True)
        }

    def read(
        self, u_turns: UTurns[Images, NoisyImages], source: ImageSource
    ) -> dict[str, np.ndarray]:
        images = u_turns.reconstructions
        items = u_turns.originals.items
        left_out = np.zeros(len(items), bool) if self.first is None else items >= self.first
        if left_out.any():
            images = np.array(images, np.float32)
            images[left_out] = np.nan
        if not self.observation:
            return {"image": images}
        is_measured = hasattr(u_turns.noisy, "operators")
        expect(
            is_measured,
            "observation",
            type(u_turns.noisy).__name__,
            "measurements, of the corruption 'operator'",
        )
        trajectories = images.shape[1] // u_turns.clones
        nothing = np.full(images.shape[2:], np.nan, np.float32)
        rows = [
            nothing if out else _as_image(u_turns.noisy, k * trajectories)
            for k, out in enumerate(left_out)
        ]
        return {"image": images, "observation": np.stack(rows)}


def _as_image(measured: Any, row: int) -> np.ndarray:  # noqa: ANN401 - of the tool of inverse problems
    """Measurement `row` in the form of an image, NaN where values are hidden or it has no such
    form.
    """
    values = measured.values[row]
    hidden = measured.hidden(row)
    image = (
        measured.as_data(values[None])[0]
        if values.shape == measured.shape
        else measured.reference(row)
    )
    if image is None:
        return np.full(measured.shape, np.nan, np.float32)
    return image if hidden is None else np.where(hidden, np.float32(np.nan), image)
