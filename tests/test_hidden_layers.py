"""Hidden layers as a probe: statistics, similarity, distance, selection of layers, memory,
errors.
"""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from small import one_line_error
from uturn.core.experiment import Experiment
from uturn.engine.run import run
from uturn.networks.classifiers import TreeClassifier
from uturn.networks.files import load_network, save_network
from uturn.networks.layers import every_block
from uturn.probes.hidden_layers import HiddenLayers
from uturn.sources import RHMSource


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
    # The largest image offset makes E[a^2] - E[a]^2 lose digits; batches of 5 make the merge
    # matter.
    probe = HiddenLayers(network, LAYERS, preprocess=lambda x: x + 100, batch_size=5).fit(images)
    for layer, activations in all_activations(network, images + np.float32(100)).items():
        axes = tuple(i for i in range(activations.ndim) if i != 1)
        np.testing.assert_allclose(probe.mean[layer], activations.mean(axes), rtol=1e-6)
        np.testing.assert_allclose(
            probe.variance[layer], activations.var(axes), rtol=1e-4, atol=1e-12
        )
    assert probe.reference_count == 23


def test_similarity_equals_brute_force(network, images):
    other = images[::-1].copy()
    probe = HiddenLayers(network, LAYERS, batch_size=7).fit(images)
    reference = all_activations(network, images)
    expected = []
    for layer in LAYERS:
        a = standardised(reference[layer], reference[layer])
        b = standardised(all_activations(network, other)[layer], reference[layer])
        expected.append((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    np.testing.assert_allclose(
        probe.similarity(images, other), np.stack(expected, 1), rtol=1e-4, atol=1e-5
    )


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


def test_layers_by_pattern_keep_the_order_of_the_model(network):
    assert HiddenLayers(network, ["head", "blocks.*"]).layers == LAYERS
    assert HiddenLayers(network, "blocks.*.1").layers == ("blocks.first.1", "blocks.second.1")
    assert HiddenLayers(network).layers == ("blocks", "head", "unused", "act")


def test_layers_that_run_never_or_twice_are_named(network, images):
    network.unused_too = nn.Linear(2, 2).eval()
    with pytest.raises(
        ValueError,
        match=(
            r"did not run in the forward pass = .'unused', 'unused_too'.: .*name the layers without"
            r" them"
        ),
    ):
        HiddenLayers(network, ["blocks.*", "unused*"]).fit(images)
    with pytest.raises(ValueError, match="runs more than once in a forward pass = 'act'"):
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
    with pytest.raises(
        ValueError, match=r"'blocks\.first': activations of row \d+ of a batch are not finite"
    ):
        HiddenLayers(network, LAYERS, batch_size=8).fit(images)
    probe = HiddenLayers(network, LAYERS, batch_size=8).fit(images[:17])
    with pytest.raises(
        ValueError, match=r"'blocks\.first': activations of row \d+ of a batch are not finite"
    ):
        probe.compare(images[::-1].copy()[[0] * 23], images)
    with pytest.raises(ValueError, match="of a batch are"):
        probe.compare(images, images[[0] * 23])


def test_statistics_survive_a_file(network, images, tmp_path):
    probe = HiddenLayers(network, LAYERS).fit(images)
    probe.save_statistics(tmp_path / "statistics.safetensors")
    other = images[::-1].copy()
    loaded = HiddenLayers(network, LAYERS).load_statistics(tmp_path / "statistics.safetensors")
    np.testing.assert_array_equal(loaded.similarity(images, other), probe.similarity(images, other))
    assert loaded.reference_count == 23
    with pytest.raises(ValueError, match="of another network: layers"):
        HiddenLayers(network, "head").load_statistics(tmp_path / "statistics.safetensors")
    with pytest.raises(ValueError, match="channel axes"):
        HiddenLayers(network, LAYERS, channel_axis=-1).load_statistics(
            tmp_path / "statistics.safetensors"
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head/mean", np.full(3, np.nan)),
        ("head/variance", np.array([1.0, -1.0, 1.0])),
        ("head/spread", np.ones(4)),
        ("reference_count", "1.5"),
        ("shapes", "[]"),
        ("shapes", json.dumps({"blocks.first": [4, 9, 9], "blocks.second": [], "head": [3]})),
    ],
)
def test_forged_statistics_are_refused_in_one_line(network, images, tmp_path, name, value):
    path = tmp_path / "statistics.safetensors"
    HiddenLayers(network, LAYERS).fit(images).save_statistics(path)
    with safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    {str: header, np.ndarray: arrays, type(None): arrays}[type(value)][name] = value
    save_file(
        {key: array for key, array in arrays.items() if array is not None}, path, metadata=header
    )
    probe = HiddenLayers(network, LAYERS)
    with one_line_error(r"statistics.safetensors is damaged, or not of this probe", characters=500):
        probe.load_statistics(path)
    assert not probe.mean  # nothing taken over
    save_torch_file({"head/mean": torch.zeros(3, dtype=torch.bfloat16)}, path)
    with pytest.raises(ValueError, match="is damaged"):
        probe.load_statistics(path)


def test_distances_are_for_samples_of_the_size_of_the_reference(network, images, tmp_path):
    """The variance of a whole layer is a sum over its positions: with fewer of them, independent
    samples would be too close.
    """
    path = tmp_path / "statistics"
    fitted = HiddenLayers(network, LAYERS).fit(images)
    fitted.save_statistics(path)
    for probe in (fitted, HiddenLayers(network, LAYERS).load_statistics(path)):
        assert probe.shapes == {"blocks.first": (4, 9, 9), "blocks.second": (6, 4, 4), "head": (3,)}
        small = images[:, :, :5, :5]
        distance = probe.compare(small, small).distance
        assert np.isnan(distance[:, :2]).all()
        assert (distance[:, 2] == 0).all()  # the head has the same units
        np.testing.assert_allclose(probe.similarity(small, small), 1)


def test_a_shared_module_has_all_its_names(images):
    block = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    model = nn.ModuleDict(
        {"first": block, "again": block, "head": nn.Sequential(nn.Flatten(), nn.Linear(81, 2))}
    ).eval()
    model.forward = lambda x: model["head"](model["again"](x))
    probe = HiddenLayers(model)
    assert probe.layers == ("first", "again", "head")
    similarity = probe.fit(images).similarity(images, images[::-1].copy())
    np.testing.assert_array_equal(similarity[:, 0], similarity[:, 1])
    twice = nn.Sequential(block, block).eval()
    assert every_block(twice) == ("0", "1")
    with pytest.raises(ValueError, match="runs more than once in a forward pass = '0'"):
        HiddenLayers(twice, "every block").fit(images)


# -- originals with several reconstructions each ---------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_one_look_is_what_comparison_and_prediction_say(network, images, batch_size):
    """Whole items in a batch (from 4 on), and the reconstructions of one item spread over
    several batches (below).
    """
    rebuilt = np.stack([np.roll(images, k, axis=0) for k in (0, 1, 5)], axis=1)
    probe = HiddenLayers(network, LAYERS, batch_size=100).fit(images)
    expected = probe.compare(np.repeat(images, 3, axis=0), rebuilt.reshape(-1, 1, 9, 9))
    probe.batch_size = batch_size
    readings = probe.read(images, rebuilt)
    np.testing.assert_allclose(readings.similarity.reshape(-1, 3), expected.similarity, atol=1e-5)
    np.testing.assert_allclose(readings.distance.reshape(-1, 3), expected.distance, atol=1e-5)
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(readings.original_logits, logits, atol=1e-5)
    np.testing.assert_allclose(
        readings.logits,
        np.stack([np.roll(logits, k, axis=0) for k in (0, 1, 5)], axis=1),
        atol=1e-5,
    )
    np.testing.assert_allclose(readings.similarity[:, 0], 1, atol=1e-5)
    assert (readings.similarity[:, 1:].max((0, 1)) < 0.999).all()


def test_an_original_passes_once(network, images):
    passed = []
    network.blocks["first"].register_forward_hook(
        lambda module, inputs, output: passed.append(len(output))
    )
    probe = HiddenLayers(network, LAYERS, batch_size=12).fit(images)
    rebuilt = np.repeat(images[:, None], 3, axis=1)
    passed.clear()
    probe.read(images, rebuilt)
    assert passed == [12] * 7 + [8]  # 23 originals and 69 reconstructions, three items a batch
    passed.clear()
    probe.read(images[:2], np.repeat(images[:2, None], 23, axis=1))
    assert passed == [12, 12, 2] * 2  # 11 + 11 + 1 reconstructions, each time with the original


def test_what_does_not_belong_together_is_refused(network, images):
    rebuilt = np.repeat(images[:, None], 3, axis=1)
    probe = HiddenLayers(network, LAYERS).fit(images)
    for bad in (images, rebuilt[:4], rebuilt[..., :5]):
        with pytest.raises(
            ValueError, match=r"expected \(items, \.\.\.\), \(items, draws, \.\.\.\)"
        ):
            probe.read(images, bad)
    rebuilt[17, 2, 0, 4, 4] = np.nan
    with pytest.raises(
        ValueError, match=r"'blocks\.first': activations of row \d+ of a batch are not finite"
    ):
        probe.read(images, rebuilt)
    without_head = HiddenLayers(network.blocks["first"]).fit(images)
    with pytest.raises(ValueError, match=r"shape of the model's output = \(.*expected .*logits"):
        without_head.read(images, np.repeat(images[:, None], 3, axis=1))


@pytest.mark.slow
def test_clones_are_compared_with_the_others_of_their_trajectory(network, images):
    clones, pairs = 3, ((0, 1), (0, 2), (1, 2))
    # Two trajectories of three clones.
    rebuilt = np.stack([np.roll(images, k, axis=0) for k in (0, 1, 5, 2, 2, 7)], axis=1)
    # Several items, one item, one trajectory at a time, groups larger than a batch.
    for batch_size in (100, 11, 4, 1):
        probe = HiddenLayers(network, LAYERS, batch_size=batch_size).fit(images)
        readings, plain = probe.read(images, rebuilt, clones=clones), probe.read(images, rebuilt)
        for name in ("similarity", "distance", "original_logits", "logits"):
            np.testing.assert_allclose(getattr(readings, name), getattr(plain, name), atol=1e-5)
        assert plain.clone_similarity is plain.clone_distance is None
        for name in ("similarity", "distance"):
            found = getattr(readings, f"clone_{name}").reshape(len(images), 2, clones, len(LAYERS))
            expected = np.zeros_like(found)
            for trajectory in range(2):
                for pair in pairs:
                    first, second = (
                        np.ascontiguousarray(rebuilt[:, 3 * trajectory + k]) for k in pair
                    )
                    for k in pair:
                        expected[:, trajectory, k] += getattr(
                            probe.compare(first, second), name
                        ) / (clones - 1)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert np.ptp(found, axis=(0, 1, 2)).min() > 0.1


def test_equal_clones_and_clones_of_constant_layers(network, images):
    probe = HiddenLayers(network, LAYERS).fit(images)
    same = probe.read(images, np.repeat(images[:, None], 4, axis=1), clones=2)
    np.testing.assert_allclose(same.clone_similarity, 1, atol=1e-12)
    assert (same.clone_distance == 0).all()
    with torch.no_grad():
        network.head.weight.zero_()
    flat = (
        HiddenLayers(network, LAYERS)
        .fit(images)
        .read(images, np.stack([images, images[::-1]], axis=1), clones=2)
    )
    assert (flat.clone_similarity[..., 2] == 1).all()
    assert (flat.clone_distance[..., 2] == 0).all()
    # Of two clones both say the same.
    np.testing.assert_array_equal(flat.clone_distance[:, 0], flat.clone_distance[:, 1])
    np.testing.assert_array_equal(flat.clone_similarity[:, 0], flat.clone_similarity[:, 1])


# -- distance and the legacy variant ---------------------------------------------------------------


def test_distance_equals_brute_force(network, images):
    other = images[::-1].copy()
    reference, moved = (all_activations(network, x) for x in (images, other))
    distance = (
        HiddenLayers(network, LAYERS, batch_size=7).fit(images).compare(images, other).distance
    )
    for column, layer in enumerate(LAYERS):
        a, b = (standardised(x[layer], reference[layer]) for x in (reference, moved))
        expected = ((a - b) ** 2).sum(1) / (2 * a.var(0, ddof=1).sum())
        np.testing.assert_allclose(distance[:, column], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("legacy", [False, True])
def test_distance_of_independent_samples_is_one_on_average(network, images, legacy):
    """Exactly 1 over all pairs of different reference samples, and 0 for equal ones."""
    first, second = np.triu_indices(len(images), 1)
    probe = HiddenLayers(network, LAYERS, legacy=legacy).fit(images)
    np.testing.assert_allclose(
        probe.compare(images[first], images[second]).distance.mean(0), 1, rtol=1e-6
    )
    np.testing.assert_allclose(probe.compare(images, images).distance, 0, atol=1e-8)


def test_legacy_divides_by_the_second_moment(network, images):
    other = images[::-1].copy()
    reference, moved = (all_activations(network, x) for x in (images, other))
    legacy = HiddenLayers(network, LAYERS, legacy=True).fit(images).similarity(images, other)
    for column, layer in enumerate(LAYERS):
        axes = tuple(i for i in range(reference[layer].ndim) if i != 1)
        mean, moment = (
            x.mean(axes, keepdims=True) for x in (reference[layer], reference[layer] ** 2)
        )
        a, b = (((x[layer] - mean) / np.sqrt(moment)).reshape(23, -1) for x in (reference, moved))
        expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(legacy[:, column], expected, rtol=1e-4, atol=1e-5)
    assert (
        np.abs(legacy - HiddenLayers(network, LAYERS).fit(images).similarity(images, other)).max()
        > 1e-3
    )


# -- any network, any input ------------------------------------------------------------------------


class Tokens(nn.Module):
    """Activations (batch, tokens, channels), as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.mix(self.embed(x))


def test_channel_axis_by_layer():
    model, strings = Tokens().eval(), np.random.default_rng(0).integers(0, 4, (9, 8))
    sizes = [
        len(HiddenLayers(model, "mix", channel_axis=axis).fit(strings).mean["mix"])
        for axis in (1, -1, {"mi*": 2})
    ]
    assert sizes == [8, 3, 3]
    with pytest.raises(ValueError, match="channel_axis = 'mux': expected a pattern"):
        HiddenLayers(model, channel_axis={"mux": 2})
    with pytest.raises(ValueError, match="channel_axis of layer 'embed' = 3"):
        HiddenLayers(model, channel_axis=3).fit(strings)


# -- every block -----------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.layer2 = nn.Sequential(Residual(4))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class Scaled(nn.Module):
    """A class of one's own around a network, with a preprocessing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.model(self.scale * x)


@pytest.mark.parametrize(
    "wrapper", [nn.DataParallel, Scaled, lambda model: Scaled(nn.DataParallel(model))]
)
def test_layers_of_a_wrapped_network_have_the_names_of_the_network(wrapper, images):
    torch.manual_seed(0)
    network = SmallResNet().eval()
    inside = wrapper(network).eval()
    named = HiddenLayers(inside, "every block").fit(images)
    alone = HiddenLayers(network, "every block").fit(images)
    assert named.layers == alone.layers
    assert HiddenLayers(inside).layers == HiddenLayers(network).layers
    prefix = next(name for name, module in inside.named_modules() if module is network)
    for names in ([f"{prefix}.layer1.*"], "layer1.*"):
        assert HiddenLayers(inside, names).layers == ("layer1.0", "layer1.1")
    other = images[::-1].copy()
    scale = 1 if wrapper is nn.DataParallel else 2  # the wrapper runs
    alone = HiddenLayers(network, "every block").fit(scale * images)
    np.testing.assert_allclose(
        named.compare(images, other)[:2], alone.compare(scale * images, scale * other)[:2]
    )


# -- memory ----------------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(50, 50), nn.ReLU()) for _ in range(depth))
        )

    def forward(self, x):
        return self.blocks(x)


def peak(tmp_path, depth: int, count: int, action: str, batch_size: int = 40) -> int:
    """Most bytes that torch had allocated at once during an action, beside the data."""
    model, x = (
        Deep(depth).eval(),
        torch.randn(count, 50, generator=torch.Generator().manual_seed(0)),
    )
    y = x.flip(0)
    probe = HiddenLayers(model, "every block", batch_size=batch_size).fit(x[:4])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        if action == "forward":
            with torch.inference_mode():
                for k in range(0, count, batch_size):
                    model(x[k : k + batch_size].clone())
        elif action == "fit":
            probe.fit(x)
        elif action == "compare":
            probe.compare(x, y)
        elif action == "read":
            probe.read(x[: count // 4], x[: count // 4 * 3].reshape(-1, 3, 50))
        elif action == "read clones":
            probe.read(x[: count // 4], x[: count // 4 * 3].reshape(-1, 3, 50), clones=3)
        else:
            for _ in probe.activations(x):
                pass
    record.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    return int(np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])]).max())


@pytest.mark.slow
def test_memory_bound(tmp_path):
    """Two float64 copies of one layer and batch besides the forward pass, for every depth and
    number of samples.
    """
    size = 40 * 50 * 4  # of the activations of one layer and batch, in bytes
    bound = peak(tmp_path, 20, 120, "forward") + 2 * 2 * size
    assert peak(tmp_path, 20, 120, "compare") <= bound
    assert peak(tmp_path, 40, 240, "compare") <= bound
    assert peak(tmp_path, 20, 120, "read") <= bound
    assert peak(tmp_path, 40, 240, "read") <= bound
    # Both are gathered, and the network gets a copy.
    assert peak(tmp_path, 20, 120, "read clones") <= bound + size
    # A mean and a sum of squares of one sample a layer.
    assert peak(tmp_path, 20, 240, "fit") <= bound + 2 * 8 * 50 * 20
    # The instrument sees what is kept: readings hold all layers of a batch.
    assert peak(tmp_path, 20, 120, "readings") >= 20 * size


# -- as a probe of experiments ---------------------------------------------------------------------

SOURCE = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3}


@pytest.fixture
def files(tmp_path):
    """A network for the strings of SOURCE, and the statistics of its layers."""
    network, statistics = (
        str(tmp_path / "network.safetensors"),
        str(tmp_path / "statistics.safetensors"),
    )
    save_network(TreeClassifier(4, 2, 3, width=6), network)
    strings = RHMSource(**SOURCE).grammar(0, 0).sample(200, 1).leaves
    HiddenLayers(load_network(network), "every block").fit(strings).save_statistics(statistics)
    return {"classifier": network, "statistics": statistics}


def experiment(**probe):
    return Experiment.from_dict(
        {
            "items": 60,
            "trajectories": 2,
            "source": SOURCE,
            "corruption": {"type": "epsilon", "noise": [0, 0.6, 1]},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}, {"type": "network_layers", **probe}],
        }
    )


def test_layers_of_a_network_that_reads_strings(files):
    data = run(experiment(**files))
    assert data.network_layer.values.tolist() == ["blocks.0", "blocks.1", "blocks.2", "logits"]
    assert (
        data.similarity.dims
        == data.distance.dims
        == ("noise", "item", "trajectory", "network_layer")
    )
    np.testing.assert_allclose(data.similarity.sel(noise=0), 1, atol=1e-12)
    np.testing.assert_allclose(data.distance.sel(noise=0), 0, atol=1e-12)
    assert data.same_class.sel(noise=0).all()
    # Full noise leaves nothing: independent strings, whose distance is 1.
    end = data.distance.sel(noise=1).mean("trajectory")
    z = (end.mean("item") - 1) / (end.std("item", ddof=1) / np.sqrt(60))
    assert (np.abs(z) < 3.5).all()
    middle = data.distance.sel(noise=0.6).mean(("item", "trajectory"))
    assert ((middle > 0.01) & (middle < end.mean("item") - 0.1)).all()
    # An unchanged string has unchanged layers.
    same = data.unchanged.isel(tree_level=0) == 1
    assert (data.similarity.where(same, 1) > 1 - 1e-6).all()
    legacy = run(experiment(**files, legacy=True))
    assert np.abs(legacy.similarity - data.similarity).max() > 1e-3


def test_what_the_probe_needs_is_said(files):
    with pytest.raises(ValueError, match="statistics = None: expected a file of HiddenLayers"):
        run(experiment(classifier=files["classifier"]))
    with pytest.raises(
        ValueError,
        match=r"'blocks\.9': expected a module of TreeClassifier; close names: .*blocks\.0",
    ):
        run(experiment(**files, layers=["blocks.9"]))
    save_network(TreeClassifier(4, 2, 3, width=6, seed=1), files["classifier"])
    with pytest.raises(ValueError, match=r"statistics.*of another network"):
        run(experiment(**files))


def test_a_store_knows_its_network_and_statistics(files, tmp_path):
    run(experiment(**files), tmp_path / "store")
    strings = np.random.default_rng(0).integers(0, 4, (50, 8))
    HiddenLayers(load_network(files["classifier"]), "every block").fit(strings).save_statistics(
        files["statistics"]
    )
    with pytest.raises(
        ValueError,
        match=r"holds another experiment: the weights or data of probes\[1\] have changed",
    ):
        run(experiment(**files), tmp_path / "store")
