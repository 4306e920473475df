"""Posterior samplers of inverse problems: those of deepinv by name, and one's own."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.findings import Finding
from uturn.core.imports import import_function
from uturn.core.prior import Prior
from uturn.core.progress import steps
from uturn.core.protocols import Backward, Corruption, Source, Spec
from uturn.core.random import Purpose, Streams, globally_seeded
from uturn.core.threads import torch_threads
from uturn.networks.images.options import DenoiserOptions
from uturn.tools.inverse.deepinv_physics import DEEPINV
from uturn.tools.inverse.deepinv_samplers import DeepinvSampler

if TYPE_CHECKING:
    import torch

_FORM = "a function (observed, operator, generator), perhaps with the parameters denoiser and shape"
_MOST_OUTSIDE = 0.01  # share of values that a sampler may clip
_FAR = 10.0  # distance from [0, 1] beyond which images have another range, or diverged
_CLIPPED = 0.1  # distance from [0, 1] beyond which clipping a value counts as a change
_RECORDED = 256  # values of a call of the denoiser that are compared
_SAME = 1e-3  # relative difference of two calls with one seed, which rounding on a GPU may cause


class PosteriorSampler(DenoiserOptions, Spec, Backward):
    """A sampler of p(x | y) for measurements y = A(x) with noise (corruption `Measurement`).

    Torch's and numpy's global generators and the sampler's own are seeded by the stream of (item,
    trajectory, clone) and restored afterwards, and torch uses one thread, so results depend neither
    on batches nor on processes. With a `batch` above 1, results of an item depend on the items in
    its block. Reconstructions: float32 (items, draws, ...) in the form of the data; images are
    clipped to [-1, 1]. Further options are those of
    `uturn.networks.images.options.DenoiserOptions`: `device`, `dtype`, ..

    Options. `sampler`: "deepinv:NAME": DDRM, DiffPIR, DPS, PiGDM, MomentMatching, ULA, ..
    (`DeepinvSampler`); or "module:function". The function is called as `function(observed,
    operator, generator)`: the measurements, a tensor (batch,
    ...) that it may change; their `Operator`; a `torch.Generator`. If it has the parameters `denoiser` or `shape`, it gets them
    by keyword: `denoiser(x, sigma)` is the mean of x_0 given x = x_0 + sigma n, for sigma in
    `denoiser.range`; `shape` is (channels, height, width) of x_0. It returns a tensor (batch,
    *shape) in the units of the operator: images in [0, 1], vectors with their own values.
    `options`: those of the sampler; for a function, further keyword arguments. `model`: the
    denoiser, "exact" (default) for that of the law of vectors, or an image model as in
    `DiffusionModel`; none is loaded for a function without a parameter `denoiser`. `batch`:
    measurements by the same operator in a call of the sampler.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "vectors")
    undoes: ClassVar[tuple[str, ...]] = ("operator",)
    type: Literal["sampler"] = "sampler"
    sampler: str
    options: dict[str, Any] = Field(default={})
    model: str = "exact"
    batch: int = Field(default=1, ge=1)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # options are a table, which has no hash

    @property
    def batch_invariant(self) -> bool:  # type: ignore[override]
        """Whether each measurement is a call of its own."""
        return self.batch == 1

    adds_trajectories = batch_invariant

    @property
    def wants_processes(self) -> bool:
        """True on the CPU, where calls with one image are slow on several threads."""
        return not self._calls_model or self._model().wants_processes

    @property
    def _calls_model(self) -> bool:
        return self.model != "exact" and _takes_denoiser(self)

    def prior(self, steps: int | None = None) -> Prior:
        """The law of the model of images with this number of reverse steps; few steps have another
        law.
        """
        if steps is None:
            raise ValueError(
                f"the sampler {self.sampler!r} has no reverse steps, in which originals of type"
                " 'generated' are drawn; give source.steps"
            )
        return self._diffusion(steps).prior()

    def _diffusion(self, steps: int) -> DiffusionModel:
        """The model of images with this number of reverse steps."""
        has_model = self.model != "exact"
        expect(
            has_model,
            "model",
            self.model,
            "a model of images, such as 'fashion_mnist', since their law is not known",
        )
        options = {name: getattr(self, name) for name in DenoiserOptions.model_fields}
        return DiffusionModel(model=self.model, steps=steps, **options)

    def _model(self) -> DiffusionModel:
        """The model of images, of which the denoiser alone is used. One step is valid with every
        noise schedule.
        """
        return self._diffusion(1)

    def check(self, source: Source, corruption: Corruption) -> None:
        """ValueError if sampler, model and images do not fit together."""
        _sampler(self)
        if source.image_shape() is None:
            expect(
                not self._calls_model,
                "model",
                self.model,
                "'exact' for vectors, the denoiser of their law",
            )
            return
        if self._calls_model:
            of_pixels = self._model().reverse().model.codec is None
            expect(
                of_pixels,
                "model",
                self.model,
                "one that denoises pixels, as measurements are of pixels, not latents",
            )
            self._model().check_source(source)
        self._denoiser(None)

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> np.ndarray:
        sampler = _sampler(self)
        self._check_range(noisy.law, sampler)
        keys = streams.keys(Purpose.RECONSTRUCTION, clones).reshape(len(noisy.values), clones)
        labels = self._model().labels_of(noisy, streams) if self._calls_model else None
        of_rows = np.empty((len(keys), clones, *noisy.shape), np.float32)
        calls = [
            (rows, clone) for rows in _calls(noisy.operators, self.batch) for clone in range(clones)
        ]
        for rows, clone in steps(calls):
            denoiser = self._denoiser(noisy.law, None if labels is None else labels[rows])
            where = f"item {streams.items[rows[0] // streams.count]}, noise {streams.noise:g}"
            draws = self._called(sampler, noisy, rows, keys[rows[0], clone], denoiser, where)
            # Vectors, or images.
            of_rows[rows, clone] = draws if noisy.values_of_data[0] == 0 else draws.clip(0, 1)
        data = noisy.as_data(of_rows.reshape(-1, *noisy.shape))
        return data.reshape(len(streams.items), -1, *data.shape[1:])

    def missing(self, experiment: Any) -> dict[str, str]:
        """Nothing is; ValueError if a sampler of deepinv does not fit, or if two calls of a
        function with one seed differ.
        """
        sampler = _sampler(self)
        if isinstance(sampler, DeepinvSampler):
            # With two steps, some diverge that do not with more.
            steps = max(2, min(10, sampler.steps))
            few = self.model_copy(update={"options": {**self.options, "steps": steps}})
            for noise in experiment.noise:
                few._tried(experiment, noise)
            return {}
        first = self._tried(experiment, experiment.noise[0])
        time.sleep(1 - time.time() % 1)  # a sampler may be seeded with the time in seconds
        second = self._tried(experiment, experiment.noise[0])
        if len(first) != len(second) or not all(
            np.allclose(a, b, rtol=_SAME, atol=_SAME * np.abs(a).max())
            for a, b in zip(first, second, strict=True)
        ):
            way_out = (
                "draw from `generator`, or from the global generators of torch, numpy or Python"
            )
            raise ValueError(
                f"sampler = {self.sampler!r}: two calls with the same measurement and seed differ;"
                f" {way_out}"
            )
        return {}

    def doubts(self, experiment: Any) -> list[str]:
        """A sentence if a function gives images outside of [0, 1], judged by a draw for the
        first original.
        """
        if self.sampler.startswith(DEEPINV) or experiment.parts.source.image_shape() is None:
            return []
        draw = self._first(experiment, experiment.noise[0])
        share = float(((draw < -_CLIPPED) | (draw > 1 + _CLIPPED)).mean())
        said = (
            f"sampler = {self.sampler!r} gives values in [{draw.min():.2g}, {draw.max():.2g}] for"
            " the first original, and "
        )
        said += (
            f"{share:.0%} of them are clipped; samplers draw images in [0, 1], so map images in"
            " [-1, 1] by (x + 1) / 2"
        )
        return [said] if share > _MOST_OUTSIDE else []

    def _first(self, experiment: Any, noise: float, denoiser: Any = None) -> np.ndarray:
        """A draw for the first original; with a denoiser in place of that of the model, if one
        is given.
        """
        source = experiment.parts.source
        corruption = experiment.parts.corruption
        sampler = _sampler(self)
        block = next(iter(source.blocks(np.arange(1), experiment.seed, experiment.items)))
        streams = Streams(experiment.seed, block.items, noise)
        noisy = corruption.observe(block, noise, streams)
        self._check_range(noisy.law, sampler)
        if denoiser is None:
            denoiser = self._denoiser(
                noisy.law, self._model().labels_of(noisy, streams) if self._calls_model else None
            )
        key = streams.keys(Purpose.RECONSTRUCTION)[0]
        return self._called(sampler, noisy, np.arange(1), key, denoiser, f"noise {noise:g}")

    def _called(
        self, sampler: Any, noisy: Any, rows: np.ndarray, key: Any, denoiser: Any, where: str
    ) -> np.ndarray:
        """Draws for the measurements `rows`, by one operator, as the sampler gives them: float32
        (rows, *shape of x_0).
        """
        import torch

        label = f"sampler = {self.sampler!r}"
        operator = noisy.operators[rows[0]]
        # A copy, since samplers write into it.
        observed = torch.from_numpy(np.array(noisy.values[rows]))
        with _seeded(int(key)) as generator, noted(label):
            values = sampler(observed, operator, generator, denoiser, tuple(noisy.shape))
        label = f"{label}, {where}"
        shape = (len(rows), *noisy.shape)
        fits = (
            isinstance(values, torch.Tensor)
            and not values.is_complex()
            and tuple(values.shape) == shape
        )
        expect(
            fits,
            f"{label}: shape of draws",
            getattr(values, "shape", values),
            f"a tensor {shape} of real numbers",
        )
        draws = values.detach().cpu().float().numpy()
        expect(
            np.isfinite(draws).all(),
            f"{label}: draws",
            draws,
            "no NaN or infinity; it diverged, take smaller or more steps",
        )
        low = float(draws.min())
        high = float(draws.max())
        # Vectors, or images.
        fits = noisy.values_of_data[0] == 0 or (low >= -_FAR and high <= 1 + _FAR)
        expect(
            fits,
            f"{label}: range",
            (low, high),
            "[0, 1], or a little outside, which is clipped; it has another, or diverged",
        )
        return draws

    def _check_range(self, law: Any, sampler: Any) -> None:
        """ValueError if more than 1 % of the values of a law of vectors are outside of the range
        to which the sampler clips.
        """
        if law is None or not isinstance(sampler, DeepinvSampler) or sampler.clips is None:
            return
        low, high = sampler.clips
        share = law.share_outside(low, high)
        where = (
            f"sampler = {self.sampler!r} clips to [{low:g}, {high:g}]: share of the source's values"
            " outside"
        )
        expect(
            share <= _MOST_OUTSIDE,
            where,
            share,
            f"at most {_MOST_OUTSIDE}; give the source another `centre` and `scale`",
        )

    def _denoiser(self, law: Any, labels: np.ndarray | None = None) -> Any:
        """The denoiser of a call; None for a sampler without one, if neither a law nor a model
        is known.
        """
        if not self._calls_model:
            if law is None and _takes_denoiser(self):
                self._model()  # raises ValueError
            return None if law is None else _Denoiser(law.denoise)
        import torch

        from uturn.networks.images.noise_schedule import SigmaDenoiser

        reverse = self._model().reverse()
        classes = None if labels is None else torch.from_numpy(labels)
        return SigmaDenoiser(
            reverse.model.network, reverse.forward.scheduler, reverse.device, classes
        )

    def calls(self, experiment: Any, noise: float) -> int:
        """Calls of the denoiser in a draw, counted with a denoiser that gives 0.5."""
        return len(self._tried(experiment, noise)) - 1

    def _tried(self, experiment: Any, noise: float) -> list[np.ndarray]:
        """What a draw gives to a denoiser that always answers 0.5 (the first values of each
        call), and then the draw.
        """
        calls: list[np.ndarray] = []

        def half(x: Any, sigma: Any) -> Any:
            values = np.zeros(1)
            # Inside vmap or a Jacobian the values are not known; the call counts all the same.
            with suppress(RuntimeError):
                values = x.detach().reshape(-1)[:_RECORDED].cpu().numpy().copy()
            calls.append(values)
            return 0 * x + 0.5

        draw = self._first(experiment, noise, _Denoiser(half))
        return [*calls, draw]

    def model_check(self, source: Any, originals: Sequence[Any]) -> list[Finding]:
        return self._model().model_check(source, originals) if self._calls_model else []

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the model and the version of deepinv; empty without both."""
        parts = [_version()] if self.sampler.startswith(DEEPINV) else []
        parts += [self._model().fingerprint()] if self._calls_model else []
        return hashlib.sha256(" ".join(parts).encode()).hexdigest() if parts else ""

    def own_code(self) -> Any:
        if not self.sampler.startswith(DEEPINV):
            return _function(self.sampler)
        return self._model().own_code() if self._calls_model else None

    def describe(self) -> str:
        """The sampler, its denoiser and its cost in one line."""
        sampler = _sampler(self)
        version = (
            f" ({_version()}, {sampler.steps} steps)" if isinstance(sampler, DeepinvSampler) else ""
        )
        denoiser = (
            self._model().reverse().model.description
            if self._calls_model
            else "the denoiser of the law"
        )
        denoiser = f"; {denoiser}" if _takes_denoiser(self) else ""
        return (
            f"{self.sampler}{version}{denoiser}; {self.batch} measurement{'s' * (self.batch > 1)}"
            " in a call"
        )


def _calls(operators: Sequence[Any], batch: int) -> list[np.ndarray]:
    """Rows of each call of a sampler: neighbours by the same operator, at most `batch`."""
    runs = [
        np.array(list(run))
        for _, run in groupby(range(len(operators)), lambda row: id(operators[row]))
    ]
    return [run[start : start + batch] for run in runs for start in range(0, len(run), batch)]


@contextmanager
def _seeded(key: int) -> Iterator[torch.Generator]:
    """Context with seeded global generators and one thread of torch, which are restored; gives a
    generator of its own.
    """
    import torch

    with globally_seeded(key), torch_threads(1):
        # Its numbers differ from those of the global generator.
        yield torch.Generator().manual_seed(key ^ 1)


def _sampler(spec: PosteriorSampler) -> Callable[..., Any]:
    """The sampler, called as (observed, operator, generator, denoiser, shape)."""
    if spec.sampler.startswith(DEEPINV):
        return DeepinvSampler(spec.sampler.removeprefix(DEEPINV), spec.options)
    function = _function(spec.sampler)
    signature = inspect.signature(function)
    named = {name: None for name in ("denoiser", "shape") if name in signature.parameters}
    try:
        signature.bind(None, None, None, **named, **spec.options)
    except TypeError as error:
        raise ValueError(
            f"sampler = {spec.sampler!r}, options: {error}; expected {_FORM}, and the options"
        ) from None

    def own(
        observed: Any, operator: Any, generator: Any, denoiser: Any, shape: tuple[int, ...]
    ) -> Any:
        more = {"denoiser": denoiser, "shape": shape}
        return function(
            observed, operator, generator, **{name: more[name] for name in named}, **spec.options
        )

    return own


def _function(path: str) -> Callable[..., Any]:
    return import_function(
        path, f"sampler = {path!r}", "'deepinv:NAME' or 'module:function'", _FORM
    )


def _takes_denoiser(spec: PosteriorSampler) -> bool:
    if spec.sampler.startswith(DEEPINV):
        return True
    return "denoiser" in inspect.signature(_function(spec.sampler)).parameters


def _version() -> str:
    from importlib.metadata import version

    return f"deepinv {version('deepinv')}"


class _Denoiser:
    """A function (x, sigma) as a denoiser of noise of any standard deviation."""

    range = (0.0, np.inf)

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def __call__(self, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(x, sigma)
