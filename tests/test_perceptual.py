"""The probe of the perceptual distance, against LPIPS written out, and as a curve of image runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import uturn as ut
from forging import instructed
from small import StoredImages, images_of_noise, one_line_error, with_file
from uturn.backward import UTurns
from uturn.networks.modules import load_classifier
from uturn.probes import Perceptual
from uturn.probes.perceptual import LPIPS_LAYERS, distance_of, read_linear
from uturn.sources.images import Images
from uturn.studies import summary

torchvision = pytest.importorskip("torchvision")
HERE = Path(__file__).stem
MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
)
STAGES = (1, 4, 7, 9, 10, 11, 12)  # of SqueezeNet


class Source(StoredImages):
    """Random images in memory."""

    def __init__(self, shape=(3, 40, 36), count=6):
        super().__init__(images_of_noise(count, *shape))

    def u_turns(self, draws=4, clones=1, mix=0.5):
        other = images_of_noise(len(self.images), draws, *self.image_shape(), seed=1)
        rebuilt = (1 - mix) * self.images[:, None] + mix * other
        return UTurns(
            Images(np.arange(len(self.images)), self.images, np.full(len(self.images), -1)),
            None,
            rebuilt,
            clones,
        )


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """SqueezeNet with random weights, and their file."""
    return with_file(torchvision.models.squeezenet1_1, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def linear(squeezenet, tmp_path_factory):
    """Weights of channels as the package lpips stores them."""
    sizes = [64, 128, 256, 384, 384, 512, 512]
    state = {f"lin{k}.model.1.weight": torch.rand(1, size, 1, 1) for k, size in enumerate(sizes)}
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.save(state, path)
    return state, str(path)


def lpips(model, first, second, weights=None):
    """Eq. 1 of arXiv:1801.03924 for two images (3, height, width) in [-1, 1], term by term."""
    total = 0.0
    a, b = (((image / 2 + 0.5) - MEAN) / STD for image in (first, second))
    stage = 0
    with torch.no_grad():
        for number, module in enumerate(model.features):
            a, b = module(a[None] if a.ndim == 3 else a), module(b[None] if b.ndim == 3 else b)
            if number not in STAGES:
                continue
            term, (channels, height, width) = 0.0, a.shape[1:]
            for row in range(height):
                for column in range(width):
                    u, v = a[0, :, row, column].double(), b[0, :, row, column].double()
                    u, v = (z / max(float(z.norm()), 1e-10) for z in (u, v))
                    w = (
                        torch.ones(channels)
                        if weights is None
                        else weights[f"lin{stage}.model.1.weight"].flatten()
                    )
                    term += float((w * (u - v) ** 2).sum())
            total += term / (height * width)
            stage += 1
    return total


@pytest.mark.parametrize("learned", [False, True])
def test_the_distance_of_lpips(squeezenet, linear, learned):
    source = Source(count=2)
    turns = source.u_turns(draws=2)
    weights, path = linear if learned else (None, None)
    spec = Perceptual(classifier="torchvision:squeezenet1_1", weights=squeezenet[1], linear=path)
    found = spec.bind(source).read(turns, source)["perceptual_distance"]
    for item, draw in np.ndindex(2, 2):
        pair = (
            torch.from_numpy(source.images[item]),
            torch.from_numpy(turns.reconstructions[item, draw]),
        )
        assert found[item, draw] == pytest.approx(lpips(squeezenet[0], *pair, weights), rel=1e-5)


def test_the_layers_of_lpips():
    """The ReLU at the end of each stage: before each pooling, and for AlexNet the others too."""
    assert LPIPS_LAYERS["torchvision:squeezenet1_1"] == tuple(f"features.{k}" for k in STAGES)
    with torch.device("meta"):
        vgg, alexnet = (
            torchvision.models.vgg16(init_weights=False).features,
            torchvision.models.alexnet().features,
        )
    before_pooling = [k - 1 for k, module in enumerate(vgg) if isinstance(module, nn.MaxPool2d)]
    assert LPIPS_LAYERS["torchvision:vgg16"] == tuple(f"features.{k}" for k in before_pooling)
    activations = [k for k, module in enumerate(alexnet) if isinstance(module, nn.ReLU)]
    assert LPIPS_LAYERS["torchvision:alexnet"] == tuple(f"features.{k}" for k in activations)
    assert all(isinstance(vgg[k], nn.ReLU) for k in before_pooling)
    assert (len(before_pooling), len(activations)) == (5, 5)


def tokens():
    """A transformer: (batch, tokens, channels), then an embedding."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=6)
    nn.init.normal_(model.heads[0].weight)  # torchvision begins with 0
    model.num_classes = 0
    return model


def test_layers_of_other_networks():
    """Tokens are positions; an embedding has none: its term is twice one minus the cosine."""
    source = Source((3, 16, 16))
    turns = source.u_turns()
    model = tokens().eval()
    for layer, axis in (("conv_proj", 1), ("encoder.layers.encoder_layer_1", -1), ("heads", 1)):
        kept = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda m, i, output, kept=kept: kept.append(output.double())
        )
        with torch.no_grad():
            model(
                torch.from_numpy(
                    np.concatenate([source.images, turns.reconstructions.reshape(-1, 3, 16, 16)])
                )
            )
        handle.remove()
        values = kept[0].movedim(axis, -1).flatten(1, -2) if kept[0].ndim > 2 else kept[0][:, None]
        cosine = nn.functional.cosine_similarity(
            values[:6, None], values[6:].view(6, 4, *values.shape[1:]), dim=-1
        )
        spec = Perceptual(classifier=f"{HERE}:tokens", layers=(layer,))
        np.testing.assert_allclose(
            spec.bind(source).read(turns, source)["perceptual_distance"],
            2 * (1 - cosine).mean(-1).numpy(),
            rtol=1e-4,
            atol=1e-6,
        )
    # By default all blocks count, as in the probe network_layers.
    spec = Perceptual(classifier=f"{HERE}:tokens")
    assert (
        distance_of(spec, source).layers.layers
        == load_classifier(f"{HERE}:tokens", image_shape=(3, 16, 16)).layers
    )


def test_laws_of_a_distance(squeezenet):
    source = Source()
    spec = Perceptual(classifier="torchvision:squeezenet1_1", weights=squeezenet[1])
    turns = source.u_turns(draws=1)
    there = spec.bind(source).read(turns, source)["perceptual_distance"]
    swapped = UTurns(
        Images(np.arange(6), turns.reconstructions[:, 0], np.full(6, -1)),
        None,
        source.images[:, None],
    )
    np.testing.assert_allclose(
        there, spec.bind(source).read(swapped, source)["perceptual_distance"], rtol=1e-6
    )
    same = spec.bind(source).read(source.u_turns(mix=0.0), source)["perceptual_distance"]
    assert np.abs(same).max() < 1e-9
    near = spec.bind(source).read(source.u_turns(draws=1, mix=0.1), source)["perceptual_distance"]
    assert (near < there).all()
    assert (there < 2 * len(STAGES)).all()


def test_two_clones_are_compared_with_each_other(squeezenet):
    source = Source(count=2)
    options = {"classifier": "torchvision:squeezenet1_1", "weights": squeezenet[1]}
    probe = Perceptual(**options).bind(source)
    readings = probe.read(source.u_turns(draws=2, clones=2), source)
    twins = readings["clone_perceptual_distance"]
    assert (twins > 0).all()
    np.testing.assert_allclose(twins[:, 0], twins[:, 1], rtol=1e-5)


def test_clones_are_compared_with_each_other(squeezenet):
    source = Source(count=3)
    turns = source.u_turns(draws=6, clones=3)
    options = {"classifier": "torchvision:squeezenet1_1", "weights": squeezenet[1], "name": "small"}
    readings = Perceptual(**options).bind(source).read(turns, source)
    assert list(readings) == ["small_perceptual_distance", "clone_small_perceptual_distance"]
    assert (
        Perceptual(**options).bind(source).variables(source)["small_perceptual_distance"].symmetric
    )
    for item, trajectory, k in np.ndindex(3, 2, 3):
        group = turns.reconstructions[item, 3 * trajectory : 3 * trajectory + 3]
        others = UTurns(
            Images(np.arange(1), group[[k]], np.full(1, -1)),
            None,
            np.delete(group, k, axis=0)[None],
        )
        expected = (
            Perceptual(**options)
            .bind(source)
            .read(others, source)["small_perceptual_distance"]
            .mean()
        )
        assert readings["clone_small_perceptual_distance"][
            item, 3 * trajectory + k
        ] == pytest.approx(expected, rel=1e-5)
    # Whatever the batches are.
    for size in (2, 5):
        split = Perceptual(**options, batch_size=size).bind(source).read(turns, source)
        for name, values in readings.items():
            np.testing.assert_allclose(split[name], values, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"conv.weight": torch.zeros(3)}, "layers = ..: expected 7"),
        (
            lambda state: {**state, "lin2.model.1.weight": -state["lin2.model.1.weight"]},
            "smallest weight = -",
        ),
    ],
)
def test_mistakes_are_named(squeezenet, linear, tmp_path, change, words):
    torch.save(change(linear[0]), tmp_path / "file")
    probe = Perceptual(
        classifier="torchvision:squeezenet1_1", weights=squeezenet[1], linear=str(tmp_path / "file")
    )
    with one_line_error(words):
        probe.bind(Source())


def test_the_full_state_of_the_package_is_read_too(linear, tmp_path):
    state = linear[0]
    twice = {f"lins.{name[3:]}": weights for name, weights in state.items()}
    torch.save(
        {**state, **twice, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, tmp_path / "whole"
    )
    layers = [f"features.{k}" for k in STAGES]
    found = read_linear(str(tmp_path / "whole"), layers)
    assert [tuple(found[layer].shape) for layer in layers] == [
        (64,),
        (128,),
        (256,),
        (384,),
        (384,),
        (512,),
        (512,),
    ]
    torch.testing.assert_close(found["features.7"], state["lin2.model.1.weight"].flatten())


# -- in a run of images ----------------------------------------------------------------------------


def forged(star=0.4, items=60, levels=20):
    """A run of an encoder whose perceptual distance rises in a straight line from 0 at noise 0
    to 3 at 2 `star`.
    """

    noise = np.arange(1, levels + 1) / levels
    own = 1 + 0.1 * np.random.default_rng(0).standard_normal(items)
    distance = 3 * np.minimum(noise / (2 * star), 1)[:, None] * own / own.mean()
    spec = {
        "probes": [
            {"type": "network_layers", "classifier": "a:b"},
            {"type": "perceptual", "classifier": "torchvision:vgg16"},
        ]
    }
    dims = ("noise", "item", "trajectory")
    run = xr.Dataset(
        {
            "similarity": (
                (*dims, "network_layer"),
                np.linspace(1, 0.1, levels)[:, None, None, None] * np.ones((1, items, 1, 2)),
            ),
            "perceptual_distance": (
                dims,
                distance[..., None],
                {"long_name": "perceptual distance, torchvision:vgg16, without"},
            ),
        },
        coords={"noise": noise, "network_layer": ["first", "last"]},
        attrs={"spec": json.dumps(spec)},
    )
    return instructed(run)


def test_the_rise_is_located():
    study = ut.study(forged())
    rise = study.sel(reading="perceptual_distance")
    assert rise.model.item() == "torchvision:vgg16"
    assert float(rise.half_life.sel(axis="noise", estimate="value")) == pytest.approx(0.4, abs=1e-6)
    value, low, high = rise.curve.isel(noise=-1).values
    assert value == pytest.approx(3)
    assert low < 3 < high
    assert rise.curve.isel(noise=0).values.tolist() == [0, 0, 0]
    table = next(summary(study))
    row = list(table.columns[0].cells).index("perceptual_distance")
    assert list(table.columns[-1].cells)[row].startswith("3 [2.9")
    run = forged()
    still = ut.study(run.assign(perceptual_distance=run.perceptual_distance * 0))
    assert np.isnan(still.half_life.sel(reading="perceptual_distance")).all()


def small():
    """A network for images of Fashion-MNIST."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(c, 6, 3, 2), nn.ReLU()) for c in (1, 6)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * 6 * 6, 8))


def embedding():
    """The same as an encoder."""
    network = small()
    network.num_classes = 0
    return network
