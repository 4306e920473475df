"""Files and folders that are written whole, and results that are kept while their files stay."""

import pytest

from uturn.core import caches, files


@pytest.mark.parametrize("before", ["nothing", "empty folder", "folder", "link"])
def test_a_folder_takes_its_place(tmp_path, before):
    place = tmp_path / "above" / "place"
    if before != "nothing":
        place.mkdir(parents=True)
    if before == "folder":
        (place / "old").touch()
    if before == "link":
        place.rmdir()
        (tmp_path / "disk").mkdir()
        place.symlink_to(tmp_path / "disk")
    with files.whole_folder(place) as unfinished:
        (unfinished / "new").touch()
        assert not (place / "new").exists()
    assert [path.name for path in place.iterdir()] == ["new"]
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    assert place.is_symlink() == (before == "link")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device")]
)
def test_a_folder_stays_as_it_was_after_an_error(tmp_path, error):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").touch()

    def write():
        with files.whole_folder(tmp_path / "place") as unfinished:
            (unfinished / "new").touch()
            raise error

    with pytest.raises(
        ValueError if isinstance(error, OSError) else RuntimeError, match="No space left on device"
    ):
        write()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "place"]


def test_a_full_folder_is_replaced_only_where_asked(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").touch()
    folder = files.whole_folder(tmp_path / "place", replace=False)
    (folder.__enter__() / "new").touch()
    with pytest.raises(ValueError, match=r"cannot write .*place"):
        folder.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "place"]


def test_results_are_kept_while_files_stay(tmp_path):
    calls = []

    @caches.cached_while_unchanged(files=lambda path, other=None: [path, other])
    def content(path, other=None):
        calls.append(path)
        return path.read_text() if path.exists() else None

    path = tmp_path / "file"
    assert content(path) is None
    path.write_text("a")
    assert [content(path), content(path), content(path, None)] == ["a"] * 3
    assert len(calls) == 3  # the arguments of the last call are written in another way
    path.write_text("bc")
    assert content(path) == "bc"
    assert content(path, other=path) == "bc"
