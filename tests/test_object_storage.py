"""Stores on object storage: an S3 server in a process, through a proxy that fails on purpose,
gives the local run bit for bit.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import xarray as xr

import uturn as ut
from faulty_proxy import KINDS, FaultyProxy
from small import one_line_error, strings
from uturn.engine import measuring
from uturn.store import folders, resume
from uturn.store.folders import folder_at
from uturn.store.outputs import OutputFolder
from uturn.store.reading import dataset_of, open_run
from uturn.store.run_folder import RunFolder

obstore = pytest.importorskip("obstore")
pytest.importorskip("moto.server")

SPEC = strings(
    "masking", [0.0, 0.4, 1.0], source={"grammars": 2}, seed=3, items=10, trajectories=2, chunk=4
)
LARGER = {
    **SPEC,
    "items": 15,
    "source": {**SPEC["source"], "grammars": 3},
    "corruption": {"type": "masking", "noise": [0.0, 0.2, 0.4, 1.0]},
}


def experiment(spec=SPEC):
    return ut.Experiment.from_dict(spec)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an S3 server in a process of its own."""
    log = tmp_path_factory.mktemp("server") / "log"
    words = [
        sys.executable,
        "-c",
        "import sys; from moto.server import main; main(sys.argv[1:])",
        "-p",
        "0",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
    try:
        while "Running on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield (
            next(line for line in log.read_text().splitlines() if "Running on" in line)
            .split()[-1]
            .rstrip("/")
        )
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def proxy(server, monkeypatch, request):
    """A proxy before the server that does nothing wrong until it is told to, and an empty
    bucket: `proxy.bucket`.
    """
    with FaultyProxy(server) as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": proxy.url,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(folders, "_FIRST_WAIT", 0.01)
        bucket = f"bucket-{abs(hash(request.node.name))}"
        urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()
        proxy.bucket = f"s3://{bucket}"
        yield proxy


@pytest.fixture
def memory(monkeypatch):
    """Object storage in the memory of this process: the same at every URL's opening."""
    kept = {}
    monkeypatch.setattr(
        "obstore.store.from_url", lambda url, **_: kept.setdefault(url, obstore.store.MemoryStore())
    )
    return kept


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Files of the local runs: the small one, and the larger one, to which it was extended."""
    folder = tmp_path_factory.mktemp("local") / "run"
    ut.run(experiment(), folder)
    small = files_of(folder)
    ut.run(experiment(LARGER), folder)
    return small, files_of(folder)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def objects_at(url):
    folder = folder_at(url)
    return {name: folder.read(name) for name in folder.names()}


def test_a_run_through_a_faulty_proxy_is_the_local_run_in_every_bit(proxy, local):
    url = f"{proxy.bucket}/runs/x"
    proxy.rate = 0.4
    for spec, expected in ((SPEC, local[0]), (LARGER, local[1])):
        ds = ut.run(experiment(spec), url).load()
        proxy.rate, before = 0.0, proxy.rate
        assert objects_at(url) == expected
        assert ds.attrs["complete"]
        proxy.rate = before
    assert set(proxy.counts()) == {None, *KINDS}  # every failure has happened


def test_a_store_is_read_as_a_local_one_is(proxy, local, tmp_path, capsys):
    from typer.testing import CliRunner

    from uturn.cli import app

    url = f"{proxy.bucket}/x"
    ds = ut.run(experiment(), url).load()
    expected = ut.run(experiment()).load()
    xr.testing.assert_identical(ds.drop_attrs(), expected.drop_attrs())
    xr.testing.assert_identical(dataset_of(RunFolder.open(url + "/")).load(), ds)
    xr.testing.assert_identical(open_run(url).load(), ds)
    before = objects_at(url)
    told = CliRunner().invoke(app, ["status", url]).output
    assert f"{url}: 9 of 9 tasks done" in told
    assert objects_at(url) == before


def test_damage_and_loss_are_noticed_and_mended(proxy, local):
    url = f"{proxy.bucket}/x"
    ut.run(experiment(), url)
    folder = folder_at(url)
    first, second, third, *_ = folder.names("tasks/")
    folder.write(first, folder.read(second))
    folder.write(second, folder.read(second)[:-5])
    folder.remove(third)
    assert list_of_states(url) == ["damaged"] * 2 + ["done"] * 6 + ["missing"]
    with pytest.warns(UserWarning, match="is damaged"):
        ut.run(experiment(), url)
    assert objects_at(url) == local[0]


def test_requests_of_a_task(proxy):
    """A task is one request."""
    opened = RunFolder.open(ut_run(f"{proxy.bucket}/x"))
    for task in opened.tasks():
        readings = opened.read(task, 2)
        proxy.requests.clear()
        opened.write(task, readings)
        assert [method for method, _, _ in proxy.requests] == ["PUT"]


def test_a_run_reads_each_file_once(proxy):
    """Not what it has written, and what was there when it began only once."""

    def read():
        names = [path for method, path, _ in proxy.requests if method == "GET"]
        proxy.requests.clear()
        return sum("safetensors" in name for name in names)

    url = ut_run(f"{proxy.bucket}/x")
    assert read() == 0
    ut_run(url)
    assert read() == 9


def test_objects_that_are_too_large_are_not_read(memory, monkeypatch):
    url = ut_run("s3://bucket/large")
    folder = folder_at(url)
    folder.write(folder.names("tasks/")[0], bytes(2_000_000))
    assert list_of_states(url).count("damaged") == 1
    monkeypatch.setattr("uturn.store.run_folder.MOST_BYTES_OF_RUN", 1000)
    with pytest.raises(ValueError, match=r"run\.json: bytes = \d+: expected at most 1000"):
        RunFolder.open(url)


def ut_run(url, spec=SPEC):
    ut.run(experiment(spec), url)
    return url


def test_shards_fill_one_store(proxy, local, tmp_path):
    url = f"{proxy.bucket}/shards"
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    words = [sys.executable, "-m", "uturn.cli", "run", "spec.json", "--store", url, "--shard"]
    both = [
        subprocess.Popen([*words, f"{i}/2"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for i in (1, 2)
    ]
    try:
        told = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], told
    assert objects_at(url) == local[0]


# -- folders of results ----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_of_a_figure_at_a_url_is_replaced_if_its_constants_have_changed(proxy, tmp_path):
    from uturn.paper import Workshop

    workshop = Workshop("smoke", OutputFolder(f"{proxy.bucket}/results/smoke", tmp_path / "copy"))
    workshop.run("run", experiment())
    changed = experiment({**SPEC, "corruption": {"type": "masking", "noise": [0.7]}})
    assert workshop.run("run", changed).noise.values.tolist() == [0.7]
    assert workshop.run("run", changed).noise.values.tolist() == [0.7]


@pytest.mark.slow
def test_figures_at_a_url_are_those_of_a_folder_and_are_continued(
    proxy, tmp_path, cache, monkeypatch
):
    from uturn.pages import report
    from uturn.paper import reproduce

    url = f"{proxy.bucket}/results"
    local = reproduce(["fig10"], tmp_path / "local", workers=1)
    proxy.rate = 0.1
    assert reproduce(["fig10"], url, workers=1)[0].verdicts == local[0].verdicts
    proxy.rate = 0.0
    found, expected = objects_at(url), files_of(tmp_path / "local")
    assert found.keys() == expected.keys()
    dated = (".pdf", "fig10.json", ".html")  # or with the seconds that a figure took
    assert [
        key for key in expected if not key.endswith(dated) and found[key] != expected[key]
    ] == []
    shutil.rmtree(cache)  # another machine, which measures nothing again
    monkeypatch.setattr(
        "uturn.paper.workshop.Workshop._compute", lambda *_: pytest.fail("computed again")
    )
    assert reproduce(["fig10"], url, workers=1)[0].verdicts == local[0].verdicts
    folder_at(url).remove("index.html")
    assert report([url]) == (f"{url}/index.html", [])
    assert b'id="fig10"' in objects_at(url)["index.html"]


def test_folders_are_pushed_and_fetched(proxy, tmp_path):
    from uturn.store.outputs import OutputFolder

    there = OutputFolder(f"{proxy.bucket}/out", tmp_path / "a")
    again = OutputFolder(there.location, tmp_path / "b")
    pictures = there.path / "pictures"
    for names in (["x.png", "deep/y.png"], ["z.png"]):
        shutil.rmtree(pictures, ignore_errors=True)
        for name in names:
            (pictures / name).parent.mkdir(parents=True, exist_ok=True)
            (pictures / name).write_bytes(name.encode())
        there.push("pictures")
        assert files_of(again.fetch("pictures")) == files_of(pictures)
    assert there.names("") == ["pictures"]
    assert there.names("pictures") == ["z.png"]
    shutil.rmtree(pictures)
    there.push("pictures")
    assert not again.fetch("pictures").exists()
    assert objects_at(there.location) == {}


def test_keys_that_leave_the_folder_are_refused(tmp_path, memory, monkeypatch):
    from uturn.store import outputs

    monkeypatch.setattr(folders.ObjectFolder, "names", lambda *_: ["x/../../outside"])
    with pytest.raises(ValueError, match="not a name of a file"):
        outputs.OutputFolder("s3://bucket/out", tmp_path / "here").fetch("x")


# -- requests that fail ----------------------------------------------------------------------------


def test_a_refusal_fails_at_once(proxy):
    proxy.down = 403
    with one_line_error("403"):
        ut.run(experiment(), f"{proxy.bucket}/x")
    assert len(proxy.requests) == 1


def test_storage_that_does_not_answer_is_no_damage(proxy, local, monkeypatch):
    """After the patience is used up the run ends with one line; what is in the store is neither
    judged nor written again.
    """
    url = ut_run(f"{proxy.bucket}/x")
    opened = RunFolder.open(url)
    monkeypatch.setattr(folders, "PATIENCE", 0.2)
    proxy.down = 503
    for ask in (
        opened.states,
        lambda: dataset_of(opened),
        lambda: RunFolder.open(url),
        lambda: ut.run(experiment(), url),
    ):
        with one_line_error(r"503.*safe: .*run it again to resume"):
            ask()
    proxy.down = None
    assert objects_at(url) == local[0]


@pytest.mark.slow
def test_an_outage_ends_a_run_and_what_was_written_is_kept(proxy, local, monkeypatch):
    """Writes wait in threads; the first one that gives up ends the run, and nothing more is
    asked of the storage.
    """
    url, measurements, done = f"{proxy.bucket}/x", measuring.measurements, []

    def fails_after_five(self, *args):
        for readings in measurements(self, *args):
            if len(done) == 5:
                written_by = time.monotonic() + 60
                while list_of_states(url).count("done") < 5 and time.monotonic() < written_by:
                    time.sleep(0.1)
                proxy.down = 503
                proxy.requests.clear()
            done.append(readings)
            yield readings

    monkeypatch.setattr("uturn.engine.tasks.measurements", fails_after_five)
    monkeypatch.setattr(folders, "PATIENCE", 0.3)
    with pytest.raises(ValueError, match=r"safe: .*run it again to resume"):
        ut.run(experiment(), url)
    proxy.down = None
    monkeypatch.setattr("uturn.engine.tasks.measurements", measurements)
    assert list_of_states(url) == ["done"] * 5 + ["missing"] * 4
    ut.run(experiment(), url)
    assert objects_at(url) == local[0]


def list_of_states(url):
    return sorted(progress.state for progress in RunFolder.open(url).states().values())


def test_slow_requests_are_repeated(proxy, monkeypatch):
    url = ut_run(f"{proxy.bucket}/x")
    monkeypatch.setattr(folders, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(folders, "PATIENCE", 0.5)
    proxy.latency, before = 2.0, len(proxy.requests)
    with pytest.raises(ValueError, match="error sending request"):
        RunFolder.open(url)
    assert len(proxy.requests) - before >= 2


def test_two_runs_of_different_specs_never_mix(memory, local, monkeypatch):
    """One makes the store while the other prepares its own: the second one finds another
    experiment.
    """
    url, found, seen = "s3://bucket/x", resume.is_empty, []

    def meanwhile(where):
        empty = found(where)
        if not seen:
            seen.append(where)
            ut.run(experiment(), url)
        return empty

    monkeypatch.setattr(resume, "is_empty", meanwhile)
    with pytest.raises(ValueError, match="holds another experiment"):
        ut.run(experiment({**SPEC, "seed": 4}), url)
    assert objects_at(url)["run.json"] == local[0]["run.json"]
