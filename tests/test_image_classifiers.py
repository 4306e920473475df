"""Classifiers of images as probes: libraries' models and preprocessing, weights, blocks,
verdicts against labels, bad input.
"""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import uturn as ut
from forging import Trap
from small import StoredImages, one_line_error, with_file
from uturn.backward import UTurns
from uturn.core.errors import described
from uturn.networks.layers import every_block
from uturn.networks.modules import Network, in_top, load_classifier
from uturn.probes import KeepImages, NetworkLayers
from uturn.sources.images import Images

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
HERE = Path(__file__).stem


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet-18 with random weights, and their file."""
    return with_file(torchvision.models.resnet18, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pictures():
    """Smooth RGB images, uint8 (6, 3, 70, 90), far enough from 0 and 255 that bicubic resizing
    clips nothing.
    """
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(60, 195, (6, 3, 9, 11)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (70, 90), mode="bicubic")
    assert 20 < smooth.min() < smooth.max() < 235
    return smooth.round().to(torch.uint8)


def in_range(pictures):
    """As the sources of this package give them: [-1, 1]."""
    return pictures.float() / 127.5 - 1


# -- preprocessing ---------------------------------------------------------------------------------


# PIL rounds to 8 bits after rows and after columns, half a level each; the weights of a bicubic
# kernel add up to 1.25 at most.
PIL_LEVELS = 0.5 * 1.25 + 0.5 + 0.02


def test_preprocessing_of_torchvision(resnet, pictures):
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    prepared = load_classifier("torchvision:resnet18", resnet[1]).preprocess(in_range(pictures))
    assert prepared.shape == (6, 3, 224, 224)
    torch.testing.assert_close(prepared, transforms(pictures.float() / 255), atol=1e-5, rtol=0)
    # From 8 bits, which the library rounds to again.
    assert (prepared - transforms(pictures)).abs().max() < 0.02
    for image, picture in zip(prepared, pictures, strict=True):
        expected = transforms(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        assert (image - expected).abs().max() < PIL_LEVELS / 255 / 0.224


@pytest.mark.parametrize("name", ["test_vit", "vit_xsmall_patch16_clip_224"])
def test_preprocessing_of_timm(name, pictures, tmp_path):
    model, path = with_file(lambda: timm.create_model(name), tmp_path)
    config = timm.data.resolve_model_data_config(model)
    transforms = timm.data.create_transform(**config)
    prepared = load_classifier(f"timm:{name}", path).preprocess(in_range(pictures))
    assert prepared.shape[1:] == config["input_size"]
    for image, picture in zip(prepared, pictures, strict=True):
        expected = transforms(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        assert (image - expected).abs().max() < PIL_LEVELS / 255 / min(config["std"])


def test_grey_images_are_repeated(resnet, pictures):
    prepare = load_classifier("torchvision:resnet18", resnet[1], image_shape=(1, 28, 28)).preprocess
    grey = in_range(pictures[:, :1])
    torch.testing.assert_close(prepare(grey), prepare(grey.repeat(1, 3, 1, 1)), atol=0, rtol=0)
    # Normalised with another mean.
    assert (prepare(grey)[:, 0] - prepare(grey)[:, 1]).abs().max() > 0.01


# -- layers ----------------------------------------------------------------------------------------


def by_class(model, name):
    """Modules of a class by its name, in the order of the model: the blocks, as the library's
    own code calls them.
    """
    return [found for found, module in model.named_modules() if type(module).__name__ == name]


@pytest.mark.parametrize(
    ("spec", "block", "count", "first", "last"),
    [
        ("torchvision:convnext_base", "CNBlock", 36, "features.0", "classifier"),
        ("torchvision:vit_b_16", "EncoderBlock", 12, "conv_proj", "heads"),
        ("torchvision:googlenet", "Inception", 9, "conv1", "fc"),
        ("timm:vit_tiny_patch16_224", "Block", 12, "patch_embed", "head"),
        ("timm:resnet50", "Bottleneck", 16, "maxpool", "fc"),
        ("timm:efficientnet_b0", "InvertedResidual", 15, "bn1", "classifier"),
    ],
)
def test_every_block_of_libraries(spec, block, count, first, last):
    library, name = spec.split(":")
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        build = torchvision.models.get_model if library == "torchvision" else timm.create_model
        model = build(name, **options).eval()
    found = every_block(model)
    # The only block of a stage is read as the stage.
    alone = {
        name: name.rpartition(".")[0]
        for name in by_class(model, block)
        if name.rpartition(".")[0] in found
    }
    assert all(len(model.get_submodule(stage)) == 1 for stage in alone.values())
    expected = [alone.get(name, name) for name in by_class(model, block)]
    assert len(expected) == count
    assert [name for name in found if name in expected] == expected
    assert (found[0], found[-1]) == (first, last)
    # A block is read as a whole: nothing inside of it is read too.
    assert not [name for name in found if any(name.startswith(outer + ".") for outer in found)]


def hooked(model, layers, inputs):
    """Outputs of modules by plain hooks: the oracle."""
    kept = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(
            lambda m, i, output, name=name: kept.update({name: output.clone()})
        )
        for name in layers
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return kept


def test_readings_are_those_of_plain_hooks(resnet, pictures):
    model, path = resnet
    source = StoredImages(in_range(pictures).numpy())
    probe = (
        NetworkLayers(classifier="torchvision:resnet18", weights=path).bind(source).hidden_layers
    )
    assert probe.layers == (
        "maxpool",
        *(f"layer{k}.{j}" for k in (1, 2, 3, 4) for j in (0, 1)),
        "fc",
    )
    inputs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()(pictures.float() / 255)
    expected = hooked(model, probe.layers, inputs)
    (readings,) = probe.activations(source.images)
    for name in probe.layers:
        torch.testing.assert_close(readings[name], expected[name], atol=1e-4, rtol=1e-4)
        reference = expected[name].double()
        over = [axis for axis in range(reference.ndim) if axis != 1]
        np.testing.assert_allclose(probe.mean[name], reference.mean(over), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            probe.variance[name], reference.var(over, correction=0), rtol=1e-3, atol=1e-6
        )


def small_swin():
    options = {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": [4, 4],
        "stochastic_depth_prob": 0.0,
    }
    return torchvision.models.SwinTransformer(patch_size=[4, 4], num_classes=6, **options)


def small_vit():
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 12, 24, num_classes=6)


def small_convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(8, 12, 2), setting(12, None, 2)], num_classes=6)


@pytest.mark.parametrize(
    ("function", "axes"),
    [
        ("small_swin", [-1] * 6 + [1]),  # (batch, height, width, channels), but for the logits
        # The stem is a convolution, tokens (batch, tokens, channels) follow.
        ("small_vit", [1, -1, -1, -1, 1]),
        ("small_convnext", [1] * 7),  # channels last inside of a block, and first outside
    ],
)
def test_the_axis_of_the_channels(function, axes):
    """Statistics have one entry a channel: 8 to 16 of them, whereas images have 32 rows, and
    positions 16 or 64.
    """
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 32, 32)).astype(np.float32)
    found = load_classifier(f"{HERE}:{function}", image_shape=(3, 32, 32))
    assert [found.channel_axes[layer] for layer in found.layers] == axes
    probe = NetworkLayers(classifier=f"{HERE}:{function}").bind(StoredImages(images)).hidden_layers
    widths = {
        "small_swin": [8, 8, 8, 16, 16, 16, 6],
        "small_vit": [12] * 4 + [6],
        "small_convnext": [8, 8, 8, 12, 12, 12, 6],
    }
    assert [len(probe.mean[layer]) for layer in probe.layers] == widths[function]


# -- networks of one's own -------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, num_classes=10, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(c, 6, 3, 2), nn.ReLU()) for c in (channels, 6))
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 6 * 6, num_classes))

    def forward(self, x):
        return self.head(self.blocks(x))


def ten_classes():
    return Small()


def halved(images):
    return images / 2


def three_classes():
    return Small(3).train(), halved


def dropping():
    return nn.Sequential(Small(), nn.Dropout(0.9))


def spatial():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    )


def no_network():
    return 3, halved


def test_a_function_that_makes_a_network():
    images = np.random.default_rng(0).uniform(-1, 1, (9, 1, 28, 28)).astype(np.float32)
    found = load_classifier(f"{HERE}:three_classes", image_shape=(1, 28, 28))
    assert found.layers == ("blocks.0", "blocks.1", "head")
    assert (found.num_classes, found.class_names) == (3, None)
    probe = (
        NetworkLayers(classifier=f"{HERE}:three_classes").bind(StoredImages(images)).hidden_layers
    )
    with torch.no_grad():
        expected = Small(3)(torch.from_numpy(images) / 2).softmax(1)
    np.testing.assert_allclose(probe.predict(images).probabilities, expected, atol=1e-5)
    # Put into evaluation mode: nothing is dropped.
    model = load_classifier(f"{HERE}:dropping", image_shape=(1, 28, 28), layers=["0"]).module
    assert not any(module.training for module in model.modules())


class WithoutModules(nn.Module):
    """Activation functions that are no modules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.filters, self.hidden, self.answer = (
            nn.Conv2d(1, 3, 5, 4),
            nn.Linear(3 * 6 * 6, 12),
            nn.Linear(12, 7),
        )

    def forward(self, images):
        return self.answer(self.hidden(self.filters(images).relu().flatten(1)).tanh())


def without_modules():
    return WithoutModules()


def logistic_regression():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4))


@pytest.mark.parametrize(
    ("function", "remark"),
    [
        (
            "without_modules",
            (
                "['answer'] in WithoutModules; name the layers (--layers), some of ['filters',"
                " 'hidden', 'answer']"
            ),
        ),
        (
            "logistic_regression",
            "['1'] in Sequential; name the layers (--layers), some of ['0', '1']",
        ),
    ],
)
def test_a_classifier_without_blocks_gives_its_classes_and_a_remark(function, remark):
    images = np.random.default_rng(0).uniform(-1, 1, (4, 1, 28, 28)).astype(np.float32)
    draws = np.random.default_rng(1).uniform(-1, 1, (4, 6, 1, 28, 28)).astype(np.float32)
    source = StoredImages(images)
    probe = NetworkLayers(classifier=f"{HERE}:{function}").bind(source)
    originals = Images(np.arange(4), images, np.full(4, -1))
    readings = probe.read(UTurns(originals, None, draws, 3), source)
    with torch.no_grad():
        network = globals()[function]()
        before, after = (
            network(torch.from_numpy(x)).argmax(-1).numpy()
            for x in (images, draws.reshape(24, 1, 28, 28))
        )
    assert np.array_equal(readings["same_class"], after.reshape(4, 6) == before[:, None])
    assert not {"similarity", "distance", "clone_similarity"} & {
        *readings,
        *probe.variables(source),
    }
    assert "clone_same_class" in readings
    assert probe.coordinates(source) == {}
    (finding,) = probe.model_check(source, [originals])
    assert str(finding).endswith(
        f"is compared by its classes alone: layers: 'every block' finds only {remark}"
    )
    named = NetworkLayers(classifier=f"{HERE}:without_modules", layers=("filters", "hidden"))
    named = named.bind(source)
    assert list(named.coordinates(source)["network_layer"]) == ["filters", "hidden"]
    assert named.model_check(source, [originals]) == []


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "table", "several GPUs", "safetensors"])
def test_forms_of_weight_files(resnet, tmp_path, form):
    state = dict(resnet[0].state_dict())
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        renamed = {f"module.{name}": tensor for name, tensor in state.items()}
        table = {"state_dict": state, "epoch": 3}
        torch.save({"plain": state, "table": table, "several GPUs": renamed}[form], path)
    loaded = load_classifier("torchvision:resnet18", str(path)).module.state_dict()
    torch.testing.assert_close(loaded, resnet[0].state_dict())


def test_names_in_published_files_of_densenet(tmp_path):
    """The published files are older than the names: norm.1 for norm1."""
    torch.manual_seed(0)
    state = torchvision.models.densenet121(num_classes=4).state_dict()
    old = {
        (
            name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
            if "denselayer" in name
            else name
        ): w
        for name, w in state.items()
    }
    assert set(old) != set(state)
    torch.save(old, tmp_path / "weights.pth")
    loaded = load_classifier(
        "torchvision:densenet121", str(tmp_path / "weights.pth")
    ).module.state_dict()
    torch.testing.assert_close(loaded, state)


def test_weights_by_name_are_downloaded_and_never_unpickled(resnet, monkeypatch):
    asked = []

    def download(url, **options):
        asked.append((Path(url).name, options))
        return resnet[0].state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    Network.load.cache_clear()
    for weights in (None, "DEFAULT", "IMAGENET1K_V1"):
        assert load_classifier("torchvision:resnet18", weights).num_classes == 1000
    assert {name for name, _ in asked} == {"resnet18-f37072fd.pth"}
    assert all(options["weights_only"] and options["check_hash"] for _, options in asked)


def test_bad_weight_files(resnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = resnet[0].state_dict()
    whole = Path(resnet[1]).read_bytes()
    files = {
        "cut.pth": whole[: len(whole) // 2],
        "hostile.pth": pickle.dumps({"fc.weight": Trap("executed")}),
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    torch.save({k: v for k, v in state.items() if k != "fc.bias"}, "missing.pth")
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, "grey.pth")
    expected = {
        "missing file": (
            "'missing file': no such file; expected one of DEFAULT, IMAGENET1K_V1, or a file with a"
            " state dict"
        ),
        **dict.fromkeys(files, "cannot be read .*nothing in it was executed"),
        "missing.pth": "Missing key.*fc.bias.*expected weights of this network",
        "grey.pth": "size mismatch for conv1.weight",
    }
    for name, words in expected.items():
        with one_line_error(words, characters=400):
            load_classifier("torchvision:resnet18", name)
    assert not Path("executed").exists()


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "torchvision:resent18",
            "'torchvision:resent18': expected a model of torchvision; close names: resnet18",
        ),
        (
            "no_such_module:function",
            r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_module'\)",
        ),
        (
            f"{HERE}:no_network",
            r"what it gives = .*: expected a torch\.nn\.Module, or \(module, preprocess\)",
        ),
        (f"{HERE}:spatial", r"shape for 2 images = \(2, 4, 24, 24\): expected \(batch, classes\)"),
        (f"{HERE}:small_vit", r"does not take images \(1, 28, 28\): "),
    ],
)
def test_mistakes_are_named(spec, words):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        load_classifier(spec, image_shape=(1, 28, 28))
    assert re.search(words, described(caught.value))


# -- as a probe ------------------------------------------------------------------------------------


def u_turns(count=7, trajectories=3, num_labels=10, first=0):
    """Originals, and reconstructions that are other images, with labels of which some are
    unknown.
    """
    random = np.random.default_rng(1)
    images = random.uniform(-1, 1, (count, 1, 28, 28)).astype(np.float32)
    labels = random.integers(0, num_labels, count)
    labels[::3] = -1
    rebuilt = 0.7 * images[:, None] + 0.3 * random.uniform(
        -1, 1, (count, trajectories, 1, 28, 28)
    ).astype(np.float32)
    return UTurns(Images(np.arange(first, first + count), images, labels), None, rebuilt)


def test_verdicts():
    """Against a network that is run by hand, class by class."""
    turns = u_turns()
    source = StoredImages(turns.originals.images, turns.originals.labels, 10)
    spec = NetworkLayers(classifier=f"{HERE}:ten_classes", batch_size=5)
    spec = spec.bind(source)
    readings = spec.read(turns, source)
    assert list(readings) == list(spec.variables(source))
    model = Small(10).eval()
    with torch.no_grad():
        before = model(torch.from_numpy(turns.originals.images)).numpy()
        after = (
            model(torch.from_numpy(turns.reconstructions).flatten(0, 1)).numpy().reshape(7, 3, 10)
        )
    np.testing.assert_array_equal(readings["original_class"], before.argmax(1))
    np.testing.assert_array_equal(readings["predicted_class"], after.argmax(2))
    np.testing.assert_array_equal(
        readings["same_class"], after.argmax(2) == before.argmax(1)[:, None]
    )
    order = np.argsort(-after, axis=2)
    for name, classes, count in [
        ("same_class_top5", before.argmax(1), 5),
        ("label_top1", turns.originals.labels, 1),
        ("label_top5", turns.originals.labels, 5),
    ]:
        expected = (order[:, :, :count] == classes[:, None, None]).any(2).astype(float)
        expected[classes < 0] = np.nan
        np.testing.assert_array_equal(readings[name], expected)
    assert np.isnan(readings["label_top5"][::3]).all()
    assert 0 < np.nanmean(readings["label_top5"]) < 1  # both happen


def test_in_top_counts_equal_values_once():
    logits = np.random.default_rng(0).integers(0, 4, (500, 9)).astype(float)  # many ties
    order = np.argsort(-logits, axis=1, kind="stable")
    for count in (1, 5):
        found = np.stack([in_top(logits, np.full(500, c), count) for c in range(9)], axis=1)
        expected = np.stack([(order[:, :count] == c).any(1) for c in range(9)], axis=1)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(in_top(logits, logits.argmax(1), 1), True)


@pytest.mark.parametrize(
    ("function", "num_labels", "options", "expected"),
    [
        ("ten_classes", 10, {}, ["original_class", "same_class_top5", "label_top1", "label_top5"]),
        ("ten_classes", None, {}, ["original_class", "same_class_top5"]),
        ("three_classes", 3, {}, ["original_class", "label_top1"]),
    ],
)
def test_variables(function, num_labels, options, expected):
    turns = u_turns(num_labels=3)
    source = StoredImages(turns.originals.images, turns.originals.labels, num_labels)
    spec = NetworkLayers(classifier=f"{HERE}:{function}", name="small", **options)
    every = ["similarity", "distance", "same_class", "predicted_class", *expected]
    spec = spec.bind(source)
    variables, readings = spec.variables(source), spec.read(turns, source)
    assert list(variables) == list(readings) == [f"small_{name}" for name in every]
    assert variables["small_similarity"].dims == (
        "noise",
        "item",
        "trajectory",
        "small_network_layer",
    )
    assert variables["small_original_class"].dims == ("noise", "item")
    assert spec.coordinates(source)["small_network_layer"].tolist() == [
        "blocks.0",
        "blocks.1",
        "head",
    ]


def test_labels_that_do_not_match():
    turns = u_turns()
    spec = NetworkLayers(classifier=f"{HERE}:three_classes")
    with pytest.raises(
        ValueError,
        match=(
            r"of the images = 10: expected 3, as .*three_classes' knows; .*`classes`.*labels ="
            r" false"
        ),
    ):
        spec.bind(StoredImages(turns.originals.images, turns.originals.labels, 10))


def test_fingerprints_know_weights_and_preprocessing(resnet, tmp_path):
    seen = [
        NetworkLayers(classifier=f"{HERE}:{name}").fingerprint()
        for name in ("ten_classes", "three_classes")
    ]
    assert seen[0] == ut.networks.files.fingerprint(Small(10))
    assert seen[1] == f"{ut.networks.files.fingerprint(Small(3))} {HERE}:halved"
    library = NetworkLayers(classifier="torchvision:resnet18", weights=resnet[1]).fingerprint()
    assert library.startswith(ut.networks.files.fingerprint(resnet[0]))
    assert "crop_size=[224]" in library
    assert "\n" not in library
    (tmp_path / "statistics").write_bytes(b"1")
    with_statistics = NetworkLayers(
        classifier=f"{HERE}:ten_classes", statistics=str(tmp_path / "statistics")
    ).fingerprint()
    assert with_statistics.startswith(seen[0] + " ")


def test_images_of_the_first_items_only():
    source, turns = StoredImages(u_turns().originals.images), u_turns(first=4)
    np.testing.assert_array_equal(KeepImages().read(turns, source)["image"], turns.reconstructions)
    kept = KeepImages(first=6).read(turns, source)["image"]
    np.testing.assert_array_equal(kept[:2], turns.reconstructions[:2])
    assert np.isnan(kept[2:]).all()
    assert np.isfinite(turns.reconstructions).all()  # the probe that reads next sees them all
    assert [len(values) for values in KeepImages().coordinates(source).values()] == [1, 28, 28]
