"""When a reverse process decides on a class, and on a training datum (arXiv:2402.18491): two
clones show both times.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.stats import binom

from uturn.core.experiment import Experiment
from uturn.core.random import Purpose, keys, normals
from uturn.engine.run import run
from uturn.measures import cloning
from uturn.measures.calibration import holm
from uturn.measures.curves import crossing, transition
from uturn.measures.replicates import estimate
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import ESTIMATE, Verdict, above, below, listed, numbers, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.sources import FashionMNISTSource, GaussianMixtureSource
from uturn.sources.fashion_mnist import load_scheduler
from uturn.studies.plotting.style import MUTED, bars, level_colors, mark_noise, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "When a reverse process decides, shown by two clones"
CLAIM = (
    "Two reconstructions of one noisy datum have the same class below one noise level, and are the"
    " same training datum below a smaller one, both where theory predicts it."
)
CAPTION = (
    "(a) Probability that two clones have the same class, for mixtures of two Gaussians (points;"
    " lines: formula) and for the embedded model of Fashion-MNIST, against the distance from the"
    " speciation time t_S = log(Lambda)/2, with Lambda the largest eigenvalue of the covariance;"
    " bars: 95 % intervals. (b) Probability that two clones are the same training datum, for the"
    " exact posterior of n Gaussian data in d dimensions, against the collapse time t_C."
)
LEVEL = 1e-3  # false-alarm rate of a verdict
TRAINING_IMAGES = 60_000  # of the embedded model
MIXTURE: dict[str, Any] = {"type": "gaussian_mixture", "dimension": 256, "num_modes": 2}
SEPARATIONS = (0.5, 1.0, 2.0)  # of the means of mixtures, over sqrt(dimension)
# Dimension and number of Gaussian training data, with equal log(n)/d.
CODES = ((16, 16), (32, 256), (48, 4096))


def mixture_experiment(separation: float, scale: Scale) -> Experiment:
    """A mixture of two Gaussians with two clones, around its speciation time."""
    m = separation * np.sqrt(MIXTURE["dimension"]) / 2
    middle = 0.5 * np.log(1 + m**2)
    noise = (middle + np.arange(-1.25, 1.76, 0.25)).round(6)
    items = 1500 if scale == "smoke" else 6000
    source = {**MIXTURE, "separation": separation}
    return experiment_of(source, "gaussian", noise, "scales", items=items, clones=2, chunk=500)


def image_experiment(scale: Scale) -> Experiment:
    """The embedded model of Fashion-MNIST with two clones, which differ by the noise of DDPM."""
    items, steps, noise = (
        (40, 25, [0.2, 0.6]) if scale == "smoke" else (200, 100, [0.2, 0.4, 0.6, 0.8])
    )
    backward = {
        "type": "diffusion",
        "scheduler": "ddpm",
        "steps": steps,
        "timestep_spacing": "trailing",
    }
    common = ("fashion_mnist", "diffusion", noise, "network_layers")
    return experiment_of(*common, backward=backward, items=items, clones=2, chunk=40)


def recall(scale: Scale) -> xr.Dataset:
    """Probability that the exact posterior of n Gaussian training data recalls one of them,
    against t / t_C.
    """
    relative = np.linspace(0.4, 2, 17)
    observations = 1000 if scale == "smoke" else 4000
    rows = []
    times = [cloning.collapse_time(np.ones(dimension), count) for dimension, count in CODES]
    for k, (dimension, count) in enumerate(CODES):
        data = normals(keys(0, Purpose.CALIBRATION, 1, k, np.arange(count)), dimension, np.float64)
        rows.append(
            cloning.recall_probability(data, relative * times[k], observations=observations)
        )
    return xr.Dataset(
        {"recalled": (("code", "noise", "item"), np.array(rows)), "collapse_time": ("code", times)},
        {
            "noise": relative,
            "dimension": ("code", [d for d, _ in CODES]),
            "count": ("code", [n for _, n in CODES]),
        },
    )


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    scale = workshop.scale
    runs = {}
    for separation in SEPARATIONS:
        label = f"mixture-{separation:g}"
        runs[label] = workshop.keep(
            f"clones-{label}", run, experiment=mixture_experiment(separation, scale)
        )
    runs["recall"] = workshop.keep("clones-recall", recall, scale=scale)
    return {**runs, **workshop.runs("clones", {"images": image_experiment(scale)})}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    data = xr.merge([speciation(runs), fashion(runs["images"])], combine_attrs="no_conflicts")
    data["recalled"] = runs["recall"].recalled.mean("item").rename(noise="recall_noise")
    return data, [
        phi_verdict(runs),
        speciation_verdict(data),
        collapse_verdict(runs["recall"]),
        fashion_verdict(data),
    ]


def speciation(runs: dict[str, xr.Dataset]) -> xr.Dataset:
    """phi of the mixtures against t - t_S, the time `fallen` at which it has fallen halfway, and
    that of the formula.
    """
    parts = []
    for separation in SEPARATIONS:
        ds = runs[f"mixture-{separation:g}"]
        D = separation**2 * MIXTURE["dimension"]
        time = ds.noise.values
        same = ds.clone_same_label
        formula = cloning.mixture_cloning_probability(ds.noise.values, D)
        source = mixture_experiment(separation, "smoke").parts.source
        assert isinstance(source, GaussianMixtureSource)
        t_s = cloning.speciation_time(
            cloning.largest_eigenvalue(source.fresh(np.arange(4000), 0).values)
        )
        part = {
            "phi": (("point", "estimate"), cloning.cloning_probability(same).values),
            "phi_formula": ("point", formula),
            "since_speciation": ("point", time - t_s),
            "speciation_time": t_s,
            "fallen": ("estimate", list(estimate(same, partial(_halfway, time), confidence=0.999))),
            "fallen_formula": _halfway(time, formula),  # interpolated on the same grid
        }
        parts.append(xr.Dataset(part, {"distance": D, "estimate": ESTIMATE}))
    return xr.concat(parts, "distance")


def _halfway(time: np.ndarray, phi: np.ndarray) -> float:
    return crossing(time, phi, 0.75)


def phi_verdict(runs: dict[str, xr.Dataset]) -> Verdict:
    p = []
    worst = 0.0
    for separation in SEPARATIONS:
        same = runs[f"mixture-{separation:g}"].clone_same_label.isel(trajectory=0, clone=0)
        formula = cloning.mixture_cloning_probability(
            same.noise.values, separation**2 * MIXTURE["dimension"]
        )
        count = same.sum("item").values.round()
        n = same.sizes["item"]
        p.append(
            (2 * np.minimum(binom.cdf(count, n, formula), binom.sf(count - 1, n, formula))).clip(
                max=1
            )
        )
        worst = max(worst, float(np.abs(count / n - formula).max()))
    values = np.concatenate(p)
    return verdict(
        "probability that two clones have the same class, mixtures of two Gaussians, against the"
        " formula",
        f"{len(values)} points, largest difference {worst:.3f}, smallest p by Holm"
        f" {holm(values).min():.2g}",
        "one-dimensional integral (arXiv:2402.18491)",
        above(holm(values), LEVEL, f"binomial test of each point: no p by Holm <= {LEVEL:g}"),
    )


def speciation_verdict(data: xr.Dataset) -> Verdict:
    expected = data.fallen_formula.values
    halves = listed(data.fallen)
    after = data.fallen.sel(estimate="value").values - data.speciation_time.values
    return verdict(
        "time at which phi has fallen halfway, and its distance from t_S = log(Lambda)/2 (Lambda of"
        " 4,000 vectors)",
        "; ".join(
            f"|m1 - m2|^2 = {distance:g}: {half}, t_S + {late:.3f}"
            for distance, half, late in zip(data.distance.values, halves, after, strict=True)
        ),
        numbers(expected, ".3f", between="; ") + " by the formula; at a fixed distance from t_S",
        above(expected, [half.low for half in halves], "within the 99.9 % intervals"),
        below(expected, [half.high for half in halves], ""),
        within(after - after.mean(), 0.1, "distances from t_S differ by less than .1"),
    )


def collapse_verdict(ds: xr.Dataset) -> Verdict:
    relative = ds.noise.values
    curves = ds.recalled.mean("item").values
    half = np.array([crossing(relative, curve, 0.5, first=True) for curve in curves])
    widths = [crossing(relative, c, 0.3) - crossing(relative, c, 0.7) for c in curves]
    names = [f"d = {d}, n = {n}" for d, n in CODES]
    return verdict(
        "time at which two clones of n Gaussian training data are the same datum half of the time,"
        " over t_C; width of the fall",
        "; ".join(
            f"{name}: {h:.3f}, {w:.2f}" for name, h, w in zip(names, half, widths, strict=True)
        ),
        "1, and narrower at larger d, for equal log(n)/d",
        within(half[-1] - 1, 0.1, "largest d: within .1 of 1"),
        below(abs(half[-1] - 1), abs(half[0] - 1), "nearer than at the smallest d"),
        below(np.diff(widths), 0, "narrower with growing d"),
    )


def fashion(ds: xr.Dataset) -> xr.Dataset:
    """Cloning of Fashion-MNIST: phi, and the times of speciation and collapse, all on the axis
    t/T too.
    """
    eigenvalues = cloning.covariance_eigenvalues(FashionMNISTSource().all_images()[0])
    speciated = cloning.speciation_time(eigenvalues[0])
    collapsed = cloning.collapse_time(eigenvalues, TRAINING_IMAGES)
    abar = load_scheduler().alphas_cumprod.numpy().astype(float)
    places = np.interp(
        -np.exp(-2 * np.array([speciated, collapsed])),
        -abar,
        (np.arange(len(abar)) + 1) / len(abar),
    )
    shares = np.unique(ds.original_class.isel(noise=0), return_counts=True)[1] / ds.sizes["item"]
    noise = np.r_[0, ds.noise.values]
    chance = float((shares**2).sum())

    def half(c: np.ndarray) -> float:
        return transition(noise, np.r_[1, c], bottom=chance).location

    attrs = {"fashion_speciation": places[0], "fashion_collapse": places[1]}
    return xr.Dataset(
        {
            "fashion_phi": (
                ("image_noise", "estimate"),
                cloning.cloning_probability(ds.clone_same_class).values,
            ),
            "fashion_kept": ("estimate", list(estimate(ds.same_class, half))),
            "fashion_cloned": ("estimate", list(estimate(ds.clone_same_class, half))),
            "fashion_fall": (
                "estimate",
                list(estimate(ds.clone_same_class, lambda c: float(c[0] - c[-1]))),
            ),
            "fashion_since_speciation": (
                "image_noise",
                0.5 * np.log(1 / ds.abar.values) - speciated,
            ),
        },
        {"image_noise": ds.noise.values, "estimate": ESTIMATE},
        {**attrs, "fashion_eigenvalue": eigenvalues[0], "fashion_abar": 1 / eigenvalues[0]},
    )


def fashion_verdict(data: xr.Dataset) -> Verdict:
    phi = data.fashion_phi
    attrs = data.attrs
    (star,), (half,) = (listed(data[f"fashion_{name}"]) for name in ("kept", "cloned"))
    texts = (
        f"{x:g}: {interval}"
        for x, interval in zip(phi.image_noise.values, listed(phi), strict=True)
    )
    return verdict(
        "Fashion-MNIST: two clones with the same predicted class at t/T; speciation and collapse"
        " (60,000 images, Gaussian law)",
        f"phi at {'; '.join(texts)}; phi halfway to chance at {half}, t* of U-turns {star}; largest"
        f" eigenvalue {attrs['fashion_eigenvalue']:.1f}, abar_S = {attrs['fashion_abar']:.4f},"
        f" t_S/T = {attrs['fashion_speciation']:.2f}; t_C/T = {attrs['fashion_collapse']:.2f}",
        "phi falls with noise; speciation at larger noise than collapse",
        above(
            float(data.fashion_fall.sel(estimate="low")),
            0,
            "interval of the fall from first to last above 0",
        ),
        above(attrs["fashion_speciation"], attrs["fashion_collapse"], "t_S > t_C"),
    )


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.3), layout="constrained")
        _draw_speciation(left, data)
        _draw_collapse(right, data)
    return figure


def _draw_speciation(axes: Axes, data: xr.Dataset) -> None:
    for k, color in enumerate(level_colors(data.sizes["distance"])):
        axes.plot(data.since_speciation[k], data.phi_formula[k], color=color, lw=1.4)
        bars(axes, data.since_speciation[k], data.phi[k], fmt="o", ms=4, lw=1, color=color)
        axes.plot(
            [], [], "o-", ms=4, color=color, label=rf"$|m_1-m_2|^2={float(data.distance[k]):g}$"
        )
    look = {"fmt": "s--", "ms": 5, "lw": 1, "color": MUTED, "label": "Fashion-MNIST, DDPM"}
    bars(axes, data.fashion_since_speciation, data.fashion_phi, **look)
    mark_noise(axes, 0, "$t_S$", aside=0.05)
    axes.set(
        xlabel="$t-t_S$",
        ylabel=r"same class of two clones, $\varphi$",
        ylim=(0, 1.04),
        title="(a) speciation",
    )
    axes.legend(loc="lower left", fontsize=8.5)


def _draw_collapse(axes: Axes, data: xr.Dataset) -> None:
    for (d, n), curve, color in zip(
        CODES, data.recalled.values, level_colors(len(CODES)), strict=True
    ):
        axes.plot(
            data.recall_noise, curve, "o-", ms=4, lw=1.4, color=color, label=f"$d={d}$, $n={n}$"
        )
    mark_noise(axes, 1, "$t_C$", aside=0.02)
    axes.set(xlabel="$t/t_C$", ylabel="same training datum of two clones", ylim=(0, 1.04))
    axes.set_title("(b) collapse onto training data")
    axes.legend(loc="lower left", fontsize=8.5)
