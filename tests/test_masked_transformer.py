"""The masked transformer: its files, positions and training against exact conditionals; the
embedded model and its passages.
"""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from uturn.networks import load_network, save_network
from uturn.networks.texts.masked_transformer import MaskedTransformer, _rotated, _rotation
from uturn.networks.training import train
from uturn.sources import embedded_text

PATTERN, LENGTH = "aab", 7


def small(**options):
    return MaskedTransformer(
        **(
            {"vocab_size": 5, "length": 9, "width": 16, "layers": 2, "heads": 2, "seed": 3}
            | options
        )
    )


def strong(**options):
    """A network with larger weights than initial ones, so that attention matters."""
    network = small(**options)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.5 * torch.randn(weights.shape, generator=draw))
    return network.eval()


@torch.inference_mode()
def probabilities(network, ids):
    return network(ids).softmax(-1)


# --- files ---


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    network, ids = (
        small(characters="abcde", reach=1),
        torch.randint(6, (4, 9), generator=torch.Generator().manual_seed(0)),
    )
    save_network(network, tmp_path / "model.safetensors", steps=7)
    loaded = load_network(tmp_path / "model.safetensors", "masked_transformer")
    assert torch.equal(loaded(ids), network(ids))
    assert (loaded.options, loaded.facts, loaded.mask_id) == (network.options, {"steps": 7}, 5)
    assert not torch.equal(small(reach=1, seed=4)(ids), network(ids))


# --- positions ---


def test_rotated_queries_and_keys_depend_on_distances_alone():
    q, k = torch.randn(
        2, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).expand(2, 9, 6)
    rotation = _rotation(9, 6, torch.device("cpu"))
    products = _rotated(q, rotation) @ _rotated(k, rotation).T
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=0)
    # Left is not right.
    assert products.diagonal(1)[0] != pytest.approx(products.diagonal(-1)[0].item(), abs=1e-3)


@pytest.mark.parametrize("reach", [0, 2])
def test_every_token_reaches_every_position(reach):
    network = strong(reach=reach)
    ids = torch.arange(9)[None] % 5
    changed = ids.repeat(9, 1)
    changed[torch.arange(9), torch.arange(9)] = network.mask_id
    different = (probabilities(network, changed) - probabilities(network, ids)).abs().amax(-1)
    assert (different > 1e-5).all()


def test_order_of_tokens_matters_and_a_batch_does_not():
    network = strong(reach=0)
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 1, 0], [4, 4, 1, 5, 2, 0, 1, 3, 3]])
    together = probabilities(network, ids)
    torch.testing.assert_close(
        torch.cat([probabilities(network, row[None]) for row in ids]), together
    )
    # Attention alone would give 0.
    assert (probabilities(network, ids.flip(1)).flip(1) - together).abs().max() > 0.01


@pytest.mark.parametrize("reach", [0, 2])
def test_where_nothing_is_known_all_positions_are_alike(reach):
    known = probabilities(strong(reach=reach), torch.tensor([[5] * 9, [5, 5, 5, 1, 5, 5, 5, 5, 5]]))
    torch.testing.assert_close(known[0], known[0, :1].expand(9, 5))
    assert (known[1] - known[0]).abs().max() > 0.01


def test_shorter_sequences_are_read_as_a_network_of_that_length_reads_them():
    ids = torch.tensor([[0, 5, 2, 1]])
    network = small(length=4)
    network.load_state_dict(strong().state_dict())
    assert torch.equal(network(ids), strong()(ids))


@pytest.mark.parametrize("reach", [0, 2])
def test_a_sequence_that_is_padded_is_read_as_by_itself(reach):
    network, ids = (
        strong(reach=reach),
        torch.tensor([[0, 1, 2, 3, 4, 5, 5, 1, 0], [4, 4, 1, 5, 3, 3, 3, 3, 3]]),
    )
    together = network(ids, torch.arange(9) < torch.tensor([[9], [4]])).softmax(-1)
    torch.testing.assert_close(together[:1], probabilities(network, ids[:1]))
    torch.testing.assert_close(together[1:, :4], probabilities(network, ids[1:, :4]))
    assert (probabilities(network, ids)[1, :4] - together[1, :4]).abs().max() > 0.01


# --- training: strings with a period, whose conditionals are known ---


def exact_conditionals(hidden):
    """p(token | tokens that are not masked), (strings, length, 2), of the strings of period 3,
    which are equally likely.
    """
    strings = np.array(
        [["ab".index(PATTERN[(i + shift) % 3]) for i in range(LENGTH)] for shift in range(3)]
    )
    # String observed, string that explains it.
    agree = ((strings[:, None] == strings[None]) | hidden).all(-1)
    belief = agree / agree.sum(-1, keepdims=True)
    return strings, np.stack([belief @ (strings == token) for token in (0, 1)], -1)


@pytest.mark.parametrize("reach", [0, 2])
def test_training_reaches_the_exact_conditionals(reach):
    """Loss and network against the entropy and the KL divergence, over all masks; numbers of
    masked tokens are equally likely.
    """
    network = MaskedTransformer(
        vocab_size=2, length=LENGTH, width=32, layers=2, heads=2, reach=reach
    )
    strings = torch.from_numpy(exact_conditionals(np.zeros(LENGTH, bool))[0])

    def loss(model, step):
        draw = torch.Generator().manual_seed(step)
        tokens = strings[torch.randint(3, (98,), generator=draw)]
        masked = (
            torch.rand(98, LENGTH, generator=draw).argsort(1).argsort(1)
            < 1 + torch.arange(98)[:, None] % LENGTH
        )
        costs = functional.cross_entropy(
            model(tokens.masked_fill(masked, model.mask_id)).transpose(1, 2),
            tokens,
            reduction="none",
        )
        return ((costs * masked).sum(1) / masked.sum(1)).mean()

    def divergence():
        """Mean entropy of the exact conditionals, and mean KL divergence of the network from
        them.
        """
        found = np.zeros((2, LENGTH))
        for number in range(1, 2**LENGTH):
            hidden = np.array([number >> i & 1 for i in range(LENGTH)], bool)
            _, exact = exact_conditionals(hidden)
            own = probabilities(network, strings.masked_fill(torch.from_numpy(hidden), 2)).numpy()
            logs = np.log(np.maximum(exact, 1e-30))
            k = hidden.sum()
            means = [
                (exact * terms).sum(-1)[:, hidden].mean() for terms in (-logs, logs - np.log(own))
            ]
            found[:, k - 1] += np.array(means) / math.comb(LENGTH, k)
        return found.mean(1)

    entropy, before = divergence()
    history = train(network, loss, 300, recipe={}, learning_rate=3e-3, warmup=20, every=100)
    _, after = divergence()
    assert 0 <= after < 0.03 < 0.3 < before
    assert history.records["loss"][-1][1] == pytest.approx(entropy, abs=0.03)


# --- the embedded model ---


@pytest.fixture(scope="module")
def embedded():
    """The network, and the tokens of the passages."""
    network = load_network(embedded_text.model_file(), "masked_transformer")
    characters = network.options["characters"]
    return network, torch.tensor(
        [[characters.index(c) for c in line] for line in embedded_text.passages()]
    )


def test_passages_are_read_by_the_model(embedded):
    network, tokens = embedded
    lines = embedded_text.passages()
    assert tokens.shape == (400, 64)
    assert network.options["length"] == 128
    assert len(set(lines)) == 400
    assert all(line == line.strip() and line.lstrip('"')[0].isupper() for line in lines)


def test_numbers_in_the_readme_belong_to_these_files():
    folder = embedded_text.FOLDER
    manifest = json.loads((folder / "manifest.json").read_text())
    readme = (folder / "README.md").read_text()
    assert manifest["fingerprints"] == embedded_text.fingerprints()
    for share, numbers in manifest["novel"].items():
        assert f"| {share} | {numbers[0]:.3f} | {numbers[1]:.3f} |" in readme
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5.5e6
    with safe_open(embedded_text.model_file(), framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 - not a mapping


def test_embedded_model_predicts_passages_as_the_readme_says(embedded):
    """100 passages at a share of 0.3: the standard error of nats is about 0.04; shuffled
    characters are the negative control.
    """
    network, tokens = embedded
    draw = torch.Generator().manual_seed(0)
    tokens = tokens[:100]
    masked = torch.rand(tokens.shape, generator=draw).argsort(1).argsort(1) < 0.3 * tokens.shape[1]

    def nats(x):
        with torch.inference_mode():
            return functional.cross_entropy(
                network(x.masked_fill(masked, network.mask_id))[masked], x[masked]
            ).item()

    expected = json.loads((embedded_text.FOLDER / "manifest.json").read_text())["passages"]["0.3"][
        0
    ]
    assert nats(tokens) == pytest.approx(expected, abs=0.12)
    assert nats(tokens[:, torch.randperm(tokens.shape[1], generator=draw)]) > expected + 1
