"""The study of a masked model with its order consistency, and a run of each decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from uturn.cli.printing import console
from uturn.cli.running import Experiments, Finished, Printed, Procedure
from uturn.core.data import Noisy
from uturn.core.files import write_json
from uturn.measures.replicates import replicates
from uturn.pages.results import write_figures, write_study
from uturn.pages.views import number, numbers
from uturn.presets.texts import TextOptions
from uturn.store.outputs import output_folder
from uturn.studies.analysis import study as study_of_run
from uturn.studies.tables import for_terminal, summary
from uturn.tools.audit.figure import draw_audit
from uturn.tools.audit.options import COMPARED, AuditOptions
from uturn.tools.audit.section import decoder_table, meaning

_FILES = ("audit.json", "audit.png", "audit.pdf")
_KEPT = "kept, span = 1"  # the reading by which decoders are compared


class Audit(Procedure):
    """A run with the readings of an audit, OUT/run, and a run of each decoder, OUT/audit/NAME."""

    def __init__(self, options: AuditOptions) -> None:
        self.options = options

    @cached_property
    def decoders(self) -> dict[str, TextOptions]:
        """The options of the run of each decoder, by its description."""
        return self.options.audited()

    def experiments(self, out: str) -> Experiments:
        made = {"run": self.options.experiment()}
        for name, options in self.decoders.items():
            made[_store_of(name)] = options.experiment()
        return made

    def write(self, finished: Finished) -> Printed:
        run = finished.runs["run"]
        study = write_study(
            run,
            finished.out,
            source=finished.experiments["run"].parts.source,
            title="U-turns of texts",
            groups=("tokens",),
            page=False,
        )
        runs = {name: finished.runs[_store_of(name)] for name in self.decoders}
        found = audit_numbers(study, run, runs, self.decoders)
        with output_folder("out", finished.out) as folder:
            write_json(folder.path / "audit.json", found)
            write_figures(folder.path, {"audit": lambda: draw_audit(found)})
            folder.push(*_FILES)
        parts = [*summary(study, width=console().width), for_terminal(decoder_table(found))]
        return Printed([*parts, meaning(found), study.attrs["description"]], _FILES)


def _store_of(decoder: str) -> str:
    """Name of the store of the run of a decoder, in a folder of results."""
    return f"audit/{re.sub('[^a-z0-9.]+', '-', decoder)}"


def audit_numbers(
    study: xr.Dataset,
    run: xr.Dataset,
    runs: Mapping[str, xr.Dataset],
    decoders: Mapping[str, TextOptions],
) -> dict[str, Any]:
    """The content of `audit.json`, plain data; each estimate is [value, low, high], None where it
    does not exist.

    `study` and `run`: with the readings of the probes `order_consistency` and `order_likelihood`.
    `runs`: one for each decoder.
    """
    study = study.sel(noise=np.sort(run.noise.values))  # without noise 0

    def curve(reading: str) -> list[Any]:
        return [numbers(row) for row in study.curve.sel(reading=reading).values]

    def by_level(name: str, dim: str) -> dict[str, Any]:
        return {str(at): curve(f"{name}, {dim} = {at}") for at in run[dim].values.tolist()}

    return {
        "format": "uturn.audit",
        "version": 1,
        "description": str(study.attrs["description"]),
        "texts": int(run.sizes["item"]),
        "tokens": numbers(run["length"].values.astype(float)),
        "noise": numbers(study.noise.values),
        "order_discrepancy": curve("order_discrepancy"),
        "order_discrepancy_at": by_level("order_discrepancy_at", "pair_distance"),
        "left_to_right": curve("left_to_right"),
        "order_nats": by_level("order_nats", "decoder"),
        "random_orders_differ": curve("random_orders_differ"),
        "compared": list(COMPARED),
        "original_ngram_entropy": number(
            float(run["original_ngram_entropy"].isel(noise=0).sel(ngram=1).mean())
        ),
        "decoders": [_decoder(name, runs[name], options) for name, options in decoders.items()],
    }


def _decoder(name: str, run: xr.Dataset, options: TextOptions) -> dict[str, Any]:
    """What a decoder costs: readings of its run at both noise levels, and differences from the
    originals at the larger one.
    """
    tested, decoder = (
        study_of_run(run).sel(reading=_KEPT, noise=list(COMPARED)),
        options.denoiser().decoder,
    )
    has_gap = "gap" in tested  # not for a single text
    noisy = run["noisy_token"].isel(clone=0, trajectory=0, missing_dims="ignore").values
    calls: list[np.ndarray] = []
    for noise, values in zip(COMPARED, noisy, strict=True):
        calls.append(decoder.sampler.calls(Noisy(values, np.full(len(values), noise))))

    def above_original(reading: str, **at: int) -> list[Any]:
        difference = (run[reading] - run[f"original_{reading}"]).sel(at).isel(noise=[-1])
        return numbers(replicates(difference).interval(lambda mean: mean[0]))

    return {
        "decoder": name,
        "is_exact": decoder.is_exact,
        "calls": numbers(np.mean(calls, axis=1)),
        "kept": [numbers(row) for row in tested.curve.values],
        "gap": (
            [numbers(row) for row in tested.gap.values] if has_gap else [[None] * 3] * len(COMPARED)
        ),
        "gap_p": numbers(tested.gap_p.values) if has_gap else [None] * len(COMPARED),
        "ngram_entropy": above_original("ngram_entropy", ngram=1),
        "repeated_ngrams": above_original("repeated_ngrams", ngram=4),
        "repeated_tokens": above_original("repeated_tokens"),
    }
