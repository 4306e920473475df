"""`uturn choose`: from a folder of results, and from a table of readings made elsewhere."""

import pytest
import xarray as xr
from scipy import stats

import uturn as ut
from command_line import SPEC, uturn

SPEC = (
    SPEC.replace("items = 4", "items = 60")
    .replace('"epsilon"', '"masking"')
    .replace("[0.0, 0.5]", "[0.05, 0.2, 0.9]")
)


def test_the_command(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    assert uturn("run", "spec.toml", "--store", "folder/run", cwd=tmp_path).returncode == 0
    root = "unchanged, tree_level = 3"
    ds = xr.open_dataset(tmp_path / "folder" / "run", engine="uturn").load()
    kept = ds.unchanged.sel(tree_level=3).sum(("item", "trajectory")).values.astype(int).tolist()
    bounds = [
        stats.binomtest(k, 60, alternative="greater").proportion_ci(0.95, "exact").low for k in kept
    ]
    passes = [bound >= 0.8 for bound in bounds]
    assert passes == [True, True, False]  # so that the test below can fail
    done = uturn(
        "choose",
        "folder",
        "--keep",
        f"{root}=.8",
        "--lose",
        "unchanged, tree_level = 0=.99",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{root} >= 0.8" in done.stdout
    assert "unchanged, tree_level = 0 <= 0.99" in done.stdout
    assert "not accuracy gained" in done.stdout
    choice = ut.choose(ds, root, keep=0.8)
    assert choice.noise == 0.2
    alone = uturn("choose", "folder/run", "--keep", f"{root}=.8", cwd=tmp_path)
    assert "chosen: masked fraction 1 - alpha = 0.2" in alone.stdout
    assert uturn("choose", "folder", "--keep", f"{root}=.99", cwd=tmp_path).returncode == 1


def test_a_table_is_chosen_from_by_a_column(tmp_path):
    rows = [
        f"{noise},{item},{'ab'[item // 59]},{int(noise < 0.3 or item < 59)}"
        for noise in (0.1, 0.2, 0.3)
        for item in range(118)
    ]
    (tmp_path / "kept.csv").write_text("\n".join(["noise,item,kind,same", *rows]))
    done = uturn("choose", "kept.csv", "--keep", "same=.95", "--by", "kind", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nchosen: noise = 0.2" in done.stdout
    assert "kind = a, 59 originals: chosen: noise = 0.3" in done.stdout
    assert "kind = b, 59 originals: chosen: noise = 0.2" in done.stdout
    assert "line break" not in done.stdout
    (tmp_path / "cut.csv").write_text(
        "\n".join(["noise,item,kind,same", *rows, "0.3,118,b,0.25", "0.3,119,b,0.2"])
    )
    assert (
        "has no line break"
        in uturn("choose", "cut.csv", "--keep", "same=.95", "--by", "kind", cwd=tmp_path).stdout
    )


@pytest.mark.parametrize(("start", "chosen"), [("rmsd=0", True), ("rmsd=9", False)])
def test_what_a_table_does_not_say_is_an_option(tmp_path, start, chosen):
    rows = [
        f"{noise},{item},{'ab'[item % 2]},{5 - noise + item / 100}"
        for noise in (1, 2, 3)
        for item in range(20)
    ]
    (tmp_path / "rmsd.csv").write_text("\n".join(["noise,item,kind,rmsd", *rows]))
    options = ("--coordinate", "kind", "--noise-unit", "Å", "--start", start, "--chance", "rmsd=5")
    done = uturn("choose", "rmsd.csv", "--keep", "rmsd=4.5", *options, cwd=tmp_path)
    # A distance is kept below the goal, a similarity above.
    assert (done.returncode, done.stderr) == (0 if chosen else 1, "")
    assert ("estimated: Å = 3" in done.stdout) == chosen
    assert ("rmsd <= 4.5" in done.stdout, "rmsd >= 4.5" in done.stdout, "Å = " in done.stdout) == (
        chosen,
        not chosen,
        True,
    )
