"""The composition U = Backward after Corruption, and clones: several reconstructions of one
noisy datum.
"""

import numpy as np
import pytest

import uturn as ut
from uturn.backward import DiffusionModel, ExactPosterior, StringDenoiser
from uturn.core.random import Streams
from uturn.corruption import Diffusion
from uturn.sources import FashionMNISTSource, RHMSource, Strings

RHM = RHMSource(vocab_size=6, multiplicity=3, branching=2, depth=3)
LEVELS = {
    "gaussian": [0.3, 1.0],
    "masking": [0.4, 0.8],
    "uniform": [0.3, 0.6],
    "epsilon": [0.3, 0.6],
    "diffusion": [0.25, 1.0],
}


def spec(source, channel, backward, probes, **sizes):
    return {
        **{"items": 5, "trajectories": 2, "chunk": 3, "seed": 4, **sizes},
        "source": source,
        "corruption": {"type": channel, "noise": [0.0, *LEVELS[channel]]},
        "backward": backward,
        "probes": probes,
    }


STRINGS = {
    "type": "rhm",
    "vocab_size": 6,
    "multiplicity": 3,
    "branching": 2,
    "depth": 3,
    "grammars": 2,
}
TREE = [{"type": "tree_levels"}, {"type": "messages"}]
LAYERS = {"type": "network_layers", "reference": 20}
SPECS = {
    **{
        f"exact {channel}": spec(STRINGS, channel, {"type": "exact"}, TREE)
        for channel in LEVELS
        if channel != "diffusion"
    },
    "denoiser": spec(STRINGS, "masking", {"type": "denoiser", "steps": 4}, TREE),
    "score": spec(STRINGS, "diffusion", {"type": "score", "steps": 8}, TREE),
    "vectors": spec(
        {"type": "gaussian_mixture", "dimension": 16},
        "gaussian",
        {"type": "exact"},
        [{"type": "scales"}],
    ),
    "images": spec(
        {"type": "fashion_mnist"},
        "diffusion",
        {"type": "diffusion", "steps": 4},
        [LAYERS, {"type": "images", "first": 2}],
    ),
}
TWINS = {
    **{name: {"clone_unchanged"} for name in SPECS},
    "vectors": {"clone_scale_similarity", "clone_same_label"},
    "images": {"clone_similarity", "clone_distance", "clone_same_class"},
}


@pytest.mark.usefixtures("unchecked_models")
@pytest.mark.parametrize("name", SPECS)
def test_clone_0_is_the_run_without_clones(name):
    one = ut.run(ut.Experiment.from_dict(SPECS[name]))
    many = ut.run(ut.Experiment.from_dict({**SPECS[name], "clones": 3}))
    assert set(many.data_vars) - set(one.data_vars) == TWINS[name]
    for variable in one.data_vars:
        found = many[variable]
        if "trajectory" in one[variable].dims:
            dims = list(one[variable].dims)
            dims.insert(dims.index("trajectory") + 1, "clone")
            assert list(found.dims) == dims
            assert found.sizes["clone"] == 3
            found = found.isel(clone=0)
        np.testing.assert_allclose(
            found, one[variable], rtol=0, atol=2e-4 if name == "images" else 0
        )
    for twin in TWINS[name]:
        assert many[twin].dims == many[twin.removeprefix("clone_")].dims
    assert not np.array_equal(
        many[max(TWINS[name])].isel(noise=-1), many[max(TWINS[name])].isel(noise=0)
    )


# -- the composition -------------------------------------------------------------------------------


def test_u_turn_corrupts_and_reconstructs():
    rhm = RHM.grammar(0, 0)
    originals = Strings(np.arange(7), rhm, rhm.sample(7, seed=1))
    found = ut.u_turn(originals, ut.Masking(), ExactPosterior(), 0.5, 3, clones=4)
    assert found.originals is originals
    assert found.reconstructions[0].shape == (7, 4, 8)
    # By hand: the evidence of the noisy data, and posterior draws given it.
    streams = Streams(3, originals.items, 0.5)
    noisy = ut.Masking().corrupt(
        originals.data, 0.5, vocab_size=6, seed=streams.keys(ut.random.Purpose.CORRUPTION)
    )
    assert np.array_equal(found.noisy.values, noisy.values)
    evidence = ut.Masking().log_evidence(found.noisy)
    drawn = ut.sample_posterior(
        rhm, evidence.astype(np.float32), streams.keys(ut.random.Purpose.RECONSTRUCTION), 4
    )
    assert all(
        np.array_equal(found.reconstructions[level], drawn[level].swapaxes(0, 1)) for level in drawn
    )


def test_beliefs_are_inferred_when_they_are_first_asked_for(monkeypatch):
    calls, right = [], ut.inference.infer

    def counted(rhm, evidence, outputs):
        calls.append(outputs)
        return right(rhm, evidence, outputs=outputs)

    monkeypatch.setattr(ut.inference, "infer", counted)
    rhm = RHM.grammar(0, 0)
    found = ut.u_turn(
        Strings(np.arange(3), rhm, rhm.sample(3, seed=1)), ut.Masking(), ExactPosterior(), 0.5
    )
    assert calls == []
    marginals = found.noisy.beliefs("marginals")
    assert found.noisy.beliefs("marginals") is marginals
    assert calls == [("marginals",)]
    np.testing.assert_allclose(marginals[0].sum(-1), 1, atol=1e-5)


def test_clones_share_one_upward_pass_and_one_encoder_pass(monkeypatch):
    from uturn.exact.inference import engine

    batches, right = [], engine.draw

    def counted(plan, evidence, *arguments):
        batches.append(len(evidence))
        return right(plan, evidence, *arguments)

    monkeypatch.setattr(engine, "draw", counted)
    for channel in (ut.Masking(), ut.EpsilonBelief()):
        rhm = RHM.grammar(0, 0)
        originals = Strings(np.arange(3), rhm, rhm.sample(3, seed=1))
        streams = Streams(0, originals.items, 0.5, range(2))
        batches.clear()
        ut.u_turn(originals, channel, ExactPosterior(), 0.5, streams, clones=5)
        assert sum(batches) == 3 * (2 if channel.is_random else 1)


def test_the_queue_gives_the_numbers_of_the_simple_path():
    backward, source = DiffusionModel(steps=4, batch_size=5), FashionMNISTSource()
    forward = backward.forward_process(source)
    blocks = [next(source.blocks(np.arange(k, k + 3), 0, 9)) for k in (0, 3, 6)]
    levels, chosen = (0.0, 0.5, 1.0), range(1, 3)
    batches = {}
    for originals, noise in zip(blocks, levels, strict=True):
        streams = Streams(2, originals.items, noise, chosen)
        batches[noise] = (originals, forward.observe(originals, noise, streams), streams)
    queued = dict(
        backward.reconstruct_stream(
            ((noise, *batch[1:]) for noise, batch in batches.items()), clones=2
        )
    )
    for noise, (originals, _, streams) in batches.items():
        alone = ut.u_turn(originals, forward, backward, noise, streams, clones=2).reconstructions
        assert alone.shape == (3, 4, 1, 28, 28)
        np.testing.assert_allclose(queued[noise], alone, rtol=0, atol=1e-4)
    assert np.array_equal(queued[0.0][:, 0], blocks[0].images)


def test_the_forward_process_is_a_corruption_like_the_others():
    backward, source = DiffusionModel(steps=10), FashionMNISTSource()
    forward = backward.forward_process(source)
    originals = next(source.blocks(np.arange(50), 0, 50))
    noisy = forward.observe(originals, 0.6, Streams(0, originals.items, 0.6))
    assert np.array_equal(noisy.labels, originals.labels)
    with pytest.raises(ValueError, match=r"range of images = \[-3.0"):
        forward.corrupt(3 * originals.images, 0.6, ut.random.keys(0, range(50)))
    with pytest.raises(ValueError, match=r"^images = 'NaN or infinity': expected finite numbers"):
        forward.clean(np.float32(np.nan) * originals.images)


# -- clones ----------------------------------------------------------------------------------------


def test_an_unparsed_node_equals_nothing():
    """One step of the reverse process draws ungrammatical strings, whose latents are -1."""
    backward, rhm = StringDenoiser(steps=1), RHM.grammar(0, 0)
    originals = Strings(np.arange(20), rhm, rhm.sample(20, seed=1))
    found = ut.u_turn(originals, ut.Masking(), backward, 0.95, clones=6)
    lost = (found.reconstructions[3] == -1).all(axis=-1)
    assert lost.any()
    read = ut.probes.TreeLevels().read(found, RHM)["clone_unchanged"]
    assert (read[..., 3][lost] == 0).all()


def test_streams_of_clones_differ_and_stay():
    streams = Streams(0, np.arange(3), 0.5, range(2))
    keys = streams.keys(3, clones=4)
    assert len(set(keys.tolist())) == 24
    assert np.array_equal(keys.reshape(6, 4)[:, 0], streams.keys(3))
    assert np.array_equal(keys.reshape(6, 4)[:, :2].reshape(-1), streams.keys(3, clones=2))
    later = Streams(0, np.arange(3), 0.5, range(1, 2))
    assert np.array_equal(later.keys(3, clones=2).reshape(3, 2), keys.reshape(3, 2, 4)[:, 1, :2])


def test_corruption_and_backward_belong_together():
    rhm = RHM.grammar(0, 0)
    originals = Strings(np.arange(3), rhm, rhm.sample(3, seed=1))
    for corruption, backward in ((Diffusion(), ExactPosterior()), (ut.Masking(), DiffusionModel())):
        with pytest.raises(ValueError, match="expected one that undoes"):
            ut.u_turn(originals, corruption, backward, 0.5)


class Anything(ut.protocols.Corruption):
    """A corruption that names no process."""

    unit = "share"
    max_noise = 1.0

    def corrupt(self, images, noise, keys):
        raise AssertionError("never called")


def test_a_backward_with_its_own_forward_process_takes_no_other():
    with pytest.raises(ValueError, match=r"expected Diffusion\(\), type 'diffusion' in a spec"):
        ut.Experiment.from_dict(
            {**SPECS["images"], "corruption": {"type": f"{__name__}:Anything", "noise": [0.5]}}
        )
    originals = next(FashionMNISTSource().blocks(np.arange(2), 0, 2))
    backward = DiffusionModel(steps=4)
    with pytest.raises(
        ValueError, match=r"Diffusion\(\) has no schedule; .* backward.forward_process\(source\)"
    ):
        ut.u_turn(originals, Diffusion(), backward, 0.5)
    forward = backward.forward_process(FashionMNISTSource())
    for noise, message in (
        (0.1, "expected levels on different steps of 4"),
        (1.5, "noise"),
        (np.nan, "noise"),
    ):
        with pytest.raises(ValueError, match=message):
            forward.observe(originals, noise, Streams(0, originals.items, noise))


# --- the stream -----------------------------------------------------------------------------------


def string_blocks(count, items=4, noise=0.5):
    rhm = RHM.grammar(0, 0)
    for k in range(count):
        numbers = np.arange(items * k, items * (k + 1))
        yield k, Strings(numbers, rhm, rhm.sample(items, seed=k)), noise, k


class Whole(ExactPosterior):
    """Reads all it is given before it answers, the last block first."""

    def reconstruct_stream(self, blocks, clones=1):
        given = list(blocks)
        sizes.append(len(given))
        for key, noisy, streams in reversed(given):
            yield key, self.reconstruct(noisy, streams, clones)


sizes = []


def test_a_stream_makes_the_u_turns_of_its_blocks_in_any_order():
    turned = dict(ut.u_turns(string_blocks(5), ut.Masking(), Whole(), clones=2))
    assert list(turned) == [4, 3, 2, 1, 0]
    for key, originals, noise, seed in string_blocks(5):
        alone = ut.u_turn(originals, ut.Masking(), ExactPosterior(), noise, seed, clones=2)
        assert np.array_equal(turned[key].reconstructions[0], alone.reconstructions[0])


def test_a_backward_that_reads_all_its_input_does_not_hold_the_whole_run():
    read, most = [0, 0], Whole.blocks_ahead

    def counted():
        for block in string_blocks(3 * most + 1):
            read[0] += 1
            yield block

    sizes.clear()
    for _ in ut.u_turns(counted(), ut.Masking(), Whole()):
        read[1] += 1
        assert read[0] - read[1] <= most
    assert read == [3 * most + 1] * 2
    assert sizes == [most, most, most, 1]


def test_a_lazy_backward_holds_one_block():
    read = []
    stream = ut.u_turns(
        (read.append(block) or block for block in string_blocks(100)),
        ut.Masking(),
        ExactPosterior(),
    )
    next(stream)
    assert len(read) == 1
