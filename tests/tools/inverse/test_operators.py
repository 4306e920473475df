"""Measurements: operators by name, of deepinv and of one's own, their noise, their random numbers,
bad input.

False alarms: the seeds are fixed; the thresholds (4 standard errors, p < 1e-3) would fail about one
choice of seeds in a hundred.
"""

import re
import sys
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

import uturn as ut
from uturn.core.errors import described
from uturn.core.random import Streams
from uturn.corruption import GaussianNoise, Measurement, OtherNoise, PoissonNoise
from uturn.sources import FashionMNISTSource, GaussianFieldSource, GaussianMixtureSource

FIELD = GaussianFieldSource(size=8, centre=0.5, scale=0.1)
LEVELS = {
    "boxes": 0.3,
    "inpainting": 0.4,
    "blur": 1.2,
    "downsampling": 2.0,
    "fourier": 0.5,
    "denoising": 0.1,
}
"""A level of each operator by name."""


def measured(source, measurement, level, items=range(3), trajectories=range(2), seed=0):
    block = next(source.blocks(np.array(items), 0, 10))
    return block, measurement.observe(
        block, level, Streams(seed, np.array(items), level, trajectories)
    )


def of_name(name, **options):
    pytest.importorskip("deepinv")
    return Measurement(operator=name, **options)


# -- operators by name -----------------------------------------------------------------------------


def by_hand(name, operator, images):
    """What the operator of a name gives, written out: (batch, channels, height, width) to
    (batch, ...).
    """
    height, width = images.shape[2:]
    if name in ("boxes", "inpainting"):
        return np.where(operator.hidden, 0, images)
    if name == "blur":
        distances = [np.minimum(np.arange(n), n - np.arange(n)) for n in (height, width)]
        # A Gaussian on a periodic grid: its images in the neighbouring periods are added.
        kernels = [
            sum(np.exp(-0.5 * ((d + k * n) / 1.2) ** 2) for k in range(-4, 5))
            for d, n in zip(distances, (height, width), strict=True)
        ]
        kernel = np.outer(*kernels) / np.outer(*kernels).sum()
        return sum(
            kernel[i, j] * np.roll(images, (i, j), axis=(2, 3))
            for i, j in product(range(height), range(width))
        )
    if name == "downsampling":
        return sum(images[:, :, i::2, j::2] for i, j in product(range(2), range(2))) / 4
    if name == "fourier":
        spectrum = np.fft.fft2(images) / np.sqrt(height * width)
        return np.where(operator.measured, spectrum.real - spectrum.imag, 0)
    return images


@pytest.mark.parametrize("name", LEVELS)
def test_an_operator_by_name_is_what_it_says_and_its_matrix(name):
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 12)).astype(np.float32)
    operator = of_name(name)._made(None, LEVELS[name], images.shape[1:], 5)
    expected = by_hand(name, operator, images.astype(float))
    np.testing.assert_allclose(
        operator.clean(images), expected, atol=2e-3 if name == "blur" else 1e-5
    )
    H = operator.matrix(images.shape[1:])
    vectors = operator.vectors(expected.astype(np.float32))
    np.testing.assert_allclose(
        images.reshape(4, -1) @ H.T, vectors, atol=2e-3 if name == "blur" else 1e-5
    )


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (1, 1, 16)])
def test_the_singular_value_decomposition_of_an_operator_by_name(name, shape):
    physics = of_name(name)._made(None, LEVELS[name], shape, 5).physics
    x, close = torch.randn(2, *shape), {"atol": 2e-5, "rtol": 1e-4}
    y = physics.A(x)
    torch.testing.assert_close(physics.V(physics.V_adjoint(x)), x, **close)
    torch.testing.assert_close((physics.V_adjoint(x) ** 2).sum(), (x**2).sum(), **close)
    torch.testing.assert_close(physics.U(physics.mask * physics.V_adjoint(x)), y, **close)
    torch.testing.assert_close(physics.U(physics.U_adjoint(y)), y, **close)
    v = torch.randn_like(y)
    torch.testing.assert_close((physics.A_adjoint(v) * x).sum(), (v * y).sum(), **close)


@pytest.mark.parametrize("name", ["boxes", "inpainting", "fourier"])
@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_the_level_is_the_share_that_is_hidden(name, level):
    operator = of_name(name)._made(None, level, (1, 16, 16), 3)
    assert 1 - operator.measured.mean() == pytest.approx(level, abs=0.07)
    if level in (0, 1):
        assert operator.measured.mean() == 1 - level


def test_low_frequencies_are_seen_and_pairs_stay_together():
    measurement = of_name("fourier")
    seen = np.mean(
        [measurement._made(None, 0.6, (1, 16, 16), key).measured[0] for key in range(200)], axis=0
    )
    k = np.abs(np.fft.fftfreq(16, 1 / 16))
    central = (k[:, None] == 0) & (k >= 0)
    assert (seen[central] == 1).all()
    outside = (k[:, None] > 1) & (k >= 0)
    assert 0.1 < seen[outside].min()
    assert seen[outside].max() < 0.5
    opposite = -np.arange(16) % 16
    one = measurement._made(None, 0.6, (1, 16, 16), 7).measured[0]
    np.testing.assert_array_equal(one, one[opposite][:, opposite])
    assert (one == one[:, :1]).all()


def test_boxes_lie_in_the_centre_or_anywhere():
    centre = of_name("boxes")._made(None, 0.25, (1, 8, 8), None).hidden[0]
    assert centre[2:6, 2:6].all()
    assert centre.sum() == 16
    measurement = Measurement(operator="boxes", options={"place": "random"})
    hidden = np.mean(
        [measurement._made(None, 0.25, (1, 8, 8), key).hidden[0] for key in range(300)], axis=0
    )
    assert hidden.min() > 0
    assert hidden.mean() == pytest.approx(0.25)


def test_a_given_mask(tmp_path):
    seen = np.eye(8, dtype=int)
    np.save(tmp_path / "mask.npy", seen)
    options = [{"mask": str(tmp_path / "mask.npy")}, {"mask": seen.tolist()}]
    for measurement in [of_name("inpainting", options=table) for table in options]:
        assert measurement.unit == "sigma of the measurement"
        _, noisy = measured(FIELD, measurement, 0.2)
        np.testing.assert_array_equal(noisy.hidden(0), seen.reshape(-1) == 0)
        assert len({id(operator) for operator in noisy.operators}) == 1
    digest = Measurement(operator="inpainting", options=options[0]).fingerprint()
    np.save(tmp_path / "mask.npy", 1 - seen)
    assert Measurement(operator="inpainting", options=options[0]).fingerprint() != digest
    np.testing.assert_array_equal(
        measured(FIELD, of_name("inpainting", options=options[0]), 0.2)[1].hidden(0),
        seen.reshape(-1) == 1,
    )


# -- random numbers --------------------------------------------------------------------------------

CASES = [
    {"operator": "boxes"},
    {"operator": "boxes", "options": {"place": "random"}},
    {"operator": "inpainting"},
]


@pytest.mark.parametrize("options", CASES)
def test_a_measurement_depends_on_item_and_trajectory_alone(options):
    measurement = of_name(
        options["operator"], **{k: v for k, v in options.items() if k != "operator"}
    )
    source = FashionMNISTSource()
    _, together = measured(source, measurement, 0.5)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    _, alone = measured(source, measurement, 0.5, items=[1, 2], trajectories=range(1, 2))
    np.testing.assert_array_equal(alone.values, together.values[[3, 5]])
    assert torch.equal(torch.random.get_rng_state(), state), "torch's global generator is as before"
    of_each = len({id(operator) for operator in together.operators})
    assert of_each == (6 if measurement.is_drawn else 1)
    if not options["operator"].startswith("boxes"):
        _, another = measured(source, measurement, 0.5, seed=1)
        assert not np.array_equal(another.operators[0].measured, together.operators[0].measured)


# -- noise -----------------------------------------------------------------------------------------


def test_the_laws_of_the_noise():
    clean = np.full(4000, 0.3, np.float32)
    for law, variance in ((GaussianNoise(0.2), 0.04), (PoissonNoise(0.05), 0.05 * 0.3)):
        noisy = law.draw(clean, ut.random.keys(1, range(1)))
        assert abs(noisy.mean() - 0.3) < 4 * np.sqrt(variance / 4000)
        assert abs(noisy.var() / variance - 1) < 4 * np.sqrt(2.5 / 4000)
    counts = 0.05 * np.arange(60)
    density = [
        np.exp(PoissonNoise(0.05).log_density(np.array([y]), np.array([[0.3]])))[0] for y in counts
    ]
    assert sum(density) == pytest.approx(1)
    np.testing.assert_allclose(density, stats.poisson(6).pmf(np.arange(60)))
    at = np.array([0.1, 0.7]), np.array([[0.2, 0.6], [0.0, 0.0]])
    np.testing.assert_allclose(
        GaussianNoise(0.2).log_density(*at), stats.norm(at[0], 0.2).logpdf(at[1]).sum(1)
    )


def test_noise_falls_on_what_is_measured_and_the_likelihood_counts_it_alone():
    block, noisy = measured(FIELD, of_name("boxes", sigma=0.1), 0.5, items=range(9))
    seen = noisy.operators[0].measured.reshape(-1)
    assert (noisy.values.reshape(18, -1)[:, ~seen] == 0).all()
    error = (noisy.values.reshape(18, -1) - np.repeat(block.values, 2, axis=0))[:, seen]
    assert abs(error.std() / 0.1 - 1) < 4 / np.sqrt(2 * error.size)
    np.testing.assert_allclose(
        noisy.log_likelihood(0, block.values[:1]),
        stats.norm(0, 0.1).logpdf(error[0]).sum(),
        rtol=1e-5,
    )


def test_noise_and_sensor_of_a_physics(monkeypatch):
    """The physics of a function keeps its noise, unless the measurement has another; what is not
    linear after it is no law.
    """
    deepinv = pytest.importorskip("deepinv")
    physics = {
        "plain": deepinv.physics.Inpainting(
            (1, 8, 8), mask=0.5, noise_model=deepinv.physics.PoissonNoise(0.1)
        ),
        "sensor": deepinv.physics.Denoising(
            deepinv.physics.GaussianNoise(0.1), sensor_model=torch.round
        ),
        "squares": deepinv.physics.Physics(A=torch.square),
        "laplace": deepinv.physics.Denoising(deepinv.physics.LaplaceNoise(0.1)),
    }
    for name, made in physics.items():
        monkeypatch.setattr(
            sys.modules[__name__], name, lambda strength, shape, made=made: made, raising=False
        )

    def operator(name, **options):
        return measured(FIELD, Measurement(operator=f"{__name__}:{name}", **options), 0.5)[
            1
        ].operators[0]

    assert isinstance(operator("plain").noise, PoissonNoise)
    assert operator("plain").noise.gain == pytest.approx(0.1)
    assert operator("plain").hidden.any()
    assert operator("plain", sigma=0.2).noise == GaussianNoise(0.2)
    assert (
        operator("plain", swept="sigma", options={"strength": 1}).physics.noise_model.sigma == 0.5
    )
    assert physics["plain"].noise_model.gain == pytest.approx(0.1), (
        "the user's physics is not changed"
    )
    assert isinstance(operator("sensor").noise, OtherNoise)
    assert operator("squares").noise == GaussianNoise(0)
    assert not operator("squares").is_linear
    laplace = operator("laplace")
    assert not laplace.noise.is_known
    noise = (
        laplace.measure(np.full((1, 64, 64), 0.5, np.float32), ut.random.keys(0, range(1))) - 0.5
    )
    assert stats.kstest(noise.reshape(-1), stats.laplace(0, 0.1).cdf).pvalue > 1e-3


# -- what a noisy datum knows ----------------------------------------------------------------------


def test_images_are_measured_in_the_unit_interval():
    block, noisy = measured(FashionMNISTSource(), of_name("denoising"), 0.01)
    np.testing.assert_allclose(noisy.values[::2], (block.images + 1) / 2, atol=0.06)
    np.testing.assert_allclose(
        noisy.as_data(noisy.read_by_operator(block.images)), block.images, atol=1e-6
    )
    assert noisy.labels.tolist() == np.repeat(block.labels, 2).tolist()


@pytest.mark.parametrize("name", LEVELS)
def test_the_reference_explains_the_measurement(name):
    """It is a datum, made of y alone; without noise A(reference) is y where the singular values
    that are not 0 are equal.
    """
    _, noisy = measured(
        FIELD, of_name(name, **({} if name == "denoising" else {"sigma": 0.0})), LEVELS[name]
    )
    reference = noisy.reference(2)
    assert reference.shape == (64,)
    again = noisy.operators[2].clean(noisy.read_by_operator(reference[None]))[0]
    if name != "blur":
        np.testing.assert_allclose(again, noisy.values[2], atol=1e-4)
    assert np.square(again - noisy.values[2]).mean() < 0.1 * np.square(noisy.values[2]).mean()


@pytest.mark.parametrize(
    ("name", "level"), [("boxes", 0.5), ("blur", 1.0), ("downsampling", 2.0), ("denoising", 0.05)]
)
def test_bits_are_the_entropy_that_the_measurement_takes_away(name, level):
    measurement = of_name(name)
    values, words = measurement.axes(np.array([level]), FIELD)["bits"]
    _, noisy = measured(FIELD, measurement, level)
    law = FIELD.law(0)
    entropies = [
        0.5 * np.linalg.slogdet(C)[1] / np.log(2)
        for C in (law.covariance, noisy.posterior(0).covariances[0])
    ]
    assert values[0] == pytest.approx(entropies[0] - entropies[1], rel=1e-6)
    assert words["units"] == "bits"
    assert of_name("inpainting").axes(np.array([0.5]), FIELD) == {}, (
        "each datum has its own operator"
    )
    assert measurement.axes(np.array([level]), GaussianMixtureSource(dimension=64)) == {}, (
        "no formula"
    )


def test_centre_scale_and_exponent_of_vectors():
    standard, moved = (
        GaussianMixtureSource(dimension=16, num_modes=3, **more)
        for more in ({}, {"centre": 0.5, "scale": 0.1})
    )
    one, two = (next(source.blocks(np.arange(50), 7, 50)) for source in (standard, moved))
    np.testing.assert_allclose(two.values, 0.5 + 0.1 * one.values, atol=1e-6)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert moved.law(7).share_outside() < 0.01 < standard.law(7).share_outside()
    fields = [
        next(GaussianFieldSource(size=4, **more).blocks(np.arange(50), 7, 50))
        for more in ({}, {"centre": 2, "scale": 3})
    ]
    np.testing.assert_allclose(fields[1].values, 2 + 3 * fields[0].values, atol=1e-5)
    np.testing.assert_array_equal(fields[0].labels, fields[1].labels)
    rough = GaussianMixtureSource(dimension=16, num_modes=3, exponent=2).law(7)
    assert rough.grid == (4, 4)
    assert np.trace(rough.covariance) == pytest.approx(16)
    neighbours = rough.covariance[0, 1], rough.covariance[0, 2]
    assert neighbours[0] > neighbours[1]
    with pytest.raises(ValueError, match="dimension = 18: expected a square"):
        GaussianMixtureSource(dimension=18, exponent=1)


# -- one's own, and whole runs ---------------------------------------------------------------------

OWN = """
import numpy
import torch
from uturn.corruption import Operator, PoissonNoise

def every_second(strength, shape):
    "Sees every second pixel, with noise of this strength."
    seen = torch.zeros(shape)
    seen.view(-1)[::2] = 1
    return Operator(lambda x: seen * x, noise=strength, hidden=(seen == 0).numpy())

def dots(strength, shape, generator):
    seen = torch.from_numpy(generator.random(shape) > strength)
    return Operator(lambda x: seen * x, noise=0.1, hidden=(~seen).numpy())

def cosine(strength, shape):
    return Operator(torch.cos, noise=strength, is_linear=False)

def claimed(strength, shape):
    return Operator(torch.cos, noise=strength)


def counts(strength, shape):
    return Operator(lambda x: x, PoissonNoise(strength))

def one_number(strength, shape): return Operator(lambda x: x.sum(), 0.1)

def by_chance(strength, shape):
    seen = torch.rand(shape) > strength
    return Operator(lambda x: seen * x, 0.1)
def hides_nothing(strength, shape): return Operator(lambda x: x, 0.1, hidden=numpy.ones(shape))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_operators.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_operators", raising=False)
    return tmp_path


def spec(operator, noise, backward="exact", items=120, **options):
    return {
        "items": items,
        "clones": 3,
        "source": {
            "type": "gaussian_mixture",
            "dimension": 16,
            "num_modes": 3,
            "centre": 0.5,
            "scale": 0.1,
        },
        "corruption": {"type": "operator", "operator": operator, "noise": noise, **options},
        "backward": {"type": backward},
        "probes": [{"type": "scales"}],
    }


@pytest.mark.parametrize(
    ("operator", "noise"),
    [("my_operators:every_second", [0.02, 0.2]), ("my_operators:dots", [0.3, 0.8])],
)
def test_own_operators_run_and_pass_the_calibration(own, operator, noise):
    run = ut.run(ut.Experiment.from_dict(spec(operator, noise)))
    for variable in ("scale_similarity", "same_label"):
        assert ut.calibration(run, variable).attrs["passed"]
    kept = run.scale_similarity.mean(["item", "trajectory", "clone", "scale"]).values
    assert kept[0] > kept[1] + 0.1
    assert "corruption.code" in run.attrs["models"]


def test_draws_for_another_noise_do_not_pass(own):
    experiment = ut.Experiment.from_dict(spec("my_operators:every_second", [0.05], items=300))
    source, corruption, backward, _ = experiment.parts
    block = next(source.blocks(np.arange(300), 0, 300))
    streams = Streams(0, block.items, 0.05)
    noisy = corruption.observe(block, 0.05, streams)
    readings = {}
    for name, level in (("right", 0.05), ("wrong", 0.2)):
        operators = corruption.observe(block, level, Streams(0, block.items, level)).operators
        object.__setattr__(noisy, "operators", operators)
        draws = backward.reconstruct(noisy, streams, 3)
        hidden = noisy.hidden(0)
        data = np.concatenate([block.values[:, None], draws], axis=1)[..., ~hidden]
        f = np.sqrt(np.square(data[:, :, None] - data[:, None]).mean(-1))
        readings[name] = ut.calibrate(f[:, 0, 1:], f[:, 1:, 1:].sum(2) / 2).p_value
    assert readings["right"] > 1e-3 > readings["wrong"]


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("one_number", r"A\(x\) of 2 data = \(\(\), torch.float32\): expected a tensor \(2, ..\)"),
        (
            "by_chance",
            (
                "y of a datum = 'another at each call': expected random numbers from the given"
                " `generator` alone"
            ),
        ),
        ("hides_nothing", r"A\(x\) with other hidden values = "),
    ],
)
def test_mistakes_of_own_operators_are_one_line(own, operator, message):
    with pytest.raises((ValueError, IndexError)) as error:
        ut.run(ut.Experiment.from_dict(spec(f"my_operators:{operator}", [0.5])), own / "store")
    line = described(error.value)
    assert re.search(rf"^corruption.operator = 'my_operators:{operator}'.*{message}", line)
    assert "\n" not in line
    assert not (own / "store").exists()


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        (
            "my_operators:cosine",
            {},
            "backward 'exact' = .*non-linear.*: expected a Gaussian mixture, a linear operator",
        ),
        ("my_operators:claimed", {}, r"A\(x\) - H x = .*is_linear=False"),
        ("my_operators:counts", {}, r"backward 'exact' = .*PoissonNoise"),
    ],
)
def test_posteriors_without_a_formula_are_refused(own, operator, options, message):
    with pytest.raises(ValueError, match=message):
        ut.run(ut.Experiment.from_dict(spec(operator, [0.5], items=4, **options)), own / "store")
    assert not (own / "store").exists()


@pytest.mark.parametrize(
    ("table", "level", "message"),
    [
        ({"operator": "boxes"}, 1.2, r"noise = 1.2: expected a level in \[0, 1.0\]"),
        (
            {"operator": "denoising"},
            1e-8,
            r"sigma = 1e-08: expected 0, or at least .*, as A\(x\) is rounded",
        ),
        (
            {"operator": "downsampling"},
            3.0,
            "factor = 3.*: expected an integer that divides the size 8 x 8",
        ),
    ],
)
def test_levels_and_options_out_of_range_are_found_before_a_store_is_made(
    table, level, message, tmp_path
):
    pytest.importorskip("deepinv")
    source = {"type": "gaussian_field", "size": 8}
    table = {
        **spec("", []),
        "source": source,
        "corruption": {"type": "operator", "noise": [level], **table},
    }
    with pytest.raises((ValueError, RuntimeError)) as error:
        ut.run(ut.Experiment.from_dict(table), store=tmp_path / "store")
    line = described(error.value)
    assert re.search(message, line)
    assert "\n" not in line
    assert not (tmp_path / "store").exists()
