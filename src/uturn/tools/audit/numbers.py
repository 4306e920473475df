"""The numbers of an audit, as `audit.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict

from uturn.core.data import Noisy
from uturn.measures.replicates import replicates
from uturn.pages.views import number, numbers
from uturn.presets.texts import TextOptions
from uturn.studies.analysis import study as study_of_run
from uturn.tools.audit.options import COMPARED

Number = float | None
"""None where it does not exist."""
Bounds = tuple[Number, Number, Number]
"""A number and the ends of its 95 % interval over texts."""
_NONE: Bounds = (None, None, None)
_KEPT = "kept, span = 1"
"""The reading by which decoders are compared."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DecoderNumbers(_Plain):
    """What a decoder costs on the model. Lists are over the noise levels of `compared`."""

    decoder: str
    """Its description, such as "order entropy, 16 steps"."""
    is_exact: bool
    """Whether it draws from the posterior of a consistent model."""
    calls: list[Number]
    """Calls of the network for a text."""
    kept: list[Bounds]
    """Share of the masked tokens that are as in the original."""
    gap: list[Bounds]
    """Calibration gap of `kept`: agreement with the original minus agreement of clones."""
    gap_p: list[Number]
    """p-values of the gaps, adjusted by Holm."""
    ngram_entropy: Bounds
    """Entropy of the tokens at the largest noise minus that of the originals, in nats."""
    repeated_ngrams: Bounds
    """Share of repeated 4-grams at the largest noise minus that of the originals."""
    repeated_tokens: Bounds
    """Share of tokens that equal the one before, at the largest noise, minus that of the
    originals.
    """


class AuditNumbers(_Plain):
    """All numbers of an audit. Lists are over the noise levels of `noise`, unless a field says
    otherwise.
    """

    format: Literal["uturn.audit"] = "uturn.audit"
    version: Literal[1] = 1
    description: str
    texts: int
    tokens: list[Number]
    """Length of each text."""
    noise: list[float]
    """Masked fractions."""
    order_discrepancy: list[Bounds]
    """Inconsistency of two orders of two tokens, in nats a pair."""
    order_discrepancy_at: dict[str, list[Bounds]]
    """The same by the largest distance of the two tokens."""
    left_to_right: list[Bounds]
    """Log-likelihood of the masked tokens from left to right, in nats a text."""
    order_nats: dict[str, list[Bounds]]
    """Log-likelihood by decoder, minus `left_to_right`."""
    random_orders_differ: list[Bounds]
    """Size of the difference of the log-likelihoods of a text in two random orders, in nats."""
    compared: list[float]
    """Noise levels at which decoders are compared."""
    original_ngram_entropy: Number
    """Entropy of the tokens of the originals, in nats."""
    decoders: list[DecoderNumbers]

    @property
    def largest_discrepancy(self) -> Discrepancy | None:
        """The largest inconsistency of two tokens; None if no text has two masked tokens."""
        largest: Discrepancy | None = None
        size = -np.inf
        for noise, nats in zip(self.noise, self.order_discrepancy, strict=True):
            if nats[0] is not None and nats[0] > size:
                largest = Discrepancy(noise, nats)
                size = nats[0]
        return largest


@dataclass(frozen=True)
class Discrepancy:
    """The inconsistency of two tokens at a noise level."""

    noise: float
    nats: Bounds


def audit_numbers(
    study: xr.Dataset,
    run: xr.Dataset,
    runs: Mapping[str, xr.Dataset],
    decoders: Mapping[str, TextOptions],
) -> AuditNumbers:
    """The numbers of an audit.

    `study` and `run` have the readings of the probes `order_consistency` and `order_likelihood`.
    `runs` has one run for each decoder.
    """
    study = study.sel(noise=np.sort(run.noise.values))  # without noise 0

    def curve(reading: str) -> list[Bounds]:
        return _bounds_of_rows(study.curve.sel(reading=reading).values)

    def by_label(name: str, dim: str) -> dict[str, list[Bounds]]:
        labels = run[dim].values.tolist()
        return {str(label): curve(f"{name}, {dim} = {label}") for label in labels}

    entropy = run["original_ngram_entropy"].isel(noise=0).sel(ngram=1)
    return AuditNumbers(
        description=str(study.attrs["description"]),
        texts=int(run.sizes["item"]),
        tokens=numbers(run["length"].values.astype(float)),
        noise=study.noise.values.tolist(),
        order_discrepancy=curve("order_discrepancy"),
        order_discrepancy_at=by_label("order_discrepancy_at", "pair_distance"),
        left_to_right=curve("left_to_right"),
        order_nats=by_label("order_nats", "decoder"),
        random_orders_differ=curve("random_orders_differ"),
        compared=list(COMPARED),
        original_ngram_entropy=number(float(entropy.mean())),
        decoders=[decoder_numbers(name, runs[name], options) for name, options in decoders.items()],
    )


def decoder_numbers(name: str, run: xr.Dataset, options: TextOptions) -> DecoderNumbers:
    """What a decoder costs: readings of its run at the noise levels `COMPARED`, and differences
    from the originals at the largest of them.
    """
    tested = study_of_run(run).sel(reading=_KEPT, noise=list(COMPARED))
    decoder = options.denoiser().decoder
    gap = [_NONE] * len(COMPARED)
    gap_p: list[Number] = [None] * len(COMPARED)
    if "gap" in tested:  # not for a single text
        gap = _bounds_of_rows(tested.gap.values)
        gap_p = numbers(tested.gap_p.values)
    noisy = run["noisy_token"].isel(clone=0, trajectory=0, missing_dims="ignore").values
    calls = []
    for noise, values in zip(COMPARED, noisy, strict=True):
        calls.append(decoder.sampler.calls(Noisy(values, np.full(len(values), noise))).mean())

    def above_original(reading: str, **coordinates: int) -> Bounds:
        difference = (run[reading] - run[f"original_{reading}"]).sel(coordinates).isel(noise=[-1])
        return _bounds(replicates(difference).interval(lambda mean: mean[0]))

    return DecoderNumbers(
        decoder=name,
        is_exact=decoder.is_exact,
        calls=numbers(np.array(calls)),
        kept=_bounds_of_rows(tested.curve.values),
        gap=gap,
        gap_p=gap_p,
        ngram_entropy=above_original("ngram_entropy", ngram=1),
        repeated_ngrams=above_original("repeated_ngrams", ngram=4),
        repeated_tokens=above_original("repeated_tokens"),
    )


def _bounds_of_rows(rows: np.ndarray) -> list[Bounds]:
    return [_bounds(row) for row in rows]


def _bounds(row: np.ndarray) -> Bounds:
    value, low, high = numbers(row)
    return value, low, high
