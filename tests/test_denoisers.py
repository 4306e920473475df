"""Trained denoisers: none beats Bayes, training resumes bit for bit, and a tiny network learns a tiny grammar."""

from itertools import product

import numpy as np
import pytest
import torch

import enumeration
import uturn as ut
from uturn.corruption import Noisy
from uturn.corruption.denoising import ExactDenoiser, denoise
from uturn.networks.files import fingerprint, load_network, save_network
from uturn.networks.strings import denoisers
from uturn.networks.strings.denoisers import (
    CHANNELS,
    LearnedDenoiser,
    TreeDenoiser,
    compare_denoisers,
    full_noise,
    level_weights,
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
            train_denoiser(rhm, channel, strings, width=16, steps=400, batch_size=64, every=100, held_out=256)[0]
        )
        for channel in CHANNELS
    }


def levels(channel, count=6):
    return training_noise(channel, (np.arange(count) + 0.5) / count)


def t_statistic(gap):
    items = gap.mean("noise")
    return float(items.mean() / (items.std("item", ddof=1) / np.sqrt(items.sizes["item"])))


@pytest.mark.parametrize("channel", CHANNELS)
def test_network_gives_a_distribution_for_every_leaf(channel):
    learned = LearnedDenoiser(TreeDenoiser(3, 3, 2, width=8, channel=channel))
    noisy = learned.corruption.corrupt(np.arange(45).reshape(5, 9) % 3, [0, 0.1, 0.4, 0.9, 1], 3, seed=0)
    belief = learned.posterior(noisy)
    assert belief.shape == (5, 9, 3)
    assert belief.dtype == np.float32
    assert np.abs(belief.sum(-1) - 1).max() < 1e-5
    # Without noise the output is the noisy datum for all weights, because the evidence is part of the logits.
    assert (belief[0].argmax(-1) == np.arange(9) % 3).all()
    one_by_one = LearnedDenoiser(learned.model, batch_size=2).posterior(noisy)
    assert np.abs(belief - one_by_one).max() < 1e-5


def test_features_are_shared_by_the_nodes_of_a_level():
    # Two leaves with the same surroundings up to the root, in a string made of two equal halves, differ only by their side.
    network = TreeDenoiser(4, 2, 3, width=8)
    half = torch.randn(1, 4, 4)
    upward = network.up[1](network.up[0](network.embedding(torch.cat([half, half], 1)).reshape(1, 4, 16)).reshape(1, 2, 16))
    assert torch.allclose(upward[0, 0], upward[0, 1])


def test_saved_and_loaded(tmp_path):
    model = TreeDenoiser(4, 2, 2, width=8, channel="uniform", seed=3).eval()
    save_network(model, tmp_path / "d.safetensors", size=7)
    loaded = load_network(tmp_path / "d.safetensors", "tree_denoiser")
    assert loaded.options == model.options
    assert loaded.facts == {"size": 7}
    evidence = torch.randn(2, 4, 4)
    assert torch.equal(model(evidence), loaded(evidence))
    assert fingerprint(model) == fingerprint(loaded)


@pytest.mark.parametrize("channel", CHANNELS)
def test_learns_and_does_not_beat_bayes(rhm, trained, channel):
    exact = ExactDenoiser(rhm, CHANNELS[channel]())
    fresh = rhm.sample(400, seed=2).leaves
    new, old = (
        compare_denoisers(one, exact, fresh, levels(channel), seed=5)
        for one in (LearnedDenoiser(TreeDenoiser(4, 2, 2, width=16, channel=channel)), trained[channel])
    )
    for found in (new, old):
        assert t_statistic(found.excess) > -3
        assert t_statistic(found.squared_error - found.exact_squared_error) > -3
        # Given the observation, the mean of the excess is the divergence, and that of the squared gap the squared distance.
        assert abs(t_statistic(found.excess - found.divergence)) < 4
        assert abs(t_statistic(found.squared_error - found.exact_squared_error - found.mean_error)) < 4
    assert (old.divergence > -1e-5).all()
    # It uses the other leaves: its loss is much lower than that of a denoiser of independent leaves, and than at the start.
    assert old.divergence.mean() < 0.3 * old.local.mean()
    assert old.divergence.mean() < 0.3 * new.divergence.mean()


def test_bayes_bound_sees_a_cheat(rhm, trained):
    """Negative control: a denoiser that reads the original."""
    fresh = rhm.sample(400, seed=2).leaves

    class Cheat(LearnedDenoiser):
        def posterior(self, noisy):
            return 0.7 * super().posterior(noisy) + np.float32(0.3) * np.eye(4, dtype=np.float32)[fresh]

    exact = ExactDenoiser(rhm, CHANNELS["masking"]())
    found = compare_denoisers(Cheat(trained["masking"].model), exact, fresh, levels("masking"), seed=5)
    assert t_statistic(found.excess) < -3
    assert t_statistic(found.squared_error - found.exact_squared_error) < -3


def test_score_is_the_gradient_of_the_log_density(rhm):
    """`score_square` against autograd of the log-evidence of the observation."""
    corruption, t = CHANNELS["gaussian"](), 0.4
    leaves, seed = rhm.sample(3, seed=2).leaves, ut.random.keys(5, range(3))
    exact = ExactDenoiser(rhm, corruption)
    found = compare_denoisers(exact, exact, leaves, [t], seed=seed)
    noisy = corruption.corrupt(leaves, t, 4, ut.random.streams(seed, 3, 0))
    abar = np.exp(-2 * t)
    x = torch.tensor(noisy.values, dtype=torch.float64, requires_grad=True)
    log_p = ut.infer(rhm, x * abar**0.5 / (1 - abar), outputs=("log_evidence",)).log_evidence
    (log_p.sum() - (x**2).sum() / (2 * (1 - abar))).backward()
    expected = (x.grad**2).sum(-1).mean(-1).numpy()
    assert np.allclose(found.score_square.values[0], expected, rtol=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_bayes_loss_is_that_of_enumeration(rhm, share):
    """Masking: mean loss of the best denoiser over all strings of the grammar and all sets of masked leaves."""
    trees, weight = enumeration.all_trees(rhm)
    leaves, p = trees[0], np.exp(weight)
    bayes = 0.0
    for mask in np.array(list(product([False, True], repeat=4))):
        chance = share ** mask.sum() * (1 - share) ** (~mask).sum()
        for string, of_string in zip(leaves, p, strict=True):
            agree = (leaves == string)[:, ~mask].all(1)
            right = [p[agree & (leaves[:, i] == string[i])].sum() / p[agree].sum() for i in range(4)]
            bayes -= chance * of_string * np.mean(np.log(right))
    exact = ExactDenoiser(rhm, CHANNELS["masking"]())
    found = compare_denoisers(exact, exact, rhm.sample(4000, seed=6).leaves, [share], seed=7).local.isel(noise=0)
    error = float(found.std("item", ddof=1)) / 4000**0.5
    assert abs(float(found.mean()) - (share * np.log(4) - bayes)) < 4 * error  # alone, a masked leaf is any of 4 symbols
    assert error < 0.01


class Reader:
    """The exact denoiser of a grammar cut to its lowest levels, with evidence times a factor, and with random errors."""

    vocab_size, num_leaves = 4, 8

    def __init__(self, rhm, channel, top, factor=1.0, errors=0.0):
        self.corruption, self.top, self.factor, self.errors = CHANNELS[channel](), top, factor, errors
        self.known = ut.RandomHierarchyModel.from_rules({k: rhm.rules[k] for k in range(1, top + 1)}, 4)

    def posterior(self, noisy):
        evidence = self.corruption.log_evidence(noisy, np.float64)
        own = evidence - np.logaddexp.reduce(evidence, -1, keepdims=True)
        belief = ut.infer(self.known, evidence.reshape(-1, 2**self.top, 4)).marginals[0].reshape(own.shape)
        log_p = own + self.factor * (np.log(np.maximum(belief, 1e-30)) - own)
        log_p += self.errors * np.random.default_rng(0).standard_normal(own.shape)
        return np.exp(log_p - np.logaddexp.reduce(log_p, -1, keepdims=True))


@pytest.fixture(scope="module")
def weights():
    """Weights of the levels for a `Reader` of a grammar of depth 3."""
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=3, seed=0)
    leaves = rhm.sample(300, seed=1).leaves
    return lambda channel="gaussian", **options: level_weights(Reader(rhm, channel, **options), rhm, leaves, [0.1, 0.3, 0.9])


@pytest.mark.parametrize("channel", ["gaussian", "uniform"])
def test_weights_of_the_levels_that_a_reader_knows(weights, channel):
    assert np.allclose(weights(channel, top=3), 1, atol=1e-3)
    for top in (1, 2):
        found = weights(channel, top=top)
        assert np.allclose(found[top:], 0, atol=1e-3), found  # rules that it does not know
        assert (abs(found[:top] - 1) < 0.2).all(), found  # the evidence of the levels is not quite independent


def test_weights_do_not_mistake_confidence_or_errors_for_knowledge(weights):
    assert np.allclose(weights(top=3, factor=0.3), 1, atol=1e-3)
    assert np.allclose(weights(top=3, factor=3), 1, atol=0.05)
    assert np.allclose(weights(top=3, factor=-1), 0)
    assert abs(weights(top=3, factor=0, errors=5)).max() < 0.02
    # All levels used alike, with errors: one weight for all levels, though high levels have less to say.
    alike = weights(top=3, factor=0.5, errors=1)
    assert 0.1 < alike.mean() < 0.4
    assert np.ptp(alike) < 0.1 * alike.mean(), alike


@pytest.mark.parametrize("channel", CHANNELS)
def test_generates_strings_of_the_grammar(rhm, trained, channel):
    learned = trained[channel]
    nothing = full_noise(learned.corruption, 300, 4, 4, seed=1)
    assert np.abs(np.diff(learned.posterior(nothing)[:, 0], axis=0)).max() < 0.5
    strings = denoise(learned, nothing, 16, ut.random.keys(2, range(300)))
    # Chance: 8 of 16 pairs are rules.
    assert rhm.parse(strings).valid[1].mean() > 0.85


def test_early_stopping_keeps_the_best(rhm):
    """Four strings are soon known by heart: the loss on held-out strings falls, then rises."""
    best, last, history = train_denoiser(
        rhm, "uniform", rhm.sample(4, seed=1).leaves, width=16, steps=200, batch_size=32, every=20, held_out=256
    )
    losses = [loss for _, loss in history.records["held_out"]]
    assert min(losses) < losses[-1] - 0.1
    exact = ExactDenoiser(rhm, CHANNELS["uniform"]())
    fresh = rhm.sample(200, seed=2).leaves
    found = [compare_denoisers(LearnedDenoiser(one), exact, fresh, levels("uniform")) for one in (best, last)]
    assert found[0].divergence.mean() < found[1].divergence.mean()


def test_bad_input(rhm):
    strings = rhm.sample(5, seed=1).leaves
    with pytest.raises(ValueError, match="channel = 'epsilon': expected one of gaussian, masking, uniform"):
        train_denoiser(rhm, "epsilon", strings)
    with pytest.raises(ValueError, match=r"shape = \(5, 3\)"):
        train_denoiser(rhm, "masking", strings[:, :3])
    with pytest.raises(ValueError, match=r"\(2, 3, 4\): expected \(batch, 4, 4\)"):
        TreeDenoiser(4, 2, 2)(torch.zeros(2, 3, 4))
    evidence = torch.zeros(2, 4, 4)
    evidence[1, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"log_evidence = .*expected numbers or -inf, not all -inf"):
        TreeDenoiser(4, 2, 2)(evidence)
    with pytest.raises(ValueError, match=r"noisy values = \(4, 5, 5\)"):
        denoise(LearnedDenoiser(TreeDenoiser(4, 2, 2)), Noisy(np.zeros((1, 4, 5)), np.ones(1), 5), 3, ut.random.keys(0, range(1)))


def test_training_resumes_bit_for_bit(rhm, tmp_path, monkeypatch):
    strings = rhm.sample(50, seed=1).leaves
    options = {"width": 8, "steps": 40, "batch_size": 16, "every": 10, "held_out": 32}
    whole = train_denoiser(rhm, "masking", strings, **options)
    real, calls = denoisers._tensors, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 28:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(denoisers, "_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(rhm, "masking", strings, **options, checkpoint=tmp_path / "c.pt")
    resumed = train_denoiser(rhm, "masking", strings, **options, checkpoint=tmp_path / "c.pt")
    assert len(calls) < 28 + 25  # it did not begin anew
    for one, other in zip(whole[:2], resumed[:2], strict=True):
        assert fingerprint(one) == fingerprint(other)
    assert whole[2].records["held_out"] == resumed[2].records["held_out"]
    with pytest.raises(ValueError, match="another training"):
        train_denoiser(rhm, "masking", strings[:-1], **options, checkpoint=tmp_path / "c.pt")
