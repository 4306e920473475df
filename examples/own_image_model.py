# %% [markdown]
# # Your own image model  You need three things: a diffusion model, images, and a classifier that
# says what they show. The model can be any torch module with a noise schedule, named as
# `module:function`, or a folder in the layout of diffusers. This notebook makes a small model of
# its own, finds the noise at which its U-turns lose the class of an image, and does the same for a
# folder. Nothing is downloaded.

# %%
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

import uturn as ut
from uturn.networks import DenoiserModel
from uturn.presets import ImageOptions
from uturn.studies import draw_study, records_of
from uturn.studies.figure import draw_grid

# %% [markdown]
# ## Data  The images are stripes on 8 x 8 pixels. Their class is the direction of the stripes;
# their phase is free. Images are floats in [-1, 1], or bytes, in a `.npy` file of shape (items,
# height, width, channels); labels are whole numbers in another file. A folder of pictures with a
# sub-folder for each class works as well.


# %%
def stripes(vertical, phase):
    """Images (.., 1, 8, 8) of a wave with two periods."""
    wave = 0.7 * torch.sin(torch.arange(8) * math.pi / 2 + phase[..., None, None]).expand(
        *phase.shape, 8, 8
    )
    return torch.where(vertical[..., None, None], wave, wave.mT).unsqueeze(-3)


def draw(count):
    vertical = torch.rand(count) < 0.5
    return stripes(vertical, 2 * math.pi * torch.rand(count)), vertical


torch.manual_seed(0)
images, vertical = draw(60)
Path("runs").mkdir(exist_ok=True)
np.save("runs/stripes.npy", images.permute(0, 2, 3, 1).numpy())
np.save("runs/stripes-labels.npy", vertical.numpy().astype(int))

# %% [markdown]
# ## A model and a classifier  The network predicts the clean image x0 from a noisy one and its
# timestep, and learns it by least squares in a few seconds.


# %%
class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + 8, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64)
        )

    def forward(self, noisy, timestep):
        angle = timestep.reshape(-1, 1) / 1000 * math.pi * torch.tensor([0.5, 1, 2, 4])
        return self.layers(torch.cat([noisy.flatten(1), angle.sin(), angle.cos()], dim=1)).reshape(
            noisy.shape
        )


network, schedule = Denoiser(), DDPMScheduler()
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
slower = torch.optim.lr_scheduler.PolynomialLR(optimizer, 1500)
for _ in range(1500):
    clean, timestep = draw(128)[0], torch.randint(1000, (128,))
    noise = torch.randn_like(clean)
    loss = (network(schedule.add_noise(clean, noise, timestep), timestep) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    slower.step()

# %% [markdown]
# Two functions hand them over. The first one returns the network with its schedule and says what it
# predicts; `noise`, `v`, `flow`, `score` and the preconditioned `edm` are other choices. The second
# one returns a classifier, any torch module that gives logits. Its blocks are the layers in which
# originals and reconstructions are compared. This one has filters of four phases for each
# direction.


# %%
def denoiser():
    return DenoiserModel(network, schedule, predicts="x0", image_shape=(1, 8, 8))


def classifier():
    filters, sums = nn.Conv2d(1, 8, 8, bias=False), nn.Linear(8, 2, bias=False)
    is_vertical = torch.arange(8) >= 4
    filters.weight.data = stripes(is_vertical, math.pi / 2 * torch.arange(8)) / 22
    sums.weight.data = 10 * torch.stack([~is_vertical, is_vertical]).float()
    return nn.Sequential(
        OrderedDict(filters=nn.Sequential(filters, nn.Flatten(), nn.ReLU()), logits=sums)
    )


# %% [markdown]
# ## U-turns  Functions of a notebook are in the module `__main__`; those of a file `mymodel.py`
# would be `mymodel:denoiser`, also on the command line: `uturn images --model mymodel:denoiser
# --data stripes.npy --classifier mymodel:classifier`.

# %%
options = ImageOptions(
    model="__main__:denoiser",
    data="runs/stripes.npy",
    labels="runs/stripes-labels.npy",
    classifiers=["__main__:classifier"],
    steps=40,
    levels=10,
    items=60,
    device="cpu",
)
experiment = options.experiment()
experiment

# %%
run = ut.run(experiment, progress=True)  # store="runs/stripes" would keep the results
study = ut.study(run)
figure = draw_grid(study.merge(records_of(run)).isel(item=slice(6)))

# %% [markdown]
# Each row is an image, and each column a noise level t/T. Red frames mark reconstructions of
# another class. Below, the same as numbers: half of the class is lost at the half-life of
# `same_class`. The filters see the phase too, and their curve falls at the same noise as that of
# the logits: these images have no hierarchy of coarse and fine features.

# %%
study

# %%
figure = draw_study(study, groups=("class", "layers"))

# %% [markdown]
# ## A folder of diffusers  A model that was saved by `save_pretrained` is named by its folder; here
# a small model of digits, with 300 images and a classifier.

# %%
digits = ImageOptions(
    model="atlas/mnist",
    data="atlas/mnist.npy",
    labels="atlas/mnist-labels.npy",
    classifiers=["atlas/mnist-classifier.safetensors"],
    steps=20,
    levels=[0.2, 0.4, 0.6, 0.8, 1.0],
    items=10,
    device="cpu",
)
run = ut.run(digits.experiment(), progress=True)
figure = draw_grid(ut.study(run).merge(records_of(run)))


# %% [markdown]
# ## Where to go from here  Ten images show the idea and measure little; [images](../docs/images.md)
# says what all numbers mean, and how to run a model at the scale of the paper.
# [Models](../docs/models.md#your-own-network) lists the kinds of models and schedulers, and which
# schedulers draw from the posterior. The notebook [text](text.ipynb) does the same with texts.
