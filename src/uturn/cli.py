"""The command line: `uturn reproduce`, `uturn run`, `uturn theory`, `uturn report`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from uturn.paper import FIGURES

app = typer.Typer(
    name="uturn",
    help="Forward-backward experiments on diffusion models: corrupt a datum, denoise it back, measure what changed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class _Scale(StrEnum):
    smoke = "smoke"
    paper = "paper"


_Workers = Annotated[int | None, typer.Option(min=1, help="Processes; the results do not depend on it.", show_default="by task")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        import uturn

        typer.echo(f"uturn {uturn.__version__}")
        raise typer.Exit


@app.command()
def reproduce(
    figures: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(FIGURES)}; or all (default)")] = None,
    scale: Annotated[_Scale, typer.Option(help="smoke: minutes on two cores; paper: the paper's parameters.")] = _Scale.smoke,
    out: Annotated[Path, typer.Option(help="Folder for figures, data and the page.")] = Path("results"),
    workers: _Workers = None,
) -> None:
    """Reproduce figures of arXiv:2402.16991 and what goes beyond them, with a verdict for each of their claims.

    Measures where the class of a datum is lost when diffusion is reversed from a growing noise: in the exactly solvable
    hierarchical model, on images (fig2), in networks trained on the model (fig8, learning), and in data without a hierarchy (s9,
    controls). Writes PNG, PDF, data (zarr) and `index.html`; exit code 1 if a verdict fails. Stop it at any time: the same
    command goes on where it was.

    Example: `uturn reproduce fig6 fig7 --out results`
    """
    from rich.table import Table

    from uturn.paper import reproduce as reproduce_figures

    names = list(figures or ["all"])
    names = [figure for name in names for figure in (FIGURES if name == "all" else (name,))]
    console = _console()
    with _resumable(f"run the same command again to go on (raw runs are in {out / scale.value})"):
        results = reproduce_figures(
            names,
            out,
            scale.value,
            workers,
            progress=sys.stderr.isatty(),
            announce=lambda text: console.print(f"[bold]{text}[/]"),
        )
    table = Table(title=f"Verdicts, scale {scale.value}", title_justify="left", show_lines=False)
    for heading in ("figure", "quantity", "measured", "expected", ""):
        table.add_column(heading, overflow="fold")
    for result in results:
        for verdict in result.verdicts:
            mark = "[green]pass[/]" if verdict.passed else "[bold red]FAIL[/]"
            expected = f"{verdict.expected}" + (f" ({verdict.rule})" if verdict.rule else "")
            table.add_row(result.figure, verdict.quantity, verdict.measured, expected, mark)
    console.print(table)
    failed = sum(not verdict.passed for result in results for verdict in result.verdicts)
    total = sum(len(result.verdicts) for result in results)
    console.print(f"{total - failed} of {total} verdicts passed; page: {out / 'index.html'}")
    if failed:
        raise typer.Exit(1)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="Description of the experiment, TOML or JSON.")],
    store: Annotated[Path, typer.Option(help="Folder of the zarr store to fill.")],
    workers: _Workers = None,
    resume: Annotated[bool, typer.Option(help="Go on with an existing store of the same experiment.")] = True,
) -> None:
    """Run an experiment from a file into a store, or what is left of it.

    Measures, at every noise level, what U-turns change: the share of unchanged latents per tree level, or the similarity per
    network layer. The store opens with `xarray.open_zarr(DIR)`.

    Example: `uturn run examples/epsilon.toml --store runs/epsilon`
    """
    from uturn.experiment import Experiment
    from uturn.experiment import run as run_experiment

    experiment = Experiment.from_file(spec)
    with _resumable(f"what is done is in {store}; run the same command again to go on"):
        ds = run_experiment(experiment, store, resume, workers=workers, progress=sys.stderr.isatty())
    console = _console()
    console.print(f"{store}: complete, spec {experiment.hash[:12]}")
    for name in ds.attrs["variables"]:
        dims = ", ".join(f"{dim} {size}" for dim, size in ds[name].sizes.items())
        console.print(f"  {name} ({dims}): {ds[name].attrs['long_name']}")


@app.command()
def theory(
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-v", help="Symbols of a level.")] = 32,
    multiplicity: Annotated[int, typer.Option("--multiplicity", "-m", help="Rules of a symbol.")] = 8,
    branching: Annotated[int, typer.Option("--branching", "-s", help="Children of a node.")] = 2,
    depth: Annotated[int, typer.Option("--depth", "-L", min=1, help="Levels of the tree, for finite-depth numbers.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw the upward map to this file (PNG, PDF, ..).")] = None,
) -> None:
    """Print the mean-field theory of a grammar: phase, threshold ε*, exponent ν, fixed points; and draw its map.

    Example: `uturn theory -v 32 -m 8 -s 2 --plot map.png`
    """
    from rich.table import Table

    from uturn.theory import MeanField

    mf = MeanField(vocab_size, multiplicity, branching)
    table = Table(
        title=f"Mean field, v = {vocab_size}, m = {multiplicity}, s = {branching}", title_justify="left", show_header=False
    )
    crossing = mf.class_crossing(depth)

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.6g}"

    for words, text in [
        ("phase", mf.phase),
        ("critical noise ε*", number(mf.critical_noise)),
        ("repulsive fixed point p*", number(mf.fixed_point)),
        ("slope F'(p*)", number(mf.slope)),
        ("slope F'(1)", number(mf.slope_at_one)),
        ("slope F'(1/v)", number(float(mf.slope_at(1 / vocab_size)))),
        ("correlation exponent ν", number(mf.correlation_exponent)),
        (f"ε at which class and leaves cross, L = {depth}", number(crossing)),
    ]:
        table.add_row(words, text)
    console = _console()
    console.print(table)
    if plot is not None:
        from uturn.paper.style import style
        from uturn.paper.theory_map import draw

        with style() as plt:
            figure = draw(mf)
            try:
                figure.savefig(plot)
            except OSError as error:
                raise ValueError(f"cannot write {plot}: {error.strerror or error}") from None
            plt.close(figure)
        console.print(f"drawn: {plot}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of `uturn reproduce`.")]) -> None:
    """Write `index.html` for the figures found in a folder: pictures, captions, verdicts.

    Example: `uturn report results`
    """
    from uturn.report import write_report

    _console().print(f"written: {write_report(folder)}")


def _console() -> Any:
    from rich.console import Console

    # Piped output has no width of its own; do not squeeze tables into 80 columns then.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@contextmanager
def _resumable(advice: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; {advice}", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point: user mistakes end in one line on stderr and exit code 2, never in a traceback."""
    sys.path.insert(0, "")  # parts of one's own, named by import path, are looked for where the command is given
    try:
        app()
    except (ValueError, OSError, MemoryError, BrokenExecutor) as error:
        message = (str(error) or type(error).__name__).replace("\n", " ")
        typer.echo(f"uturn: error: {message}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
