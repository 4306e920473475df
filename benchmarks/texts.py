"""How well the queue of U-turns of texts keeps a language model busy: occupancy of calls, padding,
time outside the network.

    python benchmarks/texts.py [--items 40] [--batch 16] [--shortest 20] [--longest 64] [--vocab 64]
    [--order random]

Texts of random lengths over a vocabulary of random tokens, at ten masked fractions, one token a
call, in one process. The network is a BERT with random weights (uturn[text]), which takes padding.
The least number of rows that it must compute is the number of masked tokens; a loop over noise
levels, in batches of equal size, is timed beside the queue.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from uturn.backward.language import TokenWork, run_token_queue
from uturn.core.random import keys
from uturn.corruption.sampling import MASKED
from uturn.corruption.unmasking import Decoder
from uturn.networks.texts.language import LanguageModel
from uturn.sources.tokens import PAD


class Counted:
    """A network with its calls, rows, tokens and seconds counted."""

    takes_padding = True

    def __init__(self, vocab: int, length: int) -> None:
        from transformers import BertConfig, BertForMaskedLM

        sizes = {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
        }
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab + 1, max_position_embeddings=length, initializer_range=0.2, **sizes
        )
        self.network = BertForMaskedLM(config).eval()
        self.calls = self.rows = self.tokens = self.real = 0
        self.seconds = 0.0

    def logits(self, ids: torch.Tensor, noise: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        out = self.network(input_ids=ids, attention_mask=real).logits
        self.seconds += time.perf_counter() - start
        self.calls, self.rows = self.calls + 1, self.rows + len(ids)
        self.tokens, self.real = self.tokens + ids.numel(), self.real + int(real.sum())
        return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("items", 40),
        ("batch", 16),
        ("shortest", 20),
        ("longest", 64),
        ("vocab", 64),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--order", default="random")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.shortest, options.longest + 1, options.items)
    texts = np.where(
        np.arange(options.longest) < lengths[:, None],
        rng.integers(options.vocab, size=(options.items, options.longest)),
        PAD,
    )
    levels = np.linspace(0.1, 1, 10)
    noisy = [
        np.where((rng.random(texts.shape) < noise) & (texts != PAD), MASKED, texts)
        for noise in levels
    ]
    decoder = Decoder(options.order)

    def measured(
        groups: list[list[TokenWork]],
    ) -> tuple[Counted, float, dict[tuple[int, int], np.ndarray]]:
        network = Counted(options.vocab, options.longest)
        model = LanguageModel(
            network, options.vocab + 1, mask_id=options.vocab, forbidden=(options.vocab,)
        )
        start, found = time.perf_counter(), {}
        for group in groups:
            found |= dict(run_token_queue(model, decoder.sampler, group, options.batch))
        return network, time.perf_counter() - start, found

    work = [
        [
            TokenWork(row, noise, key, (k, item))
            for item, (row, key) in enumerate(
                zip(noisy[k], keys(0, range(options.items)), strict=True)
            )
        ]
        for k, noise in enumerate(levels)
    ]
    queue, wall, queued = measured([[one for group in work for one in group]])
    parts = [
        group[k : k + options.batch] for group in work for k in range(0, len(group), options.batch)
    ]
    loop, loop_wall, looped = measured(parts)
    needed = int(sum((one == MASKED).sum() for one in noisy))
    assert queue.rows == needed, "no row too many"
    same = np.mean([(queued[name] == looped[name]).all() for name in queued])

    lengths = f"{options.shortest} to {options.longest}"
    print(
        f"{options.items} texts of {lengths} tokens x {len(levels)} levels, batch {options.batch},"
        f" order {options.order}"
    )
    print(f"{'':34}{'queue':>10}{'loop':>10}")
    print(
        f"{'calls of the network':34}{queue.calls:>10}{loop.calls:>10}   floor"
        f" {-(-needed // options.batch)}"
    )
    for words, value in (
        ("mean occupancy of a call", lambda one, _: one.rows / (one.calls * options.batch)),
        ("share of tokens that are padding", lambda one, _: 1 - one.real / one.tokens),
        ("share of time outside the network", lambda one, seconds: 1 - one.seconds / seconds),
    ):
        print(f"{words:34}{value(queue, wall):>10.3f}{value(loop, loop_wall):>10.3f}")
    print(f"{'seconds':34}{wall:>10.1f}{loop_wall:>10.1f}")
    print(f"share of texts that are the same in both: {same:.3f}")


if __name__ == "__main__":
    main()
