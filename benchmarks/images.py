"""How well the queue of U-turns keeps the network busy: occupancy of batches, time outside the network, batch 1 against 64.

    python benchmarks/images.py [--items 40] [--levels 10] [--steps 50] [--batch 64]

On the embedded Fashion-MNIST model, in one process on the CPU. The least number of rows that the network must compute is `items *
sum of steps`; the time of the network is measured inside it, in the same run.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from uturn import fashion_mnist
from uturn.backward.queue import Work
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.random import keys


class Counted(torch.nn.Module):
    """The network, with its calls, rows and seconds counted."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.calls, self.rows, self.seconds = 0, 0, 0.0
        self.eval()

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        output = self.network(noisy, timestep).sample
        self.seconds += time.perf_counter() - start
        self.calls, self.rows = self.calls + 1, self.rows + len(noisy)
        return output


def reverse(batch: int, steps: int) -> ReverseDiffusion:
    model = Counted(fashion_mnist.load_generator())
    return ReverseDiffusion(model, fashion_mnist.load_scheduler(), steps, batch_size=batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 40), ("levels", 10), ("steps", 50), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    images = fashion_mnist.load_test_set()[0][: options.items]
    ladder = [options.steps * k // options.levels for k in range(options.levels, 0, -1)]
    streams = keys(0, np.arange(options.items))

    queue = reverse(options.batch, options.steps)
    work = (
        Work(image, step, key, name=(step, i))
        for step in ladder
        for i, (image, key) in enumerate(zip(queue.corrupt(images, step, streams), streams, strict=True))
    )
    start = time.perf_counter()
    queued = dict(queue.queue(work))
    wall = time.perf_counter() - start
    model = queue.model
    needed = options.items * sum(ladder)
    assert model.rows == needed, "no row too many"

    loop = reverse(options.batch, options.steps)
    start = time.perf_counter()
    looped = {step: loop.u_turn(images, step, streams) for step in ladder}
    loop_wall = time.perf_counter() - start

    single = reverse(1, options.steps)
    some = ladder[::3]
    apart = max(float(np.abs(queued[step, 0] - single.u_turn(images[:1], step, streams[:1])[0]).max()) for step in some)
    same = max(float(np.abs(queued[step, i] - looped[step][i]).max()) for step in ladder for i in range(options.items))

    print(f"{options.items} images x {options.levels} inversion times, {options.steps} steps, batch {options.batch}")
    print(f"{'':34}{'queue':>10}{'loop':>10}")
    print(f"{'calls of the network':34}{model.calls:>10}{loop.model.calls:>10}   floor {-(-needed // options.batch)}")
    occupied = [m.rows / (m.calls * options.batch) for m in (model, loop.model)]
    print(f"{'mean occupancy of a batch':34}{occupied[0]:>10.3f}{occupied[1]:>10.3f}")
    outside = [1 - m.seconds / t for m, t in ((model, wall), (loop.model, loop_wall))]
    print(f"{'share of time outside the network':34}{outside[0]:>10.3f}{outside[1]:>10.3f}")
    print(f"largest difference of a pixel in [-1, 1]: queue - loop {same:.1e}; batch {options.batch} - batch 1 {apart:.1e}")


if __name__ == "__main__":
    main()
