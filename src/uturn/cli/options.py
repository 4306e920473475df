"""Options that several commands share, and options made from the fields of a study.

A command takes them as one parameter: `running: Running`, `chosen: ImageOptions`. `expanded` gives it an option for each field.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from uturn.cli.completion import completing
from uturn.cli.presets.options import PresetOptions

OUTPUT, RUN, CLUSTER = "Output", "Run", "On a Ray cluster"  # panels of the help
_METAVARS: Mapping[type, str] = {int: "N", float: "X", str: "NAME"}
_OTHER_METAVARS = {
    **dict.fromkeys(("classes", "labels", "perceptual_linear", "regions"), "FILE"),
    **dict.fromkeys(("class_prompts", "prompt"), "TEXT"),
    **{"levels": "N|LIST", "segments": "TOKEN"},
}

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="Description of the experiment, TOML or JSON.")]
Out = Annotated[
    str,
    typer.Option(
        metavar="FOLDER", help="Folder, or URL of object storage, for the run, numbers and figures.", rich_help_panel=OUTPUT
    ),
]
Finished = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="STORE",
        help="Study this finished store, or that of a folder of results, and measure nothing.",
        rich_help_panel=OUTPUT,
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw to this file (PNG, PDF, SVG, ..).", rich_help_panel=OUTPUT)]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Number of processes; the results do not depend on it.",
        show_default="by task",
        rich_help_panel=RUN,
    ),
]
Shard = Annotated[
    str,
    typer.Option(
        metavar="I/N",
        help="Run the I-th of N shares; other GPUs or hosts run the others, into the same store.",
        rich_help_panel=RUN,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(help="Continue a store of the same experiment, or of a smaller one, that is there.", rich_help_panel=RUN),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Continue although the code of a part of your own has changed.", rich_help_panel=RUN),
]
_File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="TOML file of the options above, such as items = 50; the command line takes precedence.",
        rich_help_panel=RUN,
    ),
]
_Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Measure on a Ray cluster: local (start Ray on this machine), auto (the one that runs here), or its address, "
        "ray://host:port or host:port. Needs uturn[cluster].",
        rich_help_panel=CLUSTER,
        autocompletion=completing("cluster"),
    ),
]
_Cpus = Annotated[float | None, typer.Option(metavar="X", help="Cores of a worker.", show_default="1", rich_help_panel=CLUSTER)]
_Gpus = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="GPUs of a worker.", show_default="1 for networks where there are some", rich_help_panel=CLUSTER
    ),
]


@dataclass(frozen=True)
class Machines:
    """Where experiments are measured."""

    workers: Workers = None
    cluster: _Address = None
    cpus_per_worker: _Cpus = None
    gpus_per_worker: _Gpus = None

    def on_cluster(self) -> dict[str, Any]:
        """Arguments of `uturn.run` for a cluster."""
        if self.cluster is None and (self.cpus_per_worker, self.gpus_per_worker) != (None, None):
            raise ValueError("--cpus-per-worker and --gpus-per-worker need --cluster")
        return {name: getattr(self, name) for name in ("cluster", "cpus_per_worker", "gpus_per_worker")}


@dataclass(frozen=True)
class Running(Machines):
    """How an experiment is run into a store."""

    shard: Shard = "1/1"
    resume: Resume = True
    accept_changes: AcceptChanges = False

    def share(self) -> tuple[int, int]:
        """ "2/8" as numbers; `uturn.run` checks them."""
        number, slash, shares = self.shard.partition("/")
        if not (slash and number.isdecimal() and shares.isdecimal()):
            raise ValueError(f"shard = {self.shard!r}: expected i/n, such as 2/8")
        return int(number), int(shares)


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of the parameters that are `Machines`, `Running` or options of a study."""
    given = inspect.signature(function, eval_str=True).parameters.values()
    parts = {one.name: one.annotation for one in given if is_dataclass(one.annotation) or _is_study(one.annotation)}
    options = {one.name: _options(parts[one.name]) if one.name in parts else [one] for one in given}

    def command(context: typer.Context, **values: Any) -> None:
        if values.get("finished") is not None:
            _check_unused(context)
        for name, part in parts.items():
            found = {option.name: values.pop(option.name) for option in options[name]}
            values[name] = _study(part, context, found) if _is_study(part) else part(**found)
        function(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for group in options.values() for one in group]
    command.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    command.__annotations__, command.__name__, command.__doc__ = {}, function.__name__, function.__doc__
    return command


def _is_study(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, PresetOptions)


def _options(part: Any) -> list[inspect.Parameter]:
    """The fields of a part as parameters of a command."""
    if _is_study(part):
        named = [(name, panel) for panel, names in part.panels.items() for name in names]
        file = inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_File)
        return [*(_option(name, part.model_fields[name], panel, part.flags.get(name)) for name, panel in named), file]
    kinds = get_type_hints(part, include_extras=True)
    return [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=kinds[one.name])
        for one in fields(part)
    ]


def _option(name: str, field: FieldInfo, panel: str, flag: str | None) -> inspect.Parameter:
    """A field of a study as an option with its type, default and description; fields of several types are given as text."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    is_one = len(kinds) == 1 and get_origin(kinds[0]) is not Literal
    kind, default = (field.annotation, field.default) if is_one else (str, field.default and str(field.default))
    flag = flag or f"--{name.replace('_', '-')}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kinds == [bool] else flag,
        metavar=None if kinds == [bool] else _OTHER_METAVARS.get(name) or _METAVARS.get(kinds[0], "NAME"),
        help=f"{field.description}{' Can be given several times.' if default == [] else ''}",
        rich_help_panel=panel,
        autocompletion=None if kinds == [bool] else completing(name, field.default),
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _check_unused(context: typer.Context) -> None:
    """ValueError if options are given that a study of a finished run does not read."""
    given = [one for one in context.command.params if _is_given(context, str(one.name))]
    unused = ["/".join([*one.opts, *one.secondary_opts]) for one in given if one.name not in ("out", "finished", "save_images")]
    if unused:
        raise ValueError(f"{', '.join(unused)}: no effect with --run, which measures nothing; leave out one or the other")


def _is_given(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _study(kind: type[PresetOptions], context: typer.Context, values: dict[str, Any]) -> PresetOptions:
    """Options of a study from a file, and from what stands on the command line."""
    file = values.pop("options")
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    return kind.from_dict(({} if file is None else kind.from_file(file).model_dump(exclude_unset=True)) | given)
