"""Small classifiers and the files of networks."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from small import one_line_error
from uturn.core.files import whole_file
from uturn.networks.classifiers import ImageClassifier, TreeClassifier, VectorClassifier
from uturn.networks.files import FORMAT, fingerprint, load_network, save_network


def small():
    return TreeClassifier(4, 2, 3, num_classes=5, width=6, seed=2)


STRINGS = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (7, 8)))


def test_a_network_survives_its_file(tmp_path):
    images = ImageClassifier(1, 3, widths=[8, 12], strides=[1, 2])
    for model, inputs in [
        (small(), STRINGS),
        (VectorClassifier(3, 2, width=5, num_layers=2), torch.randn(7, 3)),
        (images, torch.randn(2, 1, 8, 8)),
    ]:
        save_network(model, tmp_path / "network", accuracy=0.5, data=[1, 2])
        loaded = load_network(tmp_path / "network")
        assert type(loaded) is type(model)
        assert loaded.options == model.options
        assert loaded.facts == {"accuracy": 0.5, "data": [1, 2]}
        assert not loaded.training
        assert fingerprint(loaded) == fingerprint(model)
        assert torch.equal(loaded(inputs), model(inputs))


def test_bad_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "network"
    save_network(small(), path)
    whole = path.read_bytes()

    def refused(words, kind=None):
        with one_line_error(words) as caught:
            load_network(path, kind)
        assert str(path) in str(caught.value)

    refused(
        "of kind 'tree_classifier'.*; expected a network of kind vector_classifier",
        "vector_classifier",
    )
    for damaged in (whole[: len(whole) // 2], b"", b"not a network"):
        path.write_bytes(damaged)
        refused("cannot be read")
    path.unlink()
    refused("(?i)no such file")
    weights = small().state_dict()
    header = {
        "format": FORMAT,
        "kind": "tree_classifier",
        "options": json.dumps(small().options),
        "facts": "{}",
    }
    for change, words in [
        ({"format": "uturn-network-0"}, "format is 'uturn-network-0'"),
        ({"options": json.dumps({**small().options, "width": 7})}, "size mismatch"),
        ({"options": "[" * 100_000}, "RecursionError"),
    ]:
        save_file(weights, path, metadata={**header, **change})
        refused(words)
    save_file({k: v for k, v in weights.items() if k != "logits.bias"}, path, metadata=header)
    refused("Missing key.*logits.bias")
    save_file(
        {**weights, "logits.bias": torch.tensor([0, 1, float("nan"), 3, 4])}, path, metadata=header
    )
    refused("weights 'logits.bias' are not finite")


def test_what_cannot_be_saved(tmp_path):
    class TreeClassifier(torch.nn.Linear):
        pass

    for other in (torch.nn.Linear(2, 2), TreeClassifier(2, 2)):
        with pytest.raises(
            ValueError, match=f"{type(other).__name__} is not a network of this package"
        ):
            save_network(other, tmp_path / "network")
    spoilt = small()
    with torch.no_grad():
        spoilt.logits.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"weights 'logits\.bias' are not finite"):
        save_network(spoilt, tmp_path / "network")
    with pytest.raises(ValueError, match=r"cannot write .*nowhere.*No such file or directory"):
        save_network(small(), tmp_path / "nowhere" / "network")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*Is a directory"):
        save_network(small(), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def interrupted():
        with whole_file(path) as file:
            file.write(b"after")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_blocks_have_one_position_a_node():
    """The output at a node depends on the leaves below it and on no other."""
    model, changed = small(), STRINGS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 4
    for k, block in enumerate(model.blocks):
        sizes = []
        block.register_forward_hook(
            lambda module, inputs, output, sizes=sizes: sizes.append(output)
        )
        model(STRINGS)
        model(changed)
        before, after = sizes
        assert before.shape == (7, 6, 2 ** (2 - k))
        assert (before >= 0).all()  # post-activations
        differs = (before != after).any(1).any(0)
        assert differs.nonzero().tolist() == [[3 // 2 ** (k + 1)]]


def test_initial_weights_are_he_normal_and_belong_to_the_seed():
    model = TreeClassifier(16, 2, 3, width=256)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear):
            inputs = module.weight[0].numel()
            assert module.weight.var().item() == pytest.approx(2 / inputs, rel=0.05)
            assert not module.bias.any()
    assert (
        fingerprint(TreeClassifier(16, 2, 3))
        == fingerprint(model)
        != fingerprint(TreeClassifier(16, 2, 3, seed=1))
    )


def test_input_is_whitened():
    inputs = []
    model = TreeClassifier(16, 2, 1)
    model.blocks.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    symbols = torch.arange(16)
    model(torch.stack([symbols, symbols], 1))
    (x,) = inputs
    assert x.shape == (16, 16, 2)
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(16), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.var((0, 2), correction=0), torch.full((16,), 15 / 16))
