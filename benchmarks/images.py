"""How well the queue of U-turns keeps the network busy: occupancy of batches, time outside the
network, batch 1 against 64.

    python benchmarks/images.py [--items 40] [--levels 10] [--steps 50] [--batch 64] [--model FOLDER
    [--prompt TEXT_OR_FILE]]

On the embedded Fashion-MNIST model, or on another one with images of noise, in one process on the
CPU. The least number of rows that the network must compute is `items * sum of steps`; the time of
the network is measured inside it, in the same run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from uturn.backward.reverse_diffusion import ImageWork, ReverseDiffusion
from uturn.core.random import keys, normals
from uturn.sources import fashion_mnist


class Counted(torch.nn.Module):
    """The network, with its calls, rows and seconds counted."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls, self.rows, self.seconds = 0, 0, 0.0
        self.eval()

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, *labels: torch.Tensor
    ) -> torch.Tensor:
        start = time.perf_counter()
        output = self.network(noisy, timestep, *labels)
        self.seconds += time.perf_counter() - start
        self.calls, self.rows = self.calls + 1, self.rows + len(noisy)
        return output


def reverse(options: argparse.Namespace, batch: int) -> ReverseDiffusion:
    chain = ReverseDiffusion.from_pretrained(
        options.model, "ddpm", options.steps, batch_size=batch, prompt=options.prompt
    )
    chain.model = replace(chain.model, network=Counted(chain.model.network))
    return chain


def rows_of(chain: ReverseDiffusion, items: int) -> list[int] | None:
    """The prompt of each item, or the class, for models that are told one."""
    if chain.model.num_classes is None:
        return None
    return (
        [k % chain.model.num_classes for k in range(items)]
        if chain.model.prompts is None
        else chain.model.prompts.rows_of(range(items)).tolist()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("items", 40), ("levels", 10), ("steps", 50), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default=fashion_mnist.generator_folder())
    parser.add_argument("--prompt")
    options = parser.parse_args()
    ladder = [options.steps * k // options.levels for k in range(options.levels, 0, -1)]
    streams = keys(0, np.arange(options.items))

    queue = reverse(options, options.batch)
    assert queue.model.image_shape is not None
    images = fashion_mnist.load_test_set()[0][: options.items]
    if images.shape[1:] != queue.model.image_shape:
        images = 0.4 * normals(streams, int(np.prod(queue.model.image_shape)), np.float32).reshape(
            -1, *queue.model.image_shape
        ).clip(-2, 2)
    told = rows_of(queue, options.items)
    work = (
        ImageWork(image, step, key, None if told is None else told[i], (step, i))
        for step in ladder
        for i, (image, key) in enumerate(
            zip(queue.corrupt(images, step, streams), streams, strict=True)
        )
    )
    start = time.perf_counter()
    queued = dict(queue.queue(work))
    wall = time.perf_counter() - start
    model = queue.model.network
    needed = options.items * sum(ladder)
    assert model.rows == needed, "no row too many"

    loop = reverse(options, options.batch)
    start = time.perf_counter()
    looped = {step: loop.u_turn(images, step, streams, told) for step in ladder}
    loop_wall = time.perf_counter() - start

    single = reverse(options, 1)
    first = None if told is None else told[:1]
    some = ladder[::3]
    apart = max(
        float(
            np.abs(queued[step, 0] - single.u_turn(images[:1], step, streams[:1], first)[0]).max()
        )
        for step in some
    )
    same = max(
        float(np.abs(queued[step, i] - looped[step][i]).max())
        for step in ladder
        for i in range(options.items)
    )

    print(
        f"{options.items} images x {options.levels} inversion times, {options.steps} steps, batch"
        f" {options.batch}"
    )
    print(f"{'':34}{'queue':>10}{'loop':>10}")
    print(
        f"{'calls of the network':34}{model.calls:>10}{loop.model.network.calls:>10}   floor"
        f" {-(-needed // options.batch)}"
    )
    occupied = [m.rows / (m.calls * options.batch) for m in (model, loop.model.network)]
    print(f"{'mean occupancy of a batch':34}{occupied[0]:>10.3f}{occupied[1]:>10.3f}")
    outside = [1 - m.seconds / t for m, t in ((model, wall), (loop.model.network, loop_wall))]
    print(f"{'share of time outside the network':34}{outside[0]:>10.3f}{outside[1]:>10.3f}")
    print(
        f"largest difference of a pixel in [-1, 1]: queue - loop {same:.1e}; batch {options.batch}"
        f" - batch 1 {apart:.1e}"
    )


if __name__ == "__main__":
    main()
