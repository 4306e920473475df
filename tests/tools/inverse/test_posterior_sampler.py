"""Posterior samplers: one's own, and those of deepinv; seeds, adapters, and what users do wrong."""

import itertools
import re
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import uturn as ut
from tiny_denoiser import unet
from uturn.core.errors import described
from uturn.core.random import Streams, keys
from uturn.exact.laws import GaussianMixture, power_law
from uturn.networks import DenoiserModel
from uturn.tools.inverse.deepinv_samplers import DeepinvSampler
from uturn.tools.inverse.measured import Measured
from uturn.tools.inverse.measurement import Measurement
from uturn.tools.inverse.operators import Operator, PoissonNoise
from uturn.tools.inverse.sampler import PosteriorSampler

SHAPE = (1, 4, 4)
SIGMA = 0.05
NAMED: list[tuple[str, dict[str, Any]]] = [
    ("DDRM", {"steps": 5}),
    ("DiffPIR", {"steps": 5}),
    ("DPS", {"steps": 5}),
    ("DPS", {"steps": 5, "guidance": "annealed", "solver": "ddim"}),
    ("PiGDM", {"steps": 5, "solver": "euler"}),
    ("MomentMatching", {"steps": 5, "schedule": "ve"}),
    ("PosteriorDiffusion", {"steps": 5, "data_fidelity": "ALD", "solver": "heun"}),
    ("ULA", {"steps": 5}),
]


# -- operators and samplers of a user --------------------------------------------------------------


def half(strength, shape):
    """Every second pixel."""
    hidden = (np.arange(np.prod(shape)) % 2 == 1).reshape(shape)
    seen = torch.from_numpy(~hidden)
    return Operator(lambda x: x * seen, noise=strength, hidden=hidden)


def square(strength, shape):
    return Operator(torch.square, strength, is_linear=False)


def guided(observed, operator, generator, denoiser, shape, steps=30):
    """Reverse diffusion; the gradient of the squared residual of x_0, over its variance at this
    noise, guides it (DPS).
    """
    low, high = max(denoiser.range[0], 0.01), min(denoiser.range[1], 2.0)
    sigmas = [*torch.logspace(np.log10(high), np.log10(low), steps), 0.0]
    x = 0.5 + high * torch.randn(len(observed), *shape, generator=generator)
    for sigma, less in itertools.pairwise(sigmas):
        x.requires_grad_()
        clean = denoiser(x, sigma)
        residual = (
            ((operator.forward(clean) - observed) ** 2).sum()
            / 2
            / (operator.noise.sigma**2 + sigma**2)
        )
        (gradient,) = torch.autograd.grad(residual, x)
        clean, x, ratio = (clean - sigma**2 * gradient).detach(), x.detach(), (less / sigma) ** 2
        noise = torch.randn(x.shape, generator=generator)
        x = clean + ratio * (x - clean) + less * (1 - ratio) ** 0.5 * noise
    return x


returned: Any = None


def faulty(observed, operator, generator):
    if isinstance(returned, Exception):
        raise returned
    return returned


def classes():
    """A model of images conditioned on one of two classes: it knows that images are dark, or
    bright.
    """

    def network(noisy, timestep, labels):
        return (labels - 0.5).view(-1, 1, 1, 1).expand_as(noisy)

    return DenoiserModel(
        network,
        diffusers.DDPMScheduler(clip_sample=False),
        predicts="x0",
        image_shape=(1, 8, 8),
        num_classes=2,
    )


def tiny():
    """A model of images with random weights."""
    return DenoiserModel(
        unet(1), diffusers.DDPMScheduler(clip_sample=False), predicts="x0", image_shape=(1, 8, 8)
    )


# -- the parts of an experiment --------------------------------------------------------------------


def mixture(scale=0.12):
    """Three modes in [0, 1], fields on a 4 x 4 grid."""
    field = GaussianMixture(np.zeros((1, 16)), variance=power_law((4, 4), 2.0), grid=(4, 4))
    means = 0.5 + scale * field.sample(3, seed=5).values
    return GaussianMixture(means, variance=0.3 * scale**2 * power_law((4, 4), 2.0), grid=(4, 4))


LAW = mixture()


def inpainting(noise=SIGMA):
    """Every second pixel, by deepinv."""
    deepinv = pytest.importorskip("deepinv")
    mask = torch.from_numpy((np.arange(16) % 2 == 0).reshape(SHAPE)).float()
    physics = deepinv.physics.Inpainting(SHAPE, mask=mask)
    return Operator(physics.A, noise, hidden=~mask.bool().numpy(), physics=physics)


def measured(count=3, operator=None, law=LAW, **options):
    operator = inpainting() if operator is None else operator
    values = law.sample(count, seed=1).values.reshape(count, *SHAPE).astype(np.float32)
    values = np.stack(
        [
            operator.measure(datum, key[None])
            for datum, key in zip(values, keys(0, range(count)), strict=True)
        ]
    )
    return Measured(
        values, np.full(count, 0.5), operators=(operator,) * count, shape=SHAPE, law=law, **options
    )


def draws(sampler, noisy, clones=2, items=None, **options):
    items = np.arange(len(noisy.values)) if items is None else items
    return PosteriorSampler(sampler=sampler, **options).reconstruct(
        noisy, Streams(0, items, 0.5), clones
    )


def rows(noisy, chosen):
    return replace(
        noisy,
        values=noisy.values[chosen],
        noise=noisy.noise[chosen],
        operators=tuple(noisy.operators[i] for i in chosen),
    )


# -- user stories ----------------------------------------------------------------------------------


def own(**backward):
    return ut.Experiment.from_dict(
        {
            "items": 4,
            "clones": 2,
            "chunk": 3,
            "source": {"type": "gaussian_mixture", "dimension": 16, "num_modes": 2},
            "corruption": {"type": "operator", "operator": f"{__name__}:half", "noise": [0.3]},
            "backward": {
                "type": "sampler",
                "sampler": f"{__name__}:guided",
                "options": {"steps": 5},
                **backward,
            },
            "probes": [{"type": "scales"}],
        }
    )


def test_a_sampler_of_ones_own(tmp_path):
    """Its readings do not depend on the chunk, bit for bit; its code is in the store."""
    dataset = ut.run(own(), tmp_path / "a", workers=1)
    again = ut.run(
        ut.Experiment.from_dict({**own().to_dict(), "chunk": 2}), tmp_path / "b", workers=1
    )
    readings = [name for name, values in dataset.items() if "clone" in values.dims]
    assert len(readings) > 1
    assert all(
        np.isfinite(dataset[name]).all() and np.array_equal(dataset[name], again[name])
        for name in readings
    )
    assert "backward.code" in dataset.attrs["models"]
    assert dataset.attrs["description"].startswith(
        f"{__name__}:guided; the denoiser of the law; 1 measurement in a call"
    )
    assert own().parts.backward.calls(own(), 0.1) == 5


# -- draws and their seeds -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), NAMED)
def test_named_samplers_do_not_depend_on_the_batch(name, options):
    """Bit for bit, in other orders and blocks; clone 0 is the run without clones; the caller's
    random state is kept.
    """
    noisy = measured()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    observed, threads = noisy.values.copy(), torch.get_num_threads()
    first = draws(f"deepinv:{name}", noisy, options=options)
    assert first.shape == (3, 2, 16)
    assert np.isfinite(first).all()
    assert first.std(axis=1).min() > 0 or options.get("solver") == "ddim", "clones differ"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert np.array_equal(noisy.values, observed)
    assert torch.get_num_threads() == threads
    torch.manual_seed(5)
    chosen = np.array([2, 0])
    some = draws(f"deepinv:{name}", rows(noisy, chosen), clones=1, items=chosen, options=options)
    assert np.array_equal(some[:, 0], first[chosen, 0])


def test_a_batch_is_a_call_for_each_clone():
    """Seeded by its first row: so the first row of a block alone has the same draws, and clone 0
    that of one clone.
    """
    noisy = measured(5)
    calls = []

    def counted(self, observed, *arguments):
        calls.append(len(observed))
        return original(self, observed, *arguments)

    original = DeepinvSampler.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepinvSampler, "__call__", counted)
        first = draws("deepinv:DDRM", noisy, batch=3, options={"steps": 4})
    assert calls == [3, 3, 2, 2]
    assert np.array_equal(
        draws("deepinv:DDRM", noisy, clones=1, batch=3, options={"steps": 4})[:, 0], first[:, 0]
    )
    sampler = PosteriorSampler(sampler="deepinv:DDRM", batch=3)
    assert not sampler.batch_invariant
    assert not sampler.adds_trajectories


def test_a_good_sampler_has_the_moments_of_the_posterior():
    """One Gaussian: moment matching is exact up to its steps. DPS by the norm, the negative
    control, keeps the prior's spread.
    """
    law = GaussianMixture([[0.5] * 16], variance=0.02 * power_law((4, 4), 2.0), grid=(4, 4))
    one = measured(1, law=law)
    noisy = replace(
        one,
        values=np.repeat(one.values, 400, axis=0),
        operators=one.operators * 400,
        noise=np.full(400, 0.5),
    )
    H = np.eye(16)[::2]
    C = law.to_basis((law.to_basis(np.eye(16)) * law.variance).T)
    gain = C @ H.T @ np.linalg.inv(H @ C @ H.T + SIGMA**2 * np.eye(8))
    mean, covariance = 0.5 + gain @ (one.values[0].ravel()[::2] - 0.5), C - gain @ H @ C

    def squares(sampler):
        """Squared standardised errors of the draws, 1 on average for draws from the posterior."""
        drawn = draws(f"deepinv:{sampler}", noisy, clones=1, batch=400, options={"steps": 60})[:, 0]
        return float(
            np.einsum("bi,ij,bj->b", drawn - mean, np.linalg.inv(covariance), drawn - mean).mean()
            / 16
        )

    assert squares("MomentMatching") == pytest.approx(1, abs=0.2)  # 1 +- .02 by chance
    assert squares("DPS") > 2


# -- images ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images and their labels."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 1, 0]))
    return tmp_path


def of_images(folder, labels=False, sigma=9.0, **backward):
    files = {
        "path": str(folder / "images.npy"),
        **({"labels": str(folder / "labels.npy")} if labels else {}),
    }
    return ut.Experiment.from_dict(
        {
            "items": 3,
            "clones": 2,
            "source": {"type": "array", **files},
            "corruption": {"type": "operator", "operator": "boxes", "noise": [0.3], "sigma": sigma},
            "backward": {"type": "sampler", "model": f"{__name__}:tiny", **backward},
            "probes": [{"type": "images"}],
        }
    )


@pytest.mark.parametrize(
    ("operator", "noise"),
    [("boxes", 0.3), ("blur", 1.0), ("downsampling", 2), ("fourier", 0.5), ("denoising", 0.2)],
)
def test_the_samplers_take_all_operators(operator, noise):
    """`guided` reads A alone, the others deepinv's physics. The draws fit the measurements
    better than other originals do.
    """
    pytest.importorskip("deepinv")
    source = ut.sources.GaussianFieldSource(size=4, centre=0.5, scale=0.1)
    # Each of its items has an operator of its own, and a call.
    items = np.arange(4 if operator == "fourier" else 20)
    streams = Streams(0, items, noise)
    (block,) = source.blocks(items, 0, len(items))
    noisy = Measurement(operator=operator).observe(block, noise, streams)
    samplers = [
        f"{__name__}:guided",
        *(f"deepinv:{name}" for name in ("DDRM", "DiffPIR", "PiGDM", "MomentMatching", "ULA")),
    ]
    for sampler in samplers:
        drawn = draws(
            sampler, noisy, clones=1, batch=20, options={"steps": 300 if "ULA" in sampler else 40}
        )[:, 0]
        fits = np.mean([noisy.log_likelihood(row, drawn[row][None]) for row in items])
        others = np.mean([noisy.log_likelihood(row, block.data[row - 1][None]) for row in items])
        assert fits > others + 1, sampler


def test_a_class_conditional_model_gets_the_class_of_each_item(folder):
    """The only light comes from the class, so that it is the sign of the mean."""
    experiment = of_images(
        folder,
        labels=True,
        sampler=f"{__name__}:guided",
        model=f"{__name__}:classes",
        options={"steps": 3},
    )
    experiment = ut.Experiment.from_dict(
        {**experiment.to_dict(), "corruption": {**experiment.to_dict()["corruption"], "sigma": 9.0}}
    )
    dark_or_bright = np.sign(ut.run(experiment).image.mean(("channel", "row", "column"))).values[
        0, :, 0
    ]
    assert dark_or_bright.tolist() == [[-1, -1], [1, 1], [1, 1]]


def test_the_network_check_and_the_fingerprint_are_those_of_the_model(folder):
    sampler = of_images(folder, sampler="deepinv:DDRM").parts.backward
    assert len(sampler.fingerprint()) == 64
    assert (
        sampler.fingerprint()
        == of_images(
            folder, sampler="deepinv:DDRM", options={"steps": 3}
        ).parts.backward.fingerprint()
    )
    assert sampler.wants_processes
    assert sampler.prior(20).draw(keys(0, range(2)), np.arange(2)).shape == (2, 1, 8, 8)
    assert any(
        "cannot be judged" in str(finding)
        for finding in of_images(folder, sampler="deepinv:DDRM").model_check()
    )


# -- what users do wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            torch.zeros(1, 4, 4),
            r"faulty', item 0, noise 0.5: shape of draws = .*: expected a tensor \(1, 1, 4, 4\)",
        ),
        (torch.zeros(1, *SHAPE) * 1j, r"item 0, noise 0.5: shape of draws = .* of real numbers"),
        (
            torch.full((1, *SHAPE), torch.nan),
            "item 0, noise 0.5: draws = .*expected no NaN or infinity",
        ),
        (
            ZeroDivisionError("x"),
            r"in sampler = 'test_posterior_sampler:faulty' \(test_posterior_sampler.py, line",
        ),
    ],
)
def test_what_a_sampler_gives_is_checked(value, words):
    global returned
    returned = value
    with pytest.raises((ValueError, ZeroDivisionError), match=words):
        draws(f"{__name__}:faulty", measured(1, operator=half(0.1, SHAPE)))


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [
        (
            "PiGDM",
            Operator(lambda x: x**2, 0.1, is_linear=False),
            "deepinv:PiGDM'.*a linear operator for this sampler; take DPS",
        ),
        (
            "DDRM",
            Operator(lambda x: x.roll(1, 3), 0.1),
            "expected one with its singular value decomposition",
        ),
        (
            "DiffPIR",
            Operator(lambda x: x, PoissonNoise(0.1)),
            "PoissonNoise.*expected Gaussian noise with sigma > 0",
        ),
        ("ULA", Operator(lambda x: x, 0.0), "expected Gaussian noise with sigma > 0"),
    ],
)
def test_operators_that_do_not_fit_a_sampler_are_refused(name, operator, words):
    pytest.importorskip("deepinv")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        draws(f"deepinv:{name}", measured(1, operator=operator))
    assert re.search(words, described(error.value))


def test_they_are_refused_before_a_store_is_made(tmp_path):
    pytest.importorskip("deepinv")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ut.run(own(sampler="deepinv:ILVR", options={"schedule": "x"}), tmp_path / "store")
    assert re.fullmatch(r".*options.schedule = 'x'.*", described(error.value))
    assert not (tmp_path / "store").exists()


def test_a_mask_of_ones_own_has_the_singular_values_that_ddrm_needs():
    pytest.importorskip("deepinv")
    theirs, ours = measured(), measured(operator=half(SIGMA, SHAPE))
    noisy = replace(theirs, operators=ours.operators)
    options = {"options": {"steps": 5}}
    assert np.array_equal(
        draws("deepinv:DDRM", noisy, **options), draws("deepinv:DDRM", theirs, **options)
    )


@pytest.mark.parametrize(("name", "scale"), [("DiffPIR", 0.5), ("DPS", 1.5)])
def test_a_sampler_that_clips_refuses_values_outside(name, scale):
    pytest.importorskip("deepinv")
    with pytest.raises(
        ValueError,
        match=rf"'deepinv:{name}' clips to \[-?\d, 1\]: share of the source's values outside",
    ):
        draws(f"deepinv:{name}", measured(1, law=mixture(scale)))
    assert np.isfinite(
        draws("deepinv:DDRM", measured(1, law=mixture(scale)), options={"steps": 5})
    ).all()
