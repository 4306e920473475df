"""Posterior samplers of deepinv by name, with noise levels inside the range of a denoiser."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.tools.inverse.deepinv_physics import deepinv, noise_model_of
from uturn.tools.inverse.operators import GaussianNoise


class _Kind(NamedTuple):
    """What a sampler needs of an operator, and its defaults."""

    linear: bool = False
    gaussian: bool = False  # noise
    steps: int = 100  # calls of the denoiser, or steps of a Markov chain
    clips: tuple[float, float] | None = None  # the range to which x̂_0 is clipped


_KINDS = {
    "DDRM": _Kind(linear=True, gaussian=True),
    "DiffPIR": _Kind(linear=True, gaussian=True, clips=(0.0, 1.0)),
    "DPS": _Kind(steps=200, clips=(-1.0, 1.0)),
    "PiGDM": _Kind(linear=True, gaussian=True),
    "MomentMatching": _Kind(linear=True, gaussian=True),
    "ALD": _Kind(linear=True),
    "ScoreSDE": _Kind(linear=True),
    "ILVR": _Kind(linear=True),
    "ULA": _Kind(linear=True, gaussian=True, steps=1000),
    "SKRock": _Kind(linear=True, gaussian=True, steps=200),
}
_SOLVERS = {
    "ancestral": "AncestralSolver",
    "ddpm": "DDPMSolver",
    "ddim": "DDIMSolver",
    "euler": "EulerSolver",
    "heun": "HeunSolver",
}
_LANGEVIN = ("ULA", "SKRock")


class DeepinvSampler:
    """A sampler of deepinv by name: `sampler(observed, operator, generator, denoiser, shape)`.

    NAME is a class of `deepinv.sampling` (DDRM, DiffPIR, ULA, SKRock, ..), or NAMEDataFidelity is
    one (DPS, PiGDM, ALD, ILVR, MomentMatching, ..): the sampler is then `PosteriorDiffusion` with
    this data fidelity. Options are those of the class, and:

    - `steps`: calls of the denoiser (100; DPS: 200), or steps of a Markov chain, whose last state
      is the draw (ULA: 1000, SKRock: 200).
    - `schedule`, `alpha`, `solver` of `PosteriorDiffusion`: "vp" (default) or "ve"; the weight of
      the noise, 1 by default; "ancestral" (default), "ddpm", "ddim", "euler" or "heun".

    Noise levels are inside the range of the denoiser: DDRM goes from sigma = 1 to .01; the SDE
    begins at t = 1, or at the largest level of the denoiser, and ends with x̂_0. DiffPIR has levels
    of its own, .005 to 79.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.deepinv = deepinv(f"sampler = 'deepinv:{name}'")
        self.options = dict(options)
        self.name = (
            str(self.options.pop("data_fidelity", "")) if name == "PosteriorDiffusion" else name
        )
        self.kind = _KINDS.get(self.name, _Kind())
        self.steps = self.options.pop("steps", self.kind.steps)
        checked_integer("options.steps", self.steps, 2)
        self.is_diffusion = hasattr(self.deepinv.sampling, f"{self.name}DataFidelity")
        self.cls: Any = getattr(
            self.deepinv.sampling,
            f"{self.name}DataFidelity" if self.is_diffusion else self.name,
            None,
        )
        is_sampler = inspect.isclass(self.cls) and issubclass(
            self.cls, self.deepinv.models.Reconstructor
        )
        takes_denoiser = is_sampler and (
            self.name in _LANGEVIN or {"denoiser", "model"} & _arguments(self.cls)
        )
        known = (
            "DDRM, DiffPIR, DPS, PiGDM, MomentMatching, ULA, or another sampler of deepinv.sampling"
            " with a denoiser"
        )
        expect(
            self.is_diffusion or takes_denoiser,
            "sampler",
            f"deepinv:{name}",
            f"{known}; or 'module:function'",
        )
        accepted = _arguments(self.cls) - {
            "denoiser",
            "model",
            "prior",
            "data_fidelity",
            "verbose",
            "device",
            "max_iter",
            "rng",
        }
        accepted |= {"schedule", "alpha", "solver"} if self.is_diffusion else set()
        clip = self.options.pop("clip", None) if self.is_diffusion else None
        self.clips = self.kind.clips if clip is None else clip
        unknown = sorted(set(self.options) - accepted)
        expect(
            not unknown,
            f"options of {self.name}",
            unknown,
            f"some of steps, {', '.join(sorted(accepted))}",
        )

    def __call__(
        self, observed: Any, operator: Any, generator: Any, denoiser: Any, shape: tuple[int, ...]
    ) -> Any:
        """A draw for each measurement, a tensor (batch, *shape), of measurements (batch, ...) by
        one operator.
        """
        noise = operator.noise
        expect(
            operator.is_linear or not self.kind.linear,
            "operator",
            operator,
            "a linear operator for this sampler; take DPS",
        )
        needs = self.kind.gaussian or self.options.get("guidance") == "annealed"
        is_gaussian = isinstance(noise, GaussianNoise) and (noise.sigma > 0 or self.name == "DDRM")
        expect(
            is_gaussian or not needs,
            "noise",
            noise,
            "Gaussian noise with sigma > 0; take DPS with guidance = 'norm'",
        )
        physics = self._physics(operator, observed, shape)
        decomposes = self.name != "DDRM" or isinstance(
            physics, self.deepinv.physics.DecomposablePhysics
        )
        expect(
            decomposes,
            "operator",
            operator,
            "one with its singular value decomposition, as those by name; or take DPS",
        )
        by_name = {
            "DDRM": self._ddrm,
            "DiffPIR": self._diffpir,
            **dict.fromkeys(_LANGEVIN, self._langevin),
        }
        make = by_name.get(self.name, self._diffusion if self.is_diffusion else self._other)
        sampler: Any = make(denoiser, operator, generator, shape)  # type: ignore[no-untyped-call]
        return sampler(observed, physics)

    def _physics(self, operator: Any, observed: Any, shape: tuple[int, ...]) -> Any:
        """The operator as a physics of deepinv, with the operator's noise."""
        module = self.deepinv.physics
        noise_model = noise_model_of(operator.noise)
        if operator.physics is not None:
            physics = copy.deepcopy(operator.physics)
            physics.noise_model = noise_model
            return physics
        if not operator.is_linear:
            return module.Physics(A=operator.forward, noise_model=noise_model)
        if operator.hidden is not None and tuple(observed.shape[1:]) == shape:
            seen = observed.new_ones(shape) * observed.new_tensor(~operator.hidden)
            x = observed.new_tensor(np.linspace(1, 2, seen.numel())).reshape(1, *shape)
            # A mask, which has a singular value decomposition.
            if operator.forward(x).equal(seen * x):
                return module.Inpainting(shape, mask=seen, noise_model=noise_model)
        adjoint = module.adjoint_function(operator.forward, (len(observed), *shape))
        return module.LinearPhysics(
            A=operator.forward, A_adjoint=adjoint, noise_model=noise_model, img_size=shape
        )

    def _ddrm(self, denoiser: Any, operator: Any, generator: Any, shape: Any) -> Any:
        low, high = denoiser.range
        sigmas = self.options.get("sigmas", np.linspace(min(1.0, high), max(0.01, low), self.steps))
        return self.cls(denoiser, **{**self.options, "sigmas": np.asarray(sigmas, float)})

    def _diffpir(self, denoiser: Any, operator: Any, generator: Any, shape: Any) -> Any:
        fidelity = self.deepinv.optim.data_fidelity.L2()
        return self.cls(
            denoiser,
            fidelity,
            **{"sigma": operator.noise.sigma, **self.options},
            max_iter=self.steps,
        )

    def _diffusion(
        self, denoiser: Any, operator: Any, generator: Any, shape: tuple[int, ...]
    ) -> Any:
        sampling = self.deepinv.sampling
        options = dict(self.options)
        schedule = options.pop("schedule", "vp")
        alpha = options.pop("alpha", 1.0)
        solver = options.pop("solver", "ancestral")
        expect(schedule in ("vp", "ve"), "options.schedule", schedule, "'vp' or 've'")
        expect(solver in _SOLVERS, "options.solver", solver, f"one of {', '.join(_SOLVERS)}")
        # The state of the SDE is in [-1, 1].
        low = 2 * denoiser.range[0]
        high = 2 * denoiser.range[1]
        if schedule == "ve":
            sde = sampling.VarianceExplodingDiffusion(
                alpha=alpha, sigma_min=max(0.01, low), sigma_max=min(80.0, high)
            )
            times = np.linspace(1, 0, self.steps)  # the denoiser is called once more at the end
        else:
            sde = sampling.VariancePreservingDiffusion(alpha=alpha)
            first = min(1.0, _vp_time(high))
            last = max(_vp_time(low), first / self.steps)
            times = np.linspace(first, last, self.steps)
            # They do not call the denoiser at the last time.
            if solver in ("ancestral", "ddpm", "ddim"):
                times = np.append(times, 0.0)
        made = getattr(sampling, _SOLVERS[solver])(timesteps=times, rng=generator)
        fidelity = self.cls(**options, **({"clip": self.clips} if self.clips is not None else {}))
        chosen = sampling.PosteriorDiffusion(fidelity, denoiser, sde, made)
        return lambda observed, physics: chosen(observed, physics, x_init=(len(observed), *shape))

    def _langevin(
        self, denoiser: Any, operator: Any, generator: Any, shape: tuple[int, ...]
    ) -> Any:
        """The last state of a Markov chain that starts from alpha A^T y.

        Its step is half of deepinv's bound 1 / (sigma_y^-2 + sigma^-2), for |A| = 1 and a prior
        smoothed with sigma.
        """
        sigma = operator.noise.sigma
        options = {"sigma": max(0.02, denoiser.range[0]), "clip": None, **self.options}
        options.setdefault("step_size", 0.5 / (sigma**-2 + options["sigma"] ** -2))
        fidelity = self.deepinv.optim.data_fidelity.L2(sigma=sigma)
        prior = self.deepinv.optim.ScorePrior(denoiser)
        fixed = {"max_iter": self.steps, "thinning": 1, "burnin_ratio": 0.0, "save_chain": 1}
        chain = self.cls(prior, fidelity, **{**options, **fixed})

        def last_state(observed: Any, physics: Any) -> Any:
            first = observed.new_tensor(operator.back_projection(observed.numpy(), shape))
            chain.sample(observed, physics, x_init=first)
            return chain.get_chain()[-1]["x"]

        return last_state

    def _other(self, denoiser: Any, operator: Any, generator: Any, shape: tuple[int, ...]) -> Any:
        name = "denoiser" if "denoiser" in _arguments(self.cls) else "model"
        return self.cls(**{name: denoiser}, **self.options)


def _vp_time(sigma: float, low: float = 0.1, high: float = 20.0) -> float:
    """The time t of deepinv's variance-preserving SDE with noise sigma: log(1 + sigma^2) = low t +
    (high - low) t^2 / 2.
    """
    exponent = np.log1p(np.float64(sigma) ** 2)
    return float((np.sqrt(low**2 + 2 * (high - low) * exponent) - low) / (high - low))


def _arguments(cls: Any) -> set[str]:
    return set(inspect.signature(cls).parameters) - {"args", "kwargs"}
