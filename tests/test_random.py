"""Philox against its published test vectors, and independence of the streams."""

import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from uturn.core.random import keys, normals, philox, streams, uniforms

# Known-answer vectors of philox4x32-10 in the Random123 distribution: (key, counter low, counter
# high) -> four words.
KNOWN = [
    ((0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**64 - 1,) * 3, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x299F31D0A4093822, 0x85A308D3243F6A88, 0x0370734413198A2E),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("arguments", "words"), KNOWN)
def test_philox_known_answers(arguments, words):
    first, second = (int(x) for x in philox(*(np.uint64(a) for a in arguments)))
    assert (first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32) == words


def test_numbers_depend_on_coordinates_only():
    whole = uniforms(keys(7, np.arange(50)), 20)
    assert np.array_equal(whole[13:14], uniforms(keys(7, [13]), 20))
    assert np.array_equal(whole[:, :5], uniforms(keys(7, np.arange(50)), 5))
    assert len(np.unique(keys(0, np.arange(40)[:, None], np.arange(50)))) == 2000
    assert not np.array_equal(keys(0, np.arange(9)), keys(1, np.arange(9)))


def test_large_and_small_batches_of_normals_agree():
    for dtype in (np.float32, np.float64):
        large = normals(keys(1, np.arange(300)), 501, dtype)  # parallel path
        assert np.array_equal(large[:3], normals(keys(1, np.arange(3)), 501, dtype))  # serial path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distributions(dtype):
    # Kolmogorov-Smirnov at a false-alarm rate of 1e-3 each; seeds are fixed.
    assert stats.kstest(uniforms(keys(3, np.arange(100)), 200).ravel(), "uniform").pvalue > 1e-3
    x = normals(keys(4, np.arange(100)), 201, dtype)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    # Across streams, not only along them; and no correlation between neighbouring numbers of a
    # Box-Muller pair.
    assert stats.kstest(x[:, 0], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:, :-1:2].ravel(), x[:, 1::2].ravel())[0, 1]) < 4 / np.sqrt(x.size / 2)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "a", None])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="seed"):
        keys(seed)


def test_streams_check_shape():
    with pytest.raises(ValueError, match=r"per sample, \(3,\)"):
        streams(np.zeros(4, np.uint64), 3)


# -- the message about compilation -----------------------------------------------------------------


@pytest.mark.slow
def test_compiling_is_announced_once_and_at_a_terminal_only(tmp_path):
    command = [sys.executable, "-c", "import uturn as ut; ut.random.keys(0, range(3))"]

    def said(cache):
        """What the command writes to a terminal."""
        master, slave = pty.openpty()
        subprocess.run(
            command,
            env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
            stderr=slave,
            check=True,
            timeout=100,
        )
        os.close(slave)
        try:
            return os.read(master, 10_000).decode()
        except OSError:  # nothing
            return ""
        finally:
            os.close(master)

    first = said(tmp_path / "cache")
    assert first.startswith("uturn: compiling kernels for this machine, once")
    assert first.count("\n") == 1
    assert said(tmp_path / "cache") == ""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "other")}
    assert (
        subprocess.run(
            command, env=environment, capture_output=True, check=True, timeout=100
        ).stderr
        == b""
    )
