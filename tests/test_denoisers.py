"""Trained denoisers: none beats Bayes, training resumes bit for bit, and a tiny network learns a
tiny grammar.
"""

import numpy as np
import pytest
import torch

import uturn as ut
from uturn.corruption import Noisy
from uturn.corruption.denoising import ExactDenoiser, denoise
from uturn.networks.files import fingerprint, load_network, save_network
from uturn.networks.strings import denoisers
from uturn.networks.strings.denoisers import (
    CHANNELS,
    LearnedDenoiser,
    TreeNetwork,
    train_denoiser,
    training_noise,
)  # fmt: skip

GRAMMAR = {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rhm():
    return ut.RandomHierarchyModel(**GRAMMAR)


@pytest.fixture(scope="module")
def trained(rhm):
    """{channel: denoiser}, trained for a few seconds each."""
    strings = rhm.sample(400, seed=1).leaves
    return {
        channel: LearnedDenoiser(
            train_denoiser(
                rhm, channel, strings, width=16, steps=400, batch_size=64, every=100, held_out=256
            )[0]
        )
        for channel in CHANNELS
    }


def levels(channel, count=6):
    return training_noise(channel, (np.arange(count) + 0.5) / count)


@pytest.mark.parametrize("channel", CHANNELS)
def test_network_gives_a_distribution_for_every_leaf(channel):
    learned = LearnedDenoiser(TreeNetwork(3, 3, 2, width=8, channel=channel))
    noisy = learned.corruption.corrupt(
        np.arange(45).reshape(5, 9) % 3, [0, 0.1, 0.4, 0.9, 1], vocab_size=3, seed=0
    )
    belief = learned.posterior(noisy)
    assert belief.shape == (5, 9, 3)
    assert belief.dtype == np.float32
    assert np.abs(belief.sum(-1) - 1).max() < 1e-5
    # Without noise the output is the noisy datum for all weights, because the evidence is part of
    # the logits.
    assert (belief[0].argmax(-1) == np.arange(9) % 3).all()
    one_by_one = LearnedDenoiser(learned.model, batch_size=2).posterior(noisy)
    assert np.abs(belief - one_by_one).max() < 1e-5


def test_features_are_shared_by_the_nodes_of_a_level():
    # Two leaves with the same surroundings up to the root, in a string made of two equal halves,
    # differ only by their side.
    network = TreeNetwork(4, 2, 3, width=8)
    half = torch.randn(1, 4, 4)
    upward = network.up[1](
        network.up[0](network.embedding(torch.cat([half, half], 1)).reshape(1, 4, 16)).reshape(
            1, 2, 16
        )
    )
    assert torch.allclose(upward[0, 0], upward[0, 1])


def test_saved_and_loaded(tmp_path):
    model = TreeNetwork(4, 2, 2, width=8, channel="uniform", seed=3).eval()
    save_network(model, tmp_path / "d.safetensors", size=7)
    loaded = load_network(tmp_path / "d.safetensors", "tree_denoiser")
    assert loaded.options == model.options
    assert loaded.facts == {"size": 7}
    evidence = torch.randn(2, 4, 4)
    assert torch.equal(model(evidence), loaded(evidence))
    assert fingerprint(model) == fingerprint(loaded)


def losses(denoiser, exact, leaves, channel):
    """Cross-entropy and squared error of a denoiser beyond those of the exact one, and the
    cross-entropy that only the other leaves can lower: each a mean over leaves and noise levels
    for every string.
    """
    found = []
    true = np.eye(4)[leaves]
    for k, noise in enumerate(levels(channel)):
        noisy = exact.corruption.corrupt(
            leaves, noise, vocab_size=4, seed=ut.random.keys(5, k, range(len(leaves)))
        )
        p = exact.posterior(noisy).astype(float)
        q = denoiser.posterior(noisy).astype(float)
        evidence = exact.corruption.log_evidence(noisy, np.float64)
        log_own = evidence - np.logaddexp.reduce(evidence, -1, keepdims=True)
        log_p, log_q = (np.log(np.maximum(x, 1e-30)) for x in (p, q))
        log_own = np.maximum(log_own, np.log(1e-30))
        excess = (true * (log_p - log_q)).sum(-1)
        squared = ((true - q) ** 2 - (true - p) ** 2).sum(-1)
        of_others = (true * (log_p - log_own)).sum(-1)
        found.append([excess.mean(-1), squared.mean(-1), of_others.mean(-1)])
    return np.mean(found, axis=0)


def t_statistic(values):
    return values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.slow
@pytest.mark.parametrize("channel", CHANNELS)
def test_learns_and_does_not_beat_bayes(rhm, trained, channel):
    exact = ExactDenoiser(rhm, CHANNELS[channel]())
    fresh = rhm.sample(400, seed=2).leaves
    untrained = LearnedDenoiser(TreeNetwork(4, 2, 2, width=16, channel=channel))
    new = losses(untrained, exact, fresh, channel)
    old = losses(trained[channel], exact, fresh, channel)
    for excess, squared, _ in (new, old):
        assert t_statistic(excess) > -3
        assert t_statistic(squared) > -3
    # It uses the other leaves: its loss is much lower than that of a denoiser of independent
    # leaves, and than at the start.
    excess, _, of_others = old
    assert excess.mean() < 0.3 * of_others.mean()
    assert excess.mean() < 0.3 * new[0].mean()


@pytest.mark.slow
def test_bayes_bound_sees_a_cheat(rhm, trained):
    """Negative control: a denoiser that reads the original."""
    fresh = rhm.sample(400, seed=2).leaves

    class Cheat(LearnedDenoiser):
        def posterior(self, noisy):
            return (
                0.7 * super().posterior(noisy)
                + np.float32(0.3) * np.eye(4, dtype=np.float32)[fresh]
            )

    exact = ExactDenoiser(rhm, CHANNELS["masking"]())
    excess, squared, _ = losses(Cheat(trained["masking"].model), exact, fresh, "masking")
    assert t_statistic(excess) < -3
    assert t_statistic(squared) < -3


@pytest.mark.parametrize("channel", CHANNELS)
def test_generates_strings_of_the_grammar(rhm, trained, channel):
    learned = trained[channel]
    corruption = learned.corruption
    nothing = corruption.corrupt(
        np.zeros((300, 4), np.int64), corruption.max_noise, vocab_size=4, seed=1
    )
    assert np.abs(np.diff(learned.posterior(nothing)[:, 0], axis=0)).max() < 0.5
    strings = denoise(learned, nothing, 16, ut.random.keys(2, range(300)))
    # Chance: 8 of 16 pairs are rules.
    assert rhm.parse(strings).valid[1].mean() > 0.85


def test_early_stopping_keeps_the_best(rhm):
    """Four strings are soon known by heart: the loss on held-out strings falls, then rises."""
    best, last, history = train_denoiser(
        rhm,
        "uniform",
        rhm.sample(4, seed=1).leaves,
        width=16,
        steps=200,
        batch_size=32,
        every=20,
        held_out=256,
    )
    held_out = [loss for _, loss in history.records["held_out"]]
    assert min(held_out) < held_out[-1] - 0.1
    exact = ExactDenoiser(rhm, CHANNELS["uniform"]())
    fresh = rhm.sample(200, seed=2).leaves
    of_best, of_last = (
        losses(LearnedDenoiser(one), exact, fresh, "uniform")[0] for one in (best, last)
    )
    assert of_best.mean() < of_last.mean()


def test_bad_input(rhm):
    strings = rhm.sample(5, seed=1).leaves
    with pytest.raises(
        ValueError, match="channel = 'epsilon': expected one of gaussian, masking, uniform"
    ):
        train_denoiser(rhm, "epsilon", strings)
    with pytest.raises(ValueError, match=r"shape = \(5, 3\)"):
        train_denoiser(rhm, "masking", strings[:, :3])
    with pytest.raises(ValueError, match=r"\(2, 3, 4\): expected \(batch, 4, 4\)"):
        TreeNetwork(4, 2, 2)(torch.zeros(2, 3, 4))
    evidence = torch.zeros(2, 4, 4)
    evidence[1, 2] = -torch.inf
    with pytest.raises(
        ValueError, match=r"log_evidence = .*expected numbers or -inf, not all -inf"
    ):
        TreeNetwork(4, 2, 2)(evidence)
    with pytest.raises(ValueError, match=r"noisy values = \(4, 5, 5\)"):
        denoise(
            LearnedDenoiser(TreeNetwork(4, 2, 2)),
            Noisy(np.zeros((1, 4, 5)), np.ones(1), 5),
            3,
            ut.random.keys(0, range(1)),
        )


def test_training_resumes_bit_for_bit(rhm, tmp_path, monkeypatch):
    strings = rhm.sample(50, seed=1).leaves
    options = {"width": 8, "steps": 40, "batch_size": 16, "every": 10, "held_out": 32}
    whole = train_denoiser(rhm, "masking", strings, **options)
    real, calls = denoisers._batch, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 28:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(denoisers, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(rhm, "masking", strings, **options, checkpoint=tmp_path / "c.pt")
    resumed = train_denoiser(rhm, "masking", strings, **options, checkpoint=tmp_path / "c.pt")
    assert len(calls) < 28 + 25  # it did not begin anew
    for one, other in zip(whole[:2], resumed[:2], strict=True):
        assert fingerprint(one) == fingerprint(other)
    assert whole[2].records["held_out"] == resumed[2].records["held_out"]
    with pytest.raises(ValueError, match="another training"):
        train_denoiser(rhm, "masking", strings[:-1], **options, checkpoint=tmp_path / "c.pt")
