"""Originals drawn by the model itself: their law, calibration, random streams, and what is kept."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import uturn as ut
from uturn.backward.diffusion import DiffusionModel
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.engine.plan import plan
from uturn.networks import DenoiserModel
from uturn.presets import ImageOptions
from uturn.sources import generated
from uturn.studies import records_of
from uturn.studies.runs import describe

SHAPE, MODE, DEVIATION = (1, 4, 4), 0.4, 0.12
STEPS = 40
rows: list[int] = []


def denoise(noisy, sigma):
    """E[x_0 | x_0 + sigma n] for two equally probable Gaussian modes, +MODE and -MODE in every
    pixel, of the same DEVIATION.
    """
    rows.append(len(noisy))
    noise, variance = sigma.reshape(-1, 1, 1, 1) ** 2, DEVIATION**2
    mean = MODE * torch.tanh(MODE * noisy.sum((1, 2, 3), keepdim=True) / (variance + noise))
    return (variance * noisy + noise * mean) / (variance + noise)


def model():
    return DenoiserModel(denoise, predicts="edm", image_shape=SHAPE)


def told():
    """The modes are the classes."""

    def network(noisy, sigma, labels):
        noise, variance = sigma.reshape(-1, 1, 1, 1) ** 2, DEVIATION**2
        mean = MODE * (1 - 2 * labels.float()).reshape(-1, 1, 1, 1)
        return (variance * noisy + noise * mean) / (variance + noise)

    return DenoiserModel(network, predicts="edm", image_shape=SHAPE, num_classes=2)


class Scaled(nn.Module):
    """A block with a weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


class Sign(Scaled):
    """Logits for a positive and a negative mean."""

    def forward(self, x):
        mean = self.scale * x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, -mean], dim=1)


def classifier():
    return nn.Sequential(Scaled(), Sign())


@pytest.fixture(autouse=True)
def nothing_kept():
    generated._kept.clear()
    rows.clear()


def spec(items=24, noise=(0.5, 1.0), model="model", source=(), probes=None, **changes):
    backward = {
        "type": "diffusion",
        "model": f"{__name__}:{model}",
        "steps": STEPS,
        "device": "cpu",
    }
    return ut.Experiment.from_dict(
        {
            "items": items,
            "source": {"type": "generated", **dict(source)},
            "corruption": {"type": "diffusion", "noise": list(noise)},
            "backward": backward | changes.pop("backward", {}),
            "probes": probes or [{"type": "images"}],
            **changes,
        }
    )


def originals(experiment, items=None):
    items = np.arange(experiment.items) if items is None else np.array(items)
    return next(experiment.parts.source.blocks(items, experiment.seed, experiment.items)).data


# -- the law ---------------------------------------------------------------------------------------


def chain_deviation(steps):
    """Standard deviation of a mode that is drawn by `steps` steps of DDPM, from the variance of
    a linear chain.
    """
    chain = ReverseDiffusion.from_pretrained(f"{__name__}:model", "ddpm", steps, device="cpu")
    abar, variance = chain.forward.noise_levels["abar"], 1.0
    for k in range(steps, 0, -1):
        a, b = abar[k], abar[k - 1]
        gain = DEVIATION**2 * np.sqrt(a) / (a * DEVIATION**2 + 1 - a)  # of x_0 on x_t
        beta = 1 - a / b
        mixed = np.sqrt(b) * beta / (1 - a) * gain + np.sqrt(a / b) * (1 - b) / (1 - a)
        variance = mixed**2 * variance + beta * (1 - b) / (1 - a)
    return np.sqrt(variance)


def test_the_law_of_the_chain_approaches_that_of_the_network():
    found = [chain_deviation(steps) / DEVIATION for steps in (40, 160, 640)]
    assert np.diff(found).min() > 0
    assert 0.97 < found[-1] < 1


def test_originals_have_the_law_of_the_model():
    """False-alarm rate about 1e-4 in all: four standard deviations of three numbers."""
    images = originals(spec(items=600)).reshape(600, 16)
    sign = np.sign(images.mean(1))
    assert abs((sign > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(600)
    rest = images - MODE * sign[:, None]
    assert abs(rest.mean()) < 4 * DEVIATION / np.sqrt(rest.size)
    assert abs(rest.std() / chain_deviation(STEPS) - 1) < 4 / np.sqrt(2 * rest.size)
    correlations = np.corrcoef(rest.T)[np.triu_indices(16, 1)]
    assert abs(correlations).max() < 5 / np.sqrt(600)


LAYERS = [
    {
        "type": "network_layers",
        "classifier": f"{__name__}:classifier",
        "layers": ["*"],
        "labels": False,
    }
]


def p_values(experiment):
    run = ut.run(experiment)
    return {name: ut.calibration(run, name).p.values for name in ("same_class", "similarity")}


def clones(**changes):
    return spec(items=150, noise=(0.4, 0.5, 0.6), clones=3, probes=LAYERS, chunk=150, **changes)


def test_a_posterior_sampler_is_calibrated_on_generated_originals():
    """The smallest of all p-values; below .001 with probability about .01 at most."""
    assert min(p.min() for p in p_values(clones()).values()) > 1e-3


@pytest.mark.slow
def test_a_deterministic_sampler_and_originals_of_another_law_are_not(tmp_path):
    assert p_values(clones(backward={"scheduler": "ddim"}))["same_class"].min() < 1e-3
    # Originals between the two modes, where the model draws none.
    np.save(
        tmp_path / "between.npy",
        DEVIATION * np.random.default_rng(0).standard_normal((150, 4, 4)).clip(-5, 5),
    )
    other = {
        **clones().to_dict(),
        "source": {"type": "array", "path": str(tmp_path / "between.npy")},
    }
    assert p_values(ut.Experiment.from_dict(other))["same_class"].min() < 1e-3


# -- random streams --------------------------------------------------------------------------------


def test_an_original_depends_on_its_item_and_the_seed_alone():
    all_of_them = originals(spec())
    for experiment, items in (
        (spec(), [7]),
        (spec(), [20, 3, 7]),
        (spec(items=9), [8]),
        (spec(chunk=3), [5, 6]),
    ):
        generated._kept.clear()
        np.testing.assert_allclose(originals(experiment, items), all_of_them[items], atol=1e-5)
    other = originals(spec(seed=1))
    assert np.abs(other - all_of_them).max(axis=(1, 2, 3)).min() > 0.01
    np.testing.assert_array_equal(originals(spec(source={"seed": 1})), other)
    assert len(np.unique(all_of_them.round(4), axis=0)) == 24


def test_shares_resumed_and_extended_runs_have_the_same_originals(tmp_path):
    whole = ut.run(spec(noise=(0.0, 0.5)))
    store = tmp_path / "run"
    for part in ((1, 2), (2, 2)):
        generated._kept.clear()  # another process
        shared = ut.run(spec(noise=(0.0, 0.5), chunk=5), store, shard=part)
    np.testing.assert_allclose(shared.image, whole.image, atol=1e-4)
    generated._kept.clear()
    larger = ut.run(spec(noise=(0.0, 0.5, 1.0), items=30, chunk=5), store)
    assert larger.attrs["complete"]
    np.testing.assert_allclose(
        larger.image.sel(noise=0.0)[:24], whole.image.sel(noise=0.0), atol=1e-4
    )
    np.testing.assert_allclose(
        larger.image.sel(noise=0.0)[:, 0], originals(spec(items=30)), atol=1e-4
    )
    with pytest.raises(ValueError, match="holds another experiment"):
        ut.run(spec(noise=(0.0, 0.5, 1.0), items=30, chunk=5, source={"seed": 5}), store)


def test_labels_of_a_model_that_is_told():
    experiment = spec(model="told", items=6, noise=(1.0,))
    run = ut.run(experiment)
    assert run.label.values.tolist() == [0, 1] * 3
    signs = np.sign(originals(experiment).mean((1, 2, 3)))
    assert (
        signs.tolist()
        == np.sign(run.image.values.mean((-1, -2, -3))).ravel().tolist()
        == [1, -1] * 3
    )


# -- what is drawn, and when -----------------------------------------------------------------------


def test_originals_are_drawn_once(tmp_path, monkeypatch):
    """Calls are counted in images: N for each original, and k for each U-turn."""
    # It has calls of its own.
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])
    source = {"folder": str(tmp_path / "originals")}
    expected = 24 * STEPS + 24 * (STEPS // 2 + STEPS)
    experiment = spec(source=source, chunk=5)
    rows.clear()
    ut.run(experiment)
    assert sum(rows) == expected
    files = sorted((tmp_path / "originals").glob("*/*"))
    assert len(files) == 24
    generated._kept.clear()  # another process
    rows.clear()
    again = ut.run(spec(source=source, noise=(0.25,)))
    assert sum(rows) == 24 * STEPS // 4
    generated._kept.clear()
    files[3].write_bytes(files[3].read_bytes()[:50])  # an unfinished copy
    rows.clear()
    np.testing.assert_allclose(
        ut.run(spec(source=source, noise=(0.25,))).image, again.image, atol=1e-4
    )
    assert sum(rows) == 24 * STEPS // 4 + STEPS
    assert spec(source=source).hash == spec().hash


def test_little_memory_is_enough(monkeypatch):
    monkeypatch.setattr(generated, "_MOST_BYTES", 5 * 64)
    small = ut.run(spec(chunk=4, noise=(0.5,)))
    assert len(generated._kept) == 5
    monkeypatch.undo()
    np.testing.assert_allclose(small.image, ut.run(spec(noise=(0.5,))).image, atol=1e-4)


@pytest.mark.parametrize("probes", [[{"type": "images"}], LAYERS])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_originals_are_drawn_once_also_by_a_plan(probes, on_gpu, monkeypatch):
    """A plan draws the originals that it measures, and no full batch of them; the run draws the
    others.
    """
    monkeypatch.setattr(DiffusionModel, "wants_processes", not on_gpu)
    # A few calls before the run.
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])
    experiment = spec(items=300, noise=(0.25,), chunk=50, probes=probes)
    experiment.coordinates()  # the layers are standardised over originals
    generated._kept.clear()
    rows.clear()
    plan(experiment, workers=1, budget=0.0)
    assert sum(rows) == STEPS + 2 * STEPS // 4
    rows.clear()
    ut.run(experiment)
    assert sum(rows) == 299 * STEPS + 300 * STEPS // 4
    if on_gpu:
        assert max(rows) == 64  # the batches of the network are full


# -- a study of images -----------------------------------------------------------------------------


def test_the_study_says_so_and_shows_the_originals(tmp_path):
    options = ImageOptions(
        model=f"{__name__}:model",
        data="generated",
        classifiers=[f"{__name__}:classifier"],
        steps=4,
        levels=2,
        items=3,
        device="cpu",
    ).experiment(str(tmp_path / "originals"))
    spec = options.to_dict() | {"probes": [LAYERS[0], {"type": "images"}]}
    run = ut.run(ut.Experiment.from_dict(spec), tmp_path / "run")
    words = "3 originals generated by the model (seed 0)"
    assert words in describe(run)
    generated._kept.clear()
    rows.clear()
    assert words in ut.study(run).attrs["description"]
    np.testing.assert_array_equal(records_of(run).original, originals(options))
    assert rows == []  # they were read, and the model was not called
    for file in (tmp_path / "originals").glob("*/*"):
        file.unlink()
    generated._kept.clear()
    assert np.isnan(records_of(run).original).all()
    assert json.loads(run.attrs["spec"])["source"]["type"] == "generated"
