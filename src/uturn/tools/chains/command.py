"""`uturn chains`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import Out, Running, option
from uturn.cli.printing import console
from uturn.cli.running import Experiments, Finished, Printed, Procedure, originals_in, results_into

# panels of the help
CHAINS = "Chains"
DATA = "Images and texts"


@command(STUDIES)
def chains(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC", help="TOML or JSON file of an experiment of U-turns."),
    ] = None,
    *,
    out: Out = "results/chains",
    noise: Annotated[
        str, option(CHAINS, "Noise levels of a U-turn, in the unit of its corruption.")
    ] = "0.3,0.5,0.7",
    steps: Annotated[int, option(CHAINS, "Number of U-turns of a chain.", min=1)] = 32,
    number: Annotated[
        int | None,
        option(
            CHAINS,
            "Chains of each original; by default the trajectories of SPEC.",
            "--chains",
            min=1,
        ),
    ] = None,
    energy: Annotated[
        str | None,
        option(
            CHAINS,
            "Accept U-turns with this energy: module:function, or one of the package, such as"
            " 'symbol number=3' or 'class label=3'.",
        ),
    ] = None,
    beta: Annotated[
        float | None, option(CHAINS, "Inverse temperature of the energy, by default 1.", min=0.0)
    ] = None,
    images: Annotated[
        str | None,
        option(DATA, "Options of uturn images in place of SPEC: 'model=DIR data=DIR size=32'."),
    ] = None,
    text: Annotated[
        str | None, option(DATA, "Options of uturn text in place of SPEC: 'model=DIR data=FILE'.")
    ] = None,
    running: Running,
) -> None:
    """Repeat U-turns, and measure how many of them each level of the data outlives.

    A chain starts from an original and makes one U-turn after another at one noise level. The
    command measures the overlap with the original after each U-turn, level by level (layers of a
    classifier, spans of a text, levels of a tree), the relaxation time of each level, and the noise
    at which the order of the relaxation times inverts. Chains of exact posterior draws keep the law
    of the data and are reversible, which is tested. With --energy, U-turns are accepted by the rule
    of Metropolis, and the chain samples p(x) exp(-beta E(x)).

    Writes `relaxation.zarr`, `relaxation.csv`, `relaxation.png`, the page `index.html`, and a store
    for each noise level. The command can be stopped at any time; running it again resumes. Without
    SPEC, it repeats U-turns of the package's Fashion-MNIST model.

    Example:

    ```
    uturn chains --out results/chains
    uturn chains examples/gaussian.toml --noise 0.05,0.06,0.07 --steps 64 \\
      --out results/chains-of-strings
    uturn chains --text items=30 --noise 0.2,0.5 --out results/chains-of-texts
    ```
    """
    from uturn.core.checks import expect

    expect(beta is None or energy is not None, "beta", beta, "an energy with it")
    procedure = Relaxation(
        spec,
        images,
        text,
        levels=_levels(noise),
        steps=steps,
        number=number,
        energy=energy,
        beta=1.0 if beta is None else beta,
    )
    results_into(out, procedure, running)


def _levels(noise: str) -> dict[str, float]:
    """The noise levels of an option, by the names of their stores."""
    from uturn.core.checks import expect
    from uturn.presets.options import noise_levels, parsed_levels

    parsed = parsed_levels(noise)
    levels = noise_levels(parsed) if isinstance(parsed, int) else parsed
    named = {f"noise-{level:g}": level for level in levels}
    expected = "levels that differ in their first six digits"
    expect(len(named) == len(levels), "noise", noise, expected)
    return named


@dataclass(frozen=True)
class Relaxation(Procedure):
    """Chains of U-turns at each noise level, and their relaxation times."""

    spec: Path | None
    images: str | None
    """Options of `uturn images` in place of a spec."""
    text: str | None
    """Options of `uturn text` in place of a spec."""
    levels: Mapping[str, float]
    """Noise levels by the names of their stores."""
    steps: int
    """U-turns of a chain."""
    number: int | None
    """Chains of each original; None for the trajectories of the spec."""
    energy: str | None
    beta: float

    def experiments(self, out: str) -> Experiments:
        from uturn.tools.chains.results import base_experiment, repeated

        base = base_experiment(self.spec, self.images, self.text, originals_in(out))
        made = {}
        for name, level in self.levels.items():
            made[name] = repeated(
                base,
                level,
                self.steps,
                energy=self.energy,
                beta=self.beta,
                chains=self.number,
            )
        left_out = sorted({probe.probe_name for probe in base.probes if probe.reads_noisy})
        if left_out:
            probes = ", ".join(left_out)
            console().print(f"left out, since chains have no noisy data: the probes {probes}")
        return made

    def write(self, finished: Finished) -> Printed:
        from uturn.store.outputs import output_folder
        from uturn.studies.tables import for_terminal
        from uturn.tools.chains.results import RESULTS, table_of, write_chains

        runs = {level: finished.runs[name] for name, level in self.levels.items()}
        with output_folder("out", finished.out) as folder:
            measured = write_chains(runs, folder)
        return Printed([for_terminal(table_of(measured))], RESULTS)
