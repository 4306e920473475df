"""What parts read: their identity changes with every file, network and function behind them, and
with nothing else.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import uturn as ut
from uturn.backward.denoiser import StringDenoiser
from uturn.core.inputs import Content, File, Input, marked
from uturn.core.protocols import Probe, Spec
from uturn.probes.changes import Changes
from uturn.probes.network_layers import NetworkLayers
from uturn.probes.perceptual import Perceptual
from uturn.sources.images import ArraySource, FashionMNISTSource
from uturn.sources.strings import GrammarSource
from uturn.sources.tokens import TokenSource
from uturn.sources.vectors import GaussianMixtureSource


class Weights(Input):
    """A model of one's own with a file and code."""

    def files(self):
        return ["weights"]

    def own_code(self):
        return print

    def fingerprint(self):
        return "123"


class Reading(Spec, Probe):
    type: Literal["reading"] = "reading"
    path: File = "nothing"
    second: File | None = None
    numbers: File | list[Any] | None = None
    words: str = "here"

    def variables(self, source):
        return {}

    def read(self, u_turns, source):
        return {}


class WithWeights(Reading):
    def reads(self):
        return [Weights(), *super().reads()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second", "third", "here"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_files_of_the_fields_are_the_identity(files):
    part = Reading(path="first", second="second", numbers="third")
    assert list(part.files()) == [Path("first"), Path("second"), Path("third")]
    assert part.own_code() is None
    seen = {part.fingerprint()}
    for changes in range(1, 4):
        (files / ("first", "second", "third")[changes - 1]).write_text("other" * changes)
        assert part.fingerprint() not in seen
        seen.add(part.fingerprint())
    (files / "here").write_text("other")  # `words` is no path
    assert part.fingerprint() in seen
    moved = files / "moved"
    (files / "first").rename(moved)
    assert (
        Reading(path=str(moved), second="second", numbers="third").fingerprint()
        == Reading(path="moved", second="second", numbers="third").fingerprint()
    )


def test_other_words_than_paths_have_no_identity(files):
    assert Reading(path="a photo of a {}" * 1000, numbers=[1.0]).fingerprint() == ""
    assert Reading().fingerprint() == ""
    assert list(Reading(numbers=[1.0]).files()) == [Path("nothing")]


def test_models_are_part_of_it(files):
    part = WithWeights(path="first")
    assert part.fingerprint() == f"123 {Content('first').fingerprint()}"
    assert list(part.files()) == ["weights", Path("first")]
    assert part.own_code() is print


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (ArraySource, {"path", "labels"}),
        (GrammarSource, {"file"}),
        (GaussianMixtureSource, {"means", "covariances", "weights"}),
        (StringDenoiser, {"model"}),
        (NetworkLayers, {"class_prompts", "statistics"}),
        (Perceptual, {"linear"}),
        (Changes, set()),
    ],
)
def test_fields_that_name_files(cls, names):
    assert set(marked(cls)) == names


def test_texts_and_what_is_said_of_them(files):
    part, seen = TokenSource(path="one.csv"), set()
    for content in ("text\na text\n", "text\nanother\n", "text,label\nanother,0\n"):
        (files / "one.csv").write_text(content)
        seen.add(part.fingerprint())
    assert len(seen) == 3
    folder = files / "folder"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    before = TokenSource(path="folder").fingerprint()
    (folder / "c.txt").write_text("c")
    assert TokenSource(path="folder").fingerprint() != before


def test_embedded_images_have_the_digest_of_their_file():
    assert (
        FashionMNISTSource().fingerprint()
        == ut.fashion_mnist.fingerprints()["test_set.safetensors"]
    )


@pytest.mark.parametrize(
    ("idea", "options"),
    [
        ("backward", {"device": "cpu"}),
        ("backward", {"batch_size": 3}),
        ("probes", {"batch_size": 7}),
    ],
)
def test_options_of_execution_are_no_part_of_it(idea, options):
    spec = {
        "items": 4,
        "source": {"type": "fashion_mnist"},
        "corruption": {"type": "diffusion", "noise": [0.5]},
        "backward": {"type": "diffusion", "steps": 2, "device": "cpu"},
        "probes": [{"type": "network_layers", "reference": 8}],
    }
    other = {
        **spec,
        idea: (
            [{**spec["probes"][0], **options}]
            if idea == "probes"
            else {**spec["backward"], **options}
        ),
    }
    plain, changed = ut.Experiment.from_dict(spec), ut.Experiment.from_dict(other)
    assert (plain.hash, plain.models()) == (changed.hash, changed.models())


def test_a_run_whose_files_have_changed_is_not_resumed(files):
    def experiment():
        return ut.Experiment.from_dict(
            {
                "items": 2,
                "source": {"type": "array", "path": "images.npy", "labels": "labels.npy"},
                "corruption": {"type": "diffusion", "noise": [0.5]},
                "backward": {"type": "diffusion", "steps": 2, "device": "cpu"},
                "probes": [{"type": "images"}],
            }
        )

    np.save("images.npy", np.zeros((2, 28, 28), np.uint8))
    np.save("labels.npy", np.array([0, 1]))
    ut.run(experiment(), "run", workers=1)
    np.save("labels.npy", np.array([1, 0]))
    with pytest.raises(ValueError, match="the weights or data of source have changed"):
        ut.run(experiment(), "run", workers=1)
