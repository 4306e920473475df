"""`uturn check-sampler`: known bugs are caught, right samplers pass, and its tests are exact."""

import importlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom, chi2

import sampler_gallery as gallery
import uturn as ut
from command_line import uturn
from uturn.core.findings import Finding
from uturn.core.random import Streams
from uturn.tools.check_sampler.check import checked, compared_lines, denoiser_line
from uturn.tools.check_sampler.options import SamplerOptions
from uturn.tools.check_sampler.samplers import Setting
from uturn.tools.check_sampler.steps import repeated_step, step_variance
from uturn.tools.check_sampler.two_samplers import change_sizes, sizes_of_change, two_samplers

# -- the exact tests -------------------------------------------------------------------------------


def distance(x, y):
    return np.sqrt(((x - y) ** 2).mean())


def energy(a, b):
    """The statistic written out, for one original."""
    between = sum(distance(x, y) for x in a for y in b)
    return between / 2 - distance(*a) - distance(*b)


def test_the_statistic_and_its_p_value_are_those_of_all_relabellings():
    rng = np.random.default_rng(3)
    data = rng.normal(size=(1, 5, 4, 2, 3))
    data[:, :, 2:] *= 2
    result = two_samplers(data[:, :, :2], data[:, :, 2:], level=0.01)
    splits = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    e = np.array([[energy(four[list(a)], four[list(b)]) for a, b in splits] for four in data[0]])
    assert np.isclose(result.statistic[0], e[:, 0].mean())
    means = [
        np.mean([e[i, k] for i, k in enumerate(chosen)])
        for chosen in itertools.product(range(3), repeat=5)
    ]
    exact = np.mean(np.array(means) >= means[0] - 1e-9)
    assert abs(result.p_value[0] - exact) < 4 * np.sqrt(exact * (1 - exact) / result.relabellings)

    x = rng.normal(size=(5, 2, 3))
    result = sizes_of_change(x, data[:, :, :2], data[:, :, 2:], level=0.01)
    f = np.array([[distance(x[i], data[0, i, k]) for k in range(4)] for i in range(5)])
    assert np.allclose(change_sizes(x, data)[0], f)
    pairs = list(itertools.combinations(range(4), 2))
    g = np.array([[row[list(p)].mean() - np.delete(row, p).mean() for p in pairs] for row in f])
    means = [
        abs(np.mean([g[i, k] for i, k in enumerate(chosen)]))
        for chosen in itertools.product(range(6), repeat=5)
    ]
    exact = np.mean(np.array(means) >= means[0] - 1e-9)
    assert np.isclose(result.statistic[0], g[:, 0].mean())
    assert abs(result.p_value[0] - exact) < 4 * np.sqrt(exact * (1 - exact) / result.relabellings)


def test_false_alarms_are_as_rare_as_stated():
    """P(p <= .05) of 500 checks of one law with heavy tails; the bound is passed with a
    probability of 1e-4.
    """
    data = (
        np.random.default_rng(0).standard_t(2, size=(500, 10, 4, 3))
        * np.arange(1, 11)[:, None, None]
    )
    most = binom.isf(1e-4, 500, 0.05)
    for test in (two_samplers, lambda a, b, level: sizes_of_change(0 * data[0, :, 0], a, b, level)):
        p = test(data[:, :, :2], data[:, :, 2:], level=0.5).p_value
        assert 0 < (p <= 0.05).sum() <= most
        p = test(data[:, :, :2], 1.5 * data[:, :, 2:] + 3, level=0.5).p_value
        assert (p <= 0.05).sum() > most  # the negative control


def test_units_do_not_matter():
    """Levels of very different changes are judged by themselves, and float32 squares do not
    overflow or vanish.
    """
    data = np.random.default_rng(5).normal(size=(1, 30, 4, 6)).astype(np.float32)
    alike, other = data[:, :, 2:], 0.2 * data[:, :, 2:]
    for test in (two_samplers, lambda a, b: sizes_of_change(0 * a[0, :, 0], a, b)):
        p_alike, p_other = (test(data[:, :, :2], second).p_value[0] for second in (alike, other))
        for unit in np.float32([1e-25, 1e20]):
            assert test(unit * data[:, :, :2], unit * alike).p_value[0] == pytest.approx(
                p_alike, rel=0.05
            )
            assert test(unit * data[:, :, :2], unit * other).p_value[0] == pytest.approx(
                p_other, rel=0.05
            )
        levels = np.array([1e-7, 1])[:, None, None, None]
        assert (test(levels * data[:, :, :2], levels * other).p_value < 1e-3).all()


# -- the gallery -----------------------------------------------------------------------------------

SEEN_BY = {
    "t + 1 for t": {"size of the change", "two samples"},
    "forgotten begin index": {"size of the change", "two samples"},
    "variance for deviation": {"one repeated step"},
    "learned variance ignored": {"one repeated step"},
    "wrong prediction type": {"size of the change"},
    "wrong type declared": {"denoiser"},
    "timesteps in 0..1": {"size of the change", "two samples"},
    "no noise added": {"size of the change", "two samples"},
    "one noise for all": {"size of the change", "two samples"},
    "noise times 0.9": {"size of the change"},
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "originals.npy"
    np.save(path, gallery.originals(40).numpy())
    return str(path)


def report(originals, **options):
    return checked(SamplerOptions.from_dict({"data": originals, **options}))


@pytest.mark.parametrize("name", gallery.RIGHT)
def test_right_samplers_pass(originals, name):
    """A right sampler fails in one of 1,000 checks."""
    rows = report(originals, **gallery.RIGHT[name]).lines
    assert {row.verdict for row in rows} <= {"passes", "reported", "not tested"}
    assert [row.verdict for row in rows[:3]] == ["passes"] * 3


@pytest.mark.parametrize("name", gallery.WRONG)
def test_each_known_bug_is_caught(originals, name):
    failed = {
        row.test for row in report(originals, **gallery.WRONG[name]).lines if row.verdict == "FAILS"
    }
    assert failed >= SEEN_BY[name]
    assert set(gallery.WRONG) == set(SEEN_BY)


def test_schedulers_in_other_units_are_compared(originals):
    """Euler ancestral has the law of DDPM, in units in which the image keeps its amplitude."""
    rows = report(originals, model="sampler_gallery:model", sampler="euler_ancestral").lines
    assert [row.verdict for row in rows[:4]] == ["passes"] * 4


def test_functions_are_checked_as_their_import_paths(originals):
    """In Python, functions stand in place of names; an option that is not one is refused."""
    options = {"data": originals, "model": "sampler_gallery:model"}
    found = ut.check_sampler(gallery.compvis, **options)
    named = ut.check_sampler("sampler_gallery:compvis", **options)
    assert found.lines == named.lines
    assert not found.passed
    assert "sampler_gallery:" in found.title
    with pytest.raises(ValueError, match="recorded"):
        ut.check_sampler(gallery.compvis, recorded="{noise}/{item}.png", levels=[0.5], **options)
    with pytest.raises(ValueError, match="itms"):
        ut.check_sampler(gallery.compvis, itms=3, **options)


def test_weak_noise_left_over_is_ten_times_the_change(originals):
    row = report(originals, **gallery.WRONG["t + 1 for t"], levels=[0.5]).lines[0]
    assert row.numbers["size"][0] > 8 * row.numbers["size_of_uturn"][0]
    assert "against" in row.result


@pytest.mark.parametrize(("sampler", "code"), [(gallery.ddpm, 0), (gallery.compvis, 1)])
def test_recorded_files_are_checked(sampler, code, tmp_path):
    """Files of 8 bits: a right sampler passes, one that adds the noise of one step more fails at
    weak noise.
    """
    images = gallery.originals(24)

    def write(folder, values, ending=""):
        (tmp_path / folder).mkdir(exist_ok=True)
        for i, image in enumerate(((values[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()):
            Image.fromarray(image).save(tmp_path / folder / f"{i:02d}{ending}.png")

    write("originals", images)
    for noise, trajectory in itertools.product((0.05, 0.5), range(2)):
        write(f"strength_{noise}", sampler(images, noise, 5 + trajectory), f"_{trajectory}")
    words = (
        "check-sampler",
        "--model",
        "sampler_gallery:model",
        "--data",
        "originals",
        "--items",
        24,
        "--channels",
        1,
    )
    pattern = ("--recorded", "strength_{noise}/{item}_{trajectory}.png")
    done = uturn(*words, *pattern, "--json", "check.json", cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    tests = json.loads((tmp_path / "check.json").read_text())["tests"]
    assert tests[0]["numbers"]["noise"] == [0.05, 0.5]
    assert [test["verdict"] for test in tests[3:]] == ["not tested"] * 2
    refused = uturn(*words, *pattern, "--steps", 7, cwd=tmp_path)
    assert (refused.returncode, "expected k/steps" in refused.stderr) == (2, True)
    few = uturn(*words, *pattern, "--items", 3000, cwd=tmp_path)
    assert (
        few.returncode,
        "items = 3000: expected at most 24, the files of" in " ".join(few.stderr.split()),
    ) == (2, True)
    for path in tmp_path.glob("strength_*/*_1.png"):
        path.rename(path.with_suffix(".hidden"))
    single = uturn(*words, *pattern, cwd=tmp_path)
    assert (
        single.returncode,
        "expected two or more, which the tests compare" in " ".join(single.stderr.split()),
    ) == (2, True)
    for path in tmp_path.glob("strength_*/*_1.hidden"):
        path.rename(path.with_suffix(".png"))
    (tmp_path / "strength_0.5" / "03_1.png").unlink()
    missing = uturn(*words, *pattern, cwd=tmp_path)
    assert (
        missing.returncode,
        "two trajectories of each of the first 24 originals" in " ".join(missing.stderr.split()),
    ) == (
        2,
        True,
    )


def test_calibration_is_reported(originals):
    """It rejects the right sampler of 10 steps, which is no failure."""
    options = {**gallery.RIGHT["learned variance"], "steps": 10, "levels": [0.5], "clones": 4}
    *_, calibration = report(originals, **options).lines
    assert calibration.verdict == "reported"
    assert calibration.p < 0.01
    assert calibration.numbers["noise"] == [0.5]


# -- the variance of one step ----------------------------------------------------------------------


def large_variance():
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler(variance_type="fixed_large", **gallery.SCHEDULE)
    return ut.networks.DenoiserModel(
        gallery.predicted_noise, schedule, predicts="noise", image_shape=(1, 8, 8)
    )


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sampler_gallery:model", {"scheduler": "ddpm"}),
        ("sampler_gallery:model", {"scheduler": "ancestral"}),
        ("sampler_gallery:model", {"scheduler": "ddim", "eta": 0.5}),
        ("sampler_gallery:model", {"scheduler": "euler_ancestral"}),
        ("sampler_gallery:flow_model", {"scheduler": "ancestral"}),
        ("sampler_gallery:learned_model", {"scheduler": "ddpm"}),
        (f"{__name__}:large_variance", {"scheduler": "ddpm"}),
    ],
)
def test_variance_of_a_step_is_its_formula(originals, model, options):
    """Chi-square of the repeats; a right formula fails once in 10,000."""
    parts = (
        SamplerOptions.from_dict({"data": originals, "items": 9, "model": model, **options})
        .experiment()
        .parts
    )
    (few,) = parts.source.blocks(np.arange(2), 0, 9)
    streams = Streams(0, few.items, 0.25)
    noisy = parts.corruption.observe(few, 0.25, streams)
    x = repeated_step(parts.backward, noisy, streams, 200).astype(float)
    squares = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / step_variance(
        parts.backward, noisy, streams
    )
    freedom = squares.size * 199
    assert 5e-5 < chi2.cdf(squares.sum(), freedom) < 1 - 5e-5


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_on_the_embedded_model(tmp_path):
    done = uturn(
        "check-sampler",
        "--items",
        9,
        "--steps",
        4,
        "--levels",
        0.5,
        "--json",
        "check.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no test fails" in done.stdout
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["passed"]
    verdicts = {test["test"]: test["verdict"] for test in written["tests"]}
    assert list(verdicts.values()) == ["passes"] * 4 + ["reported"]
    assert all(test["sees"] and test["misses"] for test in written["tests"])
    size = written["tests"][0]
    assert size["numbers"]["noise"] == [0.25, 0.5]
    assert size["numbers"]["size"] != size["numbers"]["size_of_uturn"]  # the noise is another


def test_the_example_and_its_bug(monkeypatch):
    """examples/own/sampler.py, in six steps, whose right function is compared with itself."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples" / "own"))
    sampler = importlib.import_module("sampler")
    monkeypatch.setattr(sampler, "STEPS", 6)
    images = torch.from_numpy(ut.fashion_mnist.load_test_set()[0][:10])

    def made(function, first):
        return np.stack(
            [function(images, 1 / 6, seed).clamp(-1, 1).numpy() for seed in (first, first + 1)],
            axis=1,
        )[None]

    right, again, wrong = (
        made(sampler.image_to_image, 0),
        made(sampler.image_to_image, 2),
        made(sampler.one_step_off, 4),
    )
    assert [row.verdict for row in compared_lines(images.numpy(), right, again, [1 / 6], 1e-3)] == [
        "passes"
    ] * 2
    assert [row.verdict for row in compared_lines(images.numpy(), wrong, again, [1 / 6], 1e-3)] == [
        "FAILS"
    ] * 2


def broken(images, noise, seed):
    raise RuntimeError("no such scheduler")


def forgetful(images, noise, seed):
    gallery.ddpm(images, noise, seed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sampler", f"{__name__}:broken"],
            "test_samplers:broken'.*no such scheduler .test_samplers.py, line",
        ),
        (
            ["--sampler", f"{__name__}:forgetful"],
            r"result = None: expected a tensor \(32, 1, 8, 8\)",
        ),
        (["--items", "4"], "items = 4: expected at least 9; fewer could not"),
    ],
)
def test_wrong_input_ends_in_one_line(originals, words, message):
    done = uturn("check-sampler", "--model", "sampler_gallery:model", "--data", originals, *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("unclear", "verdict"),
    [((), "passes"), ((True,), "not tested"), ((False,), "FAILS"), ((True, False), "FAILS")],
)
def test_a_model_that_cannot_be_judged_is_no_failure(monkeypatch, unclear, verdict):
    findings = [Finding("is so", is_unclear=is_unclear) for is_unclear in unclear]
    monkeypatch.setattr(ut.Experiment, "model_check", lambda self: findings)
    row = denoiser_line(Setting.of(SamplerOptions()))
    assert (row.verdict, "is so" in row.result) == (verdict, bool(unclear))
