"""The training loop: resumed = uninterrupted, early stop, refusals."""

import json

import numpy as np
import pytest
import torch

from small import one_line_error
from uturn.core.random import keys, normals
from uturn.networks.classifiers import VectorClassifier
from uturn.networks.files import fingerprint
from uturn.networks.training import train

RECIPE = {"data": "two Gaussians", "seed": 0}


def network(width=5):
    return VectorClassifier(3, 2, width=width, num_layers=2, seed=1)


def batch(step):
    noise = torch.from_numpy(normals(keys(0, 6, step, np.arange(16)), 3))
    labels = torch.arange(16) % 2
    return noise + 2 * labels[:, None], labels


def loss(model, step):
    vectors, labels = batch(step)
    return torch.nn.functional.cross_entropy(model(vectors), labels)


def accuracy(model):
    vectors, labels = batch(10_000)
    return {"accuracy": float((model(vectors).argmax(1) == labels).float().mean())}


class Interrupted(Exception):
    pass


def interrupted_at(stop):
    def failing(model, step):
        if step == stop:
            raise Interrupted
        return loss(model, step)

    return failing


@pytest.mark.parametrize("average", [None, 0.9])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, average):
    options = {"recipe": RECIPE, "every": 7, "warmup": 5, "average": average, "evaluate": accuracy}
    whole = network()
    straight = train(whole, loss, 30, **options)
    options["checkpoint"] = tmp_path / "state"
    for stop in (3, 17, 23):  # before the first checkpoint, and after two others
        with pytest.raises(Interrupted):
            train(network(), interrupted_at(stop), 30, **options)
    pieces = network()
    resumed = train(pieces, loss, 30, **options)
    assert fingerprint(pieces) == fingerprint(whole)
    assert resumed == straight
    assert [step for step, _ in straight.records["loss"]] == [7, 14, 21, 28, 30]
    again = network()  # what is finished is only read
    train(again, interrupted_at(0), 30, **options)
    assert fingerprint(again) == fingerprint(whole)
    assert not again.training


def test_fingerprint_sees_every_bit_and_every_number_type():
    first, second = network(), network()
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.logits.bias[0] = 1e-30
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(network().bfloat16()) not in (
        fingerprint(first),
        fingerprint(network().half()),
    )


def test_it_learns_and_stops_at_the_target(tmp_path):
    model = network()
    assert accuracy(model)["accuracy"] < 0.9
    options = {
        "recipe": RECIPE,
        "every": 10,
        "warmup": 1,
        "learning_rate": 0.01,
        "evaluate": accuracy,
    }
    history = train(
        model, loss, 500, target=("accuracy", 0.9), checkpoint=tmp_path / "state", **options
    )
    seen = [value for _, value in history.records["accuracy"]]
    assert history.steps == 10 * len(seen) < 500
    assert seen[-1] >= 0.9 > max(seen[:-1], default=0)
    assert accuracy(model)["accuracy"] == seen[-1]
    options["checkpoint"] = tmp_path / "state"
    assert (
        train(network(), interrupted_at(history.steps), 500, target=("accuracy", 0.9), **options)
        == history
    )
    del options["checkpoint"]
    never = train(network(), loss, 50, target=("accuracy", 1.1), **options)
    assert never.steps == 50


def test_the_average_is_what_is_left_in_the_model():
    last, smooth = network(), network()
    train(last, loss, 20, recipe=RECIPE)
    train(smooth, loss, 20, recipe=RECIPE, average=0.9)
    assert fingerprint(last) != fingerprint(smooth)
    unmoved = network()
    train(unmoved, loss, 20, recipe=RECIPE, average=0.0)  # forgets all but the last
    assert fingerprint(unmoved) == fingerprint(last)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {**RECIPE, "seed": 3}}, "seed is 0 there, 3 here"),
        ({"steps": 20}, "steps is 10 there, 20 here"),
        ({"recipe": {**RECIPE, "steps": 3}}, "recipe.steps is None there, 3 here"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, change, words):
    options = {"recipe": RECIPE, "steps": 10, "checkpoint": tmp_path / "state"}
    train(network(), loss, **options)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint of another training: .*{words}"):
        train(network(), loss, **{**options, **change})
    assert (tmp_path / "state").read_bytes() == before


@pytest.mark.parametrize("damage", ["half", "other"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "state"
    train(network(), loss, 10, recipe=RECIPE, checkpoint=path)
    if damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(path.read_bytes()[:100])
    with one_line_error(r"cannot be read .*move it away"):
        train(network(), loss, 10, recipe=RECIPE, checkpoint=path)


@pytest.mark.parametrize(
    "change",
    [
        {"records": json.dumps({"loss": [1, 2]})},
        {"recipe": "[" * 100_000},
        {"model": 3},
        {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    ],
)
def test_a_hostile_checkpoint_is_refused_in_one_line(tmp_path, change):
    path = tmp_path / "state"
    train(network(), loss, 10, recipe=RECIPE, checkpoint=path)
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with one_line_error(r"checkpoint = .*; move it away", characters=400):
        train(network(), loss, 10, recipe=RECIPE, checkpoint=path)


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights():
    model = network()
    before = fingerprint(model)

    def steep(model, step):
        value = loss(model, step)
        return value + torch.sqrt(0 * value)  # finite, with an infinite slope

    with pytest.raises(
        ValueError, match="the norm of the gradient is nan at step 0; lower the learning rate"
    ):
        train(model, steep, 10, recipe=RECIPE)
    assert fingerprint(model) == before
