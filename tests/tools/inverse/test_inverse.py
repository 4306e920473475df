"""`uturn inverse`: the stories of the docs, its table, files and page, and mistakes as a user
makes them.
"""

import importlib
import itertools
import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray as xr

import uturn as ut
from browser import next_frame, violations
from command_line import uturn
from uturn.measures.report import Report, Verdict
from uturn.tools.inverse import options as inverse_options
from uturn.tools.inverse.judged import calls_of
from uturn.tools.inverse.options import InverseOptions
from uturn.tools.inverse.sampler import PosteriorSampler

# Without its import, which takes seconds in every process that collects tests.
if find_spec("deepinv") is None:
    pytest.skip("operators and samplers of deepinv", allow_module_level=True)
DOCS = (Path(__file__).parents[3] / "docs" / "inverse-problems.md").read_text(encoding="utf-8")
OWN = "\n".join(re.findall(r"```python\n# own.py\n(.*?)```", DOCS, re.DOTALL))
FAST = (
    "--model",
    "tiny_denoiser:network",
    "--classifier",
    "tiny_classifier:network",
    "--no-compare-labels",
    "--workers",
    1,
)
SMALL = ("--items", 2, "--clones", 2, "--keep", 1, *FAST)
WRONG = '''
import random

import numpy as np

COVARIANCES = np.array([[[2.0, 0.9], [0.9, 1.0]], [[0.5, 0.0], [0.0, 3.0]], [[1.0, -0.4], [-0.4, 1.0]]])
MEANS = np.array([[300.0, -9.0], [302.0, -4.0], [297.0, -2.0]])


def total(strength, shape):
    return Operator(lambda x: x.reshape(len(x), -1).sum(1, keepdim=True), noise=strength)


def drawn(observed, operator, generator, shape, narrow=1.0):
    """Draws from the posterior of the mixture, drawn towards their mean."""
    from uturn.tools.inverse.linear import LinearPosterior

    law = LinearPosterior(MEANS, COVARIANCES, [0.2, 0.5, 0.3], [[1.0, 1.0]], operator.noise.sigma**2)
    draw = law.sample(observed.numpy(), int(torch.randint(2**31, (1,), generator=generator)))
    mean = law.mean(observed.numpy())
    return torch.from_numpy(mean + narrow * (draw - mean)).float().reshape(1, *shape)


def prior(observed, operator, generator):
    """Ignores the measurement: another image of the data."""
    from uturn.sources import FashionMNISTSource

    image, _ = FashionMNISTSource().images_at(torch.randint(500, 1000, (1,), generator=generator).numpy())
    return torch.from_numpy(image + 1) / 2


def wrong_shape(observed, operator, generator):
    return torch.zeros(1, 1, 8, 8)


def squared(strength, shape):
    return Operator(lambda x: x**2, noise=strength, is_linear=False)


def unseeded(observed, operator, generator, denoiser):
    x = torch.from_numpy(np.random.default_rng().normal(size=(1, 1, 28, 28))).float()
    return denoiser(x, 0.5)



def more_and_more(observed, operator, generator, denoiser, calls=[0]):
    calls[0] += 1
    for _ in range(calls[0]):
        x = denoiser(torch.ones(1, 1, 28, 28), 0.5)
    return x


def global_generators(observed, operator, generator, denoiser):
    x = torch.randn(1, 1, 28, 28) + float(np.random.rand()) + random.random()
    return denoiser(x, 0.5)


def wide_images(observed, operator, generator, shape):
    """Images in [-1, 1], without a denoiser, of any shape."""
    dark = torch.rand(1, *shape, generator=generator) < 0.4
    return torch.where(dark, -0.8, 0.7)


def salted(strength, shape):
    from uturn.corruption import OtherNoise

    return Operator(lambda x: x, noise=OtherNoise(lambda clean, generator: clean * (generator.random(clean.shape) > strength)))
'''


@pytest.fixture(autouse=True, scope="module")
def figures(blank_figures):  # `test_posterior_tests.py` draws
    with pytest.MonkeyPatch.context() as patch:
        # Of the embedded model, a second or more for each run.
        patch.setattr(PosteriorSampler, "model_check", lambda *_: [])
        yield


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working directory with the code of the docs."""
    (tmp_path / "own.py").write_text(OWN + WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own", None)


def commands():
    """The commands of the docs that need no model or data from elsewhere."""
    lines = [
        line.partition("  #")[0]
        for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
    ]
    return [
        shlex.split(line)[1:]
        for line in lines
        if line.startswith("uturn") and "--model" not in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in commands() if "own:" in str(c)], ids=lambda c: " ".join(c[1:-2])
)
def test_stories_of_the_docs(own, command):
    """Every command of the docs runs, with fewer originals, strengths, samplers and steps, on a
    model that takes no time.
    """
    sampler = next(
        (word for flag, word in itertools.pairwise(command) if flag == "--sampler"),
        "deepinv:DiffPIR",
    )
    words = [
        word
        for flag, word in zip([None, *command], command, strict=False)
        if "--sampler" not in (flag, word)
    ]
    out, levels = (
        words[-1],
        next((word for flag, word in itertools.pairwise(words) if flag == "--levels"), "0.5"),
    )
    done = uturn(
        *words,
        "--levels",
        levels.partition(",")[0],
        "--sampler",
        f"{sampler.partition(' ')[0]} steps=3",
        *SMALL,
        cwd=own,
    )
    assert done.returncode == 0, done.stderr
    assert {"index.html", "inverse.json", "inverse.csv", "errors", "curves.csv"} <= {
        path.name for path in (own / out).iterdir()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory, figures):
    """Two samplers on both kinds of originals: one that draws far too narrow, one that ignores
    the measurement.
    """
    folder = tmp_path_factory.mktemp("inverse")
    (folder / "own.py").write_text(OWN + WRONG)
    options = ("--items", 8, "--clones", 3, "--levels", "0.2,0.5", "--keep", 2, *FAST)
    samplers = ("--sampler", "deepinv:DDRM steps=4", "--sampler", "own:prior")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(inverse_options, "GENERATED_STEPS", 2)
        done = uturn(
            "inverse",
            "--out",
            "out",
            *options,
            *samplers,
            "--data",
            "fashion_mnist",
            "--data",
            "generated",
            cwd=folder,
        )
        sys.modules.pop("own", None)
    assert done.returncode == 1, done.stderr
    return folder / "out", done.stdout


def test_both_arms_stand_in_one_table(results):
    folder, printed = results
    data = json.loads((folder / "inverse.json").read_text())
    runs = {(run["sampler"], run["data"]): run for run in data["runs"]}
    assert set(runs) == {
        (sampler, arm)
        for sampler in ("DDRM steps=4", "own:prior")
        for arm in ("fashion_mnist", "generated")
    }
    assert {run["judges"] for run in runs.values() if run["data"] == "generated"} == {"sampler"}
    assert {run["judges"] for run in runs.values() if run["data"] == "fashion_mnist"} == {
        "sampler and prior"
    }
    assert [row[0] for row in data["table"]["rows"]] == [run["sampler"] for run in data["runs"]]
    assert all(
        f"{run['calls']}" == row[-1]
        for run, row in zip(data["runs"], data["table"]["rows"], strict=True)
    )
    assert runs["DDRM steps=4", "generated"]["calls"] == 4
    assert runs["own:prior", "generated"]["calls"] == 0
    assert all(
        line in printed
        for line in ("sampler and prior (fashion_mnist)", "sampler (generated)", "deaf to the data")
    )


def test_the_errors_are_seen(results):
    """Other images of the data ignore the measurement; four steps of DDRM give clones that are
    too much alike.
    """
    runs = {
        (run["sampler"], run["data"]): run
        for run in json.loads((results[0] / "inverse.json").read_text())["runs"]
    }
    deaf = runs["own:prior", "fashion_mnist"]["tests"]
    # A guess, which 8 originals may miss at one strength.
    assert "deaf to the data" in {at["kind"] for at in deaf}
    for at in deaf:  # the original fits the measurement better, at every strength
        (fit,) = [of for of in at["readings"] if of["reading"] == "log_likelihood"]
        assert fit["effect"][1] > 0
        assert fit["p_holm"] <= 1e-3
    for at in runs["DDRM steps=4", "fashion_mnist"]["tests"]:
        effects = {of["reading"]: of["effect"][0] for of in at["readings"]}
        assert at["kind"] != "none seen"
        assert effects["distance"] > 0.2
        assert at["coverage"][0] < runs["own:prior", "fashion_mnist"]["coverage_expected"] - 0.1


def test_the_numbers_are_those_of_the_stores(results):
    folder, _ = results
    run = xr.open_dataset(folder / "fashion_mnist-DDRM-steps=4", engine="uturn")
    tests = ut.posterior_tests(run)
    table = pandas.read_csv(folder / "inverse.csv").query("name == 'DDRM steps=4, fashion_mnist'")
    for reading in ("distance", "log_likelihood"):
        of = tests.sel(reading=reading)
        rows = table[table.reading == reading]
        np.testing.assert_allclose(rows.effect, of.effect.sel(estimate="value"), rtol=1e-6)
        np.testing.assert_allclose(rows.p_holm, of.p_holm, rtol=1e-6)
    start = xr.open_zarr(folder / "study-1.zarr").start
    # Hidden values differ at any strength: no half-life.
    assert start.sel(reading="distance").isnull()
    assert set(pandas.read_csv(folder / "curves.csv").run) == {
        f"{name}, {arm}"
        for name in ("DDRM steps=4", "own:prior")
        for arm in ("fashion_mnist", "generated")
    }


def test_the_report_judges_each_sampler(results):
    """The report beside the numbers; both samplers fail, so that the command ends with 1."""
    folder, printed = results
    report = Report.from_dict(json.loads((folder / "inverse-report.json").read_text()))
    runs = json.loads((folder / "inverse.json").read_text())["runs"]
    assert [line.test for line in report.lines] == [run["name"] for run in runs]
    assert [line.result for line in report.lines] == [run["kinds"] for run in runs]
    assert set(report.failed) >= {"DDRM steps=4, fashion_mnist", "own:prior, fashion_mnist"}
    assert report["DDRM steps=4, generated"].sees == "errors of the sampler"
    assert report["own:prior, generated"].remark.endswith("calls of the network: 0")
    assert report.false_alarm_rate == 2e-3  # of the family, and of the tests beside it
    assert f"{report.conclusion}\n" in printed


VECTORS = {
    "data": ["gaussian_mixture dimension=16 separation=1.0 exponent=2.0 centre=0.5 scale=0.125"],
    "operator": "boxes",
    "levels": [0.5],
    "clones": 3,
    "items": 60,
}


def test_samplers_are_judged_from_python_without_printing(capsys, tmp_path):
    report = ut.inverse(["exact", "deepinv:DDRM steps=5"], tmp_path, **VECTORS)
    assert capsys.readouterr() == ("", "")
    assert report.failed == ("DDRM steps=5",)
    assert report.exit_code == 1
    assert report["exact"].result == "none seen"
    measured = report["DDRM steps=5"].measured
    (store,) = tmp_path.glob("*-DDRM-steps=5")
    effect = ut.posterior_tests(xr.open_dataset(store, engine="uturn")).effect
    assert [*measured] == effect.sel(reading="distance").isel(noise=0).values.tolist()
    assert repr(ut.inverse("exact", **VECTORS)).endswith("no test fails")


def test_a_sampler_with_too_few_originals_is_not_tested():
    """Two originals cannot show an error of any sampler."""
    report = ut.inverse("deepinv:DDRM steps=5", **{**VECTORS, "items": 2})
    assert report.lines[0].verdict is Verdict.UNTESTED
    assert (report.passed, report.conclusion) == (True, "nothing was judged")


def test_the_measurement_is_stored_with_what_it_hides(results):
    run = xr.open_dataset(results[0] / "fashion_mnist-DDRM-steps=4", engine="uturn")
    hidden = run.observation.isel(item=0, channel=0).isnull()
    assert hidden.mean(("row", "column")).values == pytest.approx(run.noise.values, abs=0.03)
    original = next(
        InverseOptions().runs()[0].experiment.parts.source.blocks(np.arange(1), 0, 1)
    ).data[0, 0]
    seen = run.observation.isel(item=0, channel=0, noise=0).values
    # Sigma of images in [0, 1], here in [-1, 1].
    assert np.nanstd(seen - original) == pytest.approx(2 * 0.05, rel=0.1)
    assert run.observation.isel(item=2).isnull().all()  # --keep 2


def test_generated_originals_depend_on_the_steps_of_their_chain_and_not_on_the_sampler(monkeypatch):
    def fingerprint(sampler, steps):
        monkeypatch.setattr(inverse_options, "GENERATED_STEPS", steps)
        (run,) = InverseOptions(data=["generated"], samplers=[sampler]).runs()
        return run.experiment.parts.source.fingerprint()

    assert (
        fingerprint("deepinv:DDRM", 3)
        == fingerprint("deepinv:DPS steps=9", 3)
        != fingerprint("deepinv:DDRM", 4)
    )


def test_calls_are_counted_before_the_run():
    # PiGDM calls inside a Jacobian.
    samplers = ["deepinv:DDRM steps=7", "deepinv:DiffPIR steps=5", "deepinv:PiGDM steps=6"]
    runs = InverseOptions(samplers=samplers, levels=[0.3]).runs()
    assert calls_of(runs) == {"DDRM steps=7": 7, "DiffPIR steps=5": 5, "PiGDM steps=6": 6}


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "deepinv:Nonsense"], "sampler = 'deepinv:Nonsense': expected DDRM, DiffPIR"),
        (["--sampler", "deepinv:DDRM stepps=5"], "stepps"),
        (["--sampler", "deepinv:DDRM", "--sampler", "deepinv:DDRM"], "each once"),
        (["--sampler", "own:wrong_shape"], "[1, 1, 8, 8]"),
        (["--operator", "bluur"], "operator = 'bluur': expected one of"),
        (["--operator", "own:squared", "--levels", "0.1"], "linear"),
        (["--levels", "3", "--sampler", "own:prior"], "noise = 3.0"),
        (["--data", "fashion_mnist", "--data", "fashion_mnist"], "each once"),
    ],
)
def test_mistakes_are_one_line_and_measure_nothing(own, options, message):
    done = uturn("inverse", "--out", "out", "--items", 2, "--clones", 2, *options, cwd=own)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 or "--scheduler" in options
    assert not list((own / "out").glob("*/run.json"))


def test_files_of_others_among_the_pictures_are_kept(own):
    (own / "out" / "errors").mkdir(parents=True)
    (own / "out" / "errors" / "mine.txt").write_text("mine")
    done = uturn("inverse", "--out", "out", "--sampler", "own:prior", *SMALL, cwd=own)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "files in out/errors = ['mine.txt']: expected only pictures that were written there"
        in done.stderr
    )
    assert (own / "out" / "errors" / "mine.txt").read_text() == "mine"


def test_noise_of_unknown_law_is_tested_without_its_likelihood(own):
    samplers = ("--sampler", "own:prior")
    done = uturn(
        "inverse",
        "--operator",
        "own:salted",
        "--levels",
        0.3,
        "--out",
        "out",
        *samplers,
        *SMALL,
        "--items",
        6,
        cwd=own,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((own / "out" / "inverse.json").read_text())
    assert "no test sees a sampler that ignores the measurement" in data["runs"][0]["remark"]
    assert "log_likelihood" not in [of["reading"] for of in data["runs"][0]["tests"][0]["readings"]]


# --- without a model, and with a law --------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["unseeded", "more_and_more"])
def test_a_sampler_whose_calls_with_one_seed_differ_is_refused_before_the_run(own, sampler):
    (run,) = InverseOptions(samplers=[f"own:{sampler}"], operator="own:rows", levels=[0.5]).runs()
    with pytest.raises(
        ValueError,
        match=f"sampler = 'own:{sampler}': two calls with the same measurement and seed differ",
    ):
        calls_of([run])


def test_a_sampler_that_draws_from_the_global_generators_is_not(own):
    samplers = ["own:global_generators", "own:langevin steps=3"]
    runs = InverseOptions(samplers=samplers, operator="own:rows", levels=[0.5]).runs()
    assert calls_of(runs) == {"own:global_generators": 1, "own:langevin steps=3": 4}


def test_images_of_ones_own_need_no_model_and_no_classifier(own):
    """RGB images of another size than those of the default model; a sampler in [-1, 1] is
    clipped, and named.
    """
    np.save(own / "photos.npy", np.random.default_rng(0).integers(0, 255, (6, 9, 12, 3), np.uint8))
    words = (
        "--operator",
        "own:rows",
        "--levels",
        0.5,
        "--data",
        "photos.npy",
        "--sampler",
        "own:wide_images",
    )
    done = uturn(
        "inverse",
        "--out",
        "out",
        *words,
        "--items",
        4,
        "--clones",
        2,
        "--keep",
        1,
        "--workers",
        1,
        cwd=own,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"data check: sampler = 'own:wide_images' gives values in \[-0.8, 0.7\] .* 4\d% of them are"
        r" clipped",
        done.stderr,
    )
    assert "clipped" in (own / "out" / "index.html").read_text(encoding="utf-8")
    run = xr.open_dataset(own / "out" / "photos-own-wide_images", engine="uturn")
    assert "same_class" not in run
    # In [0, 1], after clipping.
    assert float(run.mean_value.mean()) == pytest.approx(0.6 * 0.7, abs=0.05)


@pytest.mark.slow
def test_a_law_of_ones_own_judges_right_and_wrong_samplers(own):
    """Vectors in any range: the exact posterior and a right sampler pass, a narrow one does not;
    each has its card.
    """
    np.save(own / "covariances.npy", importlib.import_module("own").COVARIANCES)
    law = (
        "gaussian_mixture means=[[300,-9],[302,-4],[297,-2]] covariances=covariances.npy"
        " weights=[0.2,0.5,0.3]"
    )
    samplers = ("--sampler", "exact", "--sampler", "own:drawn", "--sampler", "own:drawn narrow=0.4")
    words = ("--operator", "own:total", "--levels", 0.8, "--data", law, *samplers)
    done = uturn(
        "inverse", "--out", "out", *words, "--items", 80, "--clones", 3, "--workers", 1, cwd=own
    )
    assert done.returncode == 1, done.stderr
    assert "fails: own:drawn narrow=0.4\n" in done.stdout
    runs = {
        run["sampler"]: run
        for run in json.loads((own / "out" / "inverse.json").read_text())["runs"]
    }
    assert [run["passed"] for run in runs.values()] == [True, True, False]
    assert {run["judges"] for run in runs.values()} == {"sampler"}
    kinds = {name: run["kinds"] for name, run in runs.items()}
    assert kinds == {
        "exact": "none seen",
        "own:drawn": "none seen",
        "own:drawn narrow=0.4": "too sure",
    }
    page = (own / "out" / "index.html").read_text(encoding="utf-8")
    cards = re.findall(
        r'class="card"><p class="label">([^<]*) · .*?<p class="big">([^<]*)</p>', page, re.DOTALL
    )
    assert cards[:3] == list(kinds.items())


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_what_is_drawn_at_the_strength_of_the_slider(results, browser):
    wrong = []
    page = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="dark"
    ).new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("data:", "blob:", "file:")) or wrong.append(request.url)
        ),
    )
    page.goto((results[0] / "index.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
    tables = page.locator("table.gallery")
    assert tables.count() == 2  # one for each kind of originals
    assert tables.first.locator("thead th").all_inner_texts()[-2:] == [
        "spread of the clones",
        "error of their mean",
    ]
    # Truth, measurement; two samplers.
    assert tables.first.locator("tbody").first.locator("img").count() == 2 + 2 * (3 + 2)
    shown = (
        "[...document.querySelectorAll('table.gallery img, .picture img')].map((one) => one.src)"
    )
    assert page.locator("#bar").inner_text().startswith("share of the image hidden by a box")
    sources = []
    for noise in (0.2, 0.5):
        page.locator("#noise").evaluate(
            f"(one) => {{ one.value = {noise}; one.dispatchEvent(new Event('input', {{bubbles:"
            " true})); }"
        )
        next_frame(page)
        assert f": {noise}, the nearest level" in page.locator("#samplers .at").first.inner_text()
        sources.append(page.evaluate(shown))
    assert sum(a != b for a, b in zip(*sources, strict=True)) > len(sources[0]) / 2
    assert "deaf to the data" in page.locator("#samplers .words").inner_text()
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 900})
    next_frame(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.context.close()
    assert wrong == []
