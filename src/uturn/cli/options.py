"""Options shared by several commands, and options made from the fields of a preset.

A command takes a group of options as one parameter: `running: Running`, `chosen: ImageOptions`.
`expanded` turns each field of the group into an option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from uturn.core.checks import expect
from uturn.presets.options import PresetOptions

T = TypeVar("T")

# Panels of the help.
OUTPUT = "Output"
RUN = "Run"
CLUSTER = "On a Ray cluster"
SWEEP = "Several experiments"
UNTIL = "Until a place is known"
TABLE = "Tables of readings"


def option(panel: str, text: str, *flags: str, **settings: Any) -> OptionInfo:
    """An option of a command, in a panel of its help."""
    made: OptionInfo = typer.Option(*flags, help=text, rich_help_panel=panel, **settings)
    return made


def _field(default: T, panel: str, text: str, *flags: str, **settings: Any) -> T:
    """A field of a group of options."""
    made: T = field(default=default, metadata={"option": option(panel, text, *flags, **settings)})
    return made


Spec = Annotated[
    Path, typer.Argument(metavar="SPEC", help="TOML or JSON file that describes the experiment.")
]
_folder = option(OUTPUT, "Folder of the results, or URL of object storage.", metavar="FOLDER")
Out = Annotated[str, _folder]
OptionalOut = Annotated[str | None, _folder]
Plot = Annotated[
    Path | None, option(OUTPUT, "Draw the figure to this file (PNG, PDF, SVG, ..).", metavar="FILE")
]
_ACCEPT = "Continue although the code of one of your parts has changed."
AcceptChanges = Annotated[bool, option(RUN, _ACCEPT, "--accept-changes")]


@dataclass(frozen=True)
class Machines:
    """The processes or the cluster that measure an experiment."""

    workers: int | None = _field(
        None,
        RUN,
        "Number of processes; results do not depend on it. By default chosen for each experiment.",
        metavar="N",
        min=1,
    )
    cluster: str | None = _field(
        None,
        CLUSTER,
        "Measure on a Ray cluster: local starts Ray on this machine, auto joins the cluster running"
        " on this machine, and ray://host:port or host:port joins a cluster by address. Needs"
        " uturn[cluster].",
        metavar="ADDRESS",
        autocompletion=lambda: ["local", "auto"],
    )
    cpus_per_worker: float | None = _field(None, CLUSTER, "Cores of each worker; by default 1.")
    gpus_per_worker: float | None = _field(
        None, CLUSTER, "GPUs of each worker; by default 1 for networks if the cluster has any."
    )

    @property
    def processes(self) -> int | Literal["auto"] | None:
        """The argument `workers` of `uturn.run`."""
        if self.workers is None and self.cluster is None:
            return "auto"
        return self.workers

    def on_cluster(self) -> dict[str, Any]:
        """The arguments `cluster`, `cpus_per_worker` and `gpus_per_worker` of `uturn.run`."""
        from uturn.engine.run import check_without_cluster

        each = {"cpus_per_worker": self.cpus_per_worker, "gpus_per_worker": self.gpus_per_worker}
        if self.cluster is None:
            check_without_cluster(**each)
        return {"cluster": self.cluster, **each}


@dataclass(frozen=True)
class Running(Machines):
    """Options of a run into a store."""

    shard: str = _field(
        "1/1",
        RUN,
        "Run the I-th of N shares of the tasks; other GPUs or hosts can run the other shares into"
        " the same store.",
        metavar="I/N",
    )
    resume: bool = _field(
        True,
        RUN,
        "Continue or extend an existing store; --no-resume refuses it.",
        show_default=False,
    )
    accept_changes: bool = _field(False, RUN, _ACCEPT, "--accept-changes")

    def arguments(self) -> dict[str, Any]:
        """Arguments of `uturn.run`, which checks the two numbers of a share such as "2/8"."""
        number, slash, shares = self.shard.partition("/")
        is_share = slash and number.isdecimal() and shares.isdecimal()
        expect(is_share, "shard", self.shard, "i/n, such as 2/8")
        return {
            "resume": self.resume,
            "workers": self.processes,
            "accept_changes": self.accept_changes,
            "shard": (int(number), int(shares)),
            "progress": True,
            **self.on_cluster(),
        }


@dataclass(frozen=True)
class Place:
    """A place on a curve that is measured until its interval has a width."""

    until: float | None = _field(
        None,
        UNTIL,
        "Measure until the interval of the half-life of --reading is as narrow as this: a few"
        " originals on four levels, then originals at both ends of the interval. The command"
        " chooses the numbers of items and levels.",
        metavar="WIDTH",
    )
    reading: str | None = _field(
        None,
        UNTIL,
        "Name of a reading, as `uturn study` prints it, that goes from a start to chance. For `uturn"
        " images`, the default is same_class.",
        metavar="NAME",
    )
    share: float = _field(
        0.5,
        UNTIL,
        "Locate the noise at which the reading has gone this share of the way.",
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        searched = self.reading, self.share
        is_whole = self.until is not None or searched == (None, 0.5)
        if not is_whole:
            raise ValueError("--reading and --share: only used with --until WIDTH")

    def sought(self) -> dict[str, Any]:
        if self.reading is None:
            raise ValueError(
                "reading: missing; --until goes with a reading that falls from a start to chance:"
                " give --reading NAME, such as 'unchanged, tree_level = 3' or 'kept, span = 1' (the"
                " peak of chi is not located in this way)"
            )
        return {"reading": self.reading, "width": self.until, "share": self.share}


@dataclass(frozen=True)
class OfTable:
    """What a table of readings does not say itself."""

    columns: str | None = _field(
        None,
        TABLE,
        "Columns of a table that have other names than noise, item, trajectory and clone, such as"
        " noise=sigma,item=molecule.",
        metavar="NAME=COLUMN,..",
    )
    noise_unit: str | None = _field(
        None, TABLE, "Quantity and unit of the noise of a table, such as strength.", metavar="TEXT"
    )
    start: list[str] | None = _field(  # noqa: RUF009
        None,
        TABLE,
        "Value of a reading without changes. Can be given several times.",
        metavar="NAME=VALUE",
    )
    chance: list[str] | None = _field(  # noqa: RUF009
        None,
        TABLE,
        "Value of a reading for independent data; by default its value at the largest noise. Can be"
        " given several times.",
        metavar="NAME=VALUE",
    )
    coordinate: list[str] | None = _field(  # noqa: RUF009
        None,
        TABLE,
        "Column with labels of items or a further axis of noise (log_snr), not a reading. Can be"
        " given several times.",
        metavar="COLUMN",
    )

    def settings(self, places: list[str]) -> dict[str, Any]:
        """Arguments of `uturn.studies.readings.read_readings`; ValueError for options if none of
        the places is a table.
        """
        from uturn.studies.long_form import is_table

        columns = self.columns.split(",") if self.columns else None
        values = {
            "columns": _by_name("columns", columns, "noise=sigma"),
            "unit": self.noise_unit,
            "start": _by_name("start", self.start),
            "chance": _by_name("chance", self.chance),
            "coords": self.coordinate,
        }
        typed = {name: value for name, value in values.items() if value}
        expected = (
            "a table (.csv, .tsv, .parquet), for --columns, --noise-unit, --start, --chance and"
            " --coordinate"
        )
        expect(not typed or any(map(is_table, places)), "store", places[0], expected)
        return typed


def typed(**options: object) -> list[str]:
    """Options as arguments of a command. Options that are None, False or empty are left out, and
    True gives a flag.
    """
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
            continue
        for entry in value if isinstance(value, list) else [value]:
            words += [flag, f"{entry:g}" if isinstance(entry, float) else str(entry)]
    return words


def _by_name(
    option: str, pairs: list[str] | None, example: str = "rmsd=0"
) -> dict[str, float | str]:
    """The values of NAME=VALUE by name: numbers, or names of coordinates."""
    from uturn.core.csv_text import number_in

    values: dict[str, float | str] = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        expect(name and value, option, pair, f"NAME=VALUE, such as {example}")
        values[name] = number_in(value)
    return values


def option_of(
    study: type[PresetOptions], name: str, panel: str | None = None, **settings: Any
) -> OptionInfo:
    """The command-line option for a field, with the description of the field."""
    field = study.model_fields[name]
    flag = study.flags.get(name, f"--{name.replace('_', '-')}")
    text = (field.description or "").removesuffix(".")
    defaults: dict[str, Any] = {"show_default": True, "show_choices": False}
    if field.default is True:
        text += f"; --no-{flag[2:]} turns this off"
        defaults["show_default"] = False
    text += "."
    if field.annotation == list[str]:
        text += " Can be given several times."
        defaults["metavar"] = "<str>"
    if field.examples:
        defaults["autocompletion"] = lambda: field.examples
    if bool in (field.annotation, *get_args(field.annotation)):
        flag = f"{flag}/--no-{flag[2:]}"
    made: OptionInfo = typer.Option(
        flag, help=text, rich_help_panel=panel, **{**defaults, **settings}
    )
    return made


Group = type[Machines] | type[Place] | type[OfTable] | type[PresetOptions]
"""A class whose fields are options."""


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of its parameters of type `Machines`, `Place`,
    `OfTable` or `PresetOptions`.
    """
    groups: dict[str, Group] = {}
    options: dict[str, list[inspect.Parameter]] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if _is_group(parameter.annotation):
            groups[name] = parameter.annotation
            options[name] = _options(parameter.annotation)
        else:
            options[name] = [parameter]

    def command(context: typer.Context, **values: Any) -> None:
        for name, group in groups.items():
            given = {option.name: values.pop(option.name) for option in options[name]}
            values[name] = _made(group, given, context)
        function(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for options_of_parameter in options.values():
        parameters += [option.replace(kind=keyword) for option in options_of_parameter]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    return command


def _is_group(annotation: object) -> bool:
    groups = Machines | Place | OfTable | PresetOptions
    return inspect.isclass(annotation) and issubclass(annotation, groups)


def _made(group: Group, given: dict[str, Any], context: typer.Context) -> object:
    """An instance of a group; a preset gets only the options that were typed."""
    if not issubclass(group, PresetOptions):
        return group(**given)
    typed = {}
    for name, value in given.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            typed[name] = value
    return group.from_dict(typed)


def _options(group: Group) -> list[inspect.Parameter]:
    if issubclass(group, PresetOptions):
        return _options_of_preset(group)
    kinds = get_type_hints(group)
    options = []
    for entry in fields(group):
        option = entry.metadata["option"]
        options.append(_parameter(entry.name, entry.default, Annotated[kinds[entry.name], option]))
    return options


def _options_of_preset(preset: type[PresetOptions]) -> list[inspect.Parameter]:
    options = []
    for panel, names in preset.panels.items():
        for name in names:
            field = preset.model_fields[name]
            option = option_of(preset, name, panel)
            kind: Any = field.annotation
            default = field.default
            if _is_text(field.annotation):
                kind = str
                if default is not None:
                    entries = default if isinstance(default, list) else [default]
                    default = ",".join(map(str, entries))
            options.append(_parameter(name, default, Annotated[kind, option]))
    return options


def _is_text(annotation: object) -> bool:
    """Whether a field has several types, and is passed as text, which the preset parses."""
    types = set(get_args(annotation)) - {NoneType}
    has_names = all(isinstance(choice, str) for choice in types)
    return len(types) > 1 and not has_names


def _parameter(name: str, default: object, annotation: object) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=annotation)
