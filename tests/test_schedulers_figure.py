"""The verdicts on schedulers must fail on wrong data."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from uturn.paper import schedulers

STEPS = np.array([2, 4, 8, 16, 32, 64])
SHEETS, STRINGS, SIZE = 16, 1024, 32


def forged(rng, posterior_error, law_error, steps=STEPS, variance=1.0):
    """A run whose laws are a share (function of the number of steps) of a wrong law away from the
    right ones.

    Chains start with `variance` times the noise they should.
    """
    posterior = np.pad(rng.dirichlet(np.full(SIZE, 0.3), size=2), ((0, 0), (0, 1)))
    data_law = np.append(np.full(SIZE, 1 / SIZE), 0)
    wrong = np.append(rng.dirichlet(np.full(SIZE, 0.3)), 0)

    def counts(p, error):
        q = [(1 - error(k)) * p + error(k) * wrong for k in steps]
        return np.array([rng.multinomial(STRINGS, law, size=SHEETS) for law in q], np.uint16)

    return xr.Dataset(
        {
            "given_counts": (
                ("steps", "observation", "sheet", "string"),
                np.stack([counts(p, posterior_error) for p in posterior], axis=1),
            ),
            "posterior": (
                ("steps", "observation", "string"),
                np.broadcast_to(posterior, (len(steps), *posterior.shape)),
            ),
            "law_counts": (("steps", "sheet", "string"), counts(data_law, law_error)),
            "data_law": (("string",), data_law),
            **start(rng, len(steps), variance),
        },
        coords={"steps": steps},
        attrs={"strings": STRINGS},
    )


def start(rng, steps, variance):
    squares = variance * (rng.standard_normal((steps, 256, 16)) ** 2).sum(-1)
    standardised = np.stack(
        [rng.standard_normal((steps, 256)), (squares - 16) / np.sqrt(32)], axis=-1
    )
    both = np.broadcast_to([0.7, 0.5], (steps, 2))
    return {
        "standardised": (("steps", "item", "quantity"), standardised),
        "mean": (("steps", "quantity"), both),
        "expected": (("steps", "quantity"), both),
        "excess": (("steps", "quantity"), np.broadcast_to([0.0, 0.75], (steps, 2))),
    }


def first_order(k):
    return 1 / k


def constant(k):
    return 0.9


GOOD = {
    **{
        label: first_order if kind == "full" else constant
        for label, (*_, kind) in schedulers.SAMPLERS.items()
    },
}


def verdicts(changed=None, laws=None, variance=None):
    rng = np.random.default_rng(0)
    errors = GOOD | (changed or {})
    runs = {
        label: forged(
            rng,
            error,
            (laws or {}).get(label, first_order),
            variance=(variance or {}).get(label, 1.0),
        )
        for label, error in errors.items()
    }
    runs[schedulers.REFERENCE] = forged(rng, lambda k: 0.0, lambda k: 0.0, steps=np.array([0]))
    return schedulers.analyse(runs)


def test_what_theory_says_passes_and_can_be_drawn():
    data, found = verdicts()
    assert [v.passed for v in found] == [True] * 5, [v for v in found if not v.passed]
    figure = schedulers.draw(data)
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("changed", "laws", "failing"),
    [
        ({"DDPM": constant}, None, {0, 1}),
        ({"Euler ancestral": lambda k: 0.4 * k**-0.2}, None, {0, 1}),
        ({"Heun": first_order}, None, {2}),
        (None, {"UniPC": lambda k: 0.2}, {3}),
    ],
)
def test_verdicts_can_fail(changed, laws, failing):
    _, found = verdicts(changed, laws)
    failed = {k for k, verdict in enumerate(found) if not verdict.passed}
    assert failing <= failed
    # Orders flatten with a plateau, and 2 compares with the worst of the others.
    assert failed - failing <= {0, 2}


def test_a_start_beside_the_first_timestep_fails():
    _, found = verdicts(variance={"DDIM, η = 1": 1.2})
    assert {k for k, verdict in enumerate(found) if not verdict.passed} == {4}


def test_squared_distance_is_unbiased():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20))
    for truth, law in ((0.0, p), (((p - q) ** 2).sum(), q)):
        many = rng.multinomial(50, law, size=(4000, 1, 6)) / 50 - p
        values = schedulers.squared_distance(many)
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(4000)


def test_p_values_of_equal_laws_are_uniform():
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(10))
    found = np.array(
        [schedulers.p_value(rng.multinomial(100, p, size=(2, 12)) / 100 - p) for _ in range(200)]
    )
    assert abs(found.mean() - 0.5) < 4 / np.sqrt(12 * 200)
    assert found.min() > 1e-4
