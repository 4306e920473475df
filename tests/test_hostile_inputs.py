"""Inputs that nobody should give: each is refused at once, in one line that names it and says what to do."""

import time

import numpy as np
import pytest

import uturn as ut
from uturn.theory import MeanField, phase_diagram

RHM = ut.RandomHierarchyModel(4, 2, 2, 3, seed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanField(32, 8, 2).class_crossing(10**8), "depth = 100000000: expected at most 10000 levels; .*critical_noise"),
        (lambda: MeanField(32, 8, 2).curves(0.5, 10**7), "expected at most 10000 levels"),
        (lambda: MeanField(32, 8, 2).curves(np.zeros(10**6), 10**4), "would take 596 GB, but this machine"),
        (lambda: MeanField(32, 8, 2).susceptibility(0.5, 2000), "lower depth"),
        (lambda: MeanField(32, 8, 10**9), "branching = 1000000000.*300 digits"),
        (lambda: MeanField(10**400, 8, 2), "vocab_size = 1000.*300 digits"),
        (lambda: MeanField(32, 10**5000, 2), "lower multiplicity"),
        (lambda: MeanField(32, 8, 2).curves(10**400, 3), r"noise = 1000.*expected numbers in \[0, 1\]"),
        (lambda: phase_diagram(10**6, 3), "give those to compute"),
        (lambda: ut.RandomHierarchyModel(32, 8, 2, 60).sample(1), r"2\*\*60 leaves would take 2\*\*64 bytes"),
        (lambda: ut.RandomHierarchyModel(8, 2, 2, 3).sample(10**12), "draw fewer"),
        (lambda: ut.RandomHierarchyModel(32, 8, 2, 10**9), "depth = 1000000000"),
        (lambda: ut.RandomHierarchyModel(10**6, 10**5, 2, 10), "the rules would take"),
        (lambda: ut.RandomHierarchyModel(32, 8, 10**9, 2), "300 digits"),
        (lambda: ut.infer(None, np.zeros((1, 8, 4))), "rhm = None: expected a RandomHierarchyModel"),
        (lambda: ut.sample_posterior("rhm", np.zeros((1, 8, 4))), "rhm = 'rhm'"),
        (lambda: ut.prior_entropy(None), "rhm = None"),
        (lambda: ut.mutual_information(3, np.zeros((1, 8, 4))), "rhm = 3"),
        (lambda: ut.infer(RHM, [[1.0], [1.0, 2.0]]), "log_evidence = .*expected an array"),
        (lambda: RHM.parse([[1, 2], [3]]), "leaves = .*expected an array"),
        (lambda: RHM.save("/no/such/folder/file"), "cannot write '/no/such/folder/file'"),
        (lambda: ut.RandomHierarchyModel.load("a\0b"), r"path = 'a\\x00b': expected the path"),
        (lambda: ut.hierarchy_index(np.zeros((3, 4)), np.zeros((3, 4))), "high_level is a ndarray; expected a DataArray"),
    ],
)
def test_refused_at_once(call, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - start < 5


def test_deep_trees_and_grammars_below_the_bounds():
    mf = MeanField(32, 8, 2)
    assert mf.class_crossing(1000) == pytest.approx(mf.critical_noise, abs=1e-9)
    assert np.isfinite(mf.susceptibility([0.1, mf.critical_noise, 0.9], 900)).all()
    assert ut.RandomHierarchyModel(4, 2, 2, 300).depth == 300  # what population dynamics asks for
