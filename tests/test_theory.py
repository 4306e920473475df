"""Mean field: golden tables, closed forms, limits, and a brute-force check of the correlation
formula.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uturn.exact.rhm import RandomHierarchyModel
from uturn.exact.theory import MeanField, phase_diagram

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mean_field.json").read_text())


@pytest.mark.parametrize(
    "row",
    GOLDEN,
    ids=lambda row: (
        f"{row['vocab_size']}-{row['multiplicity']}-{row['branching']}-{row['epsilon']}"
    ),
)
def test_golden_curves(row):
    curves = MeanField(row["vocab_size"], row["multiplicity"], row["branching"]).curves(
        row["epsilon"], row["depth"]
    )
    for name, mine in (
        ("upward", curves.upward),
        ("downward", curves.downward),
        ("marginal", curves.marginals),
    ):
        assert np.abs(mine - row[name]).max() < 1e-10


@pytest.mark.parametrize(
    ("v", "m", "s", "critical", "exponent"),
    [
        (32, 8, 2, 0.7312, 1.893),
        (16, 4, 2, 0.8, 2.25),
        (32, 4, 2, 0.9217, None),
        (32, 12, 2, 0.4645, None),
        (32, 16, 2, 0.0645, None),
    ],
)
def test_reference_values(v, m, s, critical, exponent):
    mf = MeanField(v, m, s)
    assert mf.phase == "transition"
    assert mf.critical_noise == pytest.approx(critical, abs=5e-5)
    if exponent:
        assert mf.correlation_exponent == pytest.approx(exponent, abs=5e-3)


@settings(max_examples=100, deadline=None)
@given(v=st.integers(2, 200), data=st.data())
def test_closed_forms_for_two_children(v, data):
    m = data.draw(st.integers(1, v))
    mf = MeanField(v, m, 2)
    if 2 <= m and 2 * m < v + 1:
        assert mf.phase == "transition"
        assert mf.fixed_point == pytest.approx((m - 1) / (v - m), abs=1e-12)
        assert mf.critical_noise == pytest.approx(
            v * (v - 2 * m + 1) / ((v - m) * (v - 1)), abs=1e-12
        )
    else:
        assert mf.phase == ("always recovered" if m == 1 else "always lost")
        assert (mf.critical_noise, mf.fixed_point, mf.slope, mf.correlation_exponent) == (None,) * 4


@settings(max_examples=60, deadline=None)
@given(v=st.integers(2, 12), s=st.integers(2, 5), data=st.data())
def test_the_map_and_its_fixed_points(v, s, data):
    mf = MeanField(v, data.draw(st.integers(1, v ** (s - 1))), s)
    for p in (1 / v, 1.0):
        assert mf.upward_map(p) == pytest.approx(p, abs=1e-12)
    p = np.linspace(1 / v, 1, 401)[1:-1]
    h = 1e-6
    numeric = (mf.upward_map(p + h) - mf.upward_map(p - h)) / (2 * h)
    assert np.allclose(mf.slope_at(p[5:-5]), numeric[5:-5], rtol=1e-4, atol=1e-6)
    assert mf.slope_at(1.0) == pytest.approx(mf.slope_at_one)
    gain = mf.upward_map(p) - p
    if mf.phase == "transition":
        star = mf.fixed_point
        assert mf.upward_map(star) == pytest.approx(star, abs=1e-12)
        assert mf.slope > 1
        # away from the fixed points, where the sign of a difference is beyond rounding
        assert (gain[p < star - 1e-3] < 1e-12).all()
        assert (gain[p > star + 1e-3] > -1e-12).all()
    else:
        sign = 1 if mf.phase == "always recovered" else -1
        assert (sign * gain > -1e-12).all()


def test_limits_and_shapes():
    mf = MeanField(32, 8, 2, num_classes=10)
    curves = mf.curves(np.linspace(0, 1, 6).reshape(2, 3), 4)
    assert [c.shape for c in curves] == [(2, 3, 5)] * 3
    assert np.allclose(curves.marginals[0, 0], 1)
    assert np.allclose(curves.upward[1, 2], [1 / 32] * 4 + [1 / 10])
    assert np.allclose(curves.downward[..., -1], 1 / 10)
    assert np.allclose(mf.susceptibility([0.0], 4), 1)
    # F = 1: independent leaves.
    assert np.allclose(MeanField(8, 8, 2).susceptibility(np.linspace(0, 1, 11), 5), 1)
    assert np.isfinite(MeanField(8, 2, 2, num_classes=1).curves([0, 0.5, 1], 3).marginals).all()


@pytest.mark.parametrize(
    ("v", "m", "depth", "expected"), [(32, 8, 10, 0.706), (32, 8, 7, 0.562), (16, 4, 7, 0.720)]
)
def test_class_crossing(v, m, depth, expected):
    assert MeanField(v, m, 2).class_crossing(depth) == pytest.approx(expected, abs=5e-4)


def test_what_crosses_at_the_threshold_is_the_first_and_last_upward_belief():
    mf = MeanField(32, 8, 2)
    for depth in (2, 5, 10):
        upward = mf.curves(mf.critical_noise, depth).upward
        assert upward[-1] == pytest.approx(upward[0], abs=1e-9)


def test_susceptibility_peaks_at_the_threshold_and_is_stable_at_small_noise():
    mf = MeanField(32, 8, 2)
    grid = np.linspace(0.5, 0.95, 901)
    peaks = [grid[mf.susceptibility(grid, depth).argmax()] for depth in (8, 12, 16)]
    distance = np.abs(np.array(peaks) - mf.critical_noise)
    assert distance[-1] < 0.005
    small = mf.susceptibility([1e-14, 1e-10, 1e-6], 10) - 1
    assert (small >= 0).all()
    assert small[2] == pytest.approx(small[1] * 1e4, rel=1e-3)  # linear in ε, no cancellation


@pytest.mark.parametrize(
    ("sizes", "depth", "expected"),
    [
        ((16, 4, 2), 5, 0.763),
        ((16, 4, 2), 7, 0.784),
        ((16, 4, 2), 10, 0.795),
        ((16, 4, 2), 40, 0.800),
        ((8, 2, 2), 40, 0.907),
    ],
)
def test_susceptibility_peaks_where_the_docstring_says(sizes, depth, expected):
    grid = np.linspace(0.7, 0.99, 2901)
    assert grid[MeanField(*sizes).susceptibility(grid, depth).argmax()] == pytest.approx(
        expected, abs=6e-4
    )


def competing_rules(v, m, s, grammars):
    """Rules that compete for a child whose siblings are known: of the same parent, and of all
    parents, (grammars, 2).

    Of a rule y -> (x_1, .., x_s) and its child i they are the rules with the same siblings and
    another symbol at i.
    """
    counts = np.zeros((grammars, 2))
    for seed in range(grammars):
        rules = RandomHierarchyModel(v, m, s, 1, seed=seed).rules[1].reshape(-1, s)
        parents = np.repeat(np.arange(v), m)
        for child in range(s):
            siblings = np.delete(rules, child, axis=1) @ v ** np.arange(s - 1)
            for k, context in enumerate((siblings + v ** (s - 1) * parents, siblings)):
                # All rules of a context differ in the child.
                sizes = np.bincount(np.unique(context, return_inverse=True)[1])
                counts[seed, k] += (sizes * (sizes - 1)).sum() / sizes.sum() / s
    return counts


def test_competing_rules_of_the_downward_map_are_those_of_random_grammars():
    """A parent known for certain is a class without an alternative; the belief of its child is
    then 1/(1 + K) (Eq. 53).
    """
    counted = competing_rules(32, 8, 2, 400)
    expected = [1 / float(MeanField(32, 8, 2, n).curves(0.0, 1).downward[0]) - 1 for n in (1, 32)]
    t = (counted.mean(axis=0) - expected) / (counted.std(axis=0, ddof=1) / np.sqrt(len(counted)))
    assert np.abs(t).max() < 3.5


@pytest.mark.parametrize(("v", "m", "s", "n"), [(8, 3, 2, None), (4, 2, 3, None), (6, 2, 2, 3)])
def test_pair_correlations_against_the_joint_law(v, m, s, n):
    """The formula without cancellation equals the product of 2x2 matrices of theory section 7,
    multiplied out.
    """
    mf, depth = MeanField(v, m, s, n), 4
    for epsilon in (0.3, 0.8):
        curves = mf.curves(epsilon, depth)
        T = v**s - 1
        found = mf.pair_correlations(epsilon, depth)
        for k in range(1, depth + 1):
            p, q = curves.upward[k - 1], curves.downward[k]
            g = (q * (m - 1) + (1 - q) * m) / T
            joint = np.array(
                [
                    [q * p**s + (g * p**2 * (1 - p ** (s - 2)) if s > 2 else 0), g * p * (1 - p)],
                    [g * p * (1 - p), g * (1 - p) ** 2],
                ]
            )
            joint /= joint.sum()
            for level in range(k - 1, 0, -1):
                b = curves.upward[level - 1]
                A = b**s + (m - 1) * (b - b**s) / T
                right = A / (A + (m - 1) * (1 - b) / T)
                wrong = b * (1 - b ** (s - 1)) / (1 - b**s)
                step = np.array([[right, 1 - right], [wrong, 1 - wrong]])
                joint = step.T @ joint @ step
            sigma = np.array([-1, 1])
            mean = joint.sum(1) @ sigma
            assert found[k] == pytest.approx(sigma @ joint @ sigma - mean**2, abs=1e-12)
            assert joint[0].sum() == pytest.approx(curves.marginals[0], abs=1e-12)
        assert found[0] == pytest.approx(
            4 * curves.marginals[0] * (1 - curves.marginals[0]), abs=1e-12
        )


@pytest.mark.parametrize(("v", "m", "s"), [(8, 3, 2), (4, 2, 3), (3, 4, 4)])
def test_susceptibility_is_the_sum_over_all_ordered_pairs(v, m, s):
    """chi = sum_ij C_ij / sum_i C_ii, with the pairs of leaves written out."""
    mf, depth = MeanField(v, m, s), 3
    leaves = np.arange(s**depth)
    ancestors = leaves // s ** np.arange(depth + 1)[:, None]
    # Level of the lowest common ancestor of two leaves.
    common = (ancestors[:, :, None] != ancestors[:, None]).sum(axis=0)
    for epsilon in (0.2, 0.6, 0.9):
        matrix = mf.pair_correlations(epsilon, depth)[common]
        assert mf.susceptibility(epsilon, depth) == pytest.approx(
            matrix.sum() / np.trace(matrix), rel=1e-12
        )


def test_phase_diagram():
    diagram = phase_diagram(32, 2)
    assert diagram.multiplicity.tolist() == list(range(1, 33))
    assert diagram.critical_noise[0] == 1
    assert (diagram.critical_noise[16:] == 0).all()
    assert (np.diff(diagram.critical_noise[:17]) < 0).all()
    assert diagram.rule_density[-1] == 1
