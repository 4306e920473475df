"""`uturn.choose`: the fixed-sequence test against plain loops, the rule of 59, missing readings,
windows, and the recipes.
"""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import uturn as ut
from uturn.core.protocols import Variable
from uturn.measures.statistics import mean_bounds
from uturn.studies.choice import originals_needed

DIMS = ("noise", "item", "trajectory")
NOISE = (0.1, 0.2, 0.3, 0.4)
NOISE_5 = (*NOISE, 0.5)
SHARE = Variable(DIMS, "class kept", start=1, bounds=(0, 1))
DISTANCE = Variable(DIMS, "distance", start=0, bounds=(0, None))


def run_of(noise=NOISE, coords=None, **variables):
    """A run made by hand, of {name: (values, Variable)}."""
    data = {
        name: (of.dims, values, {"reading": json.dumps(of.instructions())})
        for name, (values, of) in variables.items()
    }
    return xr.Dataset(data, {"noise": np.asarray(noise, float), **(coords or {})})


def tosses(kept, items=100):
    """Readings (noise, item, 1): so many of the items are kept at each level."""
    return (np.arange(items) < np.reshape(kept, (-1, 1)))[..., None].astype(float)


def lower(kept, items, alpha=0.05):
    """The one-sided bound of Clopper and Pearson."""
    return stats.binomtest(kept, items, alternative="greater").proportion_ci(1 - alpha, "exact").low


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trajectories", [1, 5])
def test_59_of_59_guarantee_95_percent_and_58_of_58_do_not(trajectories):
    for items, chosen in ((58, False), (59, True)):
        run = run_of((0.1,), same=(np.ones((1, items, trajectories)), SHARE))
        choice = ut.choose(run, "same", keep=0.95)
        assert choice.keep.bound[0] == pytest.approx(0.05 ** (1 / items))
        assert (choice.noise == 0.1, choice.answer == "chosen") == (chosen, chosen)
    assert (choice.more, ut.choose(run.isel(item=slice(58)), "same", keep=0.95).more) == (0, 1)


def test_bounds_of_shares_are_one_sided():
    kept = (100, 99, 97, 60)
    choice = ut.choose(run_of(same=(tosses(kept), SHARE)), "same", keep=0.9)
    np.testing.assert_allclose(choice.keep.bound, [lower(k, 100) for k in kept])
    wrong = [stats.binomtest(k, 100).proportion_ci(0.95, "exact").low for k in kept]
    # Negative control: the end of the two-sided interval.
    assert (choice.keep.bound > np.array(wrong) + 0.002).all()
    sure = ut.choose(run_of(same=(tosses(kept), SHARE)), "same", keep=0.9, confidence=0.99)
    np.testing.assert_allclose(sure.keep.bound, [lower(k, 100, 0.01) for k in kept])


def test_bounds_of_other_readings_are_of_student():
    values = np.random.default_rng(0).normal(np.reshape([2, 4, 5, 7], (4, 1, 1)), 1.0, (4, 30, 1))
    expected = [
        stats.ttest_1samp(row[:, 0], 0, alternative="less").confidence_interval(0.95).high
        for row in values
    ]
    choice = ut.choose(run_of(rmsd=(values, DISTANCE)), "rmsd", keep=4.8)
    np.testing.assert_allclose(choice.keep.bound, expected)
    assert (choice.noise, choice.keep.words) == (0.2, "rmsd <= 4.8")


def test_shares_are_bounded_though_the_run_has_no_bad_original():
    """45 originals that keep .96 to 1 of their sites do not exclude 5 % of originals that keep
    .1.
    """
    kept = 1 - np.random.default_rng(4).integers(0, 3, (1, 45, 1)) / 50
    choice = ut.choose(run_of((0.1,), kept=(kept, SHARE)), "kept", keep=0.94)
    assert (choice.answer, choice.keep.meets, choice.keep.guaranteed) == ("not decided", True, True)
    assert (
        kept.mean() * 0.05 ** (1 / 45) - 0.005
        < choice.keep.bound[0]
        < kept.mean() * 0.05 ** (1 / 45)
    )
    # With more originals it is guaranteed.
    sites = run_of((0.1,), kept=(np.tile(kept, (1, 10, 1)), SHARE))
    assert ut.choose(sites, "kept", keep=0.94).answer == "chosen"


def test_trajectories_do_not_replace_originals():
    """30 originals with a class that is kept in 39 of 40 U-turns of each: an original that
    always loses it may be missing.
    """
    kept = np.ones((1, 30, 40))
    kept[0, np.arange(30), np.arange(30)] = 0
    choice = ut.choose(run_of((0.1,), same=(kept, SHARE)), "same", keep=0.9)
    assert choice.keep.bound[0] == pytest.approx(0.975 * 0.05 ** (1 / 30))
    assert choice.answer == "not decided"


def test_readings_without_a_worst_value_are_estimated():
    far = np.random.default_rng(0).lognormal(0, 0.3, (3, 70, 1)) * np.reshape([1, 2, 6], (3, 1, 1))
    # (0, 4) does not hold.
    for bounds, answer in (
        ((0, None), "estimated"),
        ((0, 40), "not decided"),
        ((0, 4), "estimated"),
    ):
        run = run_of(NOISE[:3], rmsd=(far, Variable(DIMS, "distance", start=0, bounds=bounds)))
        choice = ut.choose(run, "rmsd", keep=2.5)
        assert (choice.answer, choice.keep.guaranteed) == (answer, bounds == (0, 40))
        assert (
            ("estimated: noise = 0.2" in repr(choice))
            == ("guarantee nothing" in repr(choice))
            == (answer == "estimated")
        )
    lost = ut.choose(
        run_of(NOISE[:3], rmsd=(far, DISTANCE), all=(tosses([70] * 3, 70), SHARE)),
        "all",
        keep=0.9,
        lose={"rmsd": 4},
    )
    # 0 is the worst value.
    assert (lost.answer, lost.window, lost.lose.guaranteed) == ("chosen", (0.3, 0.3), True)


# --- the sequence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "noise", "answer", "ended", "missed"),
    [
        ((100, 100, 50, 50), 0.2, "chosen", 0.3, True),
        ((100, 50, 100, 100), 0.1, "chosen", 0.2, True),
        ((50, 100, 100, 100), math.nan, "no such level", 0.1, True),
        ((97, 100, 100, 100), math.nan, "not decided", 0.1, False),
    ],
)
def test_levels_are_tested_from_small_noise_until_the_first_failure(
    kept, noise, answer, ended, missed
):
    choice = ut.choose(run_of(same=(tosses(kept), SHARE)), "same", keep=0.95)
    np.testing.assert_equal((choice.noise, choice.keep.ended), (noise, ended))
    assert (choice.answer, choice.keep.missed) == (answer, missed)
    assert (choice.more > 0) == (answer == "not decided")
    backwards = run_of(same=(tosses(kept), SHARE)).isel(noise=slice(None, None, -1))
    # The order of storage does not matter.
    np.testing.assert_equal(ut.choose(backwards, "same", keep=0.95).noise, noise)


@pytest.mark.parametrize(
    ("rises", "lose"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_directions(rises, lose):
    """One law four ways: a similarity or a distance, to be kept from below or lost from above."""
    curve = np.array([0.1, 0.3, 0.6, 0.9])
    noise = np.random.default_rng(1).normal(0, 0.01, (4, 50, 1))
    far = noise + np.reshape(curve, (4, 1, 1))
    values, of = (
        (far, DISTANCE)
        if rises
        else (5 - far, Variable(DIMS, "similarity", start=5, bounds=(None, 5)))
    )
    run = run_of(value=(values, of), all=(tosses([100] * 4, 50), SHARE))
    goal = 0.45 if rises else 4.55
    if lose:
        choice = ut.choose(run, "all", keep=0.9, lose={"value": goal})
        assert (choice.window, choice.noise, choice.lose.ended) == ((0.3, 0.4), 0.4, 0.2)
    else:
        choice = ut.choose(run, "value", keep=goal)
        assert (choice.noise, choice.keep.ended) == (0.2, 0.3)
    test = choice.lose if lose else choice.keep
    assert test.missed
    assert test.crossing["noise"].value == pytest.approx(0.25, abs=0.01)


def test_a_window_and_none():
    same, first = tosses((100, 100, 100, 60)), tosses((100, 50, 10, 0))
    run = run_of(same=(same, SHARE), first=(first, SHARE))
    choice = ut.choose(run, "same", keep=0.95, lose={"first": 0.2})
    assert (choice.window, choice.noise, choice.answer) == ((0.3, 0.3), 0.3, "chosen")
    never = ut.choose(run, "same", keep=0.95, lose={"first": 0.05})
    assert (never.window, never.answer) == (None, "no such level")
    assert np.isnan(never.noise)
    assert "same >= 0.95 up to 0.3 and first <= 0.05 from 0.4" in repr(never)
    perhaps = ut.choose(run, "same", keep=0.95, lose={"first": 0.12})
    assert (perhaps.answer, perhaps.lose.ended, perhaps.lose.missed) == ("not decided", 0.3, False)


def test_of_two_open_goals_the_one_that_needs_more_originals_counts():
    """Whichever of the two it is: with fewer, one of them would still be open."""
    for kept, first, words in ((0.94, 0.05, "same >= 0.94"), (0.9, 0.03, "first <= 0.03")):
        run = run_of((0.1,), same=(tosses(97), SHARE), first=(tosses(2), SHARE))
        choice = ut.choose(run, "same", keep=kept, lose={"first": first})
        assert choice.answer == "not decided"
        needed = originals_needed(0.97, kept) - 100, originals_needed(0.02, first) - 100
        assert choice.more == max(needed)
        assert abs(needed[0] - needed[1]) > 50
        assert f"{words} at noise = 0.1 is not decided: about" in repr(choice).splitlines()[-2]


# --- directions that are not declared -------------------------------------------------------------


def of_a_table(means, items, name, spread=0.0, noise=NOISE_5, **options):
    """A run of a table: readings 0 and 1 with these means, or normal ones with a spread."""
    rng, means = np.random.default_rng(5), np.reshape(means, (-1, 1))
    values = rng.normal(means, spread, (5, items)) if spread else np.arange(items) < means * items
    return ut.readings({name: values.astype(float)}, noise, **options)


@pytest.mark.parametrize("name", ["class_kept", "same"])
def test_a_hump_does_not_turn_the_goal_around(name):
    choice = ut.choose(of_a_table((0.78, 0.9, 0.99, 0.93, 0.8), 150, name), name, keep=0.97)
    assert (choice.keep.words, choice.answer) == (f"{name} >= 0.97", "no such level")
    assert choice.keep.direction.startswith("large values are kept")
    assert "a guess: declare its start if that is wrong" in repr(choice)
    declared = ut.choose(
        of_a_table((0.78, 0.9, 0.99, 0.93, 0.8), 150, name, start=0), name, keep=0.97
    )
    assert (declared.keep.words, declared.keep.direction) == (f"{name} <= 0.97", "")


def test_a_direction_is_taken_from_the_data_only_if_they_show_it():
    for means, words in (
        ((0.2, 0.2, 0.3, 0.5, 0.6), "score <= 0.4"),
        ((5, 4, 4, 2, 1), "score >= 0.4"),
    ):
        choice = ut.choose(of_a_table(means, 60, "score", 0.1), "score", keep=0.4)
        assert (
            choice.keep.words,
            "values are kept, as the mean changes by" in choice.keep.direction,
        ) == (words, True)
    flat = [
        ut.readings({"score": np.random.default_rng(k).uniform(0.6, 1, (5, 25))}, NOISE_5)
        for k in range(60)
    ]
    refused = 0
    for run in flat:
        try:
            ut.choose(run, "score", keep=0.75)
        except ValueError as error:
            refused += "not known whether large or small values are kept" in str(
                error
            ) and "--start score=VALUE" in str(error)
    assert refused >= 57 - 3 * math.sqrt(57 * 0.05)  # the test has a level of 5 %
    declared = ut.readings({"score": flat[0].score.values}, NOISE_5, start=1)
    assert ut.choose(declared, "score", keep=0.75).keep.words == "score >= 0.75"
    with pytest.raises(ValueError, match=r"readings are 0 or 1, and the mean changes by 0\.5"):
        ut.choose(of_a_table((0.1, 0.2, 0.3, 0.4, 0.6), 50, "error"), "error", keep=0.15)
    alike = np.random.default_rng(1).normal(0, 1, 40) + np.reshape(
        [0, 0.01, 0.02, 0.03, 0.04], (5, 1)
    )
    # Paired.
    assert (
        ut.choose(ut.readings({"shift": alike}, NOISE_5), "shift", keep=2).keep.words
        == "shift <= 2"
    )


# --- originals ------------------------------------------------------------------------------------


def test_missing_readings_and_their_items_do_not_count():
    values = np.ones((2, 60, 2))
    values[0, 0, 0] = np.nan  # one U-turn of an original that has another one
    values[1, :2] = np.nan  # two originals
    choice = ut.choose(run_of(NOISE[:2], same=(values, SHARE)), "same", keep=0.95)
    assert choice.keep.originals.tolist() == [60, 58]
    assert choice.keep.bound[1] == pytest.approx(0.05 ** (1 / 58))
    assert (choice.noise, choice.keep.ended) == (0.1, 0.2)
    values[0] = np.nan
    nothing = ut.choose(run_of(NOISE[:2], same=(values, SHARE)), "same", keep=0.95)
    assert nothing.answer == "not decided"
    assert "no readings" in repr(nothing)


def test_each_label_needs_its_own_59():
    label = np.repeat([0, 1, -2, -1], [59, 58, 80, 3])
    values = np.ones((2, 200, 1))
    values[:, 197:] = 0  # without a label
    values[1, 117:140] = 0  # of label -2
    run = run_of(NOISE[:2], {"label": ("item", label)}, same=(values, SHARE))
    choice = ut.choose(run, "same", keep=0.95, by="label")
    assert {label: part.answer for label, part in choice.by.items()} == {
        0: "chosen",
        1: "not decided",
        -2: "chosen",
    }
    assert [choice.by[k].noise for k in (0, -2)] == [0.2, 0.1]
    assert [int(part.keep.originals[0]) for part in choice.by.values()] == [80, 59, 58]
    assert (
        "label = 1, 58 originals: same >= 0.95 at noise = 0.1 is not decided: about 1 more"
        " original," in repr(choice)
    )
    alone = ut.choose(run.isel(item=label == -2), "same", keep=0.95)
    np.testing.assert_equal(alone.keep.bound, choice.by[-2].keep.bound)
    with pytest.raises(ValueError, match="by = 'lable': expected a coordinate of the items: label"):
        ut.choose(run, "same", keep=0.95, by="lable")


def test_the_number_of_originals_has_the_power_that_is_said():
    for truth, about in ((0.99, 130), (0.98, 270), (0.97, 630)):
        items = originals_needed(truth, 0.95)
        assert items == pytest.approx(about, rel=0.05)
        kept = np.arange(int(items) + 1)
        passes = stats.beta.ppf(0.05, kept, items - kept + 1) >= 0.95
        # It jumps with each item.
        assert stats.binom.pmf(kept[passes], items, truth).sum() == pytest.approx(0.8, abs=0.07)
        assert originals_needed(1 - truth, 0.05) == items
    assert (originals_needed(1, 0.95), originals_needed(0.95, 0.95)) == (59, math.inf)


def test_further_originals():
    def more(values, goal, of=SHARE):
        return ut.choose(run_of((0.1,), value=(values, of)), "value", keep=goal).more

    assert more(tosses(98), 0.95) == originals_needed(0.98, 0.95) - 100
    assert more(tosses(95), 0.95) == math.inf
    copies = np.repeat(tosses(98), 5, axis=2)
    assert more(copies, 0.95) == more(tosses(98), 0.95)  # copies say nothing new
    spread = np.ones((100, 5))
    spread[:10, 0] = 0  # the same mean, of independent U-turns
    assert 0 < more(spread[None], 0.97) < more(tosses(98), 0.97) / 3
    # Leave [0, 1], so that bounds are of Student's t.
    beyond = np.random.default_rng(3).normal(0.98, 0.1, (1, 40, 1))
    assert more(beyond, 0.99) == more(beyond, 0.99, Variable(DIMS, "free", start=1, chance=0))
    grammars = run_of(
        (0.1,), {"grammar": ("item", np.arange(100) // 10)}, value=(tosses(100), SHARE)
    )
    assert ut.choose(grammars, "value", keep=0.95).more == 590 - 100  # 59 grammars of 10 items
    values = 1 + np.random.default_rng(2).normal(0, 1, (1, 40, 1)).clip(-1)
    error = values.std(ddof=1) / math.sqrt(40)
    goal = values.mean() + error
    needed = (
        40 * ((stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * error / (goal - values.mean())) ** 2
    )
    # With the quantile of Student.
    assert more(values, goal, DISTANCE) == pytest.approx(needed - 40, rel=0.15)


def test_further_originals_of_shares_have_the_power_that_is_said():
    rng, pilot = np.random.default_rng(7), stats.beta(6, 0.5).ppf((np.arange(40) + 0.5) / 40)
    for goal in (0.89, 0.94):
        choice = ut.choose(
            run_of((0.1,), value=(pilot.reshape(1, 40, 1), SHARE)), "value", keep=goal
        )
        assert choice.answer == "not decided"
        drawn = rng.beta(6, 0.5, (1, 40 + int(choice.more), 600))
        low, high = mean_bounds(xr.DataArray(drawn, dims=("noise", "item", "run")), 0, 1)
        assert (low >= goal if goal == 0.89 else high < goal).mean() == pytest.approx(0.8, abs=0.12)


# --- names and axes -------------------------------------------------------------------------------


def test_the_level_on_all_axes():
    coords = {"log_snr": ("noise", [3.0, 1.0, 0.0, -1.0]), "dose": ("noise", [7.0, 8.0, 9.0, 10.0])}
    coords |= {"step": ("noise", [1, 29, 50, 100]), "t_over_T": ("noise", [0.01, 0.29, 0.5, 1.0])}
    coords["timestep"] = ("noise", [10.0, 290.0, 500.0, 999.0])
    noise = 0.012, 0.288, 0.5, 1.0  # of which 1, 29, 50 and 100 steps are the nearest
    choice = ut.choose(
        run_of(noise, coords=coords, same=(tosses((100, 100, 50, 50)), SHARE)), "same", keep=0.95
    )
    expected = {
        "noise": 0.29,
        "dose": 8,
        "step": 29,
        "log_snr": 1,
        "sigma": math.exp(-0.5),
        "abar": 1 / (1 + math.exp(-1)),
    }
    # Int(100 * 0.29) is 28.
    expected |= {"timestep": 290, "strength": 0.2901, "strength (SD3, FLUX)": 0.29}
    assert choice.at == pytest.approx(expected)
    assert ut.choose(run_of(same=(tosses((50,) * 4), SHARE)), "same", keep=0.95).at == {}
    coords["step"] = ("noise", [0, 0, 0, 0])  # of a damaged store
    assert (
        "strength"
        not in ut.choose(
            run_of(noise, coords=coords, same=(tosses((100,) * 4), SHARE)), "same", keep=0.95
        ).at
    )


# --- the recipes, at a small size -----------------------------------------------------------------

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"


def recipe(name, folder, **sizes):
    """What `main` of a script gives."""
    return runpy.run_path(str(RECIPES / f"{name}.py"))["main"](str(folder), levels=(1, 2), **sizes)


def test_the_recipe_of_strength(tmp_path, capsys, unchecked_models):
    choice = recipe("strength", tmp_path, items=10, steps=20, reference=100)
    run = xr.open_dataset(tmp_path / "run", engine="uturn").load()
    np.testing.assert_allclose(choice.keep.mean, run.same_class.mean(("item", "trajectory")))
    assert choice.answer == "not decided"  # of 10 originals
    assert set(choice.by) == set(range(10))
    assert "Ankle boot    not decided" in capsys.readouterr().out
    assert (tmp_path / "strength.png").stat().st_size > 10_000


def test_the_recipe_of_purification(tmp_path, capsys, unchecked_models):
    choice = recipe("purification", tmp_path, items=10, steps=20, epsilon=0.2)
    clean, moved = (
        xr.open_dataset(tmp_path / name, engine="uturn").load() for name in ("clean", "perturbed")
    )
    fooled = clean.original_class.values[0] != moved.original_class.values[0]
    assert 5 <= fooled.sum() < 10  # so that the test of what is left out can fail
    assert choice.lose.originals.tolist() == [fooled.sum()] * 2
    np.testing.assert_allclose(choice.lose.mean, moved.same_class.values[:, fooled].mean((1, 2)))
    perturbation = np.load(tmp_path / "perturbed.npy") - ut.fashion_mnist.load_test_set()[0][:10]
    assert np.abs(perturbation).max() == pytest.approx(0.2)
    assert "adaptive attacks" in capsys.readouterr().out


def test_the_recipe_of_anomalies(tmp_path, capsys, unchecked_models):
    choice = recipe("anomalies", tmp_path, items=6, steps=10)
    assert list(choice.by) == [4, 8, 12]
    assert "xi (pixels)" in capsys.readouterr().out
    run, images = (
        xr.open_dataset(tmp_path / "planted", engine="uturn").load(),
        np.load(tmp_path / "planted.npy"),
    )
    normal = ut.fashion_mnist.load_test_set()[0][:6]
    changed = (images != normal)[:, 0]
    assert changed.sum((1, 2)).tolist() == [16, 64, 144] * 2
    left = [
        np.dot(
            (run.image.values[1, i, 0] - normal[i])[0][changed[i]],
            (images - normal)[i, 0][changed[i]],
        )
        / np.square((images - normal)[i, 0][changed[i]]).sum()
        for i in range(6)
    ]
    assert choice.lose.mean[1] == pytest.approx(np.mean(left), rel=1e-5)
    assert choice.keep.mean[0] < choice.keep.mean[1]


def test_false_choices():
    """The sequence errs in 5 % at most, the largest level that passes does not keep that
    (negative control).
    """
    of = runpy.run_path(str(RECIPES.parents[1] / "benchmarks" / "choice.py"))
    design = of["Design"](100, 1, 0.0)
    for name in ("just below the goal", "falls slowly"):
        found = of["false_choices"](of["CURVES"][name], design, 1000)
        assert found["sequence"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    found = of["false_choices"](of["CURVES"]["just below the goal"], design, 1000)
    assert found["largest"] > 0.12


def test_false_bounds():
    """The bound of readings in a range errs in 5 % at most for every law, that of Student's t
    does not (negative control).
    """
    of = runpy.run_path(str(RECIPES.parents[1] / "benchmarks" / "choice.py"))
    at_most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    bounded = {name: law for name, law in of["LAWS"].items() if np.isfinite(law.high)}
    assert len(bounded) == 7
    for law in bounded.values():
        for items in (6, 40, 150):
            assert of["false_bounds"](law, items, 600)["mean_bounds"] <= at_most
    rare = of["false_bounds"](bounded["share of 40 sites: .98; 4 % of originals .3"], 40, 600)
    assert rare["Student"] > 0.15
