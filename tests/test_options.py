"""Every option of every command does something: given a value that is not its default, what the
command computes differs.

Commands run as a user types them, up to the functions that would load models, measure, or draw:
these only record what they are asked for. An experiment is recorded as its description.
"""

import contextlib
import inspect
import json
import os
import types
import typing
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
import xarray as xr
from pydantic import BaseModel
from typer.testing import CliRunner

import uturn as ut
import uturn.paper.figures  # not first inside a patch, whose functions it would keep
from command_line import SPEC
from uturn.cli import app
from uturn.core.protocols import Variable
from uturn.measures.report import Line, Verdict
from uturn.presets.options import PresetOptions
from uturn.studies.locate import Forecast
from uturn.studies.tables import for_terminal as terminal

COMMANDS = typer.main.get_command(app).commands
SIGNATURES = {
    (command.name or command.callback.__name__.replace("_", "-")): inspect.signature(
        command.callback
    )
    for command in app.registered_commands
}
ATLAS = '[[models]]\nname = "one"\n[[models]]\nname = "two"\nsteps = 50\n'

BASE = {  # arguments that a command needs
    "images": ["--out", "out"],
    "text": ["--out", "out"],
    "audit": ["--out", "out"],
    "chains": ["--out", "out"],
    "inverse": ["--out", "out"],
    "atlas": ["atlas.toml", "--out", "out"],
    "run": ["spec.toml", "--store", "store"],
    "check": ["spec.toml"],
    "plan": ["spec.toml"],
    "status": ["store"],
    "export": ["store", "one.nc"],
    "study": ["one.zarr", "two.zarr"],
    "report": ["one.zarr"],
    "choose": ["one.zarr", "--keep", "same=.9"],
    "schedule": ["fashion_mnist"],
}
ON_CLUSTER = ["--cluster", "local"]
OF_FOLDER = ["--data", "photos", "--classifier", "timm:one"]
LOCATED = ["--until", "0.1", "--reading", "same"]
WITH = {  # further arguments of the command, with which an option can be given
    "cpus_per_worker": ON_CLUSTER,
    "gpus_per_worker": ON_CLUSTER,
    "share": LOCATED,
    "reading": ["--until", "0.1", "--reading", "other"],
    "pairs": ["--set", "seed=1,2"],
    "beta": ["--energy", "class label=3"],
    "size": OF_FOLDER,
    "channels": OF_FOLDER,
    "classes": OF_FOLDER,
    "labels": ["--data", "photos.npy", "--classifier", "timm:one"],
    "unit": ["--recorded", "{noise}/{item}.png", *OF_FOLDER],
    "schedule": ["--recorded", "{noise}/{item}.png", *OF_FOLDER],
    "until": LOCATED,
    ("images", "recorded"): OF_FOLDER,
    ("images", "data"): ["--classifier", "timm:one"],
    "weights": ["--classifier", "timm:one"],
    "layers": ["--classifier", "timm:one"],
    "class_prompts": ["--classifier", "clip:folder"],
    "perceptual_linear": ["--perceptual", "timm:one"],
    "classifier_tokenizer": ["--classifier", "folder"],
    "classifier_split": ["--classifier", "folder"],
    ("text", "layers"): [],
    ("schedule", "size"): [],
    ("check-sampler", "labels"): ["--data", "photos.npy"],
}
WITH |= {("check-sampler", name): ["--data", "photos"] for name in ("size", "channels", "classes")}
WITH |= {
    ("study", name): ["table.csv"]
    for name in ("columns", "noise_unit", "start", "chance", "coordinate")
}
INSTEAD = {  # arguments in place of those of `BASE`
    ("run", "store"): ["spec.toml", "--out", "out"],
    ("study", "save_images"): ["one.zarr", "--out", "out"],
}
INSTEAD |= {
    ("choose", name): ["table.csv", "--keep", "same=.9"]
    for name in ("columns", "noise_unit", "start", "chance", "coordinate")
}
INSTEAD |= {
    ("inverse", name): ["--out", "out", "--sampler", "own:one"] for name in ("batch", "samplers")
}
# All words, both times.
PAIRS = {("choose", "keep"): (["one.zarr", "--keep", "same=.9"], ["one.zarr", "--keep", "same=.8"])}
# Options of a group that a command lacks.
REFUSED = {("audit", "shard"): "an audit compares finished runs; leave out --shard"}
VALUES = {  # values of texts, which cannot be derived from their type
    "out": "other",
    "store": "other",
    "spec": "other.toml",
    "stores": "three.zarr",
    "folders": "two.zarr",
    "results": "two.zarr",
    "file": "other-atlas.toml",
    "models": "other",
    "figures": "fig7",
    "plot": "map.png",
    "csv": "table.csv",
    "json_file": "tests.json",
    "csv_file": "check.csv",
    "cluster": "local",
    "shard": "1/2",
    "changed": "seed=1,2",
    "reading": "same",
    "centre": "median",
    "columns": "noise=sigma",
    "noise_unit": "degrees",
    "start": "same=1",
    "chance": "same=0",
    "coordinate": "label",
    "by": "label",
    ("choose", "keep"): "same=.8",
    "lose": "other=.5",
    "only": "two",
    "noise": "0.25,0.75",
    "energy": "class label=3",
    "images": "items=7",
    "text": "items=7",
    "operator": "blur",
    "samplers": "own:another",
    "model": "folder",
    "preset": "64x64_diffusion",
    "prompt": "a cat",
    "scheduler": "ddim",
    "timestep_spacing": "trailing",
    "data": "generated",
    ("text", "data"): "texts.txt",
    ("audit", "data"): "texts.txt",
    "classes": "classes.txt",
    "labels": "labels.npy",
    "recorded": "{noise}/{item}.png",
    "unit": "strength",
    "schedule": "fashion_mnist",
    "classifiers": "timm:another",
    "weights": "weights.pt",
    "layers": "same",
    "class_prompts": "a photo of {}",
    "perceptual": "timm:another",
    "perceptual_linear": "linear.pth",
    "levels": "0.5,1.0",
    "device": "cpu",
    "batch_size": "7",
    "tokenizer": "folder",
    "split": "smiles",
    "model_type": "bert",
    "segments": ".",
    "encoder": "folder",
    "likelihood": "folder",
    "classifier": "folder",
    "classifier_tokenizer": "folder",
    "classifier_split": "smiles",
    "sampler": "ddim",
    "step": "own:step",
}


def kind_of(name, parameter):
    """The type of a parameter without None, and of a list that of its elements."""
    annotation = SIGNATURES[name].parameters[parameter.name].annotation
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = {*typing.get_args(annotation)} - {types.NoneType}
    return annotation


def typed(name, parameter):
    """The parameter as words of the command line, with a value that is not its default."""
    kind = kind_of(name, parameter)
    is_option = parameter.param_type_name == "option"
    if kind is bool:
        flags = parameter.secondary_opts if parameter.default is True else parameter.opts
        assert flags, f"{name}: {parameter.name} cannot be turned off"
        return [flags[0]]
    value = VALUES.get((name, parameter.name), VALUES.get(parameter.name))
    if value is None:
        value = derived(kind, parameter.default)
    assert value is not None, (
        f"{name}: give a value for {parameter.name!r} in VALUES, which differs from"
        f" {parameter.default!r}"
    )
    return [parameter.opts[0], str(value)] if is_option else [str(value)]


def derived(kind, default):
    """Another value than the default, for numbers and for a choice of several; None if the type
    does not say one.
    """
    if kind is int:
        return 16 if default is None else default + 1
    if kind is float:
        return 0.25 if default in (None, 0.0) else default / 2
    choices = (
        [choice.value for choice in kind]
        if inspect.isclass(kind) and issubclass(kind, Enum)
        else typing.get_args(kind)
    )
    default = default.value if isinstance(default, Enum) else default
    is_choice = typing.get_origin(kind) is not list and choices
    return next(choice for choice in choices if choice != default) if is_choice else None


PARAMETERS = [
    (name, parameter) for name, command in COMMANDS.items() for parameter in command.params
]


# -- functions that record -------------------------------------------------------------------------


class Described:
    """An experiment that is described, and not built."""

    noise: typing.ClassVar = [0.0, 1.0]
    items = 4
    chunk = 16
    hash = "0" * 64

    def __init__(self, spec):
        self.spec = {"seed": 0, "trajectories": 1, "clones": 1, "chunk": 16} | json.loads(
            json.dumps(spec)
        )
        self.parts = SimpleNamespace(
            source=Part(self.spec["source"]), corruption=Part(spec["corruption"])
        )
        self.parts.backward = Part(self.spec["backward"])
        self.probes = [
            SimpleNamespace(probe_name=table["type"], reads_noisy=False)
            for table in self.spec.get("probes", [])
        ]

    def to_dict(self):
        return json.loads(json.dumps(self.spec))

    def variables(self):
        return {"same": Variable((), "kept", start=1.0)}


class Part(dict):
    """A part that is described, and not built."""

    parts = property(lambda self: self)
    files = SimpleNamespace(levels=[0.25, 0.5], trajectories=[0, 1], clones=[0])

    def count(self):
        return 100

    def language(self):
        return SimpleNamespace(corruption="masking")

    def describe(self):
        return "described"

    def coordinates(self, *_):
        return {}

    def blocks(self, items, seed, _):
        return [SimpleNamespace(items=items, data=np.zeros((len(items), 1)))]


def plain(value):
    """What is recorded of an argument, as plain data."""
    if isinstance(value, Described):
        return value.spec
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not inspect.isclass(value):
        return plain(asdict(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, BaseModel):
        return value.model_dump()
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


PARTS = {key: {} for key in ("source", "corruption", "backward")}
RUN = xr.Dataset(
    attrs={"complete": True, "missing_tasks": 0, "variables": [], "spec": "{}", "description": ""}
)
LOCATED_RUNS = SimpleNamespace(lines=list, runs={}, numbers=dict, reached=True)
SCHEDULE = xr.Dataset({"abar": ("k", [1.0])}, attrs={"model": "one"})


class Ended(Exception):
    """The command has called the last function whose arguments count."""


class Recorder:
    """Replaces functions by their path, and records the arguments of the calls."""

    def __init__(self, patch):
        self.calls = []
        self.patch = patch

    def recorded(self, path, returns=None, ends=False):
        def called(*arguments, **options):
            self.calls.append((path, plain(arguments), plain(options)))
            if ends:
                raise Ended
            return returns

        self.patch.setattr(path, called)

    def silenced(self, *paths, returns=None):
        for path in paths:
            self.patch.setattr(path, lambda *_, **__: returns)


@contextlib.contextmanager
def recording():
    """The package with functions that record in place of those that take time; gives the list of
    calls.
    """
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        recorded, silenced = recorder.recorded, recorder.silenced
        patch.setattr(ut.Experiment, "from_dict", classmethod(lambda _, spec: Described(spec)))
        patch.setattr("uturn.core.registry.build", lambda _, table: Part(table))
        # Experiments and runs
        recorded("uturn.run", RUN)
        recorded("uturn.locate", LOCATED_RUNS)
        recorded("uturn.sweep", {"one": Described(PARTS)})
        recorded("uturn.engine.sweep.run_all", {"one": RUN})
        recorded("uturn.engine.trial.check", [])
        recorded("uturn.studies.locate.forecast", Forecast("", {"at both ends": Described(PARTS)}))
        recorded("uturn.store.outputs.export_run")
        recorded("uturn.store.run_folder.RunFolder.open", ends=True)
        patch.setattr("uturn.engine.plan.plan", plan_of(recorder))
        # Results
        for name in ("write_study", "write_page"):
            recorded(f"uturn.pages.{name}", RUN)
        recorded("uturn.pages.report", ("page", []))
        recorded("uturn.cli.pages.opened", RUN)
        recorded("uturn.tools.choose.command.opened", RUN)
        recorded("uturn.studies.choose", SimpleNamespace(noise=0.5))
        patch.setattr("uturn.studies.named_runs", lambda runs: runs)
        for name in ("study", "with_theory", "difference"):
            recorded(f"uturn.studies.{name}", RUN)
        silenced(
            "uturn.studies.summary",
            "uturn.studies.paired.remarks_of",
            "uturn.pages.results.written",
            returns=[],
        )
        silenced("uturn.studies.paired.table_of", returns="")
        patch.setattr(
            "uturn.studies.tables.for_terminal",
            lambda table: table if isinstance(table, str) else terminal(table),
        )
        # Figures, the laboratory and models
        recorded("uturn.paper.reproduce", [])
        recorded("uturn.pages.laboratory.write_laboratory", Path("page.html"))
        recorded("webbrowser.open", True)
        recorded("uturn.cli.models.draw_to")
        recorded("uturn.networks.images.schedules.schedule", SCHEDULE)
        recorded("uturn.cli.models.whole_file", contextlib.nullcontext(SimpleNamespace(write=len)))
        silenced("uturn.cli.models._levels", returns="")
        # Tools
        recorded("uturn.tools.atlas.rows.measure_atlas", ends=True)
        silenced(
            "uturn.tools.audit.decoders.audited_decoders",
            "uturn.tools.audit.decoders.with_likelihood",
            returns=[],
        )
        recorded("uturn.tools.audit.measure.write_study", RUN)
        silenced(
            "uturn.tools.audit.measure.study_of_run", "uturn.tools.audit.measure.audit_numbers"
        )
        recorded("uturn.tools.audit.measure.audit_report", ends=True)
        recorded("uturn.tools.chains.results.write_chains", ends=True)
        silenced("uturn.tools.inverse.judge.calls_of", returns={})
        recorded("uturn.tools.inverse.judge.write_study", ends=True)
        recorded("uturn.pages.results.write_study", ends=True)
        check = "uturn.tools.check_sampler.check"
        samplers = "uturn.tools.check_sampler.samplers"
        recorded(f"{check}.compared_lines", [])
        recorded(f"{samplers}.import_function", returns=len)
        recorded(f"{samplers}.RecordedSampler.u_turns")
        recorded(f"{samplers}.SteppingSampler.u_turns")
        recorded(f"{samplers}.Setting.u_turns")
        silenced(f"{samplers}.FunctionSampler.u_turns")
        patch.setattr(f"{samplers}.DiffusionModel", Part)
        patch.setattr(f"{samplers}.OwnSteps", OwnPart)
        line = Line("denoiser", Verdict.PASSES)
        silenced(f"{check}.denoiser_line", f"{check}.calibration_line", returns=line)
        patch.setattr(f"{check}.step_line", step_line_of(recorder, line))
        recorded("uturn.measures.report.write_json")
        recorded("uturn.measures.report.Report.to_csv")
        yield recorder.calls


def plan_of(recorder):
    """`plan`, recorded unless it is asked for by a command that tells its cost before a run."""

    def plan(experiment, store=None, **options):
        if "least" in options:
            return None
        recorder.calls.append(("plan", plain(experiment), plain(store), plain(options)))
        return SimpleNamespace(lines=list, done=0, tasks=1)

    return plan


def step_line_of(recorder, line):
    """The test of single steps: records what is compared, and measures nothing."""

    def step_line(setting, sampler, level):
        steps = sampler.steps and (plain(sampler.steps.backward), plain(sampler.steps.forward))
        items = len(setting.originals.items)
        recorder.calls.append(("step_line", setting.own.spec, sampler.name, steps, items, level))
        return line

    return step_line


class OwnPart(Part):
    """Steps of a user's function."""

    name = "own"

    def __init__(self, *_):
        super().__init__(type="own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that arguments name."""
    place = tmp_path_factory.mktemp("options")
    (place / "spec.toml").write_text(SPEC)
    (place / "other.toml").write_text(SPEC.replace("items = 4", "items = 5"))
    (place / "atlas.toml").write_text(ATLAS)
    (place / "other-atlas.toml").write_text(ATLAS.replace("50", "60"))
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@cache
def computed(name, arguments):
    """What a command asks of the package; if nothing, what it prints, without the last line,
    which repeats its arguments.
    """
    with recording() as calls:
        done = CliRunner().invoke(app, [name, *arguments])
    if not isinstance(done.exception, None | Ended):
        pytest.fail(f"uturn {name} {' '.join(arguments)}: {done.exception!r} {done.output}")
    return calls or [line for line in done.output.splitlines() if not line.startswith("next: ")]


def arguments_of(name, parameter):
    """The words of a command without the parameter, and with it."""
    key = (name, parameter.name)
    if key in PAIRS:
        return PAIRS[key]
    base = INSTEAD.get(key, BASE.get(name, []))
    base = [*base, *WITH.get(key, WITH.get(parameter.name, []))]
    words = typed(name, parameter)
    replaces_first = (
        parameter.param_type_name == "argument"
        and not parameter.multiple
        and base
        and base[0] != "--out"
    )
    if replaces_first:
        return base, [*words, *base[1:]]
    return base, [*base, *words]


def test_values_are_those_of_parameters_that_exist():
    names = {(name, parameter.name) for name, parameter in PARAMETERS}
    for key in (*VALUES, *WITH, *INSTEAD, *PAIRS, *REFUSED):
        assert key in names or key in {parameter for _, parameter in names}, key


@pytest.mark.parametrize(
    ("name", "parameter"), PARAMETERS, ids=[f"{name}-{of.name}" for name, of in PARAMETERS]
)
def test_a_value_that_is_not_the_default_changes_what_is_computed(folder, name, parameter):
    without, given = arguments_of(name, parameter)
    if (name, parameter.name) in REFUSED:
        refused = CliRunner().invoke(app, [name, *given]).exception
        assert isinstance(refused, ValueError)
        assert REFUSED[name, parameter.name] in str(refused)
        return
    assert computed(name, tuple(given)) != computed(name, tuple(without)), (
        f"uturn {name} {' '.join(given)}"
    )


def test_a_text_has_no_derived_value():
    """An option that takes a text, or a list of texts, needs a value in `VALUES`."""
    assert derived(str, None) is derived(list[str], None) is None
    assert [derived(int, None), derived(float, 0.5), derived(typing.Literal["a", "b"], "a")] == [
        16,
        0.25,
        "b",
    ]


@pytest.mark.parametrize("name", ["images", "text", "audit", "chains", "inverse", "atlas"])
def test_without_options_a_command_names_the_folder_of_its_results(folder, name):
    """In the first line that it prints; the runs are in this folder."""
    arguments = ["atlas.toml"] if name == "atlas" else []
    with recording() as calls:
        done = CliRunner().invoke(app, [name, *arguments])
    assert isinstance(done.exception, None | Ended), done.output
    assert done.output.splitlines()[0] == f"results: results/{name}"
    assert f"results/{name}" in json.dumps(calls)
    given = CliRunner().invoke(app, [name, *arguments, "--out", "spec.toml"])  # a file
    assert isinstance(given.exception, ValueError)
    assert "results/" not in given.output


def test_the_test_sees_an_option_that_is_dropped(folder, monkeypatch):
    whole = computed.__wrapped__("images", ("--out", "out", "--perceptual", "timm:one"))
    build = PresetOptions.from_dict.__func__
    monkeypatch.setattr(
        PresetOptions,
        "from_dict",
        classmethod(lambda kind, given: build(kind, {**given, "perceptual": None})),
    )
    assert computed.__wrapped__("images", ("--out", "out", "--perceptual", "timm:one")) == computed(
        "images", ("--out", "out")
    )
    assert whole != computed("images", ("--out", "out"))


def test_the_cores_and_gpus_of_a_worker_reach_the_cluster(monkeypatch, tmp_path):
    """`cpus_per_worker` and `gpus_per_worker` of `uturn.run`: what the workers are started with."""
    node = {"Alive": True, "Resources": {"CPU": 4, "GPU": 2}}
    ray = SimpleNamespace(
        nodes=lambda: [node],
        cloudpickle=SimpleNamespace(dumps=lambda _: b""),
        exceptions=SimpleNamespace(RayError=OSError),
    )
    asked = []

    def states(ray, work, needs, *_):
        asked.append(needs)
        raise Ended

    monkeypatch.setattr("uturn.engine.cluster.connected", lambda _: contextlib.nullcontext(ray))
    monkeypatch.setattr("uturn.engine.cluster._Fleet", states)
    (tmp_path / "spec.toml").write_text(SPEC)
    experiment = ut.Experiment.from_file(tmp_path / "spec.toml")
    with pytest.raises(Ended):
        ut.run(
            experiment,
            tmp_path / "store",
            cluster="local",
            cpus_per_worker=2.0,
            gpus_per_worker=0.5,
        )
    assert asked == [{"CPU": 2.0, "GPU": 0.5}]
