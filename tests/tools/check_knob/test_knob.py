"""`ut.check_knob`: right knobs pass, planted bugs are named by their own test, and wrong input is
told in a sentence.
"""

from functools import partial

import numpy as np
import pytest

import uturn as ut
from uturn.measures.report import Verdict
from uturn.tools.check_knob.kinds import root_mean_square, superposed
from uturn.tools.check_knob.outputs import Outputs
from uturn.tools.check_knob.useful_range import reached

KNOBS = (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9, 1)
LENGTH = 64


def gaussian(originals=32, seed=0):
    return np.random.default_rng(seed).normal(size=(originals, LENGTH))


def blend(original, knob, seed):
    """A posterior draw of independent Gaussian numbers: the U-turn of a right pipeline."""
    noise = np.random.default_rng(seed).normal(size=original.shape)
    return np.sqrt(1 - knob) * original + np.sqrt(knob) * noise


class Persistent:
    """Uses the knob of the call before, as a value does that is kept in a global."""

    def __init__(self):
        self.knob = 0.5

    def __call__(self, original, knob, seed):
        before = self.knob
        self.knob = knob
        return blend(original, (before + knob) / 2, seed)


def turned(original, knob, seed):
    return blend(original, min(knob, 1.2 - knob), seed)


def leaks(original, knob, seed):
    return 0.9 * blend(original, knob, seed) + 0.1 * original


def with_a_step_at_zero(original, knob, seed):
    return blend(original, max(knob, 0.1), seed)


PLANTED = {
    "memory": Persistent,
    "seed": lambda: lambda original, knob, seed: blend(original, knob, 0 * seed + 3),
    "identity": lambda: with_a_step_at_zero,
    "responds": lambda: lambda original, knob, seed: blend(original, 0.5, seed),
    "monotone": lambda: turned,
    "plateaus": lambda: lambda original, knob, seed: blend(original, int(knob * 4) / 4, seed),
    "scale": lambda: lambda original, knob, seed: (1 + knob / 2) * blend(original, knob, seed),
    "independence": lambda: leaks,
    "range": lambda: lambda original, knob, seed: blend(original, float(knob > 0.12), seed),
}
# Made after the tests were written, and not used to choose any limit.
HELD_OUT = {
    "clipped at .8": (lambda x, k, s: blend(x, min(k, 0.8), s), {"plateaus", "independence"}),
    "in percent": (lambda x, k, s: blend(x, min(100 * k, 1), s), {"plateaus", "range"}),
    "half of the data noised": (
        lambda x, k, s: np.r_[blend(x[:32], k, s), x[32:]],
        {"independence"},
    ),
    "drifts": (lambda x, k, s: blend(x, k, s) + 0.4 * k, {"scale"}),
    "clock": (lambda x, k, s: blend(x, k, None), {"seed"}),
}


def test_a_right_knob_passes():
    report = ut.check_knob(blend, gaussian(), knobs=KNOBS)
    assert report.passed, report
    assert report["unit"].verdict is Verdict.UNTESTED
    assert report["memory"].result == (
        "12 of 12 calls give the same after a call with another value"
    )


@pytest.mark.parametrize("test", PLANTED)
def test_a_planted_bug_is_named(test):
    report = ut.check_knob(PLANTED[test](), gaussian(), knobs=KNOBS)
    assert test in report.failed, report


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_bugs_are_named(name):
    function, expected = HELD_OUT[name]
    assert set(ut.check_knob(function, gaussian(), knobs=KNOBS).failed) & expected


def test_right_knobs_rarely_fail():
    """At most 3 of 60 at a rate of .01: more have a probability of .003."""
    fails = 0
    for run in range(60):
        fails += not ut.check_knob(
            blend, gaussian(16, run), knobs=KNOBS[::2], seed=run, false_alarm_rate=0.01
        ).passed
    assert fails <= 3


def test_one_stream_for_all_originals_fails_as_shared_noise():
    outputs = np.array([[[blend(x, k, s) for s in (1, 2)] for x in gaussian()] for k in KNOBS])
    report = ut.check_knob(outputs, gaussian(), knobs=KNOBS)
    assert "shared noise" in report.failed
    assert report["memory"].verdict is Verdict.UNTESTED


@pytest.mark.parametrize(("times", "fails"), [(3, True), (1, False)])
def test_noise_of_another_size_than_stated_fails_as_unit(times, fails):
    def denoised(original, knob, seed):
        return original + times * knob * np.random.default_rng(seed).normal(size=original.shape)

    report = ut.check_knob(denoised, gaussian(), knobs=KNOBS, unit="sigma", stated=KNOBS, end=None)
    assert ("unit" in report.failed) is fails


def test_tokens_change_by_the_masked_share():
    originals = np.random.default_rng(0).integers(0, 20, (32, LENGTH))

    def infilled(original, knob, seed):
        rng = np.random.default_rng(seed)
        is_masked = rng.random(LENGTH) < knob
        return np.where(is_masked, rng.integers(0, 20, LENGTH), original)

    report = ut.check_knob(infilled, originals, knobs=KNOBS, unit="share", stated=KNOBS)
    assert report.passed, report


def test_a_knob_whose_large_values_change_less_is_read_backwards():
    def kept(original, knob, seed):
        return blend(original, 1 - knob, seed)

    assert ut.check_knob(kept, gaussian(), knobs=KNOBS, start=1, end=0).passed
    assert "monotone" in ut.check_knob(kept, gaussian(), knobs=KNOBS).failed


def test_the_value_for_a_change_is_where_the_curve_has_it():
    report = ut.check_knob(blend, gaussian(), knobs=KNOBS, change=0.5)
    line = report["value for a change of 0.5"]
    assert line.verdict is Verdict.REPORTED
    # Root mean square change in units of sqrt(2): sqrt(1 - sqrt(1 - knob)) = .5 at .4375.
    assert line.measured.low < 0.4375 < line.measured.high
    assert reached(np.array([0, 1]), np.array([0, 0.4]), 0.5) != reached(
        np.array([0, 1]), np.array([0, 0.6]), 0.5
    )


def test_a_stopped_check_goes_on(tmp_path):
    class Counted:
        """Stops at its 40th call, and goes on when it is called again."""

        def __init__(self):
            self.calls = 0

        def __call__(self, original, knob, seed):
            self.calls += 1
            if self.calls == 40:
                raise KeyboardInterrupt
            return blend(original, knob, seed)

    few = {"knobs": (0, 0.5, 1)}
    counted = Counted()
    with pytest.raises(KeyboardInterrupt):
        ut.check_knob(counted, gaussian(16), folder=tmp_path, **few)
    resumed = ut.check_knob(counted, gaussian(16), folder=tmp_path, **few)
    assert counted.calls == 3 * 16 * 2 + 36 + 1
    assert resumed.table.equals(ut.check_knob(blend, gaussian(16), **few).table)
    with pytest.raises(ValueError, match="as before; choose another folder"):
        ut.check_knob(counted, gaussian(16, seed=1), folder=tmp_path, **few)


def test_structures_are_compared_after_superposition():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 20, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    np.testing.assert_allclose(superposed(a, a @ rotation + 3), 0, atol=1e-6)
    mirrored = a * np.array([1, 1, -1])
    assert (superposed(a, mirrored) > 0.1).all()
    assert (
        superposed(a, a + rng.normal(size=a.shape)) <= 3**0.5 * root_mean_square(a, a + 9)
    ).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"originals": gaussian(12)}, "number of originals = 12: expected at least 13"),
        ({"knobs": (0, 1)}, "three or more different values"),
        ({"knobs": (0, 0.5, 0.5)}, "three or more different values"),
        ({"knobs": (0, "half", 1)}, "expected numbers such as"),
        ({"kind": "smells"}, "kind = 'smells'"),
        ({"unit": "litres"}, "unit = 'litres'"),
        ({"originals": np.ones((16, 4))}, "originals that differ"),
        ({"false_alarm_rate": 0}, "false_alarm_rate"),
        ({"function": lambda x, k, s: x[:3]}, "shape = \\(3,\\)"),
        ({"function": lambda x, k, s: x * np.nan}, "finite numbers"),
        ({"function": "nothing:here"}, "nothing"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(arguments, message):
    options = {"originals": gaussian(16), "knobs": KNOBS, **arguments}
    function = options.pop("function", blend)
    with pytest.raises(ValueError, match=message):
        ut.check_knob(function, **options)


def test_outputs_are_ordered_from_the_value_that_changes_least():
    made = np.arange(3.0).reshape(3, 1, 1, 1) * np.ones((3, 2, 1, 4))
    outputs = Outputs.of((0.5, 0, 1), np.zeros((2, 4)), made)
    assert outputs.knobs.tolist() == [0, 0.5, 1]
    assert outputs.outputs[0][:, 0, 0].tolist() == [1, 0, 2]


def test_a_distance_of_the_user_is_used():
    largest = partial(lambda a, b: float(np.abs(a - b).max()))
    report = ut.check_knob(blend, gaussian(16), knobs=KNOBS, distance=largest)
    assert report.passed
    assert (
        report["range"].numbers != ut.check_knob(blend, gaussian(16), knobs=KNOBS)["range"].numbers
    )


def test_a_loss_of_contrast_at_large_noise_is_a_remark():
    def fades(original, knob, seed):
        return (1 - 0.2 * knob) * blend(original, knob, seed)

    line = ut.check_knob(fades, gaussian(), knobs=KNOBS)["scale"]
    assert line.verdict is Verdict.PASSES
    assert line.remark.startswith("contrast falls by 2")
