"""The embedded weights and images: they load, and agree with their documentation."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from uturn.probes.hidden_layers import HiddenLayers
from uturn.sources import fashion_mnist


@pytest.fixture(scope="module")
def test_set():
    return fashion_mnist.load_test_set()


def test_test_set_is_balanced_in_every_prefix(test_set):
    images, labels = test_set
    assert images.shape == (1000, 1, 28, 28)
    assert images.dtype == np.float32
    assert images.min() == -1
    assert images.max() == 1
    np.testing.assert_array_equal(labels, np.arange(1000) % 10)
    assert len(np.unique(images.reshape(1000, -1), axis=0)) == 1000  # no image twice


def test_classifier_recognises_the_test_set(test_set):
    images, labels = test_set
    predictions = HiddenLayers(fashion_mnist.load_classifier()).predict(images)
    assert (predictions.classes == labels).mean() >= 0.91
    # A coarse mistake (a shoe called a bag) is rarer than a fine one (a shirt called a coat).
    coarse = fashion_mnist.COARSE_CLASS
    assert (coarse[predictions.classes] == coarse[labels]).mean() >= 0.96


def test_classifier_has_layers_to_probe():
    model = fashion_mnist.load_classifier()
    assert HiddenLayers(model).layers == (
        "block1",
        "block2",
        "block3",
        "block4",
        "block5",
        "block6",
        "logits",
    )
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not model.training
    (batch,) = HiddenLayers(model).activations(np.zeros((2, 1, 28, 28), np.float32))
    assert all(batch[f"block{i}"].min() >= 0 for i in range(1, 7))  # after the ReLU
    assert batch["logits"].shape == (2, 10)


def test_generator_denoises(test_set):
    """Its estimate of the clean image beats the noisy image itself, and the mean image, by far."""
    images = torch.from_numpy(test_set[0][:50])
    folder = fashion_mnist.generator_folder()
    model, scheduler = (
        UNet2DModel.from_pretrained(folder / "unet").eval(),
        fashion_mnist.load_scheduler(),
    )
    assert model.dtype == torch.float32
    assert not model.training
    timesteps = torch.full((50,), 300)
    noisy = scheduler.add_noise(
        images, torch.randn(images.shape, generator=torch.Generator().manual_seed(0)), timesteps
    )
    scheduler.set_timesteps(1000)
    with torch.inference_mode():
        estimate = scheduler.step(model(noisy, timesteps).sample, 300, noisy).pred_original_sample
    error = (estimate - images).square().mean()
    assert error < 0.25 * (images - images.mean(0)).square().mean()
    assert error < 0.25 * (noisy / scheduler.alphas_cumprod[300].sqrt() - images).square().mean()


def test_weights_are_small_and_half_precision():
    from safetensors import safe_open

    folder = fashion_mnist.generator_folder()
    files = [
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder.parent / "classifier.safetensors",
    ]
    assert sum(f.stat().st_size for f in files) <= 8 * 2**20
    for path in files:
        with safe_open(path, framework="numpy") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert kinds <= {"F16", "I64"}


def test_measured_numbers_belong_to_these_weights():
    """`evaluate.py` recorded the fingerprints of the files it measured."""
    manifest = json.loads((fashion_mnist.generator_folder().parent / "manifest.json").read_text())
    assert manifest["fingerprints"] == fashion_mnist.fingerprints()
    assert manifest["classifier"]["test_accuracy"] >= 0.91


def test_class_names_and_coarse_classes_match():
    assert len(fashion_mnist.CLASS_NAMES) == len(fashion_mnist.COARSE_CLASS) == 10
    assert set(fashion_mnist.COARSE_CLASS) == set(range(5))
    tops = [
        n
        for n, c in zip(fashion_mnist.CLASS_NAMES, fashion_mnist.COARSE_CLASS, strict=True)
        if c == 0
    ]
    assert tops == ["T-shirt/top", "Pullover", "Coat", "Shirt"]
