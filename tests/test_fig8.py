"""Fig. 8: its verdicts fail on forged data; its network is trained once, and training resumes."""

import numpy as np
import pytest
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.engine.run import run
from uturn.networks.files import load_network
from uturn.paper import Workshop, fig8

CLASS_SWAP, SWAP, HALF, WIDTH = range(4)


@pytest.fixture(scope="module")
def runs():
    """Data of a good network: each layer represents the latents of one tree level, the logits
    also a little of the next.
    """
    chosen = fig8.setup("smoke")
    source = chosen.source.model_dump()
    spec = {
        "corruption": {"type": "epsilon", "noise": list(chosen.noise)},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    layers = run(
        Experiment.from_dict({**spec, "items": 300, "trajectories": 2, "source": source})
    ).load()
    many = run(
        Experiment.from_dict({**spec, "items": 24 * 64, "source": {**source, "grammars": 24}})
    ).load()
    L = chosen.depth
    # 1 / v for the class, more for the leaves, whose symbols differ in number.
    chance = layers.belief.sel(noise=1).mean("item").reset_coords(drop=True)
    scaled = (layers.unchanged - chance) / (1 - chance)
    random = np.random.default_rng(0)
    scaled[..., L] = 0.85 * scaled[..., L] + 0.15 * scaled[..., L - 1]
    scaled = scaled + 0.02 * random.normal(size=scaled.shape)
    scaled = scaled.rename(tree_level="network_layer").assign_coords(
        network_layer=[f"blocks.{k}" for k in range(L)] + ["logits"]
    )
    layers["similarity"], layers["distance"] = scaled, 1 - scaled
    layers["same_class"] = layers.unchanged.isel(tree_level=L, drop=True)
    network = xr.Dataset(
        {"accuracy": 0.995, "random_pairs": (("pair", "network_layer"), np.zeros((2, L + 1)))},
        coords={"pair": ["same class", "independent"], "network_layer": scaled.network_layer},
        attrs={"test_strings": 10_000, "training_steps": 100},
    )
    return {"layers": layers, "grammars": many, "network": network}


def failed(runs):
    return {k for k, verdict in enumerate(fig8.analyse(runs)[1]) if not verdict.passed}


def moved(variable, shift):
    """The curves displaced along the noise axis."""
    at = np.clip(variable.noise.values - shift, 0, 1)
    return (variable.dims, variable.interp(noise=at).values)


def test_a_good_network_passes(runs):
    assert failed(runs) == set()
    data, verdicts = fig8.analyse(runs)
    assert len(verdicts) == 4
    assert 0.8 < data.inversion[1] < data.inversion[0] < data.inversion[2] < 0.9
    figure = fig8.draw(data)
    assert len(figure.axes) == 3


def forge(runs, label, **variables):
    return {**runs, label: runs[label].assign(variables)}


def test_verdicts_can_fail(runs):
    layers = runs["layers"]
    # The layers in the wrong order: the first block sees the class.
    upside_down = (layers.similarity.dims, layers.similarity.values[..., ::-1])
    assert {CLASS_SWAP, SWAP, WIDTH} <= failed(forge(runs, "layers", similarity=upside_down))
    # Logits with no more information than the predicted class: the same swap.
    similarity = layers.similarity.copy(deep=True)
    similarity[..., -1] = (layers.same_class - 1 / 16) / (1 - 1 / 16)
    assert failed(forge(runs, "layers", similarity=similarity)) == {SWAP}
    # Logits that lose the class too early, or keep it too long.
    for shift, expected in [(-0.1, {SWAP, HALF}), (0.1, {SWAP, HALF})]:
        similarity = layers.similarity.copy(deep=True)
        similarity[..., -1] = moved(layers.similarity[..., -1], shift)[1]
        assert expected <= failed(forge(runs, "layers", similarity=similarity))
    # All layers the same: no inversion, none is smoother than another.
    alike = layers.similarity.isel(network_layer=[-1] * layers.sizes["network_layer"]).values
    assert {SWAP, WIDTH} <= failed(
        forge(runs, "layers", similarity=(layers.similarity.dims, alike))
    )
    # A network that does not depend on the strings.
    assert CLASS_SWAP in failed(forge(runs, "layers", same_class=moved(layers.same_class, 0.05)))


# Stops after more than one checkpoint.
SMALL = fig8.Setup(6, 3, 2, 3, 24, 1e-3, 3000, 1200, 12, (0.0, 0.5, 1.0))


@pytest.mark.slow
def test_the_network_is_trained_once_and_resumed(tmp_path, monkeypatch):
    from uturn.networks import files, training

    monkeypatch.setattr(fig8, "setup", lambda scale: SMALL)
    original = training.train
    runs = fig8.measure(Workshop("smoke", tmp_path / "whole"))
    assert runs["network"].accuracy >= 0.98
    assert runs["layers"].sizes["network_layer"] == 4
    independent = runs["network"].random_pairs.sel(pair="independent")
    same = runs["network"].random_pairs.sel(pair="same class")
    assert (np.abs(independent) < 0.05).all()
    # Strings of one class share little at the bottom and much at the top.
    assert same[-1] > same[0] + 0.1
    monkeypatch.setattr(training, "train", None)  # not called again
    again = fig8.measure(Workshop("smoke", tmp_path / "whole"))
    xr.testing.assert_identical(again["network"].load(), runs["network"].load())

    def until_killed(model, loss, steps, **options):
        def killed(model, step):
            if step == 450:
                raise KeyboardInterrupt
            return loss(model, step)

        return original(model, killed, steps, **options)

    monkeypatch.setattr(training, "train", until_killed)
    with pytest.raises(KeyboardInterrupt):
        fig8.trained_classifier(Workshop("smoke", tmp_path / "pieces"))
    monkeypatch.setattr(training, "train", original)
    path = fig8.trained_classifier(Workshop("smoke", tmp_path / "pieces"))
    pieces, whole = load_network(path), load_network(tmp_path / "whole" / path.name)
    assert files.fingerprint(pieces) == files.fingerprint(whole)
    assert pieces.facts == whole.facts
    assert whole.facts["steps"] > 450


def test_parts_of_the_data_are_different_strings(monkeypatch):
    monkeypatch.setattr(fig8, "setup", lambda scale: SMALL)
    parts = [fig8.strings(SMALL.source, part, 500)[0] for part in range(4)]
    assert len({part.tobytes() for part in parts}) == 4
    leaves, classes = fig8.strings(SMALL.source, 0, 500)
    rhm = SMALL.source.grammar(0, fig8.SEED)
    parsed = rhm.parse(leaves.astype(np.int64))
    assert parsed.valid[3].all()
    np.testing.assert_array_equal(parsed.latents[3][:, 0], classes)
    shorter = fig8.strings(SMALL.source, 0, 100)[0]
    np.testing.assert_array_equal(shorter, leaves[:100])
