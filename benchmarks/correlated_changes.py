"""How long the susceptibility of one noise level takes, and what each part of it takes.

    python benchmarks/correlated_changes.py [--channel NAME ...] [--depth L] [--items N] [--trajectories N]

Grammar (32, 8, 2). The time is that of `uturn.run` with the probe `changes`, everything included but compilation. The first line
is the share of the probe: the covariances of as many changes. Half the time of all threads is the least time on two cores, also
on a machine with other work. The memory is the growth of the largest resident memory during the run; trajectories are read part
by part, so that it does not grow with their number.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

import uturn as ut
from uturn.covariances import Covariances, Tree
from uturn.measures import changes

NOISE = {"epsilon": 0.72, "gaussian": 0.067, "masking": 0.28, "uniform": 0.18}


def described(channel: str, depth: int, items: int, trajectories: int) -> ut.Experiment:
    return ut.Experiment.from_dict(
        {
            "items": items,
            "trajectories": trajectories,
            "source": {"type": "rhm", "vocab_size": 32, "multiplicity": 8, "branching": 2, "depth": depth},
            "corruption": {"type": channel, "noise": [NOISE[channel]]},
            "backward": {"type": "exact"},
            "probes": [{"type": "changes"}],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channel", nargs="+", choices=NOISE, default=list(NOISE))
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=256)
    options = parser.parse_args()
    size = (options.items, options.trajectories, 2**options.depth)
    changed = np.random.default_rng(0).random(size, dtype=np.float32) < 0.3
    start = time.perf_counter()
    Covariances(Tree(size[2], 2)).add(changed)
    probe = time.perf_counter() - start
    del changed
    print(f"{options.items} originals, {options.trajectories} trajectories, L = {options.depth}; probe alone {probe:.2f} s")
    for channel in options.channel:
        ut.run(described(channel, options.depth, 1, 2))  # compiles
        before, start, busy = _memory(), time.perf_counter(), time.process_time()
        ds = ut.run(described(channel, options.depth, options.items, options.trajectories))
        seconds, busy, grown = time.perf_counter() - start, time.process_time() - busy, _memory() - before
        chi = changes.susceptibility_of(ds).isel(noise=0)
        words = f"chi = {chi.chi.item():.2f} [{chi.low.item():.2f}, {chi.high.item():.2f}]"
        each = 1e6 * seconds / size[0] / size[1]
        print(f"{channel:10} {seconds:6.1f} s, all threads {busy:.1f} s   {each:6.1f} us a U-turn   +{grown:.0f} MB   {words}")


def _memory() -> float:
    """Largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
