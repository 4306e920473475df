"""The options of the check of posterior samplers, described once for Python and the command
line.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, SkipValidation

from uturn.core.checks import expect
from uturn.networks.images.options import DenoiserOptions
from uturn.presets.images import ImageOptions
from uturn.presets.options import SIZES, given

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment


GENERATED_STEPS = 250
"""Steps of the chain that draws generated originals. A coarse chain has another law than its
model.
"""


@dataclass(frozen=True)
class Run:
    """One sampler on one kind of originals."""

    name: str
    """In tables."""
    store: str
    """Name of its store in a folder of results."""
    sampler: str
    """With its options, without "deepinv:"."""
    data: str
    """The originals, as in the option `data`."""
    experiment: Experiment

    @property
    def judges(self) -> str:
        """What the tests of the run judge: the law of generated originals is that of the model,
        so only the sampler can err.
        """
        return "sampler" if self.data == "generated" or _law(self.data) else "sampler and prior"


class InverseOptions(ImageOptions):
    """Posterior samplers of inverse problems of images or of vectors of a known law, each on the
    same measurements.

    `runs` gives one experiment for each sampler and each kind of originals.

    Examples
    --------
    >>> options = InverseOptions(samplers=["deepinv:DDRM", "deepinv:DiffPIR zeta=0.3"], levels=[0.25, 0.5])
    >>> [run.store for run in options.runs()]
    ['fashion_mnist-DDRM', 'fashion_mnist-DiffPIR-zeta=0.3']
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Inverse problem": ("operator", "levels", "sigma"),
        "Samplers": ("samplers", "batch"),
        "Model": ImageOptions.panels["Model"],
        "Data": ("data", "size", "channels", "classes", "labels"),
        "Measures": ImageOptions.panels["Measures"],
        "Size and seed": tuple(name for name in SIZES if name not in ("levels", "trajectories")),
        "Speed and memory": tuple(
            name
            for name in ImageOptions.panels["Speed and memory"]
            if name in DenoiserOptions.model_fields
        ),
    }
    flags: ClassVar[Mapping[str, str]] = {**ImageOptions.flags, "samplers": "--sampler"}
    needs_classifier: ClassVar[bool] = False

    operator: str = Field(
        "boxes",
        description=(
            "Operator A of y = A(x) + noise: boxes, inpainting, blur, downsampling, fourier,"
            " denoising, or module:function, with its options behind it: 'inpainting"
            " mask=mask.npy'."
        ),
        examples=["boxes", "inpainting", "blur", "downsampling", "fourier", "denoising"],
    )
    levels: SkipValidation[int | list[float]] = Field(
        [0.2, 0.4, 0.6],
        description=(
            "Strengths of the operator, such as the share of hidden pixels or the width of a blur"
            " in pixels: 0.5,1,2."
        ),
    )
    sigma: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description=(
            "Standard deviation of the Gaussian noise of y; images are in [0, 1]. By default 0.05,"
            " or the noise that module:function gives."
        ),
    )
    samplers: list[str] = Field(
        ["deepinv:DDRM steps=50", "deepinv:DiffPIR steps=50"],
        description=(
            "Posterior sampler: deepinv:NAME, or module:function, a function (observed, operator,"
            " generator[, denoiser]) that returns a reconstruction; with its options behind it:"
            " 'deepinv:DiffPIR steps=50 zeta=0.3'. Without denoiser, it needs no model. exact: the"
            " posterior of a mixture."
        ),
        examples=["deepinv:DDRM", "deepinv:DPS", "deepinv:DiffPIR"],
    )
    batch: int = Field(
        1,
        ge=1,
        description=(
            "Measurements in a call of the sampler; with more than 1, results of an item depend on"
            " its batch."
        ),
    )
    data: list[str] = Field(  # type: ignore[assignment] # several kinds of originals
        ["fashion_mnist"],
        description=(
            "Originals: a folder of images, whose sub-folders are classes; a .npy file; or"
            " generated (drawn by the model), which judges the sampler alone; or a law of vectors"
            " with its options, 'gaussian_mixture means=means.npy covariances=covariances.npy"
            " weights=[0.3,0.7]', which needs no model."
        ),
        examples=["fashion_mnist", "generated"],
    )
    items: int = Field(40, ge=2, description="Number of originals.")
    clones: int = Field(
        4,
        ge=2,
        description=(
            "Reconstructions of each measurement, which the tests compare with its original."
        ),
    )

    def runs(self, originals: str | None = None) -> list[Run]:
        """The experiments, one for each sampler and each kind of originals. `originals`: folder of
        generated originals.

        A ValueError for options that do not fit together, and for the reasons of
        `Experiment.from_dict`.
        """
        for name in ("samplers", "data"):
            texts = getattr(self, name)
            expect(texts and len(set(texts)) == len(texts), name, texts, "one or more, each once")
        runs = []
        for data in self.data:
            # Options of folders and .npy files concern these data only.
            law = _law(data)
            is_named = law or data in ("fashion_mnist", "generated")
            of_files = dict.fromkeys(("size", "channels", "classes", "labels")) if is_named else {}
            arm = self.model_copy(update={"data": data, **(of_files if len(self.data) > 1 else {})})
            kind = data if is_named else Path(data).stem
            for sampler in self.samplers:
                label = sampler.removeprefix("deepinv:")
                store = f"{_file_name(kind)}-{_file_name(label)}"
                name = label if len(self.data) == 1 else f"{label}, {kind}"
                runs.append(Run(name, store, label, data, arm._of_sampler(sampler, law, originals)))
        stores = [run.store for run in runs]
        expect(
            len(set(stores)) == len(runs),
            "data, samplers: stores",
            stores,
            "different names; rename one",
        )
        return runs

    def experiment(self, originals: str | None = None) -> Experiment:
        return self.runs(originals)[0].experiment

    def _of_sampler(self, sampler: str, law: dict[str, Any], originals: str | None) -> Experiment:
        """The experiment of a sampler; `data` is one kind of originals here, of which `law` is
        the table if it is a law.
        """
        name, of_sampler = named_options("sampler", sampler)
        table = law or self._source(originals)
        backward: dict[str, Any] = {"type": "exact"}
        if name != "exact":
            options = {"options": of_sampler, "batch": self.batch if self.batch > 1 else None}
            of_model = {} if law else self._set("model", *DenoiserOptions.model_fields)
            backward = {"type": "sampler", "sampler": name, **given(options), **of_model}
        of_images = (
            [] if law else [{**_ADDED.get(probe["type"], {}), **probe} for probe in self._probes()]
        )
        if table["type"] == "generated":
            table["steps"] = GENERATED_STEPS
        return self._experiment(
            10 if self.items <= 200 else 50,
            source=table,
            corruption=self._corruption(),
            backward=backward,
            probes=[{"type": "posterior"}, *of_images],
        )

    def _corruption(self) -> dict[str, Any]:
        operator, options = named_options("operator", self.operator)
        return {
            "type": "operator",
            "operator": operator,
            **given({"options": options}),
            **self._set("sigma"),
            # 2 is a strength, not a number of them.
            "noise": [self.levels] if isinstance(self.levels, int) else self.levels,
        }


_LAWS = ("gaussian_mixture", "gaussian_field")
_LONGEST = 80  # characters of a part of the name of a file
_ADDED: dict[str, dict[str, Any]] = {
    "images": {"observation": True},  # the page shows what was measured
    "network_layers": {"name": "classifier"},  # the probe `posterior` has a distance, too
}


def named_options(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """A name and the options behind it, as they are typed.

    >>> named_options("sampler", "deepinv:DiffPIR steps=50 zeta=0.3")
    ('deepinv:DiffPIR', {'steps': 50, 'zeta': 0.3})
    """
    from uturn.engine.sweep import parsed_value

    try:
        name, *pairs = shlex.split(text)
    except ValueError:  # no word, or a quote that is not closed
        raise ValueError(
            f"{option} = {text!r}: expected a name, perhaps with options behind it: 'NAME"
            " KEY=VALUE ..'"
        ) from None
    options = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        expect(
            key and value, f"{option} = {text!r}: option", pair, "KEY=VALUE, without blanks in it"
        )
        options[key] = parsed_value(value)
    return name, options


def _law(data: str) -> dict[str, Any]:
    """The table of the source for originals of a known law of vectors; empty for images."""
    if not data.startswith(_LAWS):
        return {}
    name, options = named_options("data", data)
    return {"type": name, **options}


def _file_name(text: str) -> str:
    """A text as part of the name of a file; a long one is cut, with a digest of the whole."""
    name = re.sub(r"[^\w.=,+-]+", "-", text)
    return (
        name
        if len(name) <= _LONGEST
        else f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )
