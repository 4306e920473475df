"""A store grows in place: at whatever write a process dies, the smaller run stays as it is, and
the larger one is resumed.
"""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import xarray as xr
from zarr.storage import LocalStore, ObjectStore

import uturn as ut
from forging import array, forge
from test_store import experiment, finished, same_run  # noqa: F401
from uturn.store import places
from uturn.store.record import Store
from uturn.store.resume import attributes_of, layout_of

LARGER = experiment(items=20, grammars=4, noise=[0.0, 0.2, 0.4, 1.0], trajectories=3)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "run"
    ut.run(LARGER, folder)
    return folder


@pytest.fixture
def copied(request, finished, tmp_path, monkeypatch):  # noqa: F811
    """Makes copies of a finished run, by number, and the class whose method `set` writes their
    files.
    """
    obstore = pytest.importorskip("obstore.store") if request.param == "objects" else None
    kept = {}
    if obstore:
        monkeypatch.setattr(
            obstore, "from_url", lambda url, **_: kept.setdefault(url, obstore.MemoryStore())
        )

    def copy(number):
        if not obstore:
            return str(shutil.copytree(finished, tmp_path / f"run{number}"))
        places.replace(f"s3://bucket/run{number}", finished)
        return f"s3://bucket/run{number}"

    return copy, ObjectStore if obstore else LocalStore


@pytest.mark.slow
@pytest.mark.parametrize(
    ("copied", "after"), [("folder", False), ("objects", True)], indirect=["copied"]
)
def test_killed_at_any_write_of_a_growth(copied, finished, fresh, monkeypatch, after):  # noqa: F811
    copy, storage = copied
    small, write, died, grown = xr.open_zarr(finished).load(), storage.set, 0, 0
    for last in range(100):
        run, left = copy(last), [last]

        async def counted(self, key, value, left=left):
            left[0] -= 1
            if left[0] < 0 and not after:
                raise Killed
            await write(self, key, value)
            if left[0] < 0:
                raise Killed

        opened = Store.open(run)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "set", counted)
            try:
                opened.grow(*layout_of(LARGER), attributes_of(LARGER, LARGER.models()))
                break
            except Killed:
                died += 1
        again = xr.open_zarr(places.files_at(run), chunks=None).load()
        if after and again.sizes != small.sizes:  # it died after the last write
            grown += 1
        else:
            assert again.identical(small), "what every reader of zarr.json sees"
            again = Store.open(run).dataset().load()
            assert again.drop_attrs().identical(small.drop_attrs())
            assert again.missing_tasks == 0
        if last % 8 == 0 or grown:
            ut.run(LARGER, run)
            assert same_run(run, fresh)
    assert died > 15
    assert grown == after


# Checks of mutations, which take no fixtures.


def growth_is_announced_last():
    """A growth that dies at its last write leaves the smaller run."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        ut.run(experiment(), Path(name, "run"))
        opened, write = Store.open(Path(name, "run")), LocalStore.set

        async def killed(self, key, value):
            if key == "item/c/0":
                raise Killed
            await write(self, key, value)

        patch.setattr(LocalStore, "set", killed)
        with pytest.raises(Killed):
            opened.grow(*layout_of(LARGER), attributes_of(LARGER, LARGER.models()))
        assert Store.open(opened.where).num_items == 10


def blocks_that_were_cut_short_are_missing():
    with tempfile.TemporaryDirectory() as name:
        ut.run(experiment(), Path(name, "run"))
        larger = experiment(items=20, grammars=4)
        grown = Store.open(Path(name, "run")).grow(
            *layout_of(larger), attributes_of(larger, larger.models())
        )
        assert [state for state, _ in grown.states().values()].count("done") == 6
        assert [state for state, _ in grown.states().values()].count("damaged") == 0


def metadata_are_as_they_were_written():
    """Another `reading` of a variable gives another half-life; another encoding of chunk keys
    gives NaN.
    """
    with tempfile.TemporaryDirectory() as name:
        ut.run(experiment(), Path(name, "run"))
        forge(
            Path(name, "run"),
            lambda root: array(root, "belief")["attributes"].update(reading=json.dumps({})),
            signed=False,
        )
        refused = False
        try:
            Store.open(Path(name, "run"))
        except ValueError as error:
            refused = "digest" in str(error)
        assert refused


@pytest.mark.parametrize(
    "check",
    [
        growth_is_announced_last,
        blocks_that_were_cut_short_are_missing,
        metadata_are_as_they_were_written,
    ],
)
def test_checks_of_mutations(check):
    check()
