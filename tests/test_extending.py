"""A new part is a class and one line in a registry: a source, a corruption with its reverse step, a
backward, a probe, a figure.

The data are coins, which are no strings, vectors or images: n independent tosses, 1 with
probability `bias`.
"""

import json
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from forging import passed
from uturn.cli import app
from uturn.core.protocols import (
    Backward,
    Channel,
    Corruption,
    Noisy,
    Originals,
    Source,
    Spec,
    Variable,
)
from uturn.core.random import Purpose, keys, uniforms
from uturn.core.registry import PARTS
from uturn.corruption.denoising import checked_posterior
from uturn.corruption.strings import checked_strings, draw_symbols
from uturn.paper.registry import FIGURES, Entry
from uturn.paper.verdicts import verdict, within
from uturn.probes import Comparison

# -- one of each, for a new kind of data -----------------------------------------------------------


@dataclass
class Tosses(Originals):
    """A block of coins: item numbers (batch,) and tosses (batch, n)."""

    items: np.ndarray
    data: np.ndarray


class Coins(Spec, Source):
    """`tosses` tosses of a coin."""

    kind: ClassVar[str] = "coins"
    type: Literal["coins"] = "coins"
    tosses: int = 50
    bias: float = 0.7

    def blocks(self, items, seed, num_items):
        yield Tosses(
            items,
            (uniforms(keys(seed, Purpose.ORIGINAL, items), self.tosses) < self.bias).astype(int),
        )


@dataclass(frozen=True)
class Covering(Corruption):
    """Every coin is covered (-1) with probability `noise`."""

    kinds: ClassVar = ("coins",)
    process: ClassVar = "covering"
    unit: ClassVar = "share of covered coins"
    max_noise: ClassVar = 1.0

    def corrupt(self, tosses, noise, keys):
        covered = uniforms(keys, tosses.shape[1]) < noise
        return Noisy(np.where(covered, -1, tosses), np.full(len(tosses), noise))


class Guess(Spec, Backward):
    """Covered coins are tossed again."""

    kinds: ClassVar = ("coins",)
    undoes: ClassVar = ("covering",)
    type: Literal["guess"] = "guess"
    bias: float = 0.7

    def reconstruct(self, noisy, streams, clones=1):
        seen = np.repeat(noisy.values, clones, axis=0)
        tossed = uniforms(streams.keys(Purpose.RECONSTRUCTION, clones), seen.shape[1]) < self.bias
        return np.where(seen < 0, tossed, seen).reshape(len(streams.items), -1, seen.shape[1])


class Overlap(Spec, Comparison):
    """Share of equal tosses."""

    kinds: ClassVar = ("coins",)
    type: Literal["overlap"] = "overlap"

    def variables(self, source):
        independent = source.bias**2 + (1 - source.bias) ** 2
        dims = ("noise", "item", "trajectory")
        return {
            "overlap": Variable(
                dims,
                "share of equal tosses",
                start=1,
                chance=independent,
                bounds=(0, 1),
                symmetric=True,
            )
        }

    def compare(self, first, second):
        return {"overlap": (first["data"] == second["data"]).mean(-1)}


@pytest.fixture
def registered(monkeypatch):
    parts = {
        "source": ("coins", Coins),
        "corruption": ("covering", Covering),
        "backward": ("guess", Guess),
        "probes": ("overlap", Overlap),
    }
    for idea, (name, part) in parts.items():
        monkeypatch.setitem(PARTS[idea], name, f"{__name__}:{part.__name__}")


SPEC = {
    "items": 300,
    "trajectories": 2,
    "clones": 3,
    "chunk": 100,
    "source": {"type": "coins"},
    "corruption": {"type": "covering", "noise": [0.0, 0.3, 1.0]},
    "backward": {"type": "guess"},
    "probes": [{"type": "overlap"}],
}


def test_a_new_kind_of_data_from_end_to_end(registered, tmp_path):
    results = ut.run(ut.Experiment.from_dict(SPEC), tmp_path / "run")
    assert results.overlap.dims == ("noise", "item", "trajectory", "clone")
    # A covered coin agrees with a new toss with probability b^2 + (1 - b)^2 = .58.
    expected = 1 - np.array(results.noise) * (1 - 0.58)
    for name in ("overlap", "clone_overlap"):
        np.testing.assert_allclose(
            results[name].mean(("item", "trajectory", "clone")), expected, atol=0.02
        )
    stored = json.loads(results.attrs["spec"])
    assert stored["source"] == {"type": "coins"}
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "items": 400}))
    done = CliRunner().invoke(
        app, ["run", str(tmp_path / "spec.json"), "--store", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output


def test_a_new_kind_of_data_ends_in_a_page_with_curves_and_half_lives(
    registered, monkeypatch, tmp_path
):
    """From the store alone: the parts are not needed, and no line of analysis is written."""
    run = ut.run(ut.Experiment.from_dict(SPEC), tmp_path / "run")
    monkeypatch.undo()
    found = ut.study(run)
    # The share of equal tosses is 1 - .42 x: a quarter, half and three quarters of the way are done
    # at these x.
    one = found.sel(reading="overlap", axis="noise")
    np.testing.assert_allclose(one.place.sel(estimate="value"), [0.25, 0.5, 0.75], atol=0.03)
    # The curve is not measured between them.
    assert (one.half_life[1], one.half_life[2]) == (0.3, 1.0)
    assert (one.start, one.chance) == (1, pytest.approx(0.58))
    np.testing.assert_allclose(
        one.curve[:, 0], run.overlap.astype(float).mean(("item", "trajectory", "clone"))
    )
    # Covered coins are drawn from the posterior.
    assert (found.gap_p.sel(reading="overlap")[1:] > 1e-3).all()
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["study", str(tmp_path / "run"), "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "overlap" in done.output
    assert (out / "study.png").read_bytes()[:4] == b"\x89PNG"
    written = xr.open_zarr(out / "study.zarr").load()
    assert written.half_life[0, 0, 0] == one.half_life[0]
    assert passed(written) == {"overlap": True}
    page = (out / "index.html").read_text()
    (section,) = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )["sections"]
    assert section["cards"][0]["place"][0] == pytest.approx(float(one.half_life[0]), rel=1e-5)
    chart = section["charts"][0]
    assert (chart["title"], len(chart["lines"])) == ("Share of equal tosses", 1)
    assert chart["lines"][0]["value"] == pytest.approx(one.curve[:, 0].values.tolist(), rel=1e-5)


# -- a corruption of strings with a reverse step ---------------------------------------------------


@dataclass(frozen=True)
class Neighbours(Channel):
    """Every symbol is replaced by one of its two neighbours on a ring, with probability
    `noise`/2 each.
    """

    kinds: ClassVar = ("strings",)
    is_reversible: ClassVar = True
    unit: ClassVar = "probability of a step"
    max_noise: ClassVar = 2 / 3

    needs_vocab_size: ClassVar = True

    def corrupt(self, leaves, noise, keys, *, vocab_size):
        leaves, noise = checked_strings(leaves, noise, vocab_size, self.max_noise)
        u = uniforms(keys, leaves.shape[1])
        step = (u < noise[:, None] / 2).astype(int) - (
            (u >= noise[:, None] / 2) & (u < noise[:, None])
        )
        return Noisy((leaves + step) % vocab_size, noise, vocab_size)

    def log_evidence(self, noisy, dtype=None):
        away = (noisy.values[..., None] - np.arange(noisy.vocab_size)) % noisy.vocab_size
        noise = noisy.noise[:, None, None]
        with np.errstate(divide="ignore"):
            law = np.where(
                away == 0,
                1 - noise,
                np.where((away == 1) | (away == noisy.vocab_size - 1), noise / 2, 0),
            )
            return np.log(law).astype(dtype or float)

    def reverse(self, denoiser, noisy, steps, keys):
        # A single step, leaf by leaf.
        return draw_symbols(checked_posterior(denoiser, noisy), keys, 0)


@pytest.mark.parametrize(
    ("backward", "is_posterior"),
    [({"type": "exact"}, True), ({"type": "denoiser", "steps": 1}, False)],
)
def test_a_channel_with_its_reverse_step(monkeypatch, backward, is_posterior):
    monkeypatch.setitem(PARTS["corruption"], "neighbours", f"{__name__}:Neighbours")
    spec = {
        "items": 1000,
        "chunk": 1000,
        "clones": 4,
        "source": {"type": "rhm", "vocab_size": 6, "multiplicity": 3, "branching": 2, "depth": 3},
        "corruption": {"type": "neighbours", "noise": [0.6]},
        "backward": backward,
        "probes": [{"type": "tree_levels"}],
    }
    results = ut.run(ut.Experiment.from_dict(spec)).isel(noise=0, trajectory=0)
    gap = (results.unchanged - results.clone_unchanged).mean("clone")
    z = gap.mean("item") / (gap.std("item", ddof=1) / np.sqrt(1000))
    assert (abs(z) < 4.5).all() == is_posterior, z.values  # of 4 levels: false alarm 3e-5


# -- a figure --------------------------------------------------------------------------------------


def figure():
    """A module with what a figure defines."""
    module = ModuleType("uturn.paper.coins")
    module.TITLE, module.CLAIM, module.CAPTION = (
        "Coins",
        "Covered coins fall anew.",
        "Share of equal tosses against the share of covered coins.",
    )

    def measure(workshop):
        return {"coins": workshop.run("coins", ut.Experiment.from_dict(SPEC))}

    def analyse(runs):
        mean = runs["coins"].overlap.mean(("item", "trajectory", "clone"))
        return xr.Dataset({"overlap": mean}), [
            verdict(
                "overlap with all coins covered",
                f"{float(mean[-1]):.3f}",
                "0.58",
                within(float(mean[-1]) - 0.58, 0.02),
            )
        ]

    def draw(data):
        import matplotlib.pyplot as plt

        drawn, axis = plt.subplots()
        axis.plot(data.noise, data.overlap)
        return drawn

    module.measure, module.analyse, module.draw = measure, analyse, draw
    return module


def test_a_new_figure(registered, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "uturn.paper.coins", figure())
    monkeypatch.setitem(FIGURES, "coins", Entry("coins", "uturn.paper.coins", False))
    done = CliRunner().invoke(app, ["reproduce", "coins", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "1 of 1 verdicts passed" in done.output
    assert (tmp_path / "coins.png").exists()
    assert "Coins" in (tmp_path / "index.html").read_text()
