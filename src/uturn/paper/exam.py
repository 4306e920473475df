"""Which decoders of masked strings draw from the posterior, and what each costs.

Beyond the paper. The divergence of a decoder from the posterior is computed by enumeration on a small grammar, and from draws on
a larger one, with the exact denoiser and with a trained network. Clones test the same decoders without a reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.calibration import calibrate
from uturn.paper.channels import WORDS, ChannelSpec, channel_spec
from uturn.paper.exam_drawing import draw
from uturn.paper.exam_runs import DENOISERS, measured, settings
from uturn.paper.exam_verdicts import LEVEL, PLAIN, verdicts
from uturn.paper.verdicts import Verdict
from uturn.paper.workshop import Scale, Workshop

__all__ = ["CAPTION", "CLAIM", "TITLE", "analyse", "channels", "draw", "measure"]
TITLE = "Which decoders of masked strings draw from the posterior?"
CLAIM = "Filling in tokens in an order chosen beforehand is exact; taking the surest guess first, or several at once, is not."
CAPTION = (
    "Decoders that fill masked strings, with the exact denoiser (full marks) and with a trained network (hollow marks, dashed). "
    "(a) Divergence KL(decoder ‖ posterior) by enumeration, strings of 8 tokens, against calls of the network for a "
    "reconstruction. Orders that are chosen before the token is drawn are exact with one token a step: 0 up to rounding. "
    "Temperature, top-k and top-p, all from left to right, are shifted aside. (b) The same for long strings, from draws and "
    "belief propagation; upper bounds for random orders and for the confidence of drawn tokens; 95 % intervals over strings. (c) "
    "Share of strings that a sparse grammar cannot produce, whose divergence is then infinite. (d, e, f) Decoder by decoder: the "
    "divergence of (b), in which the exact denoiser shows the error of the decoder, and the network that of both; the gap "
    "E f(x0, x̂) - E f(x̂, x̂') of parsed tree levels of both grammars where its p-value is smallest (square: p by Holm <= .001, "
    "circle: not detected); the share of (c)."
)
RELABELLINGS = 100_000


def channels(scale: Scale) -> list[ChannelSpec]:
    tables = {grammar: {"type": "rhm", **settings(scale, grammar, "exact")["grammar"]} for grammar in ("dense", "sparse")}
    return [channel_spec(f"{WORDS['masking']}, {name}", table, "masking", scale, (0.5, 0.75)) for name, table in tables.items()]


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return measured(workshop)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    small, dense, sparse = ({kind: runs[f"{name}-{kind}"] for kind in DENOISERS} for name in ("enumerated", "dense", "sparse"))
    data = xr.merge([_enumerated(small), _drawn(dense, sparse)])
    for name, run in (("small", small["exact"]), ("large", dense["exact"])):
        plan = json.loads(run.attrs["settings"])
        data.attrs[f"{name}_leaves"] = num_leaves = plan["grammar"]["branching"] ** plan["grammar"]["depth"]
        data.attrs[f"{name}_rounding"] = rounding_divergence(plan["grammar"], num_leaves)
    return data, verdicts(data, small)


def rounding_divergence(grammar: Mapping[str, Any], tokens: int) -> float:
    """Largest KL(decoder ‖ posterior) in nats of an exact decoder that can come from float32 beliefs, for so many tokens.

    All terms of belief propagation are positive: sums do not amplify relative errors, and products add them. A belief depends on
    every node once upward and once downward. A message is a sum of at most v m products of s factors, divided by a sum of v
    terms, so a belief has at most K = 2 nodes (v m + s + v) roundings of 2^-24 each. With the sum of the weights by which the
    decoder divides, a token is drawn with a relative error of at most d = 2 K 2^-24, and by the chain rule

        KL = sum over tokens of E KL(q_i ‖ p_i) <= tokens d (e^d - 1),    since sum (q - p) log(q / p) <= (e^d - 1) d.
    """
    v, m, s, L = (grammar[name] for name in ("vocab_size", "multiplicity", "branching", "depth"))
    nodes = (s ** (L + 1) - 1) // (s - 1)
    d = 2 * 2 * nodes * (v * m + s + v) * 2.0**-24
    return float(tokens * d * np.expm1(d))


# -- what is shown --------------------------------------------------------------------------------------------------------------


def _enumerated(small: Mapping[str, xr.Dataset]) -> xr.Dataset:
    rows = [small[kind].divergence.mean("observation").values for kind in DENOISERS]
    labels = small["exact"].decoder.values
    return xr.Dataset(
        {
            "small_kl": (("denoiser", "small_decoder"), np.array(rows)),
            "small_calls": ("small_decoder", small["exact"].calls.mean("observation").values),
        },
        {"denoiser": list(DENOISERS), "small_decoder": labels},
    )


def _drawn(dense: Mapping[str, xr.Dataset], sparse: Mapping[str, xr.Dataset]) -> xr.Dataset:
    labels = dense["exact"].decoder.values
    kl = [_over_items(dense[kind].log_ratio) for kind in DENOISERS]
    impossible = [np.isinf(sparse[kind].log_ratio).astype(float) for kind in DENOISERS]
    broken = [_over_items(one) for one in impossible]
    more_broken = [_over_items(one - one.sel(decoder=PLAIN, drop=True)) for one in impossible]
    gaps = [_gaps(dense[kind], sparse[kind]) for kind in DENOISERS]
    dims = ("denoiser", "decoder")
    return xr.Dataset(
        {
            "kl": ((*dims, "estimate"), np.array(kl)),
            "broken": ((*dims, "estimate"), np.array(broken)),
            "more_broken": ((*dims, "estimate"), np.array(more_broken)),  # than with the decoder PLAIN
            "gap": ((*dims, "estimate"), np.array([gap for gap, _ in gaps])),
            "p": ((*dims, "test"), np.array([p for _, p in gaps])),
            "calls": ("decoder", dense["exact"].calls.values),
        },
        {"denoiser": list(DENOISERS), "decoder": labels, "estimate": ["value", "low", "high"]},
    )


def _over_items(values: xr.DataArray) -> np.ndarray:
    """Mean over items and clones with a 95 % interval of Student's t over items, (decoder, 3); infinite if a value is."""
    from scipy.special import stdtrit

    items = values.mean("clone").transpose("decoder", "item").values
    mean = items.mean(axis=1)
    known = np.where(np.isfinite(mean)[:, None], items, 0)
    half = stdtrit(items.shape[1] - 1, 0.975) * known.std(axis=1, ddof=1) / np.sqrt(items.shape[1])
    return np.stack([mean, mean - half, mean + half], axis=1)


def _gaps(*grammars: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Gap (decoder, 3) at the smallest p-value, and p-values (decoder, tests) of all tree levels of all grammars."""
    found = []
    for run in grammars:
        first, rows = (
            run[name].transpose("item", "clone", "decoder", "tree_level").values for name in ("with_original", "with_clones")
        )
        found.append(calibrate(first, rows, LEVEL, RELABELLINGS))
    numbers = ("p_value", "gap", "low", "high", "visible")
    p, gap, low, high, visible = (np.concatenate([getattr(one, name) for one in found], axis=1) for name in numbers)
    ratio = np.where(np.isfinite(visible), np.abs(gap) / visible, 0)
    worst = np.lexsort((-ratio, p), axis=1)[:, :1]
    return np.concatenate([np.take_along_axis(values, worst, axis=1) for values in (gap, low, high)], axis=1), p
