"""Encoders of images as probes, which have no classes; CLIP models, whose classes are texts."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny_clip
import uturn as ut
from small import StoredImages, images_of_noise, with_file
from uturn.backward import UTurns
from uturn.networks.images.clip import ClipTexts, class_texts
from uturn.networks.layers import every_block
from uturn.networks.modules import _timm_has_classes, load_classifier
from uturn.presets import ImageOptions
from uturn.probes import NetworkLayers
from uturn.probes.changes import Changes, sites_of
from uturn.sources.images import Images

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
HERE = Path(__file__).stem
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Source(StoredImages):
    """Random images in memory."""

    def __init__(self, shape=(3, 32, 32), count=12, labels=None, names=None):
        super().__init__(
            images_of_noise(count, *shape),
            labels,
            None if labels is None else int(labels.max()) + 1,
            names,
        )

    def u_turns(self, items=5, draws=4, clones=1):
        first, other = (
            self.images[:items],
            images_of_noise(items, draws, *self.image_shape(), seed=1),
        )
        labels = np.full(items, -1) if self.labels is None else self.labels[:items]
        return UTurns(
            Images(np.arange(items), first, labels),
            None,
            0.6 * first[:, None] + 0.4 * other,
            clones,
        )


# -- models of timm --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.upstream("timm", "1.0.31")
def test_which_models_of_timm_have_classes():
    """All of the published ones. Embeddings have these dimensions, and label sets other sizes."""
    dimensions, labels = (
        {384, 512, 640, 768, 1024, 1152, 1280},
        {
            10,
            45,
            1000,
            11221,
            11821,
            19168,
            21841,
            21842,
            21843,
            115217,
        },
    )
    library = SimpleNamespace(
        list_models=functools.cache(timm.list_models), get_pretrained_cfg=timm.get_pretrained_cfg
    )
    names = timm.list_pretrained()
    assert len(names) > 1500
    encoders = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        model = SimpleNamespace(num_classes=config.num_classes, pretrained_cfg=config.to_dict())
        assert config.num_classes in dimensions | labels | {0}, name
        assert _timm_has_classes(library, model) == (config.num_classes in labels), name
        encoders += [] if _timm_has_classes(library, model) else [name]
    assert {
        *(
            "vit_small_patch14_dinov2.lvd142m",
            "vit_small_patch14_reg4_dinov2.lvd142m",
            "vit_base_patch16_clip_224.openai",
        ),
        *(
            "convnext_base.clip_laion2b",
            "resnet50_clip.openai",
            "vit_base_patch16_siglip_224.webli",
            "vit_base_patch16_224.mae",
        ),
    } <= set(encoders)
    assert not {
        "vit_base_patch16_clip_224.openai_ft_in1k",
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k",
    } & set(encoders)
    # The file of a user: CLIP itself, whatever weights the name stands for, and a model that was
    # fine-tuned to 37 classes.
    config = timm.get_pretrained_cfg("vit_base_patch16_clip_224").to_dict()
    assert config["num_classes"] == 1000
    found = [
        _timm_has_classes(timm, SimpleNamespace(num_classes=number, pretrained_cfg=config))
        for number in (512, 37, 640)
    ]
    assert found == [False, True, True]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """DINOv2 with registers, random weights, and their file."""
    return with_file(
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2"),
        tmp_path_factory.mktemp("weights"),
    )


@pytest.mark.slow
def test_dinov2_at_another_size(dinov2):
    """The network of timm for that size, with the embeddings of its positions resampled by
    timm's own loader.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    found = load_classifier(
        "timm:vit_small_patch14_reg4_dinov2@56", dinov2[1], image_shape=(1, 28, 28)
    )
    assert (found.num_classes, found.class_names) == (0, None)
    assert found.layers == ("patch_embed", *(f"blocks.{k}" for k in range(12)), "head")
    assert [found.channel_axes[layer] for layer in found.layers] == [-1] * 13 + [1]
    grey = torch.from_numpy(Source((1, 28, 28), 2).images)
    prepared = found.preprocess(grey)
    assert prepared.shape == (2, 3, 56, 56)
    with torch.device("meta"):
        own = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56).eval()
    own.load_state_dict(checkpoint_filter_fn(dict(dinov2[0].state_dict()), own), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(found.module(prepared), own(prepared), atol=1e-4, rtol=1e-4)
        normalised = own.forward_features(prepared)
    # The embedding is that of the class token; blocks hold it, the registers and the patches.
    probe = (
        NetworkLayers(classifier="timm:vit_small_patch14_reg4_dinov2@56", weights=dinov2[1])
        .bind(Source((1, 28, 28), 2))
        .hidden_layers
    )
    (readings,) = probe.activations(grey)
    torch.testing.assert_close(readings["head"], normalised[:, 0], atol=1e-4, rtol=1e-4)
    assert readings["blocks.11"].shape == (2, 1 + 4 + 16, 384)


def test_sizes_are_whole_patches(dinov2):
    with pytest.raises(ValueError, match=r"does not take images \(3, 28, 28\).*60"):
        load_classifier("timm:vit_small_patch14_reg4_dinov2@60", dinov2[1], image_shape=(3, 28, 28))


def test_patches_of_a_network_with_registers(dinov2):
    """The probe of correlated changes reads the patches, without the class token and the
    registers.
    """
    spec = Changes(
        layer="blocks.3", classifier="timm:vit_small_patch14_reg4_dinov2@56", weights=dinov2[1]
    )
    assert sites_of(spec, Source((3, 28, 28), 2)).distance.num_sites == 16


@pytest.mark.parametrize(
    ("name", "last", "dimension"),
    [
        ("vit_base_patch14_dinov2", "head", 768),
        ("vit_base_patch16_clip_224.openai", "head", 512),
        ("vit_base_patch16_siglip_224", "attn_pool", 768),
        ("convnext_base.clip_laion2b", "head", 640),
    ],
)
def test_the_last_layer_is_the_embedding(name, last, dimension):
    """On the device "meta", where modules have shapes and no weights."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    assert not _timm_has_classes(timm, model)
    assert every_block(model)[-1] == last
    outputs = []
    model.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    size = timm.data.resolve_model_data_config(model)["input_size"]
    embedding = model(torch.zeros(2, *size, device="meta"))
    assert embedding.shape == (2, dimension)
    assert outputs[0].shape == embedding.shape
    assert last == "head" or isinstance(model.head, nn.Identity)


@pytest.mark.slow
def test_costs_of_the_page():
    """Parameters and multiplications with additions of one image, against the table of
    docs/probes.md.
    """
    from torch.utils.flop_counter import FlopCounterMode

    page = (Path(__file__).parents[1] / "docs" / "probes.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+):([\w.]+)(?:@\d+)?`.*? \| (\d+) \| (\d+) M \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 7
    timm.layers.set_fused_attn(False)  # attention as products of matrices, which are counted
    try:
        for library, name, pixels, millions, giga in rows:
            size = {"img_size": int(pixels)} if "dinov2" in name else {}
            with torch.device("meta"):
                model = (
                    timm.create_model(name, **size)
                    if library == "timm"
                    else torchvision.models.get_model(name)
                )
                with FlopCounterMode(display=False) as counter:
                    model.eval()(torch.zeros(1, 3, int(pixels), int(pixels)))
            assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
                float(millions), abs=0.51
            ), name
            assert counter.get_total_flops() / 1e9 == pytest.approx(float(giga), rel=0.03), name
    finally:
        timm.layers.set_fused_attn(True)


# -- encoders as probes ----------------------------------------------------------------------------


class Encoder(nn.Module):
    """Two blocks and an embedding."""

    num_classes = 0

    def __init__(self, channels=1, spatial=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(c, 6, 3, 2), nn.ReLU()) for c in (channels, 6))
        )
        self.head = (
            nn.Identity() if spatial else nn.Sequential(nn.Flatten(), nn.Linear(6 * 6 * 6, 8))
        )

    def forward(self, x):
        return self.head(self.blocks(x))


def encoder():
    return Encoder()


def encoder_of_maps():
    return Encoder(spatial=True)


@pytest.mark.parametrize(("function", "layers"), [("encoder", 3), ("encoder_of_maps", 2)])
def test_an_encoder_has_no_classes(function, layers):
    source = Source((1, 28, 28), labels=np.arange(12) % 3)
    spec = NetworkLayers(classifier=f"{HERE}:{function}", name="own")
    for clones in (1, 2):
        readings = spec.bind(source).read(source.u_turns(clones=clones), source)
        twins = [] if clones == 1 else ["clone_own_similarity", "clone_own_distance"]
        assert list(readings) == ["own_similarity", "own_distance", *twins]
        assert all(values.shape == (5, 4, layers) for values in readings.values())
    assert list(spec.bind(source).variables(source)) == ["own_similarity", "own_distance"]
    # The similarity is that of the layers of a classifier with the same weights.
    probe = spec.bind(source).hidden_layers
    first = source.u_turns()
    expected = probe.compare(
        first.originals.data.repeat(4, axis=0), first.reconstructions.reshape(20, 1, 28, 28)
    )
    np.testing.assert_allclose(
        spec.bind(source).read(first, source)["own_similarity"].reshape(20, -1),
        expected.similarity,
        atol=1e-6,
    )


# -- CLIP ------------------------------------------------------------------------------------------


NAMES = ["cat", "sea_lion", "bus"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_clip.write(tmp_path_factory.mktemp("clip") / "model")


def reference(folder, texts, pixels):
    """Logits of transformers' own model, called on texts and images together."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, pixel_values=pixels)


def test_classes_from_texts_are_those_of_transformers(clip):
    source = Source(count=6, labels=np.arange(6) % 3, names=NAMES)
    spec = NetworkLayers(classifier=f"clip:{clip}")
    texts = ("a photo of a cat", "a photo of a sea lion", "a photo of a bus")
    assert spec.texts(source) == texts
    found = load_classifier(f"clip:{clip}", image_shape=(3, 32, 32), texts=texts)
    assert (found.num_classes, found.class_names) == (3, texts)
    pixels = found.preprocess(torch.from_numpy(source.images))
    expected = reference(clip, texts, pixels)
    logits = found.module(pixels)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-5, rtol=1e-5)
    assert logits.std() > 1e-3  # another text has another logit
    # As a probe: the classes are those of the logits, and the last layer is the embedding that
    # transformers projects.
    turns = source.u_turns(items=6)
    readings = spec.bind(source).read(turns, source)
    predicted = expected.logits_per_image.argmax(1).numpy()
    np.testing.assert_array_equal(readings["original_class"], predicted)
    after = found.preprocess(torch.from_numpy(turns.reconstructions.reshape(-1, 3, 32, 32)))
    rebuilt = reference(clip, texts, after).logits_per_image.argmax(1).numpy().reshape(6, 4)
    np.testing.assert_array_equal(readings["same_class"], rebuilt == predicted[:, None])
    np.testing.assert_array_equal(readings["label_top1"], rebuilt == source.labels[:, None])
    probe = spec.bind(source).hidden_layers
    assert probe.layers == (
        "vision_model.embeddings",
        "vision_model.pre_layrnorm",
        *(f"vision_model.encoder.layers.{k}" for k in range(3)),
        "vision_model.post_layernorm",
        "visual_projection",
    )
    (values,) = probe.activations(source.images)
    unit = nn.functional.normalize(values["visual_projection"], dim=1)
    torch.testing.assert_close(unit, expected.image_embeds, atol=1e-5, rtol=1e-5)
    # A class token and 4 x 4 patches.
    assert values["vision_model.encoder.layers.0"].shape == (6, 17, 16)


def test_texts_are_encoded_once(clip, monkeypatch):
    calls = []
    encode = ClipTexts.encode
    monkeypatch.setattr(
        ClipTexts, "encode", lambda self, texts: calls.append(texts) or encode(self, texts)
    )
    source = Source(names=["one", "two"])
    spec = NetworkLayers(classifier=f"clip:{clip}")
    for _ in range(3):
        spec.bind(source).read(source.u_turns(), source)
    assert calls == [("a photo of a one", "a photo of a two")]


def test_texts_from_a_file_and_from_a_template(clip, tmp_path):
    (tmp_path / "prompts.txt").write_text("a grey cat\n a bus \n\n", encoding="utf-8")
    named, unnamed = Source(names=NAMES), Source()
    assert NetworkLayers(classifier=f"clip:{clip}", class_prompts="{} in the rain").texts(
        named
    ) == (
        "cat in the rain",
        "sea lion in the rain",
        "bus in the rain",
    )
    of_file = NetworkLayers(classifier=f"clip:{clip}", class_prompts=str(tmp_path / "prompts.txt"))
    assert of_file.texts(named) == of_file.texts(unnamed) == ("a grey cat", "a bus")
    # Without texts it is an encoder.
    assert list(NetworkLayers(classifier=f"clip:{clip}").bind(unnamed).variables(unnamed)) == [
        "similarity",
        "distance",
    ]
    assert "same_class" in of_file.bind(unnamed).variables(unnamed)
    before = of_file.fingerprint()
    (tmp_path / "prompts.txt").write_text("a black cat\na bus\n", encoding="utf-8")
    assert of_file.fingerprint() != before
    assert of_file.texts(unnamed) == ("a black cat", "a bus")


def test_the_fingerprint_knows_both_towers(clip, tmp_path):
    from transformers import CLIPModel

    spec = NetworkLayers(classifier=f"clip:{tmp_path}")
    seen = []
    for tower in ("vision_model", "text_model", None):
        model = CLIPModel.from_pretrained(clip)
        if tower is not None:
            next(getattr(model, tower).parameters()).data += 1
        model.save_pretrained(tmp_path)
        for file in clip.glob("*token*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        seen.append(spec.fingerprint())
    assert len(set(seen)) == 3
    assert seen[2] == NetworkLayers(classifier=f"clip:{clip}").fingerprint()


def test_preprocessing_of_the_folder(tmp_path):
    pytest.importorskip("transformers")
    from transformers import CLIPImageProcessor

    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(60, 195, (2, 3, 9, 11)).astype(np.float32))
    pictures = nn.functional.interpolate(coarse, (70, 90), mode="bicubic").round().to(torch.uint8)
    size = {
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.4] * 3,
        "image_std": [0.2] * 3,
    }
    for folder, options in (("own", size), ("none", {})):
        tiny_clip.write(tmp_path / folder, **options)
        found = load_classifier(f"clip:{tmp_path / folder}", image_shape=(3, 70, 90))
        usual = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
        processor = CLIPImageProcessor(**(options or usual))
        prepared = found.preprocess(pictures.float() / 127.5 - 1)
        expected = processor(
            [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures], return_tensors="pt"
        )["pixel_values"]
        # The processor rounds to 8 bits after it has resized.
        assert (prepared - expected).abs().max() < 1.2 / 255 / (0.2 if options else min(CLIP_STD))


def test_other_texts_of_classes_are_another_experiment(clip, tmp_path):
    """The texts come from names of the source, which no weights and no options hold."""
    from uturn.store.run_folder import RunFolder

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.random.default_rng(k).integers(0, 255, (28, 28), np.uint8)).save(
                tmp_path / "data" / name / f"{k}.png"
            )
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\n")
    options = {
        "data": str(tmp_path / "data"),
        "channels": 1,
        "classes": str(classes),
        "classifiers": [f"clip:{clip}"],
    }
    options |= {"steps": 2, "levels": 1, "keep": 0, "chunk": 2, "device": "cpu"}
    ut.run(ImageOptions.from_dict({**options, "items": 2}).experiment(), tmp_path / "x")
    assert RunFolder.open(tmp_path / "x").states()
    classes.write_text("cat\ndog\nfox\n")
    with pytest.raises(ValueError, match="taken_from_source"):
        ut.run(ImageOptions.from_dict({**options, "items": 4}).experiment(), tmp_path / "x")


def test_files_of_clip_that_are_damaged_or_odd(tmp_path):
    pytest.importorskip("transformers")
    folder = tiny_clip.write(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot be read"):
        load_classifier(f"clip:{folder}")
    file = tmp_path / "texts"
    file.write_bytes("\ufeffcat\ndog\x0c and cat\n".encode())
    assert class_texts(str(file), None) == ("cat", "dog\x0c and cat")
    assert class_texts(None, ["cat"]) is None
