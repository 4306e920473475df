"""How often the check of recorded files finds a swapped pair, and how often it raises a false
alarm.

python benchmarks/pairing.py [--folders 300] [--images 120]

U-turns of embedded images by the embedded model (20 DDPM steps) at several t/T, two versions of
each. A folder is a random choice of 60 of the images. For each level the table gives: the smallest
ratio (c_ij + c_ji) / (c_ii + c_jj) of all folders as they are, the share of folders with a ratio
below .7 (false alarms), and the share of folders with one swapped pair in which exactly the two
swapped originals lie below .7 (found).
"""

from __future__ import annotations

import argparse

import numpy as np

import uturn as ut
from uturn.backward.recorded import pairing

LEVELS = (0.05, 0.1, 0.2, 0.3)
ITEMS = 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folders", type=int, default=300)
    parser.add_argument("--images", type=int, default=120)
    chosen = parser.parse_args()
    run = ut.run(
        ut.Experiment.from_dict(
            {
                "items": chosen.images,
                "trajectories": 2,
                "source": {"type": "fashion_mnist"},
                "corruption": {"type": "diffusion", "noise": list(LEVELS)},
                "backward": {"type": "diffusion", "steps": 20},
                "probes": [{"type": "images"}],
            }
        ),
        progress=True,
    )
    originals = (
        ut.sources.FashionMNISTSource()
        .images_at(np.arange(chosen.images))[0]
        .reshape(chosen.images, -1)
    )
    print(
        f"{chosen.folders} folders of {ITEMS} of {chosen.images} images, two reconstructions of"
        " each"
    )
    print("t/T    smallest ratio   false alarms   found")
    for level in LEVELS:
        images = run.image.sel(noise=level).values.reshape(chosen.images, 2, -1)
        rng, smallest, found = np.random.default_rng(0), [], []
        for _ in range(chosen.folders):
            items = rng.permutation(chosen.images)[:ITEMS]
            x, made = originals[items], images[items]
            smallest.append(pairing(x, made)[0].min())
            made[[0, 1]] = made[[1, 0]]
            found.append(np.flatnonzero(pairing(x, made)[0] < 0.7).tolist() == [0, 1])
        print(
            f"{level:4.2f}   {min(smallest):14.2f}   {np.mean(np.array(smallest) < 0.7):12.3f}  "
            f" {np.mean(found):5.3f}"
        )


if __name__ == "__main__":
    main()
