"""Progress: exact shares inside a task, never backwards, also over several processes; lines in
logs.
"""

import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest

import uturn as ut
from uturn.core import progress
from uturn.core.processes import in_processes
from uturn.core.progress import add, begun, in_progress, part, progress_bar, steps
from uturn.engine.measuring import Wanted, measurements

STRINGS = {
    "type": "rhm",
    "vocab_size": 4,
    "multiplicity": 2,
    "branching": 2,
    "depth": 3,
    "grammars": 2,
}
DIFFUSION = {"type": "diffusion", "noise": [0.25, 1.0]}
EXPERIMENTS = {
    "exact": {
        "corruption": {"type": "gaussian", "noise": [0.2, 1.0]},
        "backward": {"type": "exact"},
    },
    "masking": {
        "corruption": {"type": "masking", "noise": [0.5, 1.0]},
        "backward": {"type": "denoiser", "steps": 8},
    },
    "score": {"corruption": DIFFUSION, "backward": {"type": "score", "steps": 8}},
    "images": {
        "source": {"type": "fashion_mnist"},
        "corruption": DIFFUSION,
        "backward": {"type": "diffusion", "steps": 4, "device": "cpu", "batch_size": 7},
        "probes": [{"type": "network_layers", "reference": 16}, {"type": "images"}],
    },
}
# Different values that a task reports, at least; others report every step.
LEAST = {"exact": 2, "images": 4}


@pytest.fixture
def reported(monkeypatch):
    """What this process would report to another one, in order."""

    class Cell:
        done, values = 0.0, []

        @property
        def value(self):
            return self.done

        @value.setter
        def value(self, done):
            self.done = done
            self.values.append(done)

    monkeypatch.setattr(progress._work, "done", Cell())
    monkeypatch.setattr(Cell, "values", [])
    return progress._work.done.values


def experiment(name):
    parts = {"source": STRINGS, "probes": [{"type": "tree_levels"}], **EXPERIMENTS[name]}
    return ut.Experiment.from_dict({"items": 6, "trajectories": 2, "chunk": 4, **parts})


def test_parts_are_shares_of_what_encloses_them():
    seen = []
    with begun(2, unit=0.25):
        with part(0.75):
            for _ in steps(range(3)):
                seen.append(in_progress())
                add()
                seen.append(in_progress())
        seen.append(in_progress())
        for _ in steps("ab"):
            pass
        seen.append(in_progress())
        for _ in steps("ab"):  # nothing is left for it
            seen.append(in_progress())
    np.testing.assert_allclose(seen, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2, 2])
    assert in_progress() == 0
    with part(0.5):  # nobody has begun a task
        add()
    assert in_progress() == 0


def test_nothing_is_left_of_work_that_failed_or_was_dropped():
    with suppress(ZeroDivisionError), begun(1), part(0.5):
        for one in steps("abc"):
            add(1 / (one == "a"))
    assert in_progress() == 0
    for name in ("exact", "images"):
        running = measurements(
            experiment(name), [Wanted(None, level, np.arange(4)) for level in (1, 0)]
        )
        next(running)
        running.close()
        assert in_progress() == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_moves_inside_its_tasks_and_never_backwards_or_past_its_end(name, reported):
    one, finished, total = experiment(name), 0, 4
    list(measurements(one, [Wanted(None, 1, np.array([4, 5]))]))
    assert len(set(np.round(reported, 9))) >= LEAST.get(name, 8)
    reported.clear()
    values = [0.0]
    tasks = [
        Wanted((level, block), level, np.arange(6)[4 * block :][:4])
        for level in (1, 0)
        for block in (0, 1)
    ]
    for _ in measurements(one, tasks):
        inside = np.array(reported) + finished
        assert max(inside, default=0) <= total + 1e-9
        values += inside.tolist()
        finished += 1  # a task that is finished leaves the work before the caller counts it
        assert in_progress() + finished <= total + 1e-9
        reported.clear()
    assert finished == total
    falls = -np.diff(values)
    assert sum(falls > 1e-9) <= 2 * total, (
        "it falls only where a task is handed over, to the probes and to the caller"
    )
    assert in_progress() == 0


def test_a_bar_counts_its_own_work_and_holds_where_work_is_lost(monkeypatch):
    shown = []

    def look():
        count.look()
        shown.append((count.shown, count.finished))

    with begun(1, unit=0.5):
        add()
        count = progress._Count("run", 4, 1)
        look()  # the work around it is not its own
        with begun(2, unit=1.5):
            add()
            look()
        look()  # a worker died
        count.advance()
        look()
        with begun(9, unit=8):
            add()
            look()
    assert shown == [(1, 1), (2.5, 1), (2.5, 1), (2.5, 2), (4, 2)]


def half_a_task(folder):
    with begun(1):
        for k in steps(range(2)):
            if k == 1:
                (folder / "half").touch()
                while not (folder / "seen").exists():
                    time.sleep(0.01)


def test_work_of_other_processes_is_counted_until_it_is_finished(tmp_path):
    import threading

    found = []

    def watch():
        end = time.monotonic() + 60
        while not (tmp_path / "half").exists() and time.monotonic() < end:
            time.sleep(0.01)
        found.append(in_progress())
        (tmp_path / "seen").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in in_processes(half_a_task, [(tmp_path,)], workers=1):
        found.append(in_progress())
    watcher.join()
    assert found == [0.5, 0]
    assert in_progress() == 0


# -- lines in logs ---------------------------------------------------------------------------------
@pytest.mark.parametrize("done", [0, 40])
def test_a_log_gets_a_line_a_tenth(done, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    count = progress._Count("run", 100, done)
    show = progress._display(count, ExitStack())
    for _ in range(done, 100):
        now[0] += 3
        count.advance()
        count.look()
        show()
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(done + 10, 101, 10))
    assert lines[-1] == "run: 100 of 100 tasks done"
    left = 90 - done
    time_left = progress.duration(3 * left)
    assert lines[0] == (
        f"run: {done + 10} of 100 tasks done, {left} left, 20 a minute, about {time_left} left"
    )


def test_short_or_unwanted_progress_is_silent(capsys):
    for wanted in (True, False):
        with progress_bar(wanted, "run", 3, 0) as advance:
            for _ in range(3):
                advance()
    assert capsys.readouterr().err == ""
