"""The probe `changes`: against the array functions, in parts of trajectories, on strings,
vectors, images and tokens.
"""

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from small import one_line_error
from test_changes import double_sum, grid_matrix, tree_matrix
from uturn.core.protocols import UTurns
from uturn.core.random import Streams, keys, uniforms
from uturn.engine import measuring
from uturn.exact.theory import MeanField
from uturn.measures import changes
from uturn.measures.covariances import Covariances, Grid, Tree
from uturn.measures.hierarchy import site_changes
from uturn.measures.scaling import correlation_length
from uturn.probes.changes import Changes, sites_of
from uturn.sources.tokens import PAD, Tokens

RHM = {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 4}


def described(**options):
    spec = {
        "items": 6,
        "trajectories": 5,
        "source": RHM,
        "corruption": {"type": "masking", "noise": [0.5]},
        "backward": {"type": "exact"},
        "probes": [{"type": "changes"}],
    }
    return ut.Experiment.from_dict({**spec, **options})


def changed_leaves(experiment):
    """Changes (items, draws, sites) of the U-turns of an experiment at its only noise level,
    made one by one.
    """
    source, corruption, backward, _ = experiment.parts
    (originals,) = source.blocks(np.arange(experiment.items), experiment.seed, experiment.items)
    noise = experiment.noise[0]
    streams = Streams(experiment.seed, originals.items, noise, range(experiment.trajectories))
    found = ut.u_turn(originals, corruption, backward, noise, streams, clones=experiment.clones)
    return originals.data_of(found.reconstructions) != originals.data[:, None]


@pytest.mark.parametrize("channel", ["gaussian", "masking", "uniform", "epsilon"])
def test_readings_are_those_of_the_arrays(channel):
    one = described(corruption={"type": channel, "noise": [0.4]})
    ds, changed = ut.run(one).load(), changed_leaves(one)
    table, chi = double_sum(changed, tree_matrix(16, 2))
    np.testing.assert_allclose(ds.change_covariance[0], table, atol=1e-6)
    np.testing.assert_allclose(ds.change[0], changed.mean((1, 2)), atol=1e-6)
    assert ds.distance.values.tolist() == [0, 2, 4, 8, 16]
    found, known = changes.susceptibility(ds), ut.susceptibility(changed)
    np.testing.assert_allclose([found.chi[0], found.low[0], found.high[0]], known, rtol=1e-5)
    assert known.value == pytest.approx(chi)
    curves, direct = changes.correlations(ds), ut.correlations(changed, "tree", branching=2)
    for name in ("correlation", "low", "high", "covariance"):
        np.testing.assert_allclose(curves[name][0], direct[name], atol=1e-5)


def test_intervals_of_labelled_changes_are_over_grammars():
    one = described(items=24, source={**RHM, "grammars": 4})
    changed = site_changes(one).isel(noise=0)
    found, known = ut.susceptibility(changed), changes.susceptibility(ut.run(one))
    np.testing.assert_allclose(
        found, [known[name].item() for name in ("chi", "low", "high")], rtol=1e-5
    )
    assert not np.allclose(found[1:], ut.susceptibility(changed.values)[1:], rtol=0.01)
    curves, run = ut.correlations(changed, "tree", branching=2), changes.correlations(ut.run(one))
    for name in ("correlation", "low", "high"):
        np.testing.assert_allclose(curves[name], run[name][0], rtol=1e-4, atol=1e-5)


def test_clones_are_averaged_over_clone_numbers():
    one = described(clones=3)
    ds, changed = ut.run(one).load(), changed_leaves(one).reshape(6, 5, 3, 16)
    tables = [double_sum(changed[:, :, k], tree_matrix(16, 2))[0] for k in range(3)]
    np.testing.assert_allclose(ds.change_covariance[0], np.mean(tables, axis=0), atol=1e-6)


def test_parts_of_the_trajectories_give_the_same_numbers(monkeypatch):
    """The trajectories are in memory a part at a time, and the covariances are the same up to
    rounding.
    """
    sizes, made = [], measuring.Streams

    def noted(seed, items, noise, trajectories):
        sizes.append(len(trajectories))
        return made(seed, items, noise, trajectories)

    for options in ({}, {"clones": 2}, {"corruption": {"type": "epsilon", "noise": [0.6]}}):
        whole = ut.run(described(**options)).load()
        with monkeypatch.context() as patched:
            patched.setattr(measuring, "Streams", noted)
            patched.setattr(measuring, "_NUMBERS_OF_PART", 2 * 16 * 8 * options.get("clones", 1))
            sizes.clear()
            parts = ut.run(described(**options)).load()
        assert sizes == [2, 2, 1]
        for name in whole.data_vars:
            np.testing.assert_allclose(parts[name], whole[name], atol=1e-6)


@pytest.mark.parametrize("source", [RHM, {"type": "gaussian_field", "size": 8}])
def test_the_chunk_changes_no_bit(source, monkeypatch):
    """Accumulators add up the same numbers in the same order, whatever else is in the batch."""
    monkeypatch.setattr(measuring, "_NUMBERS_OF_PART", 2 * 16 * 8)
    channel = {"type": "gaussian", "noise": [0.2]}
    whole, *others = (
        ut.run(described(items=7, chunk=chunk, source=source, corruption=channel)).load()
        for chunk in (7, 1, 3)
    )
    for other in others:
        xr.testing.assert_equal(whole.drop_attrs(), other.drop_attrs())
    x = uniforms(keys(0, range(7)), 50 * 64).reshape(7, 50, 64)
    for distance in (Tree(64, 2), Grid((64,)), Grid((8, 8))):
        alone = [Covariances(distance).add(x[k : k + 1]).covariance[0] for k in range(7)]
        np.testing.assert_array_equal(Covariances(distance).add(x).covariance, alone)


def test_chi_of_the_epsilon_process_is_that_of_the_mean_field():
    """Ratio of averages over 6 grammars within the 99.9 % interval; trajectories of the
    ε-process are posterior draws.
    """
    noise = [0.5, 0.763, 0.9]
    source = {
        "type": "rhm",
        "vocab_size": 16,
        "multiplicity": 4,
        "branching": 2,
        "depth": 5,
        "grammars": 12,
    }
    one = described(
        items=240, trajectories=16, source=source, corruption={"type": "epsilon", "noise": noise}
    )
    found = changes.susceptibility(ut.run(one), confidence=0.999)
    theory = MeanField(16, 4, 2).susceptibility(noise, 5)
    assert ((found.low < theory) & (theory < found.high)).all()
    assert (found.high - found.low < 0.4 * found.chi).all()


def test_vectors_have_the_distance_of_their_grid():
    field = described(
        source={"type": "gaussian_field", "size": 4},
        corruption={"type": "gaussian", "noise": [0.5]},
    )
    assert ut.run(field).distance.values.tolist() == np.unique(grid_matrix((4, 4), True)).tolist()
    mixture = described(
        source={"type": "gaussian_mixture", "dimension": 5},
        corruption={"type": "gaussian", "noise": [0.5]},
    )
    assert ut.run(mixture).distance.values.tolist() == [0, 1, 2, 3, 4]


# -- images ----------------------------------------------------------------------------------------


def of_images(count, *probes):
    """An experiment on a few images, with as many trajectories."""
    return described(
        items=count,
        trajectories=count,
        source={"type": "fashion_mnist"},
        corruption={"type": "diffusion", "noise": [0.5]},
        backward={"type": "diffusion", "steps": 4},
        probes=list(probes),
    )


@pytest.fixture(scope="module")
def garments():
    pytest.importorskip("diffusers")
    deep = {"type": "changes", "layer": "block3", "name": "deep"}
    one = of_images(3, {"type": "changes", "patch": 7}, deep, {"type": "images"})
    return one, ut.run(one).load()


def test_patches_of_images(garments):
    """The norm of the change of each patch, cut out one by one."""
    one, ds = garments
    (originals,) = one.parts.source.blocks(np.arange(3), 0, 3)
    change = ds.image.values[0].astype(float) - originals.data[:, None]
    sites = [change[..., 7 * i : 7 * i + 7, 7 * j : 7 * j + 7] for i in range(4) for j in range(4)]
    changed = np.stack([np.sqrt((part**2).sum((2, 3, 4))) for part in sites], axis=2)
    table, _ = double_sum(changed, grid_matrix((4, 4)))
    np.testing.assert_allclose(ds.change_covariance[0], table, rtol=1e-4, atol=1e-6)


class Wide:
    """Images that are wider than high."""

    kind = "images"

    def image_shape(self):
        return 1, 4, 6

    def files(self):
        return []


def test_a_pixel_changes_its_own_patch():
    sites = sites_of(Changes(patch=2), Wide())
    for row, column in np.ndindex(4, 6):
        after = np.zeros((1, 1, 1, 4, 6))
        after[..., row, column] = 1
        changed = sites.changed(np.zeros((1, 1, 4, 6)), after)
        assert np.flatnonzero(changed).tolist() == [3 * (row // 2) + column // 2]
    assert sites.distance == Grid((2, 3))


def test_positions_of_a_layer(garments):
    import torch

    from uturn.sources.fashion_mnist import load_classifier

    one, ds = garments
    (originals,) = one.parts.source.blocks(np.arange(3), 0, 3)
    network, kept = load_classifier(), {}
    dict(network.named_modules())["block3"].register_forward_hook(
        lambda module, given, out: kept.update(out=out.double())
    )

    def output(images):
        with torch.inference_mode():
            network(torch.from_numpy(np.ascontiguousarray(images)).float())
        return kept["out"].flatten(2).numpy()

    before, after = (
        output(originals.data),
        output(ds.image.values[0].reshape(9, 1, 28, 28)).reshape(3, 3, *kept["out"].shape[1:2], -1),
    )
    changed = np.sqrt(((after - before[:, None]) ** 2).sum(2))
    side = int(np.sqrt(changed.shape[2]))
    table, _ = double_sum(changed, grid_matrix((side, side)))
    np.testing.assert_allclose(ds.deep_change_covariance[0], table, rtol=1e-3, atol=1e-6)
    assert changes.susceptibility(ds, name="deep").chi.item() > 1


def test_beside_the_layers_of_a_network(garments):
    """`network_layers` has a variable called distance, so the dim of the distances of sites is
    named after its probe.
    """
    one, alone = garments
    tables = [{"type": "network_layers", "reference": 20}, *one.to_dict()["probes"][:2]]
    both = ut.run(ut.Experiment.from_dict({**one.to_dict(), "probes": tables})).load()
    assert both.distance.dims == ("noise", "item", "trajectory", "network_layer")
    assert both.change_covariance.dims == ("noise", "item", "changes_distance")
    assert both.deep_change_covariance.dims == ("noise", "item", "deep_distance")
    np.testing.assert_array_equal(both.changes_distance, alone.distance)
    for read in (changes.susceptibility, changes.correlations):
        xr.testing.assert_equal(read(both), read(alone))
    length = correlation_length(alone.change_covariance)
    xr.testing.assert_equal(correlation_length(both.change_covariance), length)
    xr.testing.assert_equal(correlation_length(both), length)


# -- tokens ----------------------------------------------------------------------------------------


def test_missing_readings_are_named():
    ds = ut.run(described())
    gap = ds.where(ds.noise != ds.noise[0])
    with pytest.raises(ValueError, match="no missing readings"):
        correlation_length(gap.change_covariance)
    for function in (changes.susceptibility, changes.correlations):
        for bad, message in (
            (gap, "missing readings"),
            (ds.isel(noise=0), "dims noise, item"),
            (ds.isel(item=[]), "'item': 0"),
        ):
            with one_line_error(message):
                function(bad)


@pytest.mark.parametrize("clones", [1, 3])
def test_the_change_of_a_text_is_that_of_its_own_free_tokens(clones):
    """Texts of 3, 11 and 6 tokens, of which the first one, none and every second one are fixed,
    against a plain loop.
    """
    rng, trajectories = np.random.default_rng(0), 4
    ids = np.full((3, 11), PAD)
    free = np.zeros(ids.shape, bool)
    for row, (length, fixed) in enumerate(((3, [0]), (11, []), (6, [0, 2, 4]))):
        ids[row, :length], free[row, :length] = rng.integers(20, size=length), True
        free[row, fixed] = False
    after = np.where(
        free[:, None] & (rng.random((3, trajectories * clones, 11)) < 0.6), 99, ids[:, None]
    )
    turned = UTurns(Tokens(np.arange(3), ids, 100, free), None, after, clones=clones)
    expected = [
        np.mean([of[free[row]] != ids[row, free[row]] for of in after[row]]) for row in range(3)
    ]
    readings = Changes().bind(InMemory(ids)).read(turned, None)
    np.testing.assert_allclose(readings["change"], expected)
    # By default all tokens up to the end of a text.
    whole = UTurns(Tokens(np.arange(3), ids, 100), None, after, clones=clones)
    lengths = (ids != PAD).sum(1)
    np.testing.assert_allclose(
        Changes().bind(InMemory(ids)).read(whole, None)["change"], expected * free.sum(1) / lengths
    )


class InMemory(ut.Source):
    """Texts as a source for the probe."""

    def __init__(self, ids):
        self.ids = ids

    def image_shape(self):
        return None

    def blocks(self, items, seed, num_items):
        yield Tokens(items, self.ids[items], 100)

    def files(self):
        return []
