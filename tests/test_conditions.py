"""Models with a null class: unconditional, told and guided reconstructions, their batches,
counts and descriptions.
"""

import diffusers
import numpy as np
import pytest
import torch

import uturn as ut
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.core.random import keys, normals
from uturn.networks import DenoiserModel
from uturn.networks.images.own_denoisers import PREDICTIONS
from uturn.presets import ImageOptions

SHAPE = (1, 28, 28)
CLASSES, NULL = 10, 77
rows: list[int] = []


def image_of(label):
    """The image that the network takes for the mean of x_0."""
    return 0.05 * (label % 12).float().reshape(-1, 1, 1, 1) * torch.ones(SHAPE)


def model(predicts="x0"):
    """Delta data: every class is one image, and so is the null class. In closed form for every
    prediction type.
    """
    scheduler = diffusers.DDPMScheduler(clip_sample=False)

    def network(noisy, sigma, labels):
        rows.append(len(noisy))
        clean, sigma = image_of(labels), sigma.reshape(-1, 1, 1, 1)
        noise = (noisy - clean) / sigma
        found = {
            "noise": noise,
            "x0": clean,
            "edm": clean,
            "score": -noise / sigma,
            "flow": noise - clean,
        }
        return (
            found[predicts] if predicts != "v" else (noise - sigma * clean) / (1 + sigma**2).sqrt()
        )

    return DenoiserModel(
        network,
        scheduler,
        predicts=predicts,
        image_shape=SHAPE,
        takes="sigma",
        num_classes=CLASSES,
        null_class=NULL,
    )


for kind in PREDICTIONS:
    globals()[f"model_{kind}"] = lambda kind=kind: model(kind)


def loaded(name="model", **options):
    return ReverseDiffusion.from_pretrained(
        f"{__name__}:{name}", "ddpm", 5, device="cpu", **options
    )


def some(count):
    return (0.3 * normals(keys(1, range(count)), 784)).reshape(-1, *SHAPE).clip(-1, 1)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_law_of_every_condition(predicts):
    """The last step returns the mean of x_0: that of the null class, of the label, or null +
    guidance (label - null).
    """
    labels = np.array([3, 0, 8])
    told, blind = (
        image_of(torch.from_numpy(labels)).numpy(),
        image_of(torch.full((3,), NULL)).numpy(),
    )
    for options, expected in (
        ({}, blind),
        ({"condition": "null"}, blind),
        ({"condition": "label"}, told),
        ({"condition": "label", "guidance": 0.0}, blind),
        ({"condition": "label", "guidance": 2.5}, blind + 2.5 * (told - blind)),
        ({"condition": "label", "guidance": -1.0}, 2 * blind - told),
    ):
        chain = loaded(f"model_{predicts}", **options)
        for step in (1, 3, 5):
            rebuilt = chain.u_turn(some(3), step, keys(0, range(3)), labels)
            np.testing.assert_allclose(rebuilt, expected, atol=3e-4, err_msg=f"{options}")


# -- batches and counts ----------------------------------------------------------------------------


def options(**changes):
    given = {
        "model": f"{__name__}:model",
        "steps": 4,
        "levels": 2,
        "items": 11,
        "chunk": 4,
        "device": "cpu",
        **changes,
    }
    return ImageOptions.from_dict(given)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_queue_is_full_and_guidance_takes_two_rows(guidance, monkeypatch):
    # A few calls before the run.
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])
    experiment = options(condition="label", guidance=guidance, batch_size=6, clones=2).experiment()
    experiment.parts.backward.describe()  # loads the model, with a call of its own
    rows.clear()
    ut.run(experiment)
    u_turns = 11 * 2 * (2 + 4)  # items, clones, steps of the two levels
    assert sum(rows) == (1 if guidance == 1 else 2) * u_turns
    assert max(rows) == 6


# -- what is recorded ------------------------------------------------------------------------------


def test_a_model_that_is_told_needs_as_many_labels(tmp_path):
    np.save(tmp_path / "images.npy", some(12))
    data = {
        "data": str(tmp_path / "images.npy"),
        "classifiers": ["fashion_mnist"],
        "compare_labels": False,
    }
    with pytest.raises(ValueError, match=r"classes of the images, .* = None: expected 10"):
        ut.run(options(**data, condition="label").experiment())
    ut.run(options(**data).experiment())  # the null class needs none
    with pytest.raises(ValueError, match="condition"):
        options(condition="both").experiment()
