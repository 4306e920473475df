"""The figure `exam`: its estimators against enumeration, and that each of its verdicts can fail."""

import json
from itertools import product

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from uturn.core.protocols import Noisy
from uturn.core.random import keys
from uturn.corruption.denoising import ExactDenoiser
from uturn.corruption.unmasking import Decoder, law_of
from uturn.exact.rhm import zipf
from uturn.paper import Workshop
from uturn.paper.identity import identity_of
from uturn.tools.audit import exam, exam_runs, exam_verdicts
from uturn.tools.audit.decoder_laws import _confident, divergence, log_ratios
from uturn.tools.audit.exam_runs import DENOISERS, EXACT, OTHERS, AllPossible, decoders, in_steps

V, D = 3, 4
DENSE = ut.RandomHierarchyModel(
    vocab_size=V, multiplicity=V, branching=2, depth=2, seed=0, rule_probabilities=zipf(V, 1.0)
)
SPARSE = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
MASKED, PARTLY = np.full(D, -1), np.array([-1, 1, -1, -1])
FOLLOWS = [
    Decoder("blocks", block=1, temperature=0.7),
    Decoder("blocks", block=1, top_k=2),
    Decoder("entropy", top_p=0.8),
    Decoder("probability", steps=2),
    Decoder("entropy", steps=2),
    Decoder("confidence", steps=1),
    Decoder(steps=1),
]
BOUNDS = [
    Decoder(steps=2),
    Decoder("blocks", block=2, temperature=0.7),
    Decoder("confidence"),
    Decoder("confidence", steps=2),
]


def dense():
    return ExactDenoiser(DENSE, AllPossible())


def copies(values, count):
    return Noisy(np.tile(values, (count, 1)), np.full(count, (values < 0).mean()), V)


# -- the estimators --------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [MASKED, PARTLY], ids=["all", "partly"])
@pytest.mark.parametrize("decoder", FOLLOWS, ids=lambda decoder: decoder.description)
def test_where_the_order_follows_from_the_string_each_log_ratio_is_that_of_the_laws(
    decoder, values
):
    assert not exam_verdicts.is_bound(decoder)
    strings, ratios = log_ratios(DENSE, dense(), copies(values, 300), keys(0, range(300)), decoder)
    law, posterior = law_of(dense(), values, decoder), law_of(dense(), values, Decoder())
    expected = [np.log(law[string] / posterior[string]) for string in map(tuple, strings.tolist())]
    np.testing.assert_allclose(ratios, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("decoder", EXACT.values(), ids=EXACT)
def test_log_ratios_of_exact_orders_are_0(decoder):
    _, ratios = log_ratios(DENSE, dense(), copies(PARTLY, 300), keys(0, range(300)), decoder)
    assert np.abs(ratios).max() < 1e-5


@pytest.mark.parametrize("decoder", BOUNDS, ids=lambda decoder: decoder.description)
def test_other_means_are_upper_bounds(decoder):
    """5 standard errors; the bounds are at most 2.5 times the divergence here."""
    assert exam_verdicts.is_bound(decoder)
    _, ratios = log_ratios(DENSE, dense(), copies(MASKED, 4000), keys(0, range(4000)), decoder)
    exact = divergence(DENSE, MASKED, law_of(dense(), MASKED, decoder))
    assert exact - 5 * ratios.std() / 4000**0.5 < ratios.mean() < 2.5 * exact


@pytest.mark.parametrize("ties", [False, True])
def test_a_step_by_confidence_is_its_definition(ties):
    """All joint draws of the masked positions, in a plain loop."""
    rng = np.random.default_rng(0)
    beliefs = rng.dirichlet(np.ones(V), (6, D))
    if ties:
        beliefs = np.round(3 * beliefs + 0.2) / 10 + 0.1
        beliefs /= beliefs.sum(-1, keepdims=True)
    weights = beliefs**1.5 / (beliefs**1.5).sum(-1, keepdims=True)
    masked = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1]] * 2, bool)
    count = np.array([2, 1, 1, 1, 3, 2])
    x = rng.integers(0, V, (6, D))
    expected = []
    for w, p, own, hidden, kept in zip(
        weights, beliefs, x, map(np.flatnonzero, masked), count, strict=True
    ):
        total = 0.0
        for draws in product(range(V), repeat=len(hidden)):
            first = sorted(
                range(len(hidden)),
                key=lambda k, p=p, hidden=hidden, draws=draws: (-p[hidden[k], draws[k]], k),
            )[:kept]
            if all(draws[k] == own[hidden[k]] for k in first):
                total += np.prod([w[i, a] for i, a in zip(hidden, draws, strict=True)])
        expected.append(np.log(total))
    np.testing.assert_allclose(_confident(weights, beliefs, x, masked, count), expected, rtol=1e-9)


def test_a_string_that_the_grammar_cannot_produce_has_an_infinite_log_ratio():
    denoiser = ExactDenoiser(SPARSE, ut.Masking())
    noisy = Noisy(np.full((200, D), -1), np.ones(200), 4)
    for decoder in (Decoder(steps=1), Decoder("confidence", steps=2)):
        strings, ratios = log_ratios(SPARSE, denoiser, noisy, keys(0, range(200)), decoder)
        np.testing.assert_array_equal(np.isinf(ratios), ~SPARSE.parse(strings).valid[2][:, 0])
        assert 0 < np.isinf(ratios).mean() < 1
        assert (
            divergence(SPARSE, np.full(D, -1), law_of(denoiser, np.full(D, -1), decoder)) == np.inf
        )


def test_log_ratios_do_not_depend_on_the_batch(monkeypatch):
    values = np.array([[-1, -1, -1, -1], [1, -1, 0, -1], [1, 0, 2, 1], [-1, 2, -1, -1]])
    noisy = Noisy(values, (values < 0).mean(1), V)
    for decoder in (*FOLLOWS, *BOUNDS):
        together = log_ratios(DENSE, dense(), noisy, keys(0, range(4)), decoder)
        monkeypatch.setattr("uturn.tools.audit.decoder_laws._AT_ONCE", 1)
        alone = log_ratios(DENSE, dense(), noisy, keys(0, range(4)), decoder)
        monkeypatch.undo()
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_divergence_is_its_definition():
    posterior = law_of(dense(), PARTLY, Decoder())
    other = law_of(dense(), PARTLY, Decoder(temperature=0.7))
    expected = sum(q * np.log(q / posterior[string]) for string, q in other.items())
    assert divergence(DENSE, PARTLY, other) == pytest.approx(expected, rel=1e-5)
    assert divergence(DENSE, PARTLY, posterior) < 1e-9


def test_beliefs_with_errors_stay_below_the_bound_of_rounding():
    """Beliefs that are off by K = 2 nodes (v m + s + v) roundings, in random directions, instead
    of those of float32.
    """
    table = {"vocab_size": V, "multiplicity": V, "branching": 2, "depth": 2}
    roundings = 2 * 7 * (V * V + 2 + V)

    class Rounded(ExactDenoiser):
        def posterior(self, noisy):
            belief = super().posterior(noisy)
            signs = np.where(
                np.random.default_rng(len(noisy.values)).random(belief.shape) < 0.5, -1, 1
            )
            return (belief * (1 + signs * roundings * 2.0**-24)).astype(np.float32)

    off = divergence(DENSE, MASKED, law_of(Rounded(DENSE, AllPossible()), MASKED, Decoder()))
    bound = exam.rounding_divergence(table, D)
    assert bound / 1000 < off < bound < 1e-8


# -- the measurement -------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    training = {
        "width": 4,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "every": 5,
        "held_out": 8,
        "strings": 16,
        "steps": 5,
    }
    drawn = {
        "depth": 2,
        "shares": [0.5, 1.0],
        "steps": [1],
        "items": {"exact": 6, "trained": 4},
        "training": training,
    }
    enumerated = {"masked": [2, 4], "steps": [1], "draws": 20, "training": training}
    monkeypatch.setitem(exam_runs.SETTINGS, "smoke", {"enumerated": enumerated, "drawn": drawn})
    small = {**exam_runs.GRAMMARS["enumerated"], "depth": 2}
    monkeypatch.setitem(exam_runs.GRAMMARS, "enumerated", small)


def test_what_is_measured_is_kept(tiny, tmp_path, monkeypatch):
    workshop = Workshop("smoke", tmp_path, workers=1)
    runs = exam.measure(workshop)
    assert set(runs) == {
        f"{grammar}-{kind}" for grammar in exam_runs.GRAMMARS for kind in DENOISERS
    }
    exact = runs["enumerated-exact"]
    assert exact.divergence.sel(decoder=list(EXACT)).max() < 1e-8
    assert (exact.calls.sel(decoder="random order").values == [2, 4]).all()
    assert (exact.calls.sel(decoder=in_steps("random order", 1)) == 1).all()
    assert runs["dense-trained"].sizes["item"] == 4
    assert np.isfinite(runs["dense-exact"].log_ratio).all()
    monkeypatch.setattr(Workshop, "_compute", lambda *args: pytest.fail("computed again"))
    again = exam.measure(workshop)
    assert all(again[name].identical(run) for name, run in runs.items())


# -- verdicts --------------------------------------------------------------------------------------

STEPS = [1, 2, 4, 8, 16, 32]
SMALL_STEPS = [1, 2, 4]
ALL, SMALL = list(decoders(STEPS)), list(decoders(SMALL_STEPS))
BY_ENUMERATION = (
    "exact enumerated",
    "others enumerated",
    "steps enumerated",
    "draws and enumeration",
)
NAMES = (
    *BY_ENUMERATION,
    *("exact drawn", "others drawn", "steps drawn", "exact calibrated", "others calibrated"),
    *("impossible", "network", "errors", "sharpened"),
)


def error_of(label):
    """A divergence that falls with the number of steps to 0, except for wrong decoders with one
    token a step.
    """
    if label in EXACT:
        return 1e-12
    return 2.0 if label in OTHERS else 40.0 / int(label.rpartition(", ")[2].split()[0])


def forged_small(change=None, estimate=1.0, error=0.01):
    """`change`: {(denoiser, decoder): divergence}; `estimate`: of draws, over the divergence."""
    runs = {}
    for kind in DENOISERS:
        kl = np.array(
            [
                (change or {}).get((kind, label), error_of(label) + 0.3 * (kind == "trained"))
                for label in SMALL
            ]
        )
        kl = np.repeat(kl[:, None], 2, axis=1)
        dims = ("decoder", "observation")
        values = {
            "divergence": kl,
            "estimate": estimate * kl,
            "error": error * kl,
            "calls": np.ones(kl.shape),
        }
        settings = {"steps": SMALL_STEPS, "grammar": {**exam_runs.GRAMMARS["enumerated"]}}
        data = {name: (dims, array) for name, array in values.items()}
        runs[kind] = xr.Dataset(data, {"decoder": SMALL}, {"plan": json.dumps(settings)})
    return runs


def forged(kl=None, small=None, p=None, broken=None, sharper=-0.2):
    """The data of the figure as theory has it; `kl`, `p`, `broken`: {(denoiser, decoder):
    value}, `sharper`: `more_broken`.
    """

    def table(value, changes, half):
        rows = [
            [(changes or {}).get((kind, label), value(kind, label)) for label in ALL]
            for kind in DENOISERS
        ]
        rows = np.array(rows)[..., None]
        return np.concatenate([rows, rows - half, rows + half], axis=-1)

    def test(kind, label):
        return 0.3 if label in EXACT else 1e-5

    def share(kind, label):
        many = (
            0.0
            if label in [*EXACT, *OTHERS]
            else 0.9 - int(label.rpartition(", ")[2].split()[0]) / 50
        )
        return many if kind == "exact" else 0.9

    dims = ("denoiser", "decoder")
    values = {
        "kl": table(lambda kind, label: error_of(label) + 10 * (kind == "trained"), kl, 1e-6),
        "broken": table(share, broken, 1e-3),
        "more_broken": table(lambda kind, label: sharper, None, 0.05),
        "gap": table(lambda kind, label: 0.0 if label in EXACT else -0.1, None, 0.02),
    }
    data = xr.Dataset(
        {name: ((*dims, "estimate"), array) for name, array in values.items()},
        {
            "denoiser": list(DENOISERS),
            "decoder": ALL,
            "estimate": ["value", "low", "high"],
            "small_decoder": SMALL,
        },
    )
    data["p"] = (*dims, "test"), np.repeat(table(test, p, 0)[..., :1], 14, axis=-1)
    data["calls"] = (
        "decoder",
        [float(label.rpartition(", ")[2].split()[0]) if "step" in label else 48.0 for label in ALL],
    )
    runs = small or forged_small()
    data["small_kl"] = (
        ("denoiser", "small_decoder"),
        np.stack([runs[kind].divergence.mean("observation") for kind in DENOISERS]),
    )
    data["small_calls"] = (
        "small_decoder",
        [float(label.split()[-2]) if "step" in label else 6.0 for label in SMALL],
    )
    data.attrs.update(small_leaves=8, large_leaves=64, small_rounding=2e-8, large_rounding=3e-4)
    return data, runs


def failed(**changes):
    found = exam_verdicts.verdicts(*forged(**changes))
    assert len(found) == len(NAMES)
    return {name for name, verdict in zip(NAMES, found, strict=True) if not verdict.passed}


def small_with(label, value, kind="exact"):
    return {"small": forged_small({(kind, label): value})}


def test_theory_passes_and_is_drawn():
    assert failed() == set()
    figure = exam.draw(forged()[0])
    assert len(figure.axes) == 6


MOST_ENTROPY = in_steps("lowest entropy", 32)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        (small_with("left to right", 1e-6), {"exact enumerated"}),
        (small_with("temperature 0.7", 1e-10), {"others enumerated"}),
        (small_with(in_steps("random order", 4), 30.0), {"steps enumerated"}),
        ({"small": forged_small(estimate=1.06)}, {"draws and enumeration"}),
        ({"kl": {("exact", "largest probability"): 1e-3}}, {"exact drawn"}),
        ({"kl": {("exact", "top-p 0.9"): 0.0}}, {"others drawn"}),
        ({"kl": {("exact", MOST_ENTROPY): 3.0}}, {"steps drawn"}),
        ({"p": {("exact", "lowest entropy"): 1e-6}}, {"exact calibrated"}),
        ({"p": {("exact", "top-p 0.9"): 1e-4}}, {"others calibrated"}),
        ({"broken": {("exact", "temperature 1.3"): 0.01}}, {"impossible"}),
        ({"kl": {("trained", "random in blocks of 4"): 0.0}}, {"network"}),
        ({"kl": {("trained", "random order"): 0.5}}, {"errors"}),
        ({"sharper": 0.0}, {"sharpened"}),
    ],
)
def test_verdicts_can_fail(changes, failing):
    assert failed(**changes) == failing


def test_the_gap_is_that_of_calibrate():
    """Readings of two grammars: the smallest p-value of each decoder is found, with its gap."""
    rng = np.random.default_rng(0)

    def run(shift):
        size = (2, 80, 2, 3)
        dims = ("decoder", "item", "clone", "tree_level")
        with_clones = np.repeat(rng.random((2, 80, 1, 3)), 2, axis=2)
        with_clones[1, ..., 2] += shift
        return xr.Dataset(
            {"with_original": (dims, rng.random(size)), "with_clones": (dims, with_clones)}
        )

    gap, p = exam._gaps(run(0.0), run(0.6))
    assert p.shape == (2, 6)
    assert p[0].min() > 1e-3 > p[1].min() == p[1, 5]
    assert gap[1, 1] < gap[1, 0] < gap[1, 2] < 0
    assert gap[1, 0] == pytest.approx(-0.6, abs=0.15)


def test_intervals_over_items_count_infinite_ratios():
    ratios = xr.DataArray(
        np.array([[[1.0, 3.0], [2.0, 4.0]], [[1.0, np.inf], [1.0, 1.0]]]),
        dims=("decoder", "item", "clone"),
    )
    found = exam._over_items(ratios)
    np.testing.assert_allclose(found[0], [2.5, 2.5 - 12.7062 * 0.5, 2.5 + 12.7062 * 0.5], rtol=1e-4)
    assert found[1, 0] == np.inf


def test_what_is_kept_depends_on_the_constants_of_the_exam(monkeypatch):
    arguments = {"grammar": "sparse", "plan": {}, "workshop": Workshop("smoke", "out")}
    before = identity_of(exam_runs.examined, arguments)
    monkeypatch.setattr(exam_runs, "CLONES", 3)
    assert identity_of(exam_runs.examined, arguments) != before
