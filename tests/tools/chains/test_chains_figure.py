"""The figure `chains`: its enumeration against definitions, and that each of its verdicts can
fail.
"""

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from enumeration import all_trees
from uturn.paper import Workshop
from uturn.paper.identity import identity_of
from uturn.tools.chains import exam, exam_runs, exam_verdicts
from uturn.tools.chains.exam_runs import BETAS, ENERGIES, LAWS, against_enumeration, specs

SIZES = {"vocab_size": 5, "multiplicity": 2, "branching": 2, "depth": 2}
MASKED = {"grammar": (4, 2, 2, 3), "corruption": "masking", "noise": 0.3, "chains": 2000, "seed": 1}

# -- enumeration -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    rhm = ut.RandomHierarchyModel(**SIZES, seed=3)
    return rhm, exam_runs.every_tree(rhm)


def test_every_tree_is_listed_once(small):
    rhm, trees = small
    nodes, log_p = all_trees(rhm)
    assert np.allclose(log_p, -np.log(len(trees[0])))
    rows = [
        {tuple(row) for row in np.concatenate([of[level] for level in range(3)], axis=1).tolist()}
        for of in (trees, nodes)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(trees[0])


@pytest.mark.parametrize("share", [0.4, None])
def test_the_matrix_is_its_definition(small, share):
    """P(x, x') = sum over masked sets of their probability, times 1/number of strings that agree
    outside of them.
    """
    leaves = small[1][0]
    n, d = leaves.shape
    expected = np.zeros((n, n))
    for number in range(2**d):
        masked = np.array([number >> k & 1 for k in range(d)], bool)
        if share is None and masked.sum() != 1:
            continue
        weight = 1 / d if share is None else share ** masked.sum() * (1 - share) ** (~masked).sum()
        agree = (leaves[:, None, ~masked] == leaves[None, :, ~masked]).all(axis=2)
        expected += weight * agree / agree.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(exam_runs.transition(leaves, share).toarray(), expected, atol=1e-12)


def test_overlaps_and_limits_are_those_of_powers_of_the_matrix(small):
    _, trees = small
    P = exam_runs.transition(trees[0], None)
    same = [(trees[level][:, None] == trees[level][None]).mean(axis=2) for level in sorted(trees)]
    read = [1, 2, 3, 4, 9]
    found = exam_runs.overlaps_of(trees, P, read)
    for k, row in zip(read, found, strict=True):
        joint = np.linalg.matrix_power(P.toarray(), k) / len(trees[0])
        np.testing.assert_allclose(row, [(joint * of).sum() for of in same], atol=1e-12)
    component = exam_runs.connected_components(P, directed=False)[1]
    assert 1 < component.max() + 1 < len(component)
    forever = np.linalg.matrix_power(P.toarray(), 2**20) / len(trees[0])
    np.testing.assert_allclose(
        exam_runs.limit_of(trees, component), [(forever * of).sum() for of in same], atol=1e-9
    )


# -- verdicts on small measurements ----------------------------------------------------------------


def run_of(label, items, read=(1, 16)):
    spec = specs("smoke")[label]
    return exam_runs.run_of(
        spec
        | {
            "items": items,
            "chunk": items,
            "corruption": spec["corruption"] | {"noise": list(read)},
        }
    )


def of_laws():
    tests = [ut.reversibility(run_of(f"law-{name}", 1200), repeats=1999) for name in LAWS]
    table = {
        name: (("chain", "turns"), [test[name].values for test in tests]) for name in ("z", "p")
    }
    return exam_verdicts._laws(xr.Dataset(table, {"chain": list(LAWS), "turns": [1, 16]}))


def of_matrix():
    chains = against_enumeration(**MASKED, backward="exact", read=[1, 4, 16, 64])
    argmax = against_enumeration(**MASKED, backward="argmax", read=[1]).isel(k=0, drop=True)
    data = chains[["overlap", "exact", "clones"]].assign(
        argmax_overlap=argmax.overlap, argmax_clones=argmax.clones
    )
    return exam_verdicts._matrix(data)


def of_energies():
    labels = [label for label in specs("smoke") if label.startswith("energy-")]
    return exam_verdicts._tilted(
        exam._energies({label: run_of(label, 2200, [32]) for label in labels})
    )


def of_minimal():
    chains = {"corruption": "masked_leaves", "noise": 1.0, "backward": "exact", "chains": 600}
    runs = {
        f"m2-{seed}": against_enumeration((6, 2, 2, 3), read=[1, 512], seed=seed, **chains)
        for seed in (0, 1)
    }
    runs["m3-0"] = against_enumeration((4, 2, 2, 3), read=[64, 256, 1024], seed=0, **chains)
    return exam_verdicts._minimal(xr.merge([exam._minimal(runs, name) for name in ("m2", "m3")]))


MEASURED = {"laws": of_laws, "matrix": of_matrix, "energies": of_energies, "minimal": of_minimal}


@pytest.mark.slow
@pytest.mark.parametrize("what", MEASURED)
def test_verdicts_of_a_small_measurement_pass(what):
    for verdict in MEASURED[what]():
        assert verdict.passed, verdict


def test_argmax_in_place_of_posterior_draws_fails(monkeypatch):
    monkeypatch.setitem(exam_runs.BACKWARDS, "exact", exam_runs.BACKWARDS["argmax"])
    assert not of_matrix()[0].passed


@pytest.mark.slow
def test_what_is_measured_is_analysed_and_kept(tmp_path, monkeypatch):
    few = {
        "chains": 10,
        "minimal": {"m2": (2, 2, 4, 20), "m3": (2, 1, 1024, 4)},
    }
    monkeypatch.setitem(exam_runs.SETTINGS, "smoke", few)
    workshop = Workshop("smoke", tmp_path, workers=1)
    runs = exam.measure(workshop)
    _, verdicts = exam.analyse(runs)
    assert len(verdicts) == len(NAMES)
    monkeypatch.setattr(Workshop, "_compute", lambda *args: pytest.fail("computed again"))
    kept = exam.measure(workshop)
    assert all(kept[label].identical(run) for label, run in runs.items())


# -- verdicts on forged data -----------------------------------------------------------------------

NAMES = ("draws", "decoders", "matrix", "clones", "energy", "off", "plateau", "powers", "alone")


def moments(values, error=0.01):
    values = np.asarray(values, float)
    return np.stack([values, np.full(values.shape, error)], axis=-1)


def forged(**changes):
    """The data of the figure as they should be, with other values by name: a function of those
    that are right.
    """
    k, leaves = np.array([1, 2, 4, 64]), np.array([0.9, 0.8, 0.7, 0.3])[:, None] * np.ones((4, 3))
    right = {
        "z": (("chain", "turns"), np.array([[2.5, 2], [3, 2], [22, 30], [40, 48]])),
        "p": (("chain", "turns"), np.array([[0.5, 0.1], [0.2, 0.9], [1e-4, 1e-4], [1e-4, 1e-4]])),
        "exact": (("k", "tree_level"), leaves),
        "overlap": (("k", "tree_level", "moment"), moments(leaves + 0.01)),
        "clones": (("tree_level", "moment"), moments(leaves[0])),
        "chance": ("tree_level", leaves[0] / 4),
        "argmax_overlap": (("tree_level", "moment"), moments(leaves[0])),
        "argmax_clones": (("tree_level", "moment"), moments(leaves[0] + 0.3, 0.0)),
        "exact_energy": (("name", "beta"), np.full((2, 2), 2.0)),
        "energy": (
            ("name", "beta", "sampler", "moment"),
            moments(np.array([2.01, 3.0, 2.2]) * np.ones((2, 2, 1))),
        ),
    }
    for m, read in (("m2", k), ("m3", [64, 256, 1024])):
        table = np.full((2, len(read), 3), 0.5)
        names = f"{m}_grammar", f"{m}_k", "tree_level"
        right |= {
            f"{m}_overlap": ((*names, "moment"), moments(table + 0.01)),
            f"{m}_exact": (names, table),
            f"{m}_limit": (names[::2], table[:, 0]),
            f"{m}_alone": (names[0], np.array([3, 0])),
            f"{m}_mistaken": (names[0], np.array([0, 0])),
            f"{m}_chains": (names[0], np.array([100, 100])),
            names[1]: (names[1], np.array(read)),
        }
    assert changes.keys() <= right.keys()
    return xr.Dataset(
        {name: (dims, changes.get(name, np.asarray)(np.array(values))) for name, (dims, values) in right.items()},
        {
            "chain": list(LAWS), "turns": [1, 16], "k": k, "moment": ["mean", "error"], "name": list(ENERGIES),
            "beta": list(BETAS), "sampler": exam.SAMPLERS,
        },
    )  # fmt: skip


def failed(**changes):
    return {
        name
        for name, verdict in zip(NAMES, exam_verdicts.verdicts(forged(**changes)), strict=True)
        if not verdict.passed
    }


def put(value, *place):
    """A change: another value at one place of an array."""

    def change(values):
        values[place] = value
        return values

    return change


def test_what_is_expected_passes_and_is_drawn():
    assert failed() == set()
    assert len(exam.draw(forged()).axes) == 4


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"p": put(1e-4, 0, 1)}, {"draws"}),
        ({"p": put(5e-4, 0, 1)}, set()),  # of four tests
        ({"p": put(0.01, 2, 0)}, {"decoders"}),
        ({"z": put(10, 3, 1)}, {"decoders"}),
        ({"overlap": put(0.85, 2, 1, 0)}, {"matrix"}),
        ({"overlap": put(0.05, 2, 1, 1)}, {"matrix"}),  # imprecise
        ({"clones": put(0.8, 1, 0)}, {"clones"}),
        ({"argmax_clones": put(0.91, 1, 0)}, {"clones"}),
        ({"energy": put(2.06, 1, 0, 0, 0)}, {"energy"}),
        ({"energy": put(0.06, 1, 0, 0, 1)}, {"energy"}),
        ({"energy": put(2.04, 0, 0, 1, 0)}, {"energy", "off"}),
        ({"energy": put(2.04, 0, 1, 2, 0)}, {"off"}),
        ({"m2_overlap": put(0.6, 1, -1, 2, 0)}, {"plateau"}),
        ({"m2_overlap": put(0.6, 1, 0, 2, 0)}, set()),  # before the plateau
        ({"m2_exact": put(0.51, 1, -1, 2)}, {"plateau"}),
        ({"m3_overlap": put(0.6, 1, 1, 2, 0)}, {"powers"}),
        ({"m2_mistaken": put(1, 1)}, {"alone"}),
        ({"m2_alone": np.zeros_like, "m3_alone": np.zeros_like}, {"alone"}),
    ],
)
def test_verdicts_can_fail(changes, failing):
    assert failed(**changes) == failing


def test_what_is_kept_depends_on_the_constants_of_the_exam(monkeypatch):
    before = identity_of(exam_runs.against_enumeration, {})
    monkeypatch.setitem(exam_runs.BACKWARDS, "argmax", {"type": "exact"})
    assert identity_of(exam_runs.against_enumeration, {}) != before
