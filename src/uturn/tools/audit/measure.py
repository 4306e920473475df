"""The study of a masked model with its order consistency, and a run of each decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from uturn.cli.options import Running
from uturn.cli.printing import console
from uturn.cli.running import end, run_into, runs_into
from uturn.core.checks import expect
from uturn.core.data import Noisy
from uturn.core.files import write_json
from uturn.measures.replicates import replicates
from uturn.pages.page import report
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


def audit_into(out: str, chosen: AuditOptions, running: Running) -> None:
    """Measure and write an audit: the study of OUT/run, the runs OUT/audit/NAME of
    decoders, and `audit.json`.
    """
    expect(
        running.shard == "1/1",
        "shard",
        running.shard,
        "1/1, since an audit compares finished runs; leave out --shard",
    )
    experiment, decoders = chosen.experiment(), chosen.audited()
    datasets = runs_into(out, {"run": experiment}, running)
    assert datasets is not None  # no other shares
    run = datasets["run"]
    with output_folder("out", out) as folder:
        runs: dict[str, Any] = {}
        for name, options in decoders.items():
            store = folder.inside("audit").place(f"{re.sub('[^a-z0-9.]+', '-', name)}")
            runs[name] = run_into(store, options.experiment(), running)
        looks: Any = {"title": "U-turns of texts", "groups": ("tokens",), "page": False}
        study = write_study(run, out, source=experiment.parts.source, **looks)
        found = audit_numbers(study, run, runs, decoders)
        write_json(folder.path / "audit.json", found)
        write_figures(folder.path, {"audit": lambda: draw_audit(found)})
        folder.push(*_FILES)
        report([out])
    parts = [*summary(study, width=console().width), for_terminal(decoder_table(found))]
    end(out, parts, meaning(found), study.attrs["description"], files=_FILES)


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
