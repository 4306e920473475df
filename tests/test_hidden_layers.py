"""Hidden layers as a probe: statistics, similarity, selection of layers, errors."""

import numpy as np
import pytest
import torch
from torch import nn

from uturn.probes.hidden_layers import HiddenLayers


class Network(nn.Module):
    """Two convolution blocks (the second works in place) and a linear head; one unused module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                "first": nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
                "second": nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True)),
            }
        )
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.blocks["second"](self.blocks["first"](x))
        return self.head(self.act(self.act(x.mean((2, 3)))))


LAYERS = ("blocks.first", "blocks.second", "head")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (23, 1, 9, 9)).astype(np.float32)


def all_activations(network, images):
    """Post-activations computed without hooks, float64: the oracle."""
    with torch.no_grad():
        first = network.blocks["first"](torch.from_numpy(images))
        second = network.blocks["second"](first)
        head = network.head(second.mean((2, 3)))
    return {name: a.double().numpy() for name, a in zip(LAYERS, (first, second, head), strict=True)}


def standardised(activations, reference):
    axes = tuple(i for i in range(reference.ndim) if i != 1)
    mean, deviation = reference.mean(axes, keepdims=True), reference.std(axes, keepdims=True)
    return ((activations - mean) / deviation).reshape(len(activations), -1)


def test_streaming_moments_equal_two_pass_moments(network, images):
    # The largest image offset makes E[a^2] - E[a]^2 lose digits; batches of 5 make the merge matter.
    probe = HiddenLayers(network, LAYERS, preprocess=lambda x: x + 100, batch_size=5).fit(images)
    for layer, activations in all_activations(network, images + np.float32(100)).items():
        axes = tuple(i for i in range(activations.ndim) if i != 1)
        np.testing.assert_allclose(probe.mean[layer], activations.mean(axes), rtol=1e-6)
        np.testing.assert_allclose(probe.variance[layer], activations.var(axes), rtol=1e-4, atol=1e-12)
    assert probe.reference_count == 23


def test_fit_takes_an_iterable_of_batches(network, images):
    whole = HiddenLayers(network, LAYERS).fit(images)
    streamed = HiddenLayers(network, LAYERS).fit(images[i : i + 4] for i in range(0, 23, 4))
    assert streamed.reference_count == 23
    for layer in LAYERS:
        np.testing.assert_allclose(streamed.variance[layer], whole.variance[layer], rtol=1e-5)


def test_similarity_equals_brute_force(network, images):
    other = images[::-1].copy()
    probe = HiddenLayers(network, LAYERS, batch_size=7).fit(images)
    reference = all_activations(network, images)
    expected = []
    for layer in LAYERS:
        a = standardised(reference[layer], reference[layer])
        b = standardised(all_activations(network, other)[layer], reference[layer])
        expected.append((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    np.testing.assert_allclose(probe.similarity(images, other), np.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_similarity_without_standardisation_would_differ(network, images):
    """The negative control of the test above: raw activations give other numbers."""
    probe = HiddenLayers(network, LAYERS).fit(images)
    a, b = (all_activations(network, x)["blocks.first"].reshape(23, -1) for x in (images, images[::-1].copy()))
    raw = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.abs(probe.similarity(images, images[::-1].copy())[:, 0] - raw).max() > 0.1


def test_an_image_is_like_itself(network, images):
    similarity = HiddenLayers(network, LAYERS).fit(images).similarity(images, images)
    np.testing.assert_allclose(similarity, 1, atol=1e-12)


def test_constant_channels_are_left_out(network, images):
    with torch.no_grad():
        network.blocks["first"][0].bias[0] = -1e3  # never active
        network.blocks["first"][0].weight[1] = 0  # always the same positive value
        network.blocks["first"][0].bias[1] = 0.3
    probe = HiddenLayers(network, "blocks.first").fit(images)
    assert (probe.variance["blocks.first"][:2] == 0).all()
    other = images[::-1].copy()
    similarity = probe.similarity(images, other)[:, 0]
    a, b = (all_activations(network, x)["blocks.first"][:, 2:] for x in (images, other))
    a, b = standardised(a, a), standardised(b, a)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(similarity, expected, rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_change_the_result(network, images):
    one, many = (HiddenLayers(network, LAYERS, batch_size=b).fit(images) for b in (1, 23))
    other = images[::-1].copy()
    np.testing.assert_allclose(one.similarity(images, other), many.similarity(images, other), atol=1e-5)


def test_readings_are_post_activations_batch_by_batch(network, images):
    batches = list(HiddenLayers(network, LAYERS, batch_size=10).readings(images))
    assert [len(b["head"]) for b in batches] == [10, 10, 3]
    for layer, expected in all_activations(network, images).items():
        np.testing.assert_allclose(np.concatenate([b[layer].numpy() for b in batches]), expected, atol=1e-5)


def test_a_copy_is_kept_of_what_later_modules_change_in_place(network, images):
    """The convolution in front of an in-place ReLU is read before the ReLU."""
    (batch,) = HiddenLayers(network, "blocks.second.0").readings(images)
    assert (batch["blocks.second.0"] < 0).any()


def test_layers_by_pattern_keep_the_order_of_the_model(network):
    assert HiddenLayers(network, ["head", "blocks.*"]).layers == LAYERS
    assert HiddenLayers(network, "blocks.*.1").layers == ("blocks.first.1", "blocks.second.1")
    assert HiddenLayers(network).layers == ("blocks", "head", "unused", "act")


def test_unknown_layer_names_close_ones(network):
    with pytest.raises(ValueError, match=r"'blocks\.frist' matches no module of Network.*blocks\.first"):
        HiddenLayers(network, "blocks.frist")


def test_layers_that_run_never_or_twice_are_named(network, images):
    with pytest.raises(ValueError, match="'unused' did not run"):
        HiddenLayers(network, "unused").fit(images)
    with pytest.raises(ValueError, match="'act' runs more than once"):
        HiddenLayers(network, "act").fit(images)
    assert not network.act._forward_hooks  # hooks are gone after an error


def test_training_mode_is_refused(network, images):
    probe = HiddenLayers(network, LAYERS)
    network.blocks["second"].train()
    with pytest.raises(ValueError, match=r"blocks\.second.*model\.eval\(\)"):
        probe.fit(images)
    with pytest.raises(ValueError, match="training mode"):
        HiddenLayers(network.train(), LAYERS)


def test_non_finite_activations_name_layer_and_image(network, images):
    images[17, 0, 4, 4] = np.nan
    with pytest.raises(ValueError, match=r"'blocks\.first': activations of images \[17\]"):
        HiddenLayers(network, LAYERS, batch_size=8).fit(images)


@pytest.mark.parametrize("bad", [np.zeros((2, 9, 9), np.float32), np.zeros((2, 1, 9, 9))])
def test_images_of_another_shape_or_type_are_refused(network, bad):
    with pytest.raises(ValueError, match="expected float32"):
        HiddenLayers(network, LAYERS).fit(bad)


def test_similarity_needs_statistics_and_pairs(network, images):
    probe = HiddenLayers(network, LAYERS)
    with pytest.raises(ValueError, match="call fit"):
        probe.similarity(images, images)
    with pytest.raises(ValueError, match="expected pairs"):
        probe.fit(images).similarity(images, images[:5])
    with pytest.raises(ValueError, match="at least 2"):
        probe.fit(images[:1])


def test_statistics_survive_a_file(network, images, tmp_path):
    probe = HiddenLayers(network, LAYERS).fit(images)
    probe.save_statistics(tmp_path / "statistics.safetensors")
    other = images[::-1].copy()
    loaded = HiddenLayers(network, LAYERS).load_statistics(tmp_path / "statistics.safetensors")
    np.testing.assert_array_equal(loaded.similarity(images, other), probe.similarity(images, other))
    assert loaded.reference_count == 23
    with pytest.raises(ValueError, match="statistics of layers"):
        HiddenLayers(network, "head").load_statistics(tmp_path / "statistics.safetensors")


def test_predictions_are_the_softmax_of_the_output(network, images):
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).double().softmax(1).numpy()
    classes, probabilities = HiddenLayers(network, LAYERS, batch_size=6).predict(images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(classes, expected.argmax(1))
