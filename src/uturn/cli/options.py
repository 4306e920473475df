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
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from uturn.core.checks import expect
from uturn.presets.options import PresetOptions

OUTPUT, RUN, CLUSTER = "Output", "Run", "On a Ray cluster"  # panels of the help
SWEEP, UNTIL, TABLE = "Several experiments", "Until a place is known", "Tables of readings"


def option(panel: str, text: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **settings)


def _field(default: Any, panel: str, text: str, *flags: str, **settings: Any) -> Any:
    return field(default=default, metadata={"option": option(panel, text, *flags, **settings)})


Spec = Annotated[
    Path, typer.Argument(metavar="SPEC", help="TOML or JSON file that describes the experiment.")
]
_folder = option(OUTPUT, "Folder of the results, or URL of object storage.", metavar="FOLDER")
Out = Annotated[str, _folder]
OptionalOut = Annotated[str | None, _folder]
Plot = Annotated[
    Path | None, option(OUTPUT, "Draw the figure to this file (PNG, PDF, SVG, ..).", metavar="FILE")
]
_accept = RUN, "Continue although the code of one of your parts has changed.", "--accept-changes"
AcceptChanges = Annotated[bool, option(*_accept)]


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
        each = self.cpus_per_worker, self.gpus_per_worker
        expect(
            self.cluster is not None or each == (None, None),
            "cpus_per_worker, gpus_per_worker",
            each,
            "none without cluster",
        )
        return {
            name: getattr(self, name) for name in ("cluster", "cpus_per_worker", "gpus_per_worker")
        }


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
    accept_changes: bool = _field(False, *_accept)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `uturn.run`, which checks the two numbers of a share such as "2/8"."""
        number, slash, shares = self.shard.partition("/")
        expect(
            slash and number.isdecimal() and shares.isdecimal(),
            "shard",
            self.shard,
            "i/n, such as 2/8",
        )
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
        "A reading as `uturn study` names it, which goes from a start to chance (uturn images: by"
        " default same_class).",
        metavar="NAME",
    )
    share: float = _field(
        0.5,
        UNTIL,
        "Locate where this share of the way from start to chance is gone.",
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        searched = self.reading, self.share
        is_whole = self.until is not None or searched == (None, 0.5)
        expect(is_whole, "reading, share", searched, "--until WIDTH beside them")

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
        None, TABLE, "What the noise of a table is, such as strength.", metavar="TEXT"
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
        "Value of a reading for independent data; by default that at the largest noise. Can be"
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

        values = {
            "columns": _by_name(
                "columns", self.columns.split(",") if self.columns else None, "noise=sigma"
            ),
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


def typed(**options: Any) -> list[str]:
    """Options as arguments of a command, without those that are None, False or empty; those that
    are True are flags.
    """
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            for text in value if isinstance(value, list) else [] if value is None else [value]:
                words += [flag, f"{text:g}" if isinstance(text, float) else str(text)]
    return words


def _by_name(
    option: str, pairs: list[str] | None, example: str = "rmsd=0"
) -> dict[str, float | str]:
    """The values of NAME=VALUE by name: numbers, or names of coordinates."""
    from uturn.studies.tables import number_in

    values: dict[str, float | str] = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        expect(name and value, option, pair, f"NAME=VALUE, such as {example}")
        values[name] = number_in(value)
    return values


def option_of(
    study: type[PresetOptions], name: str, panel: str | None = None, **settings: Any
) -> Any:
    """The command-line option for a field, with the description of the field."""
    field = study.model_fields[name]
    flag = study.flags.get(name, f"--{name.replace('_', '-')}")
    is_list = field.annotation == list[str]
    negative = f"; --no-{flag[2:]} turns this off" if field.default is True else ""
    settings = {
        "show_default": not negative,
        "show_choices": False,
        "metavar": "<str>" if is_list else None,
        **settings,
    }
    if field.examples:
        settings["autocompletion"] = lambda: field.examples
    flag = (
        f"{flag}/--no-{flag[2:]}"
        if bool in (field.annotation, *get_args(field.annotation))
        else flag
    )
    text = f"{(field.description or '').removesuffix('.')}{negative}.{' Can be given several times.' if is_list else ''}"
    return typer.Option(flag, help=text, rich_help_panel=panel, **settings)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of its parameters of type `Machines`, `Place`,
    `OfTable` or `PresetOptions`.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    groups = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if inspect.isclass(parameter.annotation)
        and issubclass(parameter.annotation, Machines | Place | OfTable | PresetOptions)
    }
    options = {
        name: _options(groups[name]) if name in groups else [parameter]
        for name, parameter in parameters.items()
    }

    def command(context: typer.Context, **values: Any) -> None:
        for name, group in groups.items():
            given = {option.name: values.pop(option.name) for option in options[name]}
            if issubclass(group, PresetOptions):
                sources = {
                    name: getattr(context.get_parameter_source(name), "name", "") for name in given
                }
                values[name] = group.from_dict(
                    {name: given[name] for name in given if sources[name] == "COMMANDLINE"}
                )
            else:
                values[name] = group(**given)
        function(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    flat = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for group in options.values()
        for option in group
    ]
    command.__signature__ = inspect.Signature([context, *flat])  # type: ignore[attr-defined]
    command.__annotations__, command.__name__, command.__doc__ = (
        {},
        function.__name__,
        function.__doc__,
    )
    return command


def _options(group: Any) -> list[inspect.Parameter]:
    keyword, options = inspect.Parameter.KEYWORD_ONLY, []
    if not issubclass(group, PresetOptions):
        kinds = get_type_hints(group)
        of_fields = [(of, Annotated[kinds[of.name], of.metadata["option"]]) for of in fields(group)]
        return [
            inspect.Parameter(of.name, keyword, default=of.default, annotation=kind)
            for of, kind in of_fields
        ]
    for panel, names in group.panels.items():
        for name in names:
            field, option = group.model_fields[name], option_of(group, name, panel)
            types = set(get_args(field.annotation)) - {NoneType}
            # Fields of several types are passed as text, which the preset parses.
            mixed = len(types) > 1 and not all(isinstance(choice, str) for choice in types)
            kind, default = (str, field.default) if mixed else (field.annotation, field.default)
            if mixed and default is not None:
                default = ",".join(map(str, default if isinstance(default, list) else [default]))
            options.append(
                inspect.Parameter(
                    name, keyword, default=default, annotation=Annotated[kind, option]
                )
            )
    return options
