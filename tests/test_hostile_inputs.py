"""Inputs that nobody should give: each is refused at once, in one line that names it and says
what to do.
"""

import ast
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import matplotlib.pyplot as plt
import numcodecs.abc
import numcodecs.registry
import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image
from rich.table import Table

import uturn as ut
from command_line import SPEC as TOML
from command_line import handlers_kept
from forging import forge, leaves, replaced
from small import one_line_error, strings
from tiny_texts import write_bert
from uturn import paper
from uturn.backward import DiffusionModel
from uturn.cli import main
from uturn.cli.printing import show
from uturn.core.files import read_array, read_table, whole_folder
from uturn.core.messages import visible
from uturn.core.registry import build
from uturn.core.tools import own_tools
from uturn.exact.theory import MeanField
from uturn.networks.files import load_network
from uturn.networks.images.clip import class_texts
from uturn.networks.images.options import read_prompts
from uturn.networks.texts.tokenizers import load_tokenizer
from uturn.pages import report
from uturn.pages.page import collect
from uturn.pages.pictures import grid
from uturn.presets import TextOptions
from uturn.sources.fashion_mnist import generator_folder
from uturn.sources.images import ArraySource, listed
from uturn.sources.tokens import _rows
from uturn.store.outputs import write_dataset
from uturn.store.reading import open_run
from uturn.studies import records_of
from uturn.studies.records import _MOST_TOKENS

RHM = ut.RandomHierarchyModel(4, 2, 2, 3, seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MeanField(32, 8, 2).class_crossing(10**8),
            "depth = 100000000: expected at most 10000 levels; .*critical_noise",
        ),
        (
            lambda: MeanField(32, 8, 2).curves(np.zeros(10**6), 10**4),
            "would take 596 GB, but this machine",
        ),
        (lambda: MeanField(10**400, 8, 2), "vocab_size = 1000.*300 digits"),
        (
            lambda: MeanField(2**63, 2, 2),
            r"vocab_size = 9223372036854775808: expected at most 2\*\*50",
        ),
        (lambda: ut.rhm.zipf(2**63, 1.0), "9223372036854775808 rule probabilities would take"),
        (
            lambda: ut.RandomHierarchyModel(32, 8, 2, 60).sample(1),
            r"2\*\*60 leaves would take 2\*\*64 bytes",
        ),
        (lambda: ut.RandomHierarchyModel(8, 2, 2, 3).sample(10**12), "draw fewer"),
        (lambda: ut.RandomHierarchyModel(10**6, 10**5, 2, 10), "the rules would take"),
        (
            lambda: ut.sample_posterior(RHM, np.zeros((1, 8, 4)), 0, 10**12),
            "num_draws = 1000000000000 would take .* draw fewer",
        ),
    ],
)
def test_refused_at_once(call, message):
    with one_line_error(message, characters=400, seconds=5, megabytes=256):
        call()


def test_deep_trees_and_grammars_below_the_bounds():
    mf = MeanField(32, 8, 2)
    assert mf.class_crossing(1000) == pytest.approx(mf.critical_noise, abs=1e-9)
    assert np.isfinite(mf.susceptibility([0.1, mf.critical_noise, 0.9], 900)).all()
    assert ut.RandomHierarchyModel(4, 2, 2, 300).depth == 300  # what population dynamics asks for


# --- experiments and their runs -------------------------------------------------------------------

SPEC = strings("epsilon", [0.0, 1.0], items=4)


def spec(part=None, **options):
    return {**SPEC, part: {**SPEC[part], **options}} if part else {**SPEC, **options}


def masked(**backward):
    return {**strings("masking", [0.5], items=4), "backward": {"type": "denoiser", **backward}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            spec(trajectories=10**9),
            r"chunk \* trajectories = 4000000000: expected at most .* lower one",
        ),
        (
            spec(items=10**12),
            r"items \* noise levels / chunk = 125000000000: expected at most .* lower one",
        ),
        (
            spec("corruption", noise=[10**400]),
            r"noise = \[1000.*\.\.\.: expected a list of different numbers",
        ),
        (spec("source", depth=60), "depth, branching = .*expected lower ones"),
        (
            spec("source", vocab_size=8, depth=24),
            r"vocab_size, depth, branching = \(\d+, 24, 2\): expected lower ones, as a string needs 2\*\*29 bytes",
        ),
        (spec(chunk=2**61 - 1), "chunk = 2305843009213693951: .* less than or equal to 16777216"),
        *(
            (
                masked(**{name: 2**63}),
                f"backward: {name} = 9223372036854775808: .* less than or equal to",
            )
            for name in ("steps", "block", "top_k")
        ),
        (
            masked(type="language", mask_id=2**63),
            "backward: mask_id = 9223372036854775808: .* less than or equal to",
        ),
    ],
)
def test_specs_that_cannot_be(table, message):
    with one_line_error(message, seconds=3):
        ut.Experiment.from_dict(table)


def test_the_largest_chunk_is_laid_out_at_once(tmp_path):
    """A prime number has no divisor but itself that holds all items."""
    start = time.process_time()
    ut.run(ut.Experiment.from_dict(spec(chunk=2**24 - 3)), tmp_path / "run")
    assert time.process_time() - start < 3


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists():
    table = {
        **spec("corruption", noise=np.linspace(0, 1, 3)),
        "items": np.int64(4),
        "chunk": np.uint8(2),
    }
    table["source"] = {**table["source"], "depth": np.int32(3)}
    mine = ut.Experiment.from_dict(table)
    assert (
        mine.hash
        == ut.Experiment.from_dict({**spec("corruption", noise=[0.0, 0.5, 1.0]), "chunk": 2}).hash
    )
    assert json.loads(json.dumps(mine.to_dict())) == json.loads(mine.model_dump_json())
    assert [type(x) for x in (mine.items, mine.chunk, mine.noise[0])] == [int, int, float]


SCRIPT = f"""
import uturn as ut
ut.run(ut.Experiment.from_dict({SPEC!r}), "store", workers=2)
"""


@pytest.mark.parametrize("place", ["stdin", "file"])
def test_a_script_that_processes_cannot_import(place, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "file": ["script.py"], "module": ["-m", "script"]}[place]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert (
        "import <stdin>, which would run again"
        if place == "stdin"
        else "script.py, which would run again"
    ) in last
    assert 'if __name__ == "__main__":' in last
    assert "workers=1" in last
    assert "spawn" not in done.stderr  # nothing had been started


# --- models and images ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "/", "no/such/model", "x" * 5000])
def test_no_tree_is_walked_for_a_model(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathlib.Path.rglob", lambda *_: pytest.fail("a tree was walked"))
    with one_line_error(r"model = |model_index\.json|no such folder"):
        DiffusionModel(model=place).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_betas": [0.001] * 998 + [float("nan")] * 2}, r"betas of the .* = \[nan\]"),
        ({"beta_end": 5.0}, r"betas of the .* = \[1\.001"),
    ],
)
@pytest.mark.parametrize("scheduler", ["euler", "stored"])
def test_a_noise_schedule_that_is_none_is_named(change, message, scheduler, tmp_path):
    folder = shutil.copytree(generator_folder(), tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"{message}.*expected finite numbers in .*correct"):
        DiffusionModel(model=str(folder), scheduler=scheduler, steps=10).fingerprint()


def test_float_images_without_a_negative_number_are_warned_of(tmp_path):
    images = np.random.default_rng(0).random((3, 6, 6), np.float32)
    np.save(tmp_path / "unit.npy", images)
    with pytest.warns(
        UserWarning, match=r"unit\.npy holds values in \[0\.0.*nothing lies below 0.*2 \* x - 1"
    ):
        loaded, _ = ArraySource(path=str(tmp_path / "unit.npy")).load()
    np.testing.assert_array_equal(loaded[:, 0], images)  # taken as they are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.save(tmp_path / "signed.npy", 2 * images - 1)
        ArraySource(path=str(tmp_path / "signed.npy")).load()
        np.save(tmp_path / "bytes.npy", (255 * images).astype(np.uint8))
        ArraySource(path=str(tmp_path / "bytes.npy")).load()


# --- pictures, pages and disks --------------------------------------------------------------------


def test_a_full_disk_names_the_path(tmp_path, monkeypatch):
    figure = SimpleNamespace(
        __name__="uturn.paper.fig6",
        TITLE="title",
        CLAIM="claim",
        CAPTION="caption",
        measure=lambda workshop: {},
        analyse=lambda runs: (xr.Dataset({"y": ("x", np.arange(3.0))}), []),
        draw=lambda data: plt.figure(),
    )
    monkeypatch.setitem(sys.modules, "uturn.paper.fig6", figure)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_at(ending):
        return lambda source, target: (
            full() if str(target).endswith(ending) else replace(source, target)
        )

    replace = os.replace
    places = {"fig6.zarr": (xr.Dataset, "to_zarr", full)}
    places |= {
        ending: (os, "replace", full_at(ending))
        for ending in ("fig6.png", "fig6.pdf", "fig6.json", "index.html")
    }
    for ending, place in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(*place)
            with pytest.raises(
                ValueError, match=r"cannot write '.*(No space left on device).*make room"
            ) as caught:
                paper.reproduce(["fig6"], tmp_path)
        assert f"'{tmp_path / ending}'" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.unfinished"))


# --- files, streams and terminals -----------------------------------------------------------------

EVIL = "\x1b[2J\x9b31m\u202elive\u2066\udcff"


def ended(capsys, *words):
    """Exit code of a command, and its last line on stderr; anything but `SystemExit` is a
    traceback.
    """
    with pytest.MonkeyPatch.context() as patch, handlers_kept():
        patch.setattr(sys, "argv", ["uturn", *map(str, words)])
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        with pytest.raises(SystemExit) as end:
            main()
    said = capsys.readouterr()
    return end.value.code, said.err.strip().splitlines()[-1:] or [""], said.out


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small finished store."""
    path = tmp_path_factory.mktemp("stored") / "run"
    ut.run(ut.Experiment.from_dict({**SPEC, "trajectories": 2, "clones": 2}), path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", "a = " + "[" * 3000 + "]" * 3000),
        ("a.json", json.dumps(SPEC).replace("8", "[" * 900 + "]" * 900, 1)),
    ],
)
def test_files_that_are_nested_deeply(name, content, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    code, (_,), _ = ended(capsys, "check", tmp_path / name)
    assert code == 2


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    for name, text in (
        ("a.json", json.dumps(SPEC)),
        ("a.toml", TOML.replace("[0.0, 0.5]", "[0.0, 1.0]")),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert ut.Experiment.from_file(tmp_path / name) == ut.Experiment.from_dict(SPEC)
    (tmp_path / "vocab.txt").write_text("a\nb\n[MASK]\n", encoding="utf-8-sig")
    assert load_tokenizer(str(tmp_path), "characters").tokens == ("a", "b", "[MASK]")


@pytest.mark.parametrize("shape", [(10**6, 10**5), (4 * 10**9, 1, 1)])
def test_a_header_that_promises_more_than_the_file_holds(shape, tmp_path):
    with (tmp_path / "bomb.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.write(bytes(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with one_line_error(r"file size|too large|too big", megabytes=256):
            read_array(tmp_path / "bomb.npy")
    with one_line_error(r"bomb\.npy is not a readable", megabytes=256):
        ArraySource(path=str(tmp_path / "bomb.npy")).load()


def test_control_characters_of_files_do_not_reach_the_terminal(
    stored, tmp_path, capsys, monkeypatch
):
    store = shutil.copytree(stored, tmp_path / "run")
    texts = {"spec": {"title": EVIL}, "versions": {"uturn": EVIL}}
    forge(store, lambda root: root["attributes"].update(texts))
    table = Table("name", EVIL, title=EVIL)
    table.add_row(EVIL, EVIL)
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        show(table)
        show(EVIL)
    shown_tables = capsys.readouterr().out
    monkeypatch.delenv("COLUMNS")
    said = [
        shown_tables,
        ended(capsys, "status", store)[2],
        ended(capsys, "report", store, "--out", tmp_path / "r.html")[2],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said += ended(capsys, "check", tmp_path / EVIL)[1]
    for text in said:
        assert "live" in text
        assert visible(text) == text


# --- zarr -----------------------------------------------------------------------------------------


def opened_by_zarr():
    """Calls in the package that open zarr: (file, line, function, value of zarr_format)."""
    for file in sorted(Path(ut.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name, of = node.func.attr, getattr(node.func.value, "id", "")
            opens = ("to_zarr", "open_zarr", "open_dataset", "load_dataset", "open_datatree")
            if (of == "zarr" and name.islower()) or name in opens:
                formats = [
                    keyword.value for keyword in node.keywords if keyword.arg == "zarr_format"
                ]
                yield (
                    file.name,
                    node.lineno,
                    name,
                    getattr(formats[0], "value", None) if formats else None,
                )


def test_every_call_opens_format_3():
    calls = list(opened_by_zarr())
    assert {"outputs.py", "workshop.py", "sections.py"} <= {file for file, *_ in calls}
    assert [call for call in calls if call[-1] != 3] == []


class Spy(numcodecs.abc.Codec):
    """A codec of format 2 that is run when a chunk is read, as those are that unpickle."""

    codec_id = "spy_of_uturn"
    runs: ClassVar[list[int]] = []

    def encode(self, buf):
        return buf

    def decode(self, buf, out=None):
        self.runs.append(1)
        return buf


@pytest.mark.parametrize("place", ["filters", "compressors"])
def test_no_codec_of_a_folder_in_format_2_is_run(place, stored, tmp_path, capsys):
    numcodecs.registry.register_codec(Spy)
    Spy.runs.clear()
    path = tmp_path / "mine.zarr"
    codecs = {"filters": [Spy()]} if place == "filters" else {"compressors": Spy()}
    open_run(stored).to_zarr(
        path,
        zarr_format=2,
        encoding={name: codecs for name in ("item", "noise", "belief")},
        consolidated=False,
    )
    choose = [["choose", path, "--keep", "belief=.5"]] if "choose" in own_tools() else []
    for words in (["study", path], *choose, ["study", path, "--out", tmp_path / "out"]):
        code, (line,), _ = ended(capsys, *words)
        assert (code, "is not a readable store" in line) == (2, True), line
    with pytest.raises(ValueError, match="is not a readable store"):
        ut.run(ut.Experiment.from_dict({**SPEC, "trajectories": 2, "clones": 2}), path)
    assert Spy.runs == []
    xr.open_zarr(path, zarr_format=2, consolidated=False).load()
    assert Spy.runs  # negative control


# --- folders of results ---------------------------------------------------------------------------


def figure(folder, name="fig6", **changes):
    folder.mkdir(exist_ok=True)
    content = {
        "figure": name,
        "title": "t",
        "caption": "c",
        "scale": "smoke",
        "verdicts": [],
        "files": {},
    } | changes
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("place", "kind"),
    [("fig7.json", "pipe"), ("x/run.json", "device"), ("run/tasks/x", "link")],
)
def test_a_report_reads_no_pipes_devices_and_links(place, kind, stored, tmp_path):
    folder = figure(tmp_path / "results", files={"png": "fig6.png"})
    shutil.copytree(stored, folder / "run")
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else stored / "run.json")
    page, problems = report([folder])
    assert Path(page).stat().st_size > 1000
    words = f"{place} is a link, a pipe or a device"
    # X is no store, so nothing is shown of it.
    assert place.startswith("x") or any(words in line for line in problems)


def test_a_report_writes_through_no_link(stored, tmp_path):
    outside, folder = tmp_path / "outside.txt", figure(tmp_path / "results")
    outside.write_text("mine")
    (folder / "index.html.unfinished").symlink_to(outside)
    page, problems = report([folder])
    assert (outside.read_text(), problems) == ("mine", [])
    assert not Path(page).is_symlink()
    assert sorted(path.name for path in folder.iterdir()) == ["fig6.json", "index.html"]


def test_a_report_starts_no_other_program_for_a_picture(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the name of the file."""
    started = []
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: started.append("Ghostscript")
    )
    folder = figure(tmp_path / "results", files={"png": "fig6.png"})
    (folder / "fig6.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    )
    _, problems = report([folder])
    assert "fig6.png" in problems[0]
    assert started == []


def test_long_texts_in_a_store_are_shortened_in_figures(stored, tmp_path, capsys):
    """Matplotlib would take minutes and gigabytes."""
    store = shutil.copytree(stored, tmp_path / "run")
    forge(
        store, lambda run: run["coordinates"]["noise"]["attributes"].update(long_name="$\n" * 4_000)
    )
    forge(store, lambda root: root["attributes"].update(description="x y" * 60_000))
    assert ended(capsys, "study", store, "--out", tmp_path / "out")[0] == 0
    assert len(xr.open_zarr(tmp_path / "out" / "study.zarr").attrs["description"]) < 600
    with Image.open(tmp_path / "out" / "study.png") as picture:
        assert picture.width < 5000


@pytest.mark.parametrize(("coordinate", "key"), [("noise", "max"), ("tail", "clean")])
@pytest.mark.parametrize("value", ["x" * 5_000, [1], None])
def test_an_attribute_that_is_no_number_is_named(coordinate, key, value, stored):
    run = open_run(stored)
    run = run.assign_coords(tail=("noise", run.noise.values))
    run[coordinate].attrs[key] = value
    with pytest.raises(
        ValueError,
        match=f"the attribute {key} of the coordinate {coordinate} = .*: expected a number",
    ) as caught:
        ut.study(run)
    assert len(str(caught.value)) < 300


@pytest.mark.slow
def test_more_tasks_than_the_folder_holds(stored, tmp_path, capsys):
    """Their files are not looked for one by one, which would take minutes."""
    store, items = shutil.copytree(stored, tmp_path / "run"), 300_000

    def change(run):
        for key in ("spec", "identity"):
            run["attributes"][key] |= {"items": items, "chunk": 1}
        for name in ("item", "grammar"):
            run["coordinates"][name]["values"] = list(range(items))

    forge(store, change)
    begin = time.monotonic()
    code, (line,), _ = ended(capsys, "study", store)
    assert code == 2
    assert re.search(r"not finished: \d{6} tasks are missing", line)
    assert time.monotonic() - begin < 20


def test_a_report_reads_no_folder_outside(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "fig6-x")
    folder = figure(tmp_path / "results")
    (folder / "smoke").symlink_to(tmp_path)
    assert collect([folder]).sections[0].details == []
    (folder / "smoke").unlink()
    (folder / "smoke").mkdir()
    (folder / "smoke" / "fig6-x").symlink_to(stored)
    assert collect([folder]).sections[0].details == []
    figure(folder, scale="..")
    assert "names in the folder" in collect([folder]).problems[0].words
    shutil.copytree(tmp_path / "fig6-x", figure(tmp_path / "sound") / "smoke" / "fig6-x")
    assert len(collect([tmp_path / "sound"]).sections[0].details) == 1


# --- what the store of a stranger makes the program fetch and read --------------------------------


@pytest.fixture
def of_texts(tmp_path):
    """A run of texts with a model in a folder."""
    (tmp_path / "texts.txt").write_text("the cat sat\na big dog ran to the mat\n")
    options = {"data": str(tmp_path / "texts.txt"), "levels": [0.4, 0.8], "trajectories": 2}
    run = ut.run(TextOptions(model=str(write_bert(tmp_path / "bert")), **options).experiment())
    assert "original_piece" in records_of(run).coords
    return run


def test_a_study_asks_no_hub_for_the_model_of_a_store(of_texts, monkeypatch):
    """A model in a folder is read for the texts; one on a hub is not fetched, and the study has
    no texts.
    """
    run, asked = of_texts, []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **_: asked.append(names) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    spec = json.loads(run.attrs["spec"])
    spec["backward"]["model"] = "nobody/no-such-model"
    assert not records_of(run.assign_attrs(spec=json.dumps(spec))).coords
    assert not asked


@pytest.mark.parametrize("read", [read_array, read_table])
def test_pipes_are_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises((ValueError, OSError), match="no regular file"):
        read(tmp_path / "pipe.json")


@pytest.mark.parametrize("command", ["study", "report"])
def test_a_store_names_no_code_that_is_run(command, tmp_path, monkeypatch, capsys):
    """A sampler "module:function" in the spec of a store of tokens."""
    (tmp_path / "evil_of_a_stranger.py").write_text(
        "def draw(observed, operator, generator): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values, dims = np.zeros((3, 4, 1, 1, 2)), ("noise", "item", "trajectory", "clone", "position")
    of_tokens = dict.fromkeys(("token", "noisy_token"), values)
    run = {"kept": np.random.default_rng(0).random((3, 4)), **of_tokens}
    ut.readings(run, [0.1, 0.5, 0.9], dims=dict.fromkeys(of_tokens, dims), store=tmp_path / "mine")
    spec = {
        "seed": 0,
        "source": {"type": "tokens"},
        "backward": {
            "type": "sampler",
            "sampler": "evil_of_a_stranger:draw",
            "model": "fashion_mnist",
        },
        "probes": [{"type": "tokens"}],
    }

    def change(root):
        root["attributes"]["spec"] |= spec

    forge(tmp_path / "mine", change)
    assert ended(capsys, command, tmp_path / "mine", "--out", tmp_path / "out.html")[0] == 0
    assert "evil_of_a_stranger" not in sys.modules


def test_a_study_lists_no_folder_that_a_store_names(tmp_path, monkeypatch):
    """Of a run without names of originals; nor is a file read that is too large, or has no size,
    as some that wait for ever.
    """
    from uturn.studies.runs import class_names_of, originals

    run = ut.readings(
        {"same_class": np.random.default_rng(0).random((2, 3))},
        [0.2, 0.8],
        coords={"label": ("item", [0, 1, 0])},
    )

    def of(source, **names):
        table = {
            "source": source,
            "backward": {"type": "recorded"},
            "probes": [{"type": "images"}],
            "seed": 0,
        }
        image = xr.DataArray(
            np.zeros((2, 3, 1, 1, 1, 4, 4)),
            dims=("noise", "item", "trajectory", "clone", "c", "row", "column"),
        )
        named = run.assign_coords(
            {name: ("item", [value] * 3) for name, value in names.items()}
        ).assign(image=image)
        spec = json.dumps(json.loads(run.attrs["spec"]) | table)
        return named.assign_attrs(spec=spec, models=json.dumps({"source": "0" * 64}))

    monkeypatch.setattr("uturn.sources.images.listed", lambda *_: pytest.fail("listed"))
    monkeypatch.setattr("uturn.core.inputs.digest_of_file", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("uturn.sources.images.digest_of_file", lambda *_: pytest.fail("read"))
    assert class_names_of(of({"type": "images", "path": "/"})) == {}
    (tmp_path / "empty").touch()
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    for name in ("empty", "large"):
        for source in (
            {"type": "images", "path": str(tmp_path)},
            {"type": "array", "path": str(tmp_path / name)},
        ):
            images, _ = originals(of(source, file=name, file_digest="0" * 64), np.arange(3))
            assert np.isnan(images).all()


def test_the_title_of_a_study_reads_no_file_that_a_store_names(tmp_path, monkeypatch):
    run = ut.readings({"kept": np.random.default_rng(0).random((2, 3))}, [0.2, 0.8])
    table = {"type": "gaussian_mixture", "means": str(tmp_path / "means.npy")}
    spec = json.dumps(json.loads(run.attrs["spec"]) | {"source": table})
    monkeypatch.setattr("uturn.sources.vectors.read_array", lambda *_: pytest.fail("read"))
    assert ut.study(run.assign_attrs(spec=spec)).description == "3 originals of gaussian_mixture"


# --- what the folder of a stranger makes the program write, read and hold -------------------------


@pytest.mark.parametrize("name", ["samplers.zarr", "errors"])
def test_a_link_in_a_folder_of_results_is_replaced_and_not_its_target(name, tmp_path):
    outside, folder = tmp_path / "mine", tmp_path / "results"
    outside.mkdir()
    folder.mkdir()
    (outside / "thesis.tex").write_text("years")
    (folder / name).symlink_to(outside)
    with whole_folder(folder / name) as new:
        (new / "a").write_text("b")
    assert (outside / "thesis.tex").read_text() == "years"
    assert not (folder / name).is_symlink()
    assert [path.name for path in (folder / name).iterdir()] == ["a"]


def test_a_report_of_small_files_ends_soon(tmp_path):
    """Files with holes, and arrays of few bytes that promise gigabytes."""
    begin = time.process_time()
    holes = figure(tmp_path / "holes", "fig7")
    os.truncate(holes / "fig7.json", 2**40)
    assert "bytes = 1099511627776: expected" in str(collect([holes]).problems)
    figure(holes, files={"data": "fig6.zarr"})
    write_dataset(xr.Dataset({"y": ("noise", np.zeros(3))}), holes / "fig6.zarr")

    def promise(metadata):
        metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"] = [2**33], [2**20]

    for path in (holes / "fig6.zarr" / "zarr.json", holes / "fig6.zarr" / "y" / "zarr.json"):
        root = json.loads(path.read_text())
        if "consolidated_metadata" in root:
            promise(root["consolidated_metadata"]["metadata"]["y"])
        else:
            promise(root)
        path.write_text(json.dumps(root))
    problems = str(collect([holes]).problems)
    assert "bytes = 68719476736: expected" in problems
    with pytest.raises(ValueError, match="images = 400200: expected"):
        grid(
            np.arange(2000),
            [""] * 200,
            np.zeros((200, 1, 1, 1)),
            np.zeros((2000, 200, 1, 1, 1)),
            None,
            total=200,
            stored=200,
        )
    assert time.process_time() - begin < 15


def test_a_chunk_that_decodes_to_more_than_its_array_says_is_not_read(tmp_path):
    from numcodecs import zstd

    folder = figure(tmp_path / "results", files={"data": "fig6.zarr"})
    write_dataset(
        xr.Dataset({"y": ("noise", np.ones(3))}, {"noise": [1.0, 2.0, 3.0]}), folder / "fig6.zarr"
    )
    (folder / "fig6.zarr" / "y" / "c" / "0").write_bytes(zstd.compress(bytes(2**27), 1))
    assert "fig6.zarr" in collect([folder]).problems[0].file
    shutil.rmtree(folder / "fig6.zarr")
    gzip = {"y": {"compressors": [zarr.codecs.GzipCodec()]}}
    xr.Dataset({"y": ("noise", np.ones(3))}).to_zarr(
        folder / "fig6.zarr", zarr_format=3, encoding=gzip
    )
    assert "codecs of y = ['BytesCodec', 'GzipCodec']" in collect([folder]).problems[0].words


@pytest.mark.parametrize("damage", ["missing", "folder", "other", "swapped"])
def test_a_dataset_that_is_damaged_is_not_shown(damage, tmp_path):
    """A chunk that is not there would be read as NaN or 0, and one of few bytes decodes to other
    numbers.
    """
    folder = figure(tmp_path / "results", files={"data": "fig6.zarr"})
    y = {name: ("noise", np.arange(3.0) + k) for k, name in enumerate("yz")}
    write_dataset(xr.Dataset(y, {"noise": [1.0, 2.0, 3.0]}), folder / "fig6.zarr")
    assert collect([folder]).problems == []
    chunk, other = (folder / "fig6.zarr" / name / "c" / "0" for name in "yz")
    content = chunk.read_bytes()
    chunk.unlink()
    if damage == "folder":
        chunk.mkdir()
    elif damage != "missing":
        chunk.write_bytes(
            other.read_bytes()
            if damage == "swapped"
            else content[:-2] + bytes([content[-2] ^ 1, content[-1]])
        )
    (problem,) = collect([folder]).problems
    assert re.search(
        "damaged or incomplete|decompress" if damage == "other" else "damaged or incomplete",
        problem.words,
    )


def test_a_table_of_holes_is_not_read(tmp_path):
    for name in ("spec.toml", "spec.json"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**40)
        with pytest.raises(ValueError, match="its bytes = 1099511627776: expected at most"):
            ut.Experiment.from_file(tmp_path / name)


def test_readings_that_no_file_holds_are_bounded(tmp_path):
    """Dims of many sizes whose product is half a billion, in a folder of some kilobytes."""
    path, dims = tmp_path / "mine", ("noise", "item", "trajectory", "clone", "layer")
    ut.readings({"x": np.ones((2, 3, 1, 1, 4))}, [0.2, 0.8], dims={"x": dims}, store=path)
    shutil.rmtree(path / "tasks")
    many = {"dims": ["many"], "type": "<i8", "values": list(range(30_000)), "attributes": {}}

    def change(run):
        run["coordinates"] |= {name: many | {"dims": [name]} for name in ("a", "b")}
        run["variables"]["x"]["dims"] += ["a", "b"]

    forge(path, change)
    with pytest.raises(ValueError, match="numbers of a task = "):
        open_run(path)


def test_levels_of_a_store_are_those_of_its_noise(stored, tmp_path, capsys):
    store = shutil.copytree(stored, tmp_path / "run")
    forge(store, lambda run: run["coordinates"]["noise"]["values"].reverse())
    for command in ("status", "study"):
        code, (line,), _ = ended(capsys, command, store)
        assert (code, "those of the spec" in line) == (2, True), line


@pytest.mark.parametrize(
    "about", [{"_Encoding": "utf-8"}, {"coordinates": "belief"}, {"scale_factor": 2.0}]
)
def test_no_attribute_changes_readings(about, stored, tmp_path):
    store = shutil.copytree(stored, tmp_path / "run")
    forge(store, lambda run: run["variables"]["belief"]["attributes"].update(about))
    xr.testing.assert_equal(open_run(store), open_run(stored))


def test_texts_that_a_store_names_take_no_time(of_texts, tmp_path, monkeypatch):
    """Regular expressions, and texts with holes, of many lines or fewer than items."""

    def named(**parts):
        """The records of a store that names other inputs, with the fingerprints that they have."""
        spec = json.loads(of_texts.attrs["spec"])
        spec |= {part: spec[part] | change for part, change in parts.items()}
        models = json.loads(of_texts.attrs["models"]) | {
            "source": build("source", spec["source"]).fingerprint()
        }
        return records_of(
            of_texts.assign_attrs(spec=json.dumps(spec), models=json.dumps(models))
        ).coords

    assert "original_piece" in named()
    for name, text in (
        ("many", "the cat\n" * 2**17),
        ("returns", "the cat\r" * 2**17),
        ("few", "the cat\n"),
        ("holes", ""),
    ):
        (tmp_path / f"{name}.txt").write_text(text, newline="")
    begin = time.process_time()
    assert not named(source={"path": str(tmp_path / "few.txt")})
    monkeypatch.setattr("uturn.sources.tokens._read", lambda *_: pytest.fail("read"))
    assert not named(backward={"split": "(a|aa)+b"})
    for name in ("many", "returns", "holes"):
        if name == "holes":
            os.truncate(tmp_path / "holes.txt", 2**40)
            monkeypatch.setattr("uturn.core.inputs.digest_of_file", lambda *_: "0")
        assert not named(source={"path": str(tmp_path / f"{name}.txt")})
    assert time.process_time() - begin < 15


def test_texts_of_a_page_are_bounded(of_texts, monkeypatch):
    """A token of megabytes would be as long in every place of a table; a store may keep a
    million texts.
    """
    monkeypatch.setattr(
        "uturn.networks.texts.tokenizers.PretrainedTokenizer.pieces",
        lambda _, ids: ["x" * 10**4] * len(ids),
    )
    records = records_of(of_texts)
    assert set(map(len, records.piece.values.ravel().tolist())) <= {0, 100}
    assert records.sizes["shown_item"] == 2
    of_text, many = 3 * of_texts.sizes["position"], 10**5
    source = SimpleNamespace(
        ids=lambda items: np.zeros((len(items), of_texts.sizes["position"]), int), tokenizer=None
    )
    source.regions = ()
    source.separators = tuple
    spec = json.loads(of_texts.attrs["spec"])
    spec["probes"] = [
        {**table, "first": many} if table["type"] == "tokens" else table for table in spec["probes"]
    ]
    large = (
        of_texts[["token", "noisy_token"]]
        .isel(item=np.zeros(many, int))
        .assign_coords(item=np.arange(many))
    )
    shown = records_of(large.assign_attrs(of_texts.attrs, spec=json.dumps(spec)), source).sizes[
        "shown_item"
    ]
    assert shown == _MOST_TOKENS // of_text < many


def _first_level(run, level):
    run["attributes"]["identity"]["corruption"]["noise"][0] = level
    run["coordinates"]["noise"]["values"][0] = level


def _relabelled(run, kind):
    """A coordinate of one label of a gigabyte."""
    big = {"dims": ["big"], "type": kind, "values": [""], "attributes": {}}
    run["coordinates"]["big"] = big


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: _first_level(run, None), "not a readable store: float"),
        (lambda run: _first_level(run, 10**400), "not a readable store: int too large"),
        (lambda run: run.update(coordinates=["noise", "item"]), "not a readable store"),
        (lambda run: run["attributes"].pop("spec"), "it has no 'spec'"),
        (lambda run: run["attributes"].update(spec="{"), "its attribute spec = '{'"),
        (lambda run: run["attributes"].update(models=[]), "its attribute models = []"),
        (lambda run: _relabelled(run, "<U268435456"), "type of labels = '<U268435456'"),
        (lambda run: _relabelled(run, "V1073741824"), "type of labels = 'V1073741824'"),
        (lambda run: _relabelled(run, "O"), "type of labels = 'O'"),
        (lambda run: _relabelled(run, "<c16"), "type of labels = '<c16'"),
    ],
)
def test_attributes_and_types_of_no_store_are_named(change, message, stored, tmp_path, capsys):
    store = shutil.copytree(stored, tmp_path / "run")
    forge(store, change)
    for command in ("status", "study"):
        code, (line,), _ = ended(capsys, command, store)
        assert (code, message in line) == (2, True), line


def test_a_variable_without_a_description(stored, tmp_path, capsys):
    store = shutil.copytree(stored, tmp_path / "run")
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "trajectories": 2, "clones": 2}))
    forge(store, lambda run: run["variables"]["belief"].update(attributes={}))
    assert ended(capsys, "run", tmp_path / "spec.json", "--store", store, "--workers", 1)[0] == 0


def test_a_place_that_is_no_number_has_a_card(tmp_path):
    numbers = {
        "reading": "r",
        "share": 0.5,
        "axes": {"noise": [math.nan] * 3},
        "wanted": 1,
        "remark": "",
        "levels": [0.5],
    }
    numbers |= {"width": 1, "reached": True, "items": 8, "unit": "noise"}
    (tmp_path / "located.json").write_text(json.dumps(numbers))
    assert '<p class="big">none</p>' in Path(report([tmp_path])[0]).read_text()


def test_links_in_a_circle_are_named(tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    for name, reason in (("run", "File exists"), ("circle/run", "symbolic links")):
        (tmp_path / name.split("/")[0]).symlink_to(name.split("/")[0])
        code, (line,), _ = ended(
            capsys, "run", tmp_path / "spec.json", "--store", tmp_path / name, "--workers", 1
        )
        assert (code, reason in line) == (2, True), line


# --- folders of images, of models and of texts ----------------------------------------------------

INDEX = "model.safetensors.index.json"


def test_links_to_folders_above_are_left_out(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"a")
    for name, to in (("up", ".."), ("root", "/"), ("itself", "."), ("one", other)):
        (images / name).symlink_to(to)
    (other / "b.png").write_bytes(b"bc")
    assert sorted(listed(str(images))) == [("a.png", 1), ("one/b.png", 2)]


def changed_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_config(architectures=5), "architectures = 5: expected a list"),
        (changed_config(auto_map="x"), "auto_map = 'x': expected a dict"),
    ],
)
def test_the_folder_of_a_model_is_looked_at_before_it_is_read(
    change, message, tmp_path, monkeypatch
):
    import transformers

    from uturn.networks.texts.language_files import load_language_model

    folder = write_bert(tmp_path / "bert")
    change(folder)
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("read")
    )
    with one_line_error(message):
        load_language_model(str(folder))


def test_a_config_of_fewer_layers_than_the_weights_is_warned_of(tmp_path):
    from uturn.networks.texts.language_files import TextModel, load_language_model

    folder = write_bert(tmp_path / "bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_language_model(str(folder))
        TextModel(str(folder)).load()  # without its head, which has no layers
    changed_config(num_hidden_layers=1)(folder)
    for load in (lambda: load_language_model(str(folder)), lambda: TextModel(str(folder)).load()):
        with pytest.warns(
            UserWarning,
            match=r"32 weights are of layers that its config\.json does not have .*layer\.1\.",
        ):
            load()


@pytest.mark.parametrize(
    "read",
    [
        load_network,
        ut.RandomHierarchyModel.load,
        read_prompts,
        lambda path: class_texts(path, None),
        lambda path: load_tokenizer(path, "characters"),
        lambda path: list(_rows(ut.sources.TokenSource(path=os.path.dirname(path)), "path", None)),
    ],
)
def test_no_pipe_is_waited_for(read, tmp_path):
    (tmp_path / "a.txt").write_text("a text\n")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="no regular file"):
        read(str(tmp_path / "pipe.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '["text"]\n', r"a\.jsonl' cannot be read"),
        ("a.jsonl", '{"text": ' + "[" * 9999 + "]" * 9999 + "}\n", r"a\.jsonl' cannot be read"),
        ("a.jsonl", '{"text": [[5], [6, 7]]}\n', r"a\.jsonl': text 1 = .*expected an array"),
        ("a.jsonl", '{"text": "\\ud800 the cat"}\n', "surrogates not allowed"),
        ("a.csv", 'text\n"the cat\na dog\n', r"a\.csv' cannot be read \(unexpected end of data"),
    ],
)
def test_texts_that_are_none_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    backward = ut.backward.LanguageDenoiser(model=str(write_bert(tmp_path / "bert")))
    with one_line_error(message):
        ut.sources.TokenSource(path=str(tmp_path / name)).made_by(backward, 0).count()


@pytest.mark.slow
def test_a_text_of_a_page_is_bounded(tmp_path):
    """A text of millions of tokens, in a folder of some kilobytes, costs its own view and not
    the study.
    """
    ut.pages.write_study(
        ut.readings({"kept": [[1.0, 1, 0]] * 3}, [0.2, 0.5, 0.8]), tmp_path / "out"
    )
    path, dims = tmp_path / "out" / "study.zarr", ("shown_noise", "shown_item", "position")
    data, text = (
        xr.open_zarr(path, zarr_format=3).load(),
        np.full((1, 1, 2**20), "a", np.dtypes.StringDType()),
    )
    pieces = {
        "original_piece": (dims[1:], text[0]),
        "piece": (dims, text),
        "noisy_piece": (dims, text),
    }
    data = data.assign(changed=(dims, text == "b"), noised=(dims, text == "b"))
    write_dataset(data.assign_coords(shown_noise=[0.5], shown_item=[0], **pieces), path)
    found = collect([tmp_path / "out"])
    assert [section.tokens for section in found.sections] == [None]
    assert "tokens of a text at all noise levels = 2097152: expected" in found.problems[0].words


STRANGE = (..., None, -1, 10**400, "x" * 5_000, [], {}, [[1]], math.nan, 2**40, "\x1b[2J")


@pytest.mark.slow
def test_forged_metadata_are_the_same_run_or_one_line(stored, tmp_path):
    """Each value of `run.json` is replaced by each of the strange ones."""
    store = shutil.copytree(stored, tmp_path / "run")
    content = (store / "run.json").read_bytes()
    run = open_run(store).load().drop_attrs()
    wrong = []
    # Labels of a coordinate are data; names of dims name other data.
    paths = [
        path
        for path in leaves(json.loads(content))
        if "values" not in path[:-1] and "dims" not in path and path != ("digest",)
    ]
    assert len(paths) > 100
    for path, value in itertools.product(paths, STRANGE):
        (store / "run.json").write_bytes(content)
        forge(store, lambda root, path=path, value=value: replaced(root, path, value))
        try:
            opened = open_run(store).load()
            # Less than the run, or readings that are seen to be those of another one.
            is_less = not opened.attrs["complete"] or set(opened.variables) < set(run.variables)
            is_right = is_less or opened.drop_attrs().equals(run)
        except Exception as error:
            is_right = (
                isinstance(error, ValueError) and "\n" not in str(error) and len(str(error)) < 1500
            )
        if not is_right:
            wrong.append((path, str(value)[:20]))
    assert wrong == []


@pytest.mark.parametrize("text", [-1, [[1]], None, "x"])
def test_a_spec_of_a_store_that_is_no_table_is_one_line(text, stored, tmp_path, capsys):
    store = shutil.copytree(stored, tmp_path / "run")
    for name in ("identity", "spec"):
        content = (store / "run.json").read_bytes()
        forge(store, lambda root, name=name: root["attributes"].update({name: text}))
        for command in (
            ("status", store),
            ("study", store),
            ("report", store, "--out", tmp_path / "page.html"),
        ):
            code, error, _ = ended(capsys, *command)
            assert code in (0, 2)
            assert len(error) == 1
        (store / "run.json").write_bytes(content)


def test_a_study_follows_no_link_in_a_folder_of_results(stored, tmp_path, capsys):
    (tmp_path / "run").symlink_to(stored)
    for words in (["study", tmp_path], ["choose", tmp_path, "--keep", "belief=.5"]):
        code, (line,), _ = ended(capsys, *words)
        assert (code, "run is a link" in line) == (2, True), line


def test_originals_are_read_up_to_the_first_of_another_shape(tmp_path, monkeypatch):
    """Small files that a store names may promise images of gigabytes."""
    read, pixels_of = [], ut.sources.images.pixels_of
    monkeypatch.setattr(
        "uturn.sources.images.pixels_of", lambda *place: read.append(place) or pixels_of(*place)
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    source = ut.sources.ImageFolderSource(path=str(tmp_path), size=64)
    assert source.kept(["a.png"] * 30, [digest] * 30, (3, 8, 8)) is None
    assert len(read) == 1
    assert source.kept(["a.png"] * 30, [digest] * 30, (3, 64, 64)).shape == (30, 3, 64, 64)
