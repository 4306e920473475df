"""The check of a sampler of U-turns: several tests, since no single one sees every bug."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from uturn.core.checks import expect
from uturn.core.data import Originals
from uturn.core.progress import progress_bar
from uturn.core.random import Streams
from uturn.measures.calibration import Calibration, calibrate, holm, paired
from uturn.measures.report import Line, Report, Verdict, verdict_of
from uturn.networks.model_check import is_checked
from uturn.tools.check_sampler.options import SamplerOptions
from uturn.tools.check_sampler.samplers import Function, Sampler, Setting, Steps, sampler_of
from uturn.tools.check_sampler.steps import repeated_step, step_variance
from uturn.tools.check_sampler.two_samplers import change_sizes, sizes_of_change, two_samplers

_NO_STEP = "give one step of the sampler: --step module:function"
_JUDGED = 4
"""Noisy originals from which a step is repeated."""
_REPEATS = 32
"""How often a step is repeated from each of them."""
_STEPPED = range(4, 5)
"""Trajectory of the noisy originals from which steps are repeated."""
_CALIBRATED = range(5, 6)
"""Trajectory of the U-turns of the calibration."""
_CALIBRATION_LEVEL = 0.01
_NO_VARIANCE = 1e-4
"""Largest deviation of steps that draw no noise: the rounding of float32."""


@dataclass(frozen=True)
class Test:
    """A test of a sampler, and what it can see."""

    name: str
    sees: str
    misses: str

    def line(self, verdict: Verdict, result: str) -> Line:
        return Line(self.name, verdict, result, self.sees, self.misses)

    def judged(
        self,
        result: str,
        noise_levels: list[float],
        p_values: ArrayLike,
        level: float | None,
        **numbers: ArrayLike,
    ) -> Line:
        """The line of a test with p-values at several noise levels; without a level, it is reported
        and not judged.
        """
        single = np.asarray(p_values, float)
        adjusted = holm(single)
        smallest = float(adjusted.min())
        by_noise = {name: np.asarray(values, float).tolist() for name, values in numbers.items()}
        return Line(
            self.name,
            Verdict.REPORTED if level is None else verdict_of(smallest, level),
            result,
            self.sees,
            self.misses,
            p=smallest,
            numbers={
                "noise": [*noise_levels],
                **by_noise,
                "p": single.tolist(),
                "p_holm": adjusted.tolist(),
            },
        )


SIZE = Test(
    "size of the change",
    sees=(
        "noise that is left or missing: t + 1 for t, a forgotten begin index, noise ignored,"
        " replaced or partial"
    ),
    misses="wrong changes of the right size",
)
LAW = Test(
    "two samples",
    sees=(
        "any difference in law from uturn's sampler that is large enough, such as timesteps in 0..1"
    ),
    misses=(
        "what both do wrong: the model itself, too few steps; small differences with few originals"
    ),
)
DENOISER = Test(
    "denoiser",
    sees="a model with another prediction type, scale of time or input than declared",
    misses="how a sampler module:function uses the model; shifts of a few timesteps",
)
STEP = Test(
    "one repeated step",
    sees="a wrong or ignored variance of the steps, such as a learned one; noise shared by a batch",
    misses="wrong means; everything outside of the step",
)
CALIBRATION = Test(
    "calibration with clones",
    sees="whether reconstructions are draws from the posterior: sampler, steps and model together",
    misses=(
        "not judged, since right samplers of few steps fail it; noise levels that are not as stated"
    ),
)


def check_sampler(
    sampler: str | Function = "stored",
    *,
    step: str | Function | None = None,
    progress: bool = False,
    **options: object,
) -> Report:
    """Test whether an image-to-image sampler makes the U-turns that the model, the steps and the
    noise imply, against uturn's own sampler with the same model.

    The tests of random numbers (size of the change, two samples, one repeated step) share the
    false-alarm rate. Calibration with clones is reported and not judged. docs/sampler.md says what
    each test sees.

    Parameters
    ----------
    sampler
        What is checked: a function (images, noise, seed) that returns reconstructions, with images
        in [-1, 1], a float32 tensor (items, channels, height, width), and noise = k/steps; or
        "module:function"; or the name of a scheduler. By default the scheduler in the folder of
        the model.
    step
        One reverse step of the sampler, for the tests that need it: a function (noisy, noise,
        seed), or "module:function". Without `sampler`, its steps are the sampler.
    progress
        Whether a progress bar is shown.
    **options
        Options of `uturn check-sampler` by their names, such as model, data, size, steps, levels,
        items, recorded, false_alarm_rate, seed.

    Raises
    ------
    ValueError
        For wrong options, too few originals, and results of functions that are not images.
    """
    named: dict[str, object] = dict(options)
    if isinstance(sampler, str):
        named["sampler"] = sampler
    if isinstance(step, str):
        named["step"] = step
    chosen = SamplerOptions.from_dict(named)
    return checked(
        chosen,
        progress=progress,
        function=None if isinstance(sampler, str) else sampler,
        step=None if isinstance(step, str) else step,
    )


def checked(
    options: SamplerOptions,
    *,
    progress: bool = False,
    function: Function | None = None,
    step: Function | None = None,
) -> Report:
    """The report of `check_sampler` for options; `function` and `step` take the place of names."""
    options = options.of_files()
    _check_size(options)
    setting = Setting.of(options)
    share = options.false_alarm_rate / 3
    sampler = sampler_of(setting, function, step)
    with progress_bar(progress, "check", 4, 0, unit="parts") as advance:
        theirs = sampler.u_turns(setting)
        advance()
        ours = setting.own_u_turns()
        advance()
        of_model = denoiser_line(setting)
        of_step = step_line(setting, sampler, share)
        advance()
        of_clones = calibration_line(setting, sampler)
        advance()
        compared = compared_lines(setting.originals.data, theirs, ours, options.noise(), share)
    title = f"{sampler.name} against {setting.model.describe()}"
    lines = (*compared, of_model, of_step, of_clones)
    return Report("check-sampler", title, lines, options.false_alarm_rate, docs="sampler")


def _check_size(options: SamplerOptions) -> None:
    """ValueError for options with which no test could fail."""
    expected = f"at least one that rounds to a step, of {options.steps}"
    expect(options.noise(weakest=False), "levels", options.levels, expected)
    share = options.false_alarm_rate / 3
    # The smallest p-value of the test of two samples is 3^-items.
    least = math.ceil(math.log(len(options.noise()) / share) / math.log(3))
    few = (
        f"at least {least}; fewer could not make the check fail at false_alarm_rate ="
        f" {options.false_alarm_rate:g}"
    )
    expect(options.items >= least, "items", options.items, few)


# --- tests of U-turns -----------------------------------------------------------------------------


def compared_lines(
    originals: np.ndarray,
    theirs: np.ndarray,
    ours: np.ndarray,
    noise_levels: list[float],
    level: float,
) -> list[Line]:
    """The tests that need only reconstructions: the size of the change, and the test of two
    samples, each with a false-alarm rate.

    `originals` (items, ...); `theirs`, `ours` (noise, items, 2, ...): two U-turns of each by the
    checked and by a right sampler.
    """
    sizes = sizes_of_change(originals, theirs, ours, level)
    laws = two_samplers(theirs, ours, level)
    size = change_sizes(originals, theirs).mean(axis=(1, 2))
    size_of_uturn = change_sizes(originals, ours).mean(axis=(1, 2))
    k = int(np.argmin(sizes.p_value))
    strongest = int(np.argmin(laws.p_value))
    return [
        SIZE.judged(
            f"{size[k]:.3g} against {size_of_uturn[k]:.3g} at t/T = {noise_levels[k]:.3g}",
            noise_levels,
            sizes.p_value,
            level,
            size=size,
            size_of_uturn=size_of_uturn,
        ),
        LAW.judged(
            f"energy distance {laws.statistic[strongest]:.2g} at t/T ="
            f" {noise_levels[strongest]:.3g}",
            noise_levels,
            laws.p_value,
            level,
            energy_distance=laws.statistic,
        ),
    ]


def denoiser_line(setting: Setting) -> Line:
    """Whether the model predicts what it declares."""
    reverse = setting.model.reverse()
    if not is_checked(reverse.model.network, reverse.device):
        return DENOISER.line(Verdict.UNTESTED, "the network is large: give it a GPU")
    findings = setting.own.model_check()
    if not findings:
        return DENOISER.line(Verdict.PASSES, "fits what is declared")
    are_unclear = all(finding.is_unclear for finding in findings)
    verdict = Verdict.UNTESTED if are_unclear else Verdict.FAILS
    return DENOISER.line(verdict, "; ".join(finding.words for finding in findings))


# --- tests of single steps ------------------------------------------------------------------------


@dataclass(frozen=True)
class StepVariance:
    """The variance of one reverse step at one noise level, from repeated steps."""

    noise: float
    ratio: float
    """Measured variance in units of its formula; for steps that should draw no noise, their
    standard deviation.
    """
    p: float
    draws_noise: bool

    @property
    def rank(self) -> tuple[float, float]:
        """The smallest is the worst."""
        return self.p, -abs(self.ratio - 1)

    @property
    def words(self) -> str:
        what = "is the deviation of steps that should draw no noise"
        if self.draws_noise:
            what = "times its formula"
        return f"variance {self.ratio:.3g} {what} at t/T = {self.noise:.3g}"


def step_line(setting: Setting, sampler: Sampler, level: float) -> Line:
    """The variance of one reverse step, repeated from the same noisy originals, against its
    formula by the chi-square law.
    """
    if sampler.steps is None:
        return STEP.line(Verdict.UNTESTED, _NO_STEP)
    if sampler.steps.calls_in_a_step > 1:
        several = "the scheduler makes several calls of the model in a step"
        return STEP.line(Verdict.UNTESTED, several)
    options = setting.options
    items = setting.originals.items[:_JUDGED]
    (few,) = setting.own.parts.source.blocks(items, options.seed, options.items)
    variances = []
    for noise in options.noise():
        if not 1 < round(noise * options.steps) < options.steps:
            continue
        variance = _step_variance(setting, sampler.steps, few, noise)
        if variance is None:
            unknown = f"the variance of the steps of {options.scheduler} has no formula here"
            return STEP.line(Verdict.UNTESTED, unknown)
        variances.append(variance)
    if not variances:
        return STEP.line(Verdict.UNTESTED, "no noise level has a step that draws noise")
    p_values = [variance.p for variance in variances]
    worst = min(variances, key=lambda variance: variance.rank)
    return STEP.judged(
        worst.words,
        [variance.noise for variance in variances],
        p_values,
        level,
        ratio=[variance.ratio for variance in variances],
    )


def _step_variance(
    setting: Setting, steps: Steps, few: Originals, noise: float
) -> StepVariance | None:
    """The variance of steps from a few originals at one noise level; None if it has no formula."""
    streams = Streams(setting.options.seed, few.items, noise, _STEPPED)
    noisy = setting.corruption.observe(few, noise, streams)
    expected = step_variance(setting.model, noisy, streams)
    if expected is None:
        return None
    started = steps.forward.observe(few, noise, streams)
    repeats = repeated_step(steps.backward, started, streams, _REPEATS).astype(float)
    deviations = repeats - repeats.mean(axis=1, keepdims=True)
    squares = (deviations**2).sum(axis=1)
    freedom = squares.size * (_REPEATS - 1)
    if not np.any(expected):
        deviation = float(np.sqrt(squares.sum() / freedom))
        return StepVariance(noise, deviation, float(deviation < _NO_VARIANCE), draws_noise=False)
    ratio = float((squares / expected).sum() / freedom)
    tail = min(chi2.cdf(ratio * freedom, freedom), chi2.sf(ratio * freedom, freedom))
    return StepVariance(noise, ratio, min(1.0, 2 * tail), draws_noise=True)


def calibration_line(setting: Setting, sampler: Sampler) -> Line:
    """Whether original and clones are exchangeable, by the distance of images."""
    if sampler.steps is None:
        return CALIBRATION.line(Verdict.UNTESTED, _NO_STEP)
    # At the weakest noise the only step draws nothing: clones agree.
    noise_levels = setting.options.noise(weakest=False)
    tests = _calibrated(setting, sampler.steps, noise_levels)
    worst = int(np.argmin(tests.p_value))
    return CALIBRATION.judged(
        f"{setting.options.steps} steps: gap {tests.gap[worst]:+.2g} at t/T ="
        f" {noise_levels[worst]:.3g}",
        noise_levels,
        tests.p_value,
        None,
        gap=tests.gap,
    )


def _calibrated(setting: Setting, steps: Steps, noise_levels: list[float]) -> Calibration:
    made = setting.u_turns(
        steps.forward, steps.backward, _CALIBRATED, noise_levels, setting.options.clones
    )
    with_original = []
    with_clones = []
    for clones in made:
        data = np.concatenate([setting.originals.data[:, None], clones], axis=1)
        pairs = paired(data, _likeness)
        with_original.append(pairs[0])
        with_clones.append(pairs[1])
    return calibrate(
        np.stack(with_original, axis=-1), np.stack(with_clones, axis=-1), _CALIBRATION_LEVEL
    )


def _likeness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Minus the root mean square difference of images (items, ...)."""
    return -change_sizes(x, y[None, :, None])[0, :, 0]
