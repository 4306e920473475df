"""Denoisers of strings learned from examples."""

from __future__ import annotations

import hashlib
import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from uturn.core.checks import checked_integer, expect
from uturn.core.protocols import Channel, Noisy
from uturn.core.random import Purpose, keys, uniforms
from uturn.corruption import Gaussian, Masking, UniformReplacement
from uturn.corruption.denoising import checked_observation
from uturn.exact.rhm import RandomHierarchyModel
from uturn.networks.training import History, train

CHANNELS: dict[str, type[Gaussian] | type[Masking] | type[UniformReplacement]] = {
    "gaussian": Gaussian,
    "masking": Masking,
    "uniform": UniformReplacement,
}
TIMES = (0.03, 3.0)
"""Gaussian times t in training. Below, nearly all leaves are determined without error; above,
they are nearly uninformative.
"""

# First coordinates of the random streams with the purpose DENOISER.
_BATCH = 0
_HELD_OUT = 1
_FLOOR = -30.0  # smallest log-probability of the input, which keeps it finite


class TreeNetwork(nn.Module):
    """Network with the shape of the tree that gives the posterior of every leaf.

    A U-Net without overlap: going up, a block reads the features of the s children of a node; going
    down, those of a node and, by the skip connection, of its s children, and writes s children.
    Each block is linear, GELU, linear, with the same weights for all nodes of a tree level: the two
    passes of belief propagation, with learned messages (arXiv:2404.18444). The log-evidence of a
    leaf is added to its logits, as in Bayes' rule, so that the network learns the evidence of the
    *other* leaves. The log-evidence contains all information in an observation, for any channel and
    noise, so the noise level is no input.

    `vocab_size` v, `branching` s and `depth` L are those of the strings, `width` is the number of
    features of a node (a hidden layer has four times as many), `channel` ("gaussian", "masking" or
    "uniform") the corruption in training.
    """

    def __init__(
        self,
        vocab_size: int,
        branching: int,
        depth: int,
        width: int = 32,
        channel: str = "gaussian",
        seed: int = 0,
    ) -> None:
        super().__init__()
        v = checked_integer("vocab_size", vocab_size, 2)
        s = checked_integer("branching", branching, 2)
        L = checked_integer("depth", depth, 1)
        w = checked_integer("width", width, 1)
        checked_channel(channel)
        has_memory = L * math.log2(s) <= 28  # a gigabyte of leaves
        expect(has_memory, "branching, depth", (s, L), "at most 2**28 leaves")
        self.options: dict[str, Any] = {  # numbers, and a name
            "vocab_size": v,
            "branching": s,
            "depth": L,
            "width": w,
            "channel": channel,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(v, w)
            self.up = nn.ModuleList(_block(s * w, w, 4 * w) for _ in range(L))
            self.down = nn.ModuleList(_block((s + 1) * w, s * w, 4 * w) for _ in range(L))
            self.readout = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, v))

    def forward(self, log_evidence: torch.Tensor) -> torch.Tensor:
        """Logits of `p(x_0^i | observation)`, (batch, s**L, v), given log-evidence of that shape
        (-inf is allowed).
        """
        v, s, L, w = (self.options[name] for name in ("vocab_size", "branching", "depth", "width"))
        batch, *shape = log_evidence.shape
        expect(
            shape == [s**L, v],
            "log_evidence: shape",
            tuple(log_evidence.shape),
            f"(batch, {s**L}, {v})",
        )
        log_belief = torch.log_softmax(log_evidence, -1).clamp(min=_FLOOR)
        expect(
            not log_belief.isnan().any(),
            "log_evidence",
            log_evidence,
            "numbers or -inf, not all -inf at a leaf",
        )
        upward = [self.embedding(v * log_belief.exp() - 1)]
        for block in self.up:
            upward.append(block(upward[-1].reshape(batch, -1, s * w)))
        nodes = upward[L]
        for level in range(L, 0, -1):
            children = upward[level - 1].reshape(batch, -1, s * w)
            joint = torch.cat([nodes, children], -1)
            nodes = self.down[level - 1](joint).reshape(batch, -1, w)
        logits: torch.Tensor = self.readout(nodes) + log_belief
        return logits


def _block(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class LearnedDenoiser:
    """A trained `TreeNetwork` as a `uturn.core.protocols.Denoiser`, with `batch_size`
    samples in a call of the network.
    """

    def __init__(self, model: TreeNetwork, batch_size: int = 2048) -> None:
        self.model = model.eval()
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.vocab_size: int = model.options["vocab_size"]
        self.num_leaves: int = model.options["branching"] ** model.options["depth"]
        self.corruption: Channel = CHANNELS[model.options["channel"]]()

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """The network's posterior of every leaf, float32 (batch, num_leaves, vocab_size)."""
        noisy = checked_observation(self, noisy)
        out = np.empty((len(noisy.values), self.num_leaves, self.vocab_size), np.float32)
        with torch.inference_mode():
            for k in range(0, len(out), self.batch_size):
                rows = slice(k, k + self.batch_size)
                batch = Noisy(noisy.values[rows], noisy.noise[rows], noisy.vocab_size)
                evidence = torch.from_numpy(self.corruption.log_evidence(batch, np.float32))
                logits = self.model(evidence.to(self.model.embedding.weight))
                out[rows] = logits.softmax(-1).float().cpu().numpy()
        return out


def checked_channel(channel: str) -> str:
    """`channel`, or a ValueError if no network can be trained for a channel of this name."""
    expect(
        isinstance(channel, str) and channel in CHANNELS,
        "channel",
        channel,
        f"one of {', '.join(CHANNELS)}",
    )
    return channel


def training_noise(channel: str, u: ArrayLike) -> np.ndarray:
    """Noise levels in training from u uniform in [0, 1): t log-uniform in `TIMES` (Gaussian),
    else the fraction 1 - alpha = u.
    """
    u = np.asarray(u, float)
    if checked_channel(channel) != "gaussian":
        return u
    first, last = TIMES
    times: np.ndarray = first * (last / first) ** u
    return times


class TrainedDenoisers(NamedTuple):
    """The results of a training."""

    best: TreeNetwork
    """The network at the lowest loss on held-out strings (early stopping)."""
    last: TreeNetwork
    """The network at the end."""
    history: History
    """`loss` (training) and `held_out`, nats a leaf."""


def train_denoiser(
    rhm: RandomHierarchyModel,
    channel: str,
    strings: ArrayLike,
    *,
    width: int = 32,
    steps: int = 3000,
    batch_size: int = 128,
    learning_rate: float = 6e-3,
    every: int = 250,
    held_out: int = 1024,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> TrainedDenoisers:
    """Train a denoiser on given strings; the grammar is used only to draw more strings, which are
    held out for evaluation.

    Every step takes `batch_size` of the strings with new noise, at levels drawn from
    `training_noise`, and lowers the cross-entropy `-log p(x_0^i | observation)`, mean over leaves.
    Its minimum over all functions is the exact posterior, as is the minimum of the squared
    denoising loss.

    `strings`: the training set, integers (P, num_leaves). `held_out`: number of held-out strings,
    whose noise levels are spread evenly over the training distribution. Other options: as in
    `TreeNetwork` and `uturn.networks.training.train`.
    """
    strings = rhm.checked_leaves(strings)
    P = len(strings)
    v = rhm.vocab_size
    expect(P, "strings", strings, "at least one training string")
    model = TreeNetwork(v, rhm.branching, rhm.depth, width, channel, seed)
    corruption = CHANNELS[channel]()
    fresh = keys(seed, Purpose.DENOISER, _HELD_OUT, range(checked_integer("held_out", held_out, 1)))
    levels = training_noise(channel, (np.arange(held_out) + 0.5) / held_out)
    judged = _batch(corruption, rhm.sample(held_out, seed=fresh).leaves, levels, v, fresh)

    def loss(trained: nn.Module, step: int) -> torch.Tensor:
        streams = keys(seed, Purpose.DENOISER, _BATCH, step, range(batch_size))
        u = uniforms(streams, 2)
        leaves = strings[(u[:, 0] * P).astype(np.int64)]
        noise = training_noise(channel, u[:, 1])
        return _batch(corruption, leaves, noise, v, streams).loss(trained)

    def evaluate(trained: nn.Module) -> dict[str, float]:
        assert isinstance(trained, _Remembering)
        with torch.inference_mode():
            value = judged.loss(trained).item()
        trained.remember(value)
        return {"held_out": value}

    recipe = {
        "network": model.options,
        "grammar": rhm.fingerprint,
        "strings": hashlib.sha256(strings.tobytes()).hexdigest(),
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "held_out": held_out,
        "every": every,
    }
    trained = _Remembering(model)
    history = train(
        trained,
        loss,
        steps,
        recipe=recipe,
        checkpoint=checkpoint,
        learning_rate=learning_rate,
        warmup=min(100, steps // 10),
        evaluate=evaluate,
        every=every,
        progress=progress,
    )
    return TrainedDenoisers(trained.best.eval(), trained.last.eval(), history)


@dataclass(frozen=True)
class _Batch:
    """Noisy strings to train or to judge a network with."""

    evidence: torch.Tensor
    """Log-evidence, float32 (batch, leaves, symbols)."""
    symbols: torch.Tensor
    """The true symbols, int64 (batch * leaves,)."""

    def loss(self, network: nn.Module) -> torch.Tensor:
        """Mean cross-entropy of a leaf, in nats."""
        logits = network(self.evidence)
        return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), self.symbols)


def _batch(
    corruption: Channel, leaves: np.ndarray, noise: np.ndarray, v: int, seed: np.ndarray
) -> _Batch:
    noisy = corruption.corrupt_symbols(leaves, noise, seed, v)
    evidence = corruption.log_evidence(noisy, np.float32)
    symbols = np.ascontiguousarray(leaves).reshape(-1)
    return _Batch(torch.from_numpy(evidence), torch.from_numpy(symbols))


class _Remembering(nn.Module):
    """A network in training with its best weights so far as buffers, which every checkpoint
    contains.
    """

    lowest: torch.Tensor
    weights: torch.Tensor

    def __init__(self, model: TreeNetwork) -> None:
        super().__init__()
        self.last = model
        self.register_buffer("lowest", torch.tensor(float("inf"), dtype=torch.float64))
        self.register_buffer("weights", parameters_to_vector(model.parameters()).detach())

    def forward(self, log_evidence: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(log_evidence)
        return logits

    def remember(self, loss: float) -> None:
        if loss < self.lowest.item():
            self.lowest.fill_(loss)
            self.weights.copy_(parameters_to_vector(self.last.parameters()))

    @property
    def best(self) -> TreeNetwork:
        best = deepcopy(self.last)
        vector_to_parameters(self.weights.clone(), best.parameters())
        return best
