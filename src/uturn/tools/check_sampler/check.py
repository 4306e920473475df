"""The check of a sampler of U-turns: several tests, since no single one sees every bug."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table
from scipy.stats import chi2

from uturn.backward.diffusion import DiffusionModel
from uturn.backward.recorded import RecordedImages
from uturn.core.checks import expect
from uturn.core.experiment import Experiment
from uturn.core.imports import import_function, is_import_path
from uturn.core.progress import begun, progress_bar
from uturn.core.random import Purpose, Streams, keys
from uturn.core.u_turns import u_turns
from uturn.measures.calibration import Calibration, calibrate, holm, paired
from uturn.networks.model_check import is_checked
from uturn.tools.check_sampler.steps import OwnSteps, called, repeated_step, seeds_of, step_variance
from uturn.tools.check_sampler.two_samplers import change_sizes, sizes_of_change, two_samplers

if TYPE_CHECKING:
    from uturn.tools.check_sampler.command import SamplerOptions

_PASSES, _FAILS, _REPORTED, _UNTESTED = "passes", "FAILS", "reported", "not tested"
_SAMPLER = (
    "'module:function', a function (images, noise, seed) -> reconstructions, or the name of a"
    " scheduler"
)
_STEP = (
    "'module:function', a function (noisy, noise, seed) -> noisy images one step closer to the"
    " clean end"
)
_NO_STEP = "give one step of the sampler: --step module:function"
_JUDGED, _REPEATS = 4, 32  # noisy originals from which a step is repeated, and how often
_CALIBRATED = 0.01  # level of the test of calibration
_TESTS = {  # what each test sees, and what not
    "size of the change": (
        (
            "noise that is left or missing: t + 1 for t, a forgotten begin index, noise ignored,"
            " replaced or partial"
        ),
        "wrong changes of the right size",
    ),
    "two samples": (
        (
            "any difference in law from uturn's sampler that is large enough, such as timesteps in"
            " 0..1"
        ),
        "what both do wrong: the model itself, too few steps; small differences with few originals",
    ),
    "denoiser": (
        "a model with another prediction type, scale of time or input than declared",
        "how a sampler module:function uses the model; shifts of a few timesteps",
    ),
    "one repeated step": (
        "a wrong or ignored variance of the steps, such as a learned one; noise shared by a batch",
        "wrong means; everything outside of the step",
    ),
    "calibration with clones": (
        "whether reconstructions are draws from the posterior: sampler, steps and model together",
        "no judge: right samplers of few steps fail it; noise levels that are not as stated",
    ),
    "steps for calibration": (
        "how many steps the reverse chain needs",
        "errors of the model, which may hide them",
    ),
}


class Row(NamedTuple):
    """One test of a check: its verdict, its result in words, and its numbers."""

    test: str
    verdict: str
    result: str
    numbers: Mapping[str, Any] = MappingProxyType({})

    def cells(self) -> tuple[str, ...]:
        return *self[:3], *_TESTS[self.test]


class Report(NamedTuple):
    """The tests of a sampler. It passes if no test fails."""

    title: str
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return all(row.verdict != _FAILS for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        heads = ("test", "verdict", "result", "sees", "misses")
        tests = [{**dict(zip(heads, row.cells(), strict=True)), **row.numbers} for row in self.rows]
        return {"title": self.title, "passed": self.passed, "tests": tests}

    def table(self) -> Table:
        table = Table("test", "verdict", "result", "sees", "does not see", title=self.title)
        for row in self.rows:
            table.add_row(
                *row.cells(), style={_FAILS: "bold red", _PASSES: "green"}.get(row.verdict, "")
            )
        return table


def _judged(
    test: str, tested: Any, level: float | None, result: str, noise: Sequence[float], **numbers: Any
) -> Row:
    """The row of a test with p-values at several noise levels; without a level, it is reported
    and not judged.
    """
    verdict = _REPORTED if level is None else _PASSES if (tested.adjusted > level).all() else _FAILS
    numbers |= {"p": tested.p_value, "p_holm": tested.adjusted}
    return Row(
        test,
        verdict,
        f"{result}, p = {tested.adjusted.min():.2g}",
        {"noise": list(noise), **numbers},
    )


def compared(
    originals: Any, theirs: Any, ours: Any, noise: Sequence[float], level: float
) -> list[Row]:
    """The tests that need only reconstructions: the size of the change, and the two-sample test,
    each with a false-alarm rate.

    `originals` (items, ...); `theirs`, `ours` (noise, items, 2, ...): two U-turns of each by the
    checked and by a right sampler.
    """
    sizes, laws = sizes_of_change(originals, theirs, ours, level), two_samplers(theirs, ours, level)
    size, of_uturn = (change_sizes(originals, data).mean(axis=(1, 2)) for data in (theirs, ours))
    k, strongest = int(np.argmin(sizes.p_value)), int(np.argmin(laws.p_value))
    of_sizes = f"{size[k]:.3g} against {of_uturn[k]:.3g} at t/T = {noise[k]:.3g}"
    of_laws = f"energy distance {laws.statistic[strongest]:.2g} at t/T = {noise[strongest]:.3g}"
    return [
        _judged(
            "size of the change", sizes, level, of_sizes, noise, size=size, size_of_uturn=of_uturn
        ),
        _judged("two samples", laws, level, of_laws, noise, energy_distance=laws.statistic),
    ]


def check_sampler(options: SamplerOptions, progress: bool = False) -> Report:
    """Check a sampler by several tests; those of random numbers (size, two samples, repeated
    step) share the false-alarm rate.
    """
    options = options.of_files()
    expect(
        options.noise(weakest=False),
        "levels",
        options.levels,
        f"at least one that rounds to a step, of {options.steps}",
    )
    own = options.experiment()
    own.parts.source.coordinates(options.seed, options.items)  # an error if the source has fewer
    (originals,) = own.parts.source.blocks(np.arange(options.items), options.seed, options.items)
    is_function, share = is_import_path(options.sampler), options.false_alarm_rate / 3
    least = math.ceil(math.log(len(options.noise()) / share) / math.log(3))
    few = (
        f"at least {least}; fewer could not make the check fail at false_alarm_rate ="
        f" {options.false_alarm_rate:g}"
    )
    expect(options.items >= least, "items", options.items, few)
    if options.step is not None:
        label = f"step = {options.step!r}"
        steps: Any = OwnSteps(
            import_function(options.step, label, _STEP, _STEP), _model_of(own), label
        )
        forward = own.parts.corruption
    elif is_function or options.recorded is not None:
        steps = forward = None
    else:
        other = options.model_copy(update={"scheduler": options.sampler}).experiment()
        steps, forward = other.parts.backward, other.parts.corruption
    checked = _Checked(options, own, originals, steps, forward)
    with progress_bar(progress, "check", 4, 0, unit="parts") as advance:
        if options.recorded is not None:
            theirs = checked.recorded_u_turns(options.recorded)
        else:
            theirs = (
                checked.function_u_turns()
                if is_function
                else checked.u_turns(forward, steps, range(2, 4))
            )
        advance()
        ours = checked.u_turns(own.parts.corruption, own.parts.backward, range(2))
        advance()
        rows = [_model_row(own), checked.step_row(share)]
        advance()
        rows.append(checked.calibration_row())
        advance()
        rows = compared(originals.data, theirs, ours, options.noise(), share) + rows
    name = options.recorded or (
        options.sampler if is_function or options.step is None else options.step
    )
    return Report(f"{name} against {own.parts.backward.describe()}", rows)


class _Checked(NamedTuple):
    """A sampler under check. `steps`: the backward that makes its reverse steps, None if only
    its U-turns are known.
    """

    options: SamplerOptions
    own: Experiment
    originals: Any
    steps: Any
    forward: Any

    def calibrated(self, corruption: Any, backward: Any, trajectory: int) -> Calibration:
        """Calibration by the distance of images; not at the weakest noise, whose only step draws
        nothing: clones agree.
        """

        def likeness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return -change_sizes(x, y[None, :, None])[0, :, 0]

        noise, trajectories = self.options.noise(weakest=False), range(trajectory, trajectory + 1)
        made = self.u_turns(corruption, backward, trajectories, noise, self.options.clones)
        pairs = [
            paired(np.concatenate([self.originals.data[:, None], clones], axis=1), likeness)
            for clones in made
        ]
        with_original, with_clones = (
            np.stack(values, axis=-1) for values in zip(*pairs, strict=True)
        )
        return calibrate(with_original, with_clones, _CALIBRATED)

    def u_turns(
        self,
        corruption: Any,
        backward: Any,
        trajectories: range,
        levels: list[float] | None = None,
        clones: int = 1,
    ) -> np.ndarray:
        """Reconstructions at noise levels, by default all, (noise, items, trajectories * clones,
        ...).
        """
        items, seed, noise = self.originals.items, self.options.seed, levels or self.options.noise()
        # Long U-turns first, which keeps the batches of the network full.
        blocks = (
            (level, self.originals, level, Streams(seed, items, level, trajectories))
            for level in noise[::-1]
        )
        with begun(1, unit=1 / (len(noise) * len(items) * len(trajectories) * clones)):
            made = {
                level: turned.reconstructions
                for level, turned in u_turns(blocks, corruption, backward, clones=clones)
            }
        return np.stack([made[level] for level in noise])

    def function_u_turns(self) -> np.ndarray:
        """Two U-turns of each original by a user's function, (noise, items, 2, ...)."""
        label = f"sampler = {self.options.sampler!r}"
        function = import_function(self.options.sampler, label, _SAMPLER, _SAMPLER)
        noise, images = self.options.noise(), self.originals.data
        seeds = seeds_of(keys(self.options.seed, Purpose.RECONSTRUCTION, np.arange(2 * len(noise))))
        pairs = [
            [called(function, label, images, level, seeds[2 * k + j]) for j in range(2)]
            for k, level in enumerate(noise)
        ]
        return np.stack([np.stack(pair, axis=1) for pair in pairs]).clip(-1, 1)

    def recorded_u_turns(self, pattern: str) -> np.ndarray:
        """The first two recorded U-turns of each original, (noise, items, 2, ...)."""
        backward = RecordedImages(pattern=pattern)
        trajectories = backward.files.trajectories
        where = f"recorded = {pattern!r}: trajectories"
        expect(len(trajectories) > 1, where, trajectories, "two or more, which the tests compare")
        made = self.u_turns(backward.forward_process(self.own.parts.source), backward, range(2))
        files = (
            f"two trajectories of each of the first {self.options.items} originals at noise"
            f" {self.options.noise()}"
        )
        expect(np.isfinite(made).all(), "recorded", pattern, files)
        return made

    def step_row(self, level: float) -> Row:
        """The variance of one reverse step, repeated from the same noisy originals, against its
        formula by the chi-square law.
        """
        if self.steps is None:
            return Row("one repeated step", _UNTESTED, _NO_STEP)
        model = _model_of(self.own)
        source, items = self.own.parts.source, self.originals.items[:_JUDGED]
        (few,) = source.blocks(items, self.options.seed, self.options.items)
        if getattr(self.steps, "reverse", model.reverse)().forward.scheduler.order > 1:
            return Row(
                "one repeated step",
                _UNTESTED,
                "the scheduler makes several calls of the model in a step",
            )
        ratios, p = {}, {}
        for noise in self.options.noise():
            if not 1 < round(noise * self.options.steps) < self.options.steps:
                continue
            streams = Streams(self.options.seed, few.items, noise, range(4, 5))
            expected = step_variance(
                model, self.own.parts.corruption.observe(few, noise, streams), streams
            )
            if expected is None:
                result = (
                    f"the variance of the steps of {self.options.scheduler} has no formula here"
                )
                return Row("one repeated step", _UNTESTED, result)
            repeats = repeated_step(
                self.steps, self.forward.observe(few, noise, streams), streams, _REPEATS
            ).astype(float)
            squares = ((repeats - repeats.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
            freedom = squares.size * (_REPEATS - 1)
            if np.any(expected):
                ratio = ratios[noise] = float((squares / expected).sum() / freedom)
                p[noise] = min(
                    1.0,
                    2 * min(chi2.cdf(ratio * freedom, freedom), chi2.sf(ratio * freedom, freedom)),
                )
            else:
                ratios[noise] = float(np.sqrt(squares.sum() / freedom))
                p[noise] = float(ratios[noise] < 1e-4)
        if not p:
            return Row("one repeated step", _UNTESTED, "no noise level has a step that draws noise")
        worst = min(p, key=lambda noise: (p[noise], -abs(ratios[noise] - 1)))
        word = (
            "times its formula"
            if np.any(expected)
            else "is the deviation of steps that should draw no noise"
        )
        result = f"variance {ratios[worst]:.3g} {word} at t/T = {worst:.3g}"
        tested = SimpleNamespace(p_value=list(p.values()), adjusted=holm(list(p.values())))
        return _judged(
            "one repeated step", tested, level, result, list(p), ratio=list(ratios.values())
        )

    def calibration_row(self) -> Row:
        if self.steps is None:
            return Row("calibration with clones", _UNTESTED, _NO_STEP)
        tests, noise = (
            self.calibrated(self.forward, self.steps, 5),
            self.options.noise(weakest=False),
        )
        worst = int(np.argmin(tests.p_value))
        result = (
            f"{self.options.steps} steps: gap {tests.gap[worst]:+.2g} at t/T = {noise[worst]:.3g}"
        )
        return _judged("calibration with clones", tests, None, result, noise, gap=tests.gap)


def _model_of(own: Experiment) -> DiffusionModel:
    return own.parts.backward  # type: ignore[return-value]  # the experiment of the preset has one


def _model_row(own: Experiment) -> Row:
    reverse = _model_of(own).reverse()
    if not is_checked(reverse.model.network, reverse.device):
        return Row("denoiser", _UNTESTED, "the network is large: give it a GPU")
    findings = own.model_check()
    verdict = (
        _PASSES
        if not findings
        else _UNTESTED
        if all(finding.is_unclear for finding in findings)
        else _FAILS
    )
    return Row(
        "denoiser",
        verdict,
        "; ".join(finding.words for finding in findings) or "fits what is declared",
    )
