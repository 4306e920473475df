"""A store grows in place: at whatever write a process dies, the smaller run stays as it is, and
the larger one is resumed.
"""

import shutil
import tempfile
from pathlib import Path

import pytest

import uturn as ut
from forging import forge
from test_store import experiment, file_of, finished, same_run  # noqa: F401
from uturn.store.folders import LocalFolder, ObjectFolder
from uturn.store.reading import open_run
from uturn.store.resume import attributes_of, layout_of
from uturn.store.run_file import RunFile
from uturn.store.run_folder import RunFolder, State, write_run

LARGER = experiment(items=20, grammars=4, noise=[0.0, 0.2, 0.4, 1.0], trajectories=3)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "run"
    ut.run(LARGER, folder)
    return folder


@pytest.fixture(params=["folder", "objects"])
def copied(request, finished, tmp_path, monkeypatch):  # noqa: F811
    """A copy of a finished run, and the class that writes its files."""
    if request.param == "folder":
        return str(shutil.copytree(finished, tmp_path / "run")), LocalFolder
    obstore = pytest.importorskip("obstore.store")
    kept = {}
    monkeypatch.setattr(
        obstore, "from_url", lambda url, **_: kept.setdefault(url, obstore.MemoryStore())
    )
    write_run("s3://bucket/run", RunFolder.open(finished))
    return "s3://bucket/run", ObjectFolder


def file_of_larger(experiment, key):
    layout = layout_of(experiment)
    attributes = attributes_of(experiment, experiment.models())
    return RunFile.made(layout.variables, layout.coordinates, attributes, key)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_the_write_of_a_growth(copied, fresh, monkeypatch, after):
    """A growth is one write."""
    run, folder = copied
    small = open_run(run).load()
    opened = RunFolder.open(run)
    write = folder.write

    def killed(self, name, content):
        if after:
            write(self, name, content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", killed)
        with pytest.raises(Killed):
            opened.grow(file_of_larger(LARGER, opened.file.key))
    if not after:
        assert open_run(run).load().identical(small)
    ut.run(LARGER, run)
    assert same_run(run, fresh)


@pytest.mark.slow
def test_killed_at_any_write_of_a_larger_run(copied, fresh, monkeypatch):
    run, folder = copied
    write = folder.write
    for last in range(40):
        left = [last]

        def killed(self, name, content, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            write(self, name, content)

        with monkeypatch.context() as patch:
            patch.setattr(folder, "write", killed)
            try:
                ut.run(LARGER, run)
                break
            except Killed:
                assert State.damaged not in {
                    progress.state for progress in RunFolder.open(run).states().values()
                }
    assert last > 3
    assert same_run(run, fresh)


def test_names_of_a_grown_run_are_those_of_a_fresh_one(finished, fresh, tmp_path):  # noqa: F811
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "tasks" / ".noise_0.4.0123.unfinished").touch()  # left by a killed process
    (run / ".run.json.0123.unfinished").touch()
    ut.run(LARGER, run)
    assert {path.name for path in run.rglob("*")} == {path.name for path in fresh.rglob("*")}


def test_a_file_that_another_process_removes_is_written_again(tmp_path, monkeypatch):
    """A process that cleans up removes what others are writing."""
    folder = LocalFolder(tmp_path)
    link = Path.write_bytes
    removed = []

    def then_removed(self, content):
        link(self, content)
        if len(removed) < 3:
            removed.append(self)
            folder.clean()

    monkeypatch.setattr(Path, "write_bytes", then_removed)
    folder.write("x", b"1")
    assert folder.create("y", b"2")
    assert (folder.read("x"), folder.read("y"), len(removed)) == (b"1", b"2", 3)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y"}


# Checks of mutations, which take no fixtures.


def blocks_that_were_cut_short_are_missing():
    with tempfile.TemporaryDirectory() as name:
        ut.run(experiment(), Path(name, "run"))
        larger = experiment(items=20, grammars=4)
        opened = RunFolder.open(Path(name, "run"))
        grown = opened.grow(file_of_larger(larger, opened.file.key))
        states = [progress.state for progress in grown.states().values()]
        assert states.count(State.done) == 6
        assert states.count(State.damaged) == 0


def metadata_are_as_they_were_written():
    """Another `reading` of a variable gives another half-life."""
    with tempfile.TemporaryDirectory() as name:
        ut.run(experiment(), Path(name, "run"))
        forge(
            Path(name, "run"),
            lambda run: run["variables"]["belief"]["attributes"].update(reading="{}"),
            signed=False,
        )
        refused = False
        try:
            RunFolder.open(Path(name, "run"))
        except ValueError as error:
            refused = "digest" in str(error)
        assert refused


def a_file_of_another_run_is_not_read():
    with tempfile.TemporaryDirectory() as name:
        run, other = Path(name, "run"), Path(name, "other")
        ut.run(experiment(), run)
        ut.run(experiment(seed=4), other)
        shutil.copyfile(file_of(other, 0.4, "0_3"), file_of(run, 0.4, "0_3"))
        states = [progress.state for progress in RunFolder.open(run).states().values()]
        assert states.count(State.damaged) == 1


@pytest.mark.parametrize(
    "check",
    [
        blocks_that_were_cut_short_are_missing,
        metadata_are_as_they_were_written,
        a_file_of_another_run_is_not_read,
    ],
)
def test_checks_of_mutations(check):
    check()
