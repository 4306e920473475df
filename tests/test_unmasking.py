"""Which decoders of masked strings draw from the posterior: exactly by enumeration, and by their
draws.
"""

from itertools import combinations, product

import numpy as np
import pytest

import uturn as ut
from enumeration import drawn_as
from tiny_language import TableDenoiser
from uturn.core.protocols import Channel, Noisy
from uturn.core.random import keys
from uturn.corruption import unmasking
from uturn.corruption.denoising import ExactDenoiser, denoise
from uturn.corruption.sampling import SymbolLaw
from uturn.corruption.unmasking import Decoder, law_of, unmask

V, D = TableDenoiser.V, TableDenoiser.D
EXACT = [
    Decoder(),
    Decoder("blocks", block=2),
    Decoder("blocks", block=1),
    Decoder("entropy"),
    Decoder("probability"),
    Decoder(top_p=1.0),
]
OTHERS = [
    Decoder("confidence"),
    Decoder("confidence", steps=2),
    Decoder("confidence", temperature=0.5),
    Decoder(temperature=0.7),
    Decoder("entropy", temperature=1.5),
    Decoder(top_k=2),
    Decoder("blocks", block=2, top_p=0.7),
    Decoder(steps=1),
    Decoder(steps=2),
    Decoder("blocks", block=2, steps=3),
    Decoder("probability", steps=2),
]


@pytest.fixture(scope="module")
def table():
    return TableDenoiser()


MASKED = np.full(D, -1)
PARTLY = np.array([1, -1, -1, 0])


def divergence(table, values, decoder):
    """KL(decoder | posterior) in nats; infinite if it draws an impossible string."""
    posterior = dict(zip(map(tuple, table.strings.tolist()), table.given(values), strict=True))
    law = law_of(table, values, decoder)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    with np.errstate(divide="ignore"):
        return sum(
            q * (np.log(q) - np.log(posterior[string])) for string, q in law.items() if q > 0
        )


@pytest.mark.parametrize("values", [MASKED, PARTLY], ids=["all", "partly"])
@pytest.mark.parametrize("decoder", EXACT, ids=lambda decoder: decoder.description)
def test_orders_that_are_chosen_first_draw_from_the_posterior(table, decoder, values):
    assert decoder.is_exact
    assert abs(divergence(table, values, decoder)) < 1e-7  # beliefs are float32


@pytest.mark.parametrize("decoder", OTHERS, ids=lambda decoder: decoder.description)
def test_others_do_not(table, decoder):
    assert not decoder.is_exact
    assert divergence(table, MASKED, decoder) > 1e-3


@pytest.mark.parametrize("decoder", [*EXACT, *OTHERS][::2], ids=lambda decoder: decoder.description)
def test_draws_follow_the_law(table, decoder):
    """Draws of `unmask` against the enumeration, of which it shares no code but ranks and
    weights.
    """
    count = 20_000
    noisy = Noisy(np.tile(MASKED, (count, 1)), np.ones(count), V)
    strings = unmask(table, noisy, keys(0, range(count)), decoder)
    assert drawn_as(strings, law_of(table, MASKED, decoder)) > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_confidences_are_kept_from_left_to_right(count):
    """A step on beliefs of which many are equal, against all joint draws in a plain loop."""
    belief = np.array([[2, 1, 1], [1, 2, 1], [1, 1, 2]], np.float32) / 4

    decoder = Decoder("confidence", temperature=0.5)
    weights = decoder.law.weights(belief) / decoder.law.weights(belief).sum(-1, keepdims=True)
    expected = {}
    for drawn in product(range(V), repeat=3):
        kept = sorted(range(3), key=lambda k: (-belief[k, drawn[k]], k))[:count]
        state = tuple(drawn[k] if k in kept else -1 for k in range(3))
        expected[state] = expected.get(state, 0.0) + np.prod(
            [weights[k, drawn[k]] for k in range(3)]
        )
    start = unmasking.PartialStrings(np.full((1, 3), -1), np.ones(1))
    reached = unmasking._next(decoder.sampler, start, belief[None], count)
    strings = map(tuple, reached.values.tolist())
    assert dict(zip(strings, reached.probabilities, strict=True)) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_string_does_not_depend_on_its_batch(table):
    values = np.array([[-1, -1, -1, -1], [1, -1, 0, -1], [-1, 2, -1, -1]])
    in_time = (
        Decoder("analytic", 5, remask="conf", eta=1.0),
        Decoder("random", 4, remask="cap"),
        Decoder("first_hitting"),
    )
    for decoder in (*EXACT, *OTHERS, *in_time):
        all_of_them = unmask(table, Noisy(values, np.full(3, 0.9), V), keys(0, range(3)), decoder)
        for k in range(3):
            alone = unmask(table, Noisy(values[[k]], np.full(1, 0.9), V), keys(0, [k]), decoder)
            np.testing.assert_array_equal(alone[0], all_of_them[k])
        np.testing.assert_array_equal(np.where(values >= 0, all_of_them, values), values)


def test_the_denoiser_is_told_the_share_of_masked_tokens():
    """In the first step that of the channel, here the same; then the share of what is left."""
    heard = []

    class Listening(TableDenoiser):
        def posterior(self, noisy):
            heard.append(noisy)
            return super().posterior(noisy)

    values = np.array([[-1, -1, -1, -1], [1, -1, 0, -1], [-1, 2, -1, -1]])
    for decoder in (Decoder(), Decoder("blocks", block=2, steps=3)):
        unmask(Listening(), Noisy(values, (values < 0).mean(axis=1), V), keys(0, range(3)), decoder)
    assert len(heard) == D + 3
    for noisy in heard:
        np.testing.assert_allclose(noisy.noise, (noisy.values < 0).mean(axis=1))


@pytest.mark.parametrize(("causal", "first"), [(False, 0.9), (True, 0.5)])
def test_the_denoiser_is_told_the_noise_of_the_data_first(causal, first):
    """It has its tokens from the channel at noise .9, though only half are masked; a part of a
    text has no noise of its own.
    """
    told = []

    class Listening(TableDenoiser):
        def posterior(self, noisy):
            told.extend(noisy.noise.tolist())
            return super().posterior(noisy)

    decoder = Decoder("blocks", block=D, causal=causal)
    unmask(
        Listening(), Noisy(np.array([[1, -1, 0, -1]]), np.array([0.9]), V), keys(0, [0]), decoder
    )
    assert told == [first, 0.25]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_fewest_symbols_that_reach_p(p):
    """Against all sets of symbols: of those whose probabilities reach p the smallest, and of
    these the most probable.
    """
    sets = [list(some) for size in range(1, 6) for some in combinations(range(5), size)]
    for belief in np.random.default_rng(0).dirichlet(np.ones(5), 100):
        expected = min(
            (some for some in sets if belief[some].sum() >= p),
            key=lambda some: (len(some), -belief[some].sum()),
        )
        weights = SymbolLaw(top_p=p).weights(belief)
        assert np.flatnonzero(weights).tolist() == expected
        np.testing.assert_array_equal(weights[expected], belief[expected])


def test_the_reverse_process_of_masking_is_the_random_order():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    denoiser = ExactDenoiser(rhm, ut.Masking())
    noisy = Noisy(np.full((50, 4), -1), np.ones(50), 4)
    for steps in (2, 4):
        ours = unmask(denoiser, noisy, keys(1, range(50)), Decoder(steps=steps))
        np.testing.assert_array_equal(denoise(denoiser, noisy, steps, keys(1, range(50))), ours)


def test_an_exact_denoiser_with_one_token_a_step_gives_the_law_of_the_grammar():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    law = law_of(ExactDenoiser(rhm, ut.Masking()), np.full(4, -1), Decoder("entropy"))
    likely = {string: q for string, q in law.items() if q > 1e-9}
    assert len(likely) == 4 * 2**3
    exact = np.exp(rhm.log_likelihood(np.array(list(likely))))
    np.testing.assert_allclose(list(likely.values()), exact, rtol=1e-5)


# --- in experiments -------------------------------------------------------------------------------


def spec(corruption="masking", **decoder):
    return {
        "items": 600,
        "clones": 2,
        "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 3, "branching": 2, "depth": 3},
        "corruption": {"type": corruption, "noise": [0.6]},
        "backward": {"type": "denoiser", **decoder},
        "probes": [{"type": "parsed_levels"}],
    }


def test_a_decoder_in_a_spec_is_described_and_part_of_the_identity():
    plain, blocks, sharp = (
        ut.Experiment.from_dict(spec(**more))
        for more in ({}, {"order": "blocks"}, {"temperature": 0.5})
    )
    assert len({plain.hash, blocks.hash, sharp.hash}) == 3
    assert plain.parts.backward.describe() == ""
    assert blocks.parts.backward.describe() == "order blocks of 8, 64 steps"
    assert (
        sharp.parts.backward.describe()
        == "order random, 64 steps, temperature 0.5: not a draw from the posterior"
    )
    assert plain.identity()["backward"] == {"type": "denoiser"}
    assert blocks.identity()["backward"] == {"type": "denoiser", "order": "blocks"}


@pytest.mark.parametrize("order", ["random", "blocks", "entropy", "probability"])
def test_exact_orders_are_calibrated_and_low_temperature_is_not(order):
    """Two draws from the posterior agree with each other as often as with the original. Bounds:
    5 standard errors.
    """

    def excess(**decoder):
        ds = ut.run(ut.Experiment.from_dict(spec(order=order, **decoder)))
        name = next(name for name in ds.data_vars if f"clone_{name}" in ds)
        with_original, with_each_other = (
            ds[n].isel(tree_level=0).squeeze("noise") for n in (name, f"clone_{name}")
        )
        apart = with_each_other.mean(
            [d for d in with_each_other.dims if d != "item"]
        ) - with_original.mean([d for d in with_original.dims if d != "item"])
        return float(apart.mean() / (apart.std() / len(apart) ** 0.5))

    assert abs(excess()) < 5
    assert excess(temperature=0.1) > 5


def test_decoders_are_for_masked_strings():
    with pytest.raises(
        ValueError,
        match=(
            r"corruption = UniformReplacement.*expected Masking\(\), or a corruption with masks ="
            r" True, for .*temperature 0\.5"
        ),
    ):
        ut.run(ut.Experiment.from_dict(spec("uniform", temperature=0.5)))


class Hidden(Channel):
    """Hides symbols as `Masking` does, and says so; it inherits nothing from it."""

    kinds = ("strings",)
    unit = "hidden share"
    max_noise = 1.0
    masks = True
    is_reversible = True
    misread = -25.0

    def corrupt(self, leaves, noise, keys):
        noisy = ut.Masking().corrupt(leaves, noise, keys)
        return Noisy(noisy.values, np.full(len(leaves), float(noise)))

    def log_evidence(self, noisy, dtype=None):
        return ut.Masking().log_evidence(noisy, dtype)


@pytest.mark.parametrize(
    "decoder",
    [
        {"order": "entropy"},
        {"order": "blocks", "block": 2, "causal": True},
        {"order": "analytic", "steps": 4},
        {"order": "random", "steps": 4, "remask": "rescale", "eta": 0.5},
    ],
)
def test_decoders_undo_a_corruption_of_ones_own_that_masks(decoder):
    """It masks what `Masking` masks, so the same strings are drawn, also by samplers in time."""
    table = {**spec(**decoder), "items": 20, "probes": [{"type": "tree_nodes"}]}
    masked = ut.run(ut.Experiment.from_dict(table))
    table["corruption"] = {"type": f"{__name__}:Hidden", "noise": [0.6]}
    hidden = ut.run(ut.Experiment.from_dict(table))
    for name in masked.data_vars:
        np.testing.assert_array_equal(masked[name].values, hidden[name].values)
    assert any((masked[name].values != masked[name].values.flat[0]).any() for name in masked)
