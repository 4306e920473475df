"""The figure `inverse`: its samplers and its distance against definitions, and that each of its
verdicts can fail.
"""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import xarray as xr

import uturn as ut
from command_line import uturn
from uturn.core.registry import build
from uturn.core.u_turns import u_turn
from uturn.paper import Workshop, reproduce
from uturn.paper.identity import identity_of
from uturn.tools.inverse import exam, exam_parts, exam_runs
from uturn.tools.inverse.exam import BESIDE, MEANS
from uturn.tools.inverse.exam_parts import (
    WORLDS,
    TrueDistance,
    conditional_score,
    energy,
    law_of,
    posterior_mean,
)
from uturn.tools.inverse.exam_runs import ERRORS, EXACT, LABELS, OPERATORS, OTHERS, REPAIRED
from uturn.tools.inverse.linear import LinearPosterior

SIGMA = 0.05


def measured(world, operator, items):
    """A block of measurements of a world, all by one operator, and the originals."""
    source = build("source", WORLDS[world])
    originals = next(iter(source.blocks(np.arange(items), 0, items)))
    corruption = build("corruption", {"type": "operator", **OPERATORS[operator], "swept": "sigma"})
    return originals, u_turn(
        originals, corruption, build("backward", {"type": "exact"}), SIGMA, clones=4
    )


def drawn(world, noisy, **options):
    observed, generator = torch.from_numpy(noisy.values.copy()), torch.Generator().manual_seed(0)
    return (
        conditional_score(observed, noisy.operators[0], generator, world=world, **options)
        .reshape(len(noisy.values), -1)
        .numpy()
    )


# -- samplers --------------------------------------------------------------------------------------

# Without its import, which takes seconds in every process that collects tests.
if find_spec("deepinv") is None:
    pytest.skip("the operators of the figure are made by deepinv", allow_module_level=True)


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_of_the_score_is_the_mean_given_both_measurements(world):
    """x_t and y together are one linear measurement of x_0; after the last level x is E[x_0 |
    x_t, y].
    """
    _, turned = measured(world, "blur", 5)
    noisy, law, sigma = turned.noisy, law_of(world), 0.3
    operator = noisy.operators[0]
    H, d = operator.matrix(noisy.shape), law.dimension
    values = drawn(world, noisy, steps=1, largest=sigma)
    basis = np.linalg.eigh(
        LinearPosterior(law.means, law.covariance, law.weights, H, SIGMA**2).covariances[0]
    )[1]
    xi = torch.randn(
        (5, d), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).numpy()
    x = law.mean + sigma * xi @ basis.T
    R = np.diag([*np.full(len(H), SIGMA**2), *np.full(d, sigma**2)])
    both = LinearPosterior(
        law.means, law.covariance, law.weights, np.concatenate([H, np.eye(d)]), R
    )
    expected = both.mean(np.concatenate([operator.vectors(noisy.values), x], axis=1))
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_the_score_draws_from_the_posterior_and_its_errors_do_not():
    """1,000 measurements; second moments of the standardised errors of the draws, which are
    those of the identity: 5 standard errors of a variance.
    """
    _, turned = measured("field", "inpainting", 1000)
    noisy = turned.noisy
    posterior = noisy.posterior(0)
    y = noisy.operators[0].vectors(noisy.values)

    def standardised(**options):
        errors = drawn("field", noisy, **options) - posterior.mean(y)
        white = np.linalg.solve(np.linalg.cholesky(posterior.covariances[0]), errors.T)
        return np.abs(white @ white.T / 1000 - np.eye(16)).max()

    error = np.sqrt(2 / 1000)
    assert standardised(steps=200) < 5 * error
    for options in ({"steps": 20}, {"steps": 200, "told": 0.7}, {"steps": 200, "largest": 0.1}):
        assert standardised(**options) > 6 * error, options


def test_the_posterior_mean_is_that_of_the_exact_posterior():
    _, turned = measured("mixture", "downsampling", 20)
    noisy = turned.noisy
    mean = posterior_mean(
        torch.from_numpy(noisy.values.copy()), noisy.operators[0], None, world="mixture"
    )
    assert mean.shape == (20, 1, 4, 4)
    expected = noisy.posterior(0).mean(noisy.operators[0].vectors(noisy.values))
    np.testing.assert_allclose(mean.reshape(20, 16), expected, atol=1e-6)


def test_ddrm_of_full_noise_differs_by_the_factor_of_its_noise(monkeypatch):
    """With a denoiser that changes nothing, draws are linear in the noise."""
    _, turned = measured("field", "inpainting", 3)
    noisy = turned.noisy

    def denoiser(x, sigma, *args, **kwargs):
        return x

    denoiser.range = (0.0, np.inf)

    def draw(sampler):
        torch.manual_seed(0)
        return sampler(torch.from_numpy(noisy.values.copy()), noisy.operators[0], None).numpy()

    def own(observed, operator, generator):
        return exam_parts.DeepinvSampler("DDRM", {"steps": 3})(
            observed, operator, generator, denoiser, noisy.shape
        )

    def full(observed, operator, generator):
        return exam_parts.ddrm_of_full_noise(
            observed, operator, generator, denoiser=denoiser, steps=3
        )

    single, double = draw(own), draw(full)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    without = draw(own)
    np.testing.assert_allclose(double - without, np.sqrt(2) * (single - without), atol=1e-5)
    assert np.abs(single - without).max() > 0.1


# -- the true distance -----------------------------------------------------------------------------


def test_the_energy_distance_is_its_definition():
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 6, 5))
    found = energy(x, z)
    for item in range(3):
        for k in range(4):
            to_exact = np.mean([np.linalg.norm(x[item, k] - b) for b in z[item]])
            own = np.mean([np.linalg.norm(x[item, k] - x[item, j]) for j in range(4) if j != k])
            among = np.mean(
                [
                    np.linalg.norm(a - b)
                    for i, a in enumerate(z[item])
                    for j, b in enumerate(z[item])
                    if i != j
                ]
            )
            assert found[item, k] == pytest.approx(2 * to_exact - own - among)


def test_exact_draws_have_no_energy_distance_and_others_have_one():
    """5 standard errors over 500 measurements."""
    _, turned = measured("mixture", "inpainting", 500)
    readings = TrueDistance().read(turned, None)
    for values in readings.values():
        by_item = values.mean(axis=1)
        assert abs(by_item.mean()) < 5 * by_item.std() / np.sqrt(500)
    wider = ut.protocols.UTurns(
        turned.originals, turned.noisy, turned.reconstructions + 0.1, clones=4
    )
    by_item = TrueDistance().read(wider, None)["energy"].mean(axis=1)
    assert by_item.mean() > 5 * by_item.std() / np.sqrt(500)


# -- the measurement -------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_measured_is_analysed_and_kept(tmp_path, monkeypatch):
    few = {"pairs": [("mixture", "inpainting")], "items": 3, "score_steps": 20, "chain_steps": 5}
    monkeypatch.setitem(exam_runs.SETTINGS, "smoke", few)
    workshop = Workshop("smoke", tmp_path, workers=1)
    runs = exam.measure(workshop)
    assert set(runs) == {f"mixture-inpainting-{name}" for name in LABELS} | {"calls"}
    calls = dict(zip(LABELS, runs["calls"].calls.values.tolist(), strict=True))
    assert (calls["exact"], calls["mean"], calls["score"], calls["few"], calls["ula"]) == (
        0,
        0,
        20,
        20,
        5,
    )
    assert calls["ddrm"] == calls["ddrm_full"] == 100
    data, verdicts = exam.analyse(runs)
    assert dict(data.sizes) == {"sampler": 12, "cell": 2, "test": 6, "reading": 4, "estimate": 3}
    assert all(np.isfinite(data[name]).all() for name in ("p", "energy", "effect"))
    assert len(verdicts) == len(NAMES) + 3
    monkeypatch.setattr(Workshop, "_compute", lambda *args: pytest.fail("computed again"))
    again = exam.measure(workshop)
    assert all(again[name].identical(run) for name, run in runs.items())


# -- verdicts --------------------------------------------------------------------------------------

NAMES = ("exact", "score", "far", *ERRORS, "ddrm", "mean")
CELLS = [
    "mixture, inpainting, σ = 0.02",
    "mixture, blur, σ = 0.02",
    "field, downsampling, σ = 0.05",
]
MISSED = 3e-3  # of a single test: .012 by Holm


def forged(energy=None, p=None, beside=None, less=0.01, gap=1.0, kind="too sure", half=0.002):
    """The data of the figure as they should be; `energy`, `p`, `beside`: {sampler: value in the
    last cell}.
    """
    labels = list(LABELS.values())
    right = [label in EXACT.values() for label in labels]
    table = np.where(right, 0.0005, np.linspace(0.1, 0.2, len(labels)))[:, None] * np.ones(
        len(CELLS)
    )
    tests = np.full((len(labels), len(CELLS), 6), 0.5)
    tests[~np.array(right), :, 2] = 1e-5
    for name, value in (energy or {}).items():
        table[labels.index(name), -1] = value
    for name, value in (p or {}).items():
        tests[labels.index(name), -1, 2] = value
    for name, value in (beside or {}).items():
        tests[labels.index(name), -1, 5] = value
    effect = np.repeat(
        np.where(right, 0.001, np.linspace(0.2, 0.1, len(labels)))[:, None, None, None],
        len(CELLS),
        axis=1,
    ) * np.ones((1, 1, 4, 3))
    effect[labels.index(OTHERS["mean"])] = gap
    kinds = np.full(table.shape, "none seen", object)
    kinds[~np.array(right)] = "deaf to the data"
    kinds[labels.index(OTHERS["mean"])] = kind

    def bounds(values):
        return np.stack([values, values - half, values + half], axis=-1)

    return xr.Dataset(
        {
            "p": (("sampler", "cell", "test"), tests),
            "effect": (("sampler", "cell", "reading", "estimate"), effect),
            "kind": (("sampler", "cell"), kinds),
            "energy": (("sampler", "cell", "estimate"), bounds(table)),
            "mean_energy": (("sampler", "estimate"), bounds(table.mean(axis=1))),
            "null_energy": (("cell", "estimate"), bounds(np.zeros(len(CELLS)))),
            "less_energy": ("estimate", bounds(np.array(less))),
            "calls": ("sampler", np.arange(len(labels)) * 40),
        },
        {
            "sampler": labels,
            "cell": CELLS,
            "test": [*MEANS, *BESIDE],
            "reading": MEANS,
            "estimate": ["value", "low", "high"],
        },
        {"items": 320, "clones": 4},
    )


def failed(**changes):
    *judged, _, _, _ = exam.verdicts(forged(**changes))
    return {name for name, verdict in zip(NAMES, judged, strict=True) if not verdict.passed}


def test_what_is_expected_passes_and_is_drawn():
    assert failed() == set()
    assert len(exam.draw(forged()).axes) == 6


DDRM, PIGDM, FULL = OTHERS["ddrm"], OTHERS["pigdm"], REPAIRED["ddrm_full"]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"p": {EXACT["exact"]: 1e-4}}, {"exact"}),
        ({"p": {EXACT["exact"]: 2e-3}}, set()),  # of 12 tests
        ({"beside": {EXACT["score"]: 1e-4}}, {"score"}),
        ({"energy": {EXACT["score"]: 0.02}}, {"score"}),
        ({"half": 0.006}, {"exact", "score"}),  # intervals that would hold anything
        ({"p": {PIGDM: MISSED}}, {"far"}),
        ({"p": {PIGDM: MISSED}, "energy": {PIGDM: 0.021}}, set()),  # perhaps below the limit
        ({"energy": dict.fromkeys([*OTHERS.values()], 0.0)}, set()),
        ({"p": {ERRORS["told"]: MISSED}}, {"far", "told"}),
        ({"p": {ERRORS["few"]: MISSED}, "energy": {ERRORS["few"]: 0.001}}, {"few"}),
        ({"p": {ERRORS["late"]: MISSED}, "energy": {ERRORS["late"]: 0.001}}, {"late"}),
        ({"p": {DDRM: MISSED}}, {"far", "ddrm"}),
        ({"p": {FULL: MISSED}, "energy": {FULL: 0.001}}, set()),
        ({"less": 0.001}, {"ddrm"}),
        ({"gap": 0.99}, {"mean"}),
        ({"kind": "shifted"}, {"mean"}),
    ],
)
def test_verdicts_can_fail(changes, failing):
    assert failed(**changes) == failing


def test_a_missed_sampler_is_named():
    data = forged(p={PIGDM: MISSED})
    assert f"missed: {PIGDM}, {CELLS[-1]};" in exam.verdicts(data)[2].measured
    assert not exam.verdicts(forged(energy=None, half=1.0))[2].passed  # no cell is far


# -- without deepinv -------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_deepinv_the_figure_is_an_error_and_all_figures_leave_it_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(
        ValueError,
        match=r"^figure 'inverse' needs the library deepinv; pip install 'uturn\[inverse\]'$",
    ):
        reproduce(["inverse"], tmp_path)
    ended = uturn("reproduce", "inverse", "--out", tmp_path)
    assert (ended.returncode, len(ended.stderr.strip().splitlines())) == (2, 1)
    monkeypatch.setattr("uturn.cli.figures.ORDER", ("inverse", "fig3"))
    ended = uturn("reproduce", "--all", "--out", tmp_path)
    assert ended.returncode == 0
    assert (
        "left out: figure 'inverse' needs the library deepinv; pip install 'uturn[inverse]'"
        in ended.stdout
    )
    assert [path.name for path in tmp_path.glob("*.json")] == ["fig3.json"]


def test_what_is_kept_depends_on_the_constants_of_the_exam(monkeypatch):
    before = identity_of(exam_runs.calls_of, {"named": {}})
    monkeypatch.setattr(exam_runs, "NOISE", [0.1])
    assert identity_of(exam_runs.calls_of, {"named": {}}) != before
