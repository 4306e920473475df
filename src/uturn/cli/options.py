"""Options shared by several commands, and options made from the fields of a preset.

A command takes a group of options as one parameter: `running: Running`, `chosen: ImageOptions`. `expanded` turns each field
of the group into an option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from uturn.core.checks import expect
from uturn.core.lazy import later
from uturn.presets.options import PresetOptions

with later():
    from uturn.studies import long_form, tables

OUTPUT, RUN, CLUSTER = "Output", "Run", "On a Ray cluster"  # panels of the help
SWEEP, UNTIL, TABLE = "Several experiments", "Until a place is known", "Tables of readings"


def option(panel: str, text: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **settings)


Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="TOML or JSON file that describes the experiment.")]
_folder = option(OUTPUT, "Folder of the results, or URL of object storage.", metavar="FOLDER")
Out = Annotated[str, _folder]
OptionalOut = Annotated[str | None, _folder]
Plot = Annotated[Path | None, option(OUTPUT, "Draw the figure to this file (PNG, PDF, SVG, ..).", metavar="FILE")]
AcceptChanges = Annotated[bool, option(RUN, "Continue although the code of one of your parts has changed.", "--accept-changes")]


@dataclass(frozen=True)
class Machines:
    """The processes or the cluster that measure an experiment."""

    workers: Annotated[
        int | None,
        option(
            RUN,
            "Number of processes; results do not depend on it. By default chosen for each experiment.",
            metavar="N",
            min=1,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        option(
            CLUSTER,
            "Measure on a Ray cluster: local starts Ray on this machine, auto joins the cluster running on this machine, "
            "and ray://host:port or host:port joins a cluster by address. Needs uturn[cluster].",
            metavar="ADDRESS",
            autocompletion=lambda: ["local", "auto"],
        ),
    ] = None
    cpus_per_worker: Annotated[float | None, option(CLUSTER, "Cores of each worker; by default 1.")] = None
    gpus_per_worker: Annotated[
        float | None, option(CLUSTER, "GPUs of each worker; by default 1 for networks if the cluster has any.")
    ] = None

    def on_cluster(self) -> dict[str, Any]:
        """Arguments of `uturn.run` for a cluster."""
        each = self.cpus_per_worker, self.gpus_per_worker
        expect(self.cluster is not None or each == (None, None), "cpus_per_worker, gpus_per_worker", each, "none without cluster")
        return {name: getattr(self, name) for name in ("cluster", "cpus_per_worker", "gpus_per_worker")}


@dataclass(frozen=True)
class Running(Machines):
    """Options of a run into a store."""

    shard: Annotated[
        str,
        option(
            RUN,
            "Run the I-th of N shares of the tasks; other GPUs or hosts can run the other shares into the same store.",
            metavar="I/N",
        ),
    ] = "1/1"
    resume: Annotated[
        bool,
        option(RUN, "Continue or extend an existing store; --no-resume refuses it.", show_default=False),
    ] = True
    accept_changes: AcceptChanges = False

    def arguments(self) -> dict[str, Any]:
        """Arguments of `uturn.run`, which checks the two numbers of a share such as "2/8"."""
        number, slash, shares = self.shard.partition("/")
        expect(slash and number.isdecimal() and shares.isdecimal(), "shard", self.shard, "i/n, such as 2/8")
        options: dict[str, Any] = {name: getattr(self, name) for name in ("resume", "workers", "accept_changes")}
        return {**options, "shard": (int(number), int(shares)), "progress": True, **self.on_cluster()}


@dataclass(frozen=True)
class Place:
    """A place on a curve that is measured until its interval has a width."""

    until: Annotated[
        float | None,
        option(
            UNTIL,
            "Measure until the interval of the half-life of --reading is narrower than this: a pilot on few levels, "
            "then originals around it and at both ends of the interval. The command chooses the numbers of items and levels.",
            metavar="WIDTH",
        ),
    ] = None
    reading: Annotated[
        str | None,
        option(
            UNTIL,
            "A reading as `uturn study` names it, which goes from a start to chance (uturn images: by default same_class).",
            metavar="NAME",
        ),
    ] = None
    share: Annotated[
        float,
        option(UNTIL, "Locate where this share of the way from start to chance is gone.", metavar="SHARE"),
    ] = 0.5
    any_shape: Annotated[
        bool,
        option(
            UNTIL,
            "Believe no fit: both ends of the interval are tested, so that it holds for every monotone curve, for one to "
            "three times the calls.",
            "--any-shape",
        ),
    ] = False

    def __post_init__(self) -> None:
        searched = self.reading, self.share, self.any_shape
        is_whole = self.until is not None or searched == (None, 0.5, False)
        expect(is_whole, "reading, share, any_shape", searched, "--until WIDTH beside them")

    def sought(self) -> dict[str, Any]:
        """Arguments of `uturn.studies.locate`."""
        if self.reading is None:
            raise ValueError(
                "reading: missing; --until goes with a reading that falls from a start to chance: give --reading NAME, such as "
                "'unchanged, tree_level = 3' or 'kept, span = 1' (the peak of chi is not located in this way)"
            )
        return {"reading": self.reading, "width": self.until, "share": self.share, "any_shape": self.any_shape}


@dataclass(frozen=True)
class OfTable:
    """What a table of readings does not say itself."""

    columns: Annotated[
        str | None,
        option(
            TABLE,
            "Columns of a table that have other names than noise, item, trajectory and clone, such as noise=sigma,item=molecule.",
            metavar="NAME=COLUMN,..",
        ),
    ] = None
    noise_unit: Annotated[str | None, option(TABLE, "What the noise of a table is, such as strength.", metavar="TEXT")] = None
    start: Annotated[
        list[str] | None,
        option(TABLE, "Value of a reading without changes. Can be given several times.", metavar="NAME=VALUE"),
    ] = None
    chance: Annotated[
        list[str] | None,
        option(
            TABLE,
            "Value of a reading for independent data; by default that at the largest noise. Can be given several times.",
            metavar="NAME=VALUE",
        ),
    ] = None
    coordinate: Annotated[
        list[str] | None,
        option(
            TABLE,
            "Column with labels of items or a further axis of noise (log_snr), not a reading. Can be given several times.",
            metavar="COLUMN",
        ),
    ] = None

    def settings(self, places: list[str]) -> dict[str, Any]:
        """Arguments of `uturn.studies.readings.read_readings`; ValueError for options if none of the places is a table."""
        values = {
            "columns": _by_name("columns", self.columns.split(",") if self.columns else None, "noise=sigma"),
            "unit": self.noise_unit,
            "start": _by_name("start", self.start),
            "chance": _by_name("chance", self.chance),
            "coords": self.coordinate,
        }
        typed = {name: value for name, value in values.items() if value}
        expected = "a table (.csv, .tsv, .parquet), for --columns, --noise-unit, --start, --chance and --coordinate"
        expect(not typed or any(map(long_form.is_table, places)), "store", places[0], expected)
        return typed


def typed(**options: Any) -> list[str]:
    """Options as arguments of a command, without those that are None, False or empty; those that are True are flags."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            for text in value if isinstance(value, list) else [] if value is None else [value]:
                words += [flag, f"{text:g}" if isinstance(text, float) else str(text)]
    return words


def _by_name(option: str, pairs: list[str] | None, example: str = "rmsd=0") -> dict[str, float | str]:
    """The values of NAME=VALUE by name: numbers, or names of coordinates."""
    values: dict[str, float | str] = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        expect(name and value, option, pair, f"NAME=VALUE, such as {example}")
        values[name] = tables.number_in(value)
    return values


def option_of(study: type[PresetOptions], name: str, panel: str | None = None, **settings: Any) -> Any:
    """The command-line option for a field, with the description of the field."""
    field = study.model_fields[name]
    flag = study.flags.get(name, f"--{name.replace('_', '-')}")
    is_list = field.annotation == list[str]
    negative = f"; --no-{flag[2:]} turns this off" if field.default is True else ""
    settings = {"show_default": not negative, "show_choices": False, "metavar": "<str>" if is_list else None, **settings}
    if field.examples:
        settings["autocompletion"] = lambda: field.examples
    flag = f"{flag}/--no-{flag[2:]}" if bool in (field.annotation, *get_args(field.annotation)) else flag
    text = f"{(field.description or '').removesuffix('.')}{negative}.{' Can be given several times.' if is_list else ''}"
    return typer.Option(flag, help=text, rich_help_panel=panel, **settings)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of its parameters of type `Machines`, `Place`, `OfTable` or `PresetOptions`."""
    parameters = inspect.signature(function, eval_str=True).parameters
    groups = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, Machines | Place | OfTable | PresetOptions)
    }
    options = {name: _options(groups[name]) if name in groups else [parameter] for name, parameter in parameters.items()}

    def command(context: typer.Context, **values: Any) -> None:
        for name, group in groups.items():
            fields = {option.name: values.pop(option.name) for option in options[name]}
            if issubclass(group, PresetOptions):
                values[name] = group.from_dict({name: value for name, value in fields.items() if _is_typed(context, name)})
            else:
                values[name] = group(**fields)
        function(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    flat = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for group in options.values() for option in group]
    command.__signature__ = inspect.Signature([context, *flat])  # type: ignore[attr-defined]
    command.__annotations__, command.__name__, command.__doc__ = {}, function.__name__, function.__doc__
    return command


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a group of options as parameters of a command."""
    if not issubclass(group, PresetOptions):
        return list(inspect.signature(group, eval_str=True).parameters.values())
    keyword, options = inspect.Parameter.KEYWORD_ONLY, []
    for panel, names in group.panels.items():
        for name in names:
            field, option = group.model_fields[name], option_of(group, name, panel)
            types = set(get_args(field.annotation)) - {NoneType}
            # Fields of several types are passed as text, which the preset parses.
            mixed = len(types) > 1 and not all(isinstance(choice, str) for choice in types)
            kind, default = (str, field.default) if mixed else (field.annotation, field.default)
            if mixed and default is not None:
                default = ",".join(map(str, default if isinstance(default, list) else [default]))
            options.append(inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, option]))
    return options


def _is_typed(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
