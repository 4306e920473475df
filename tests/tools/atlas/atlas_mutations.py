"""Errors put into the numbers of an atlas (`tests/mutations.py`)."""

from mutation import Mutation

MUTATIONS = (
    Mutation(
        "calibration of a row where the gap is largest, not its p-value smallest",
        "uturn.tools.atlas.numbers:_of_clones",
        "np.lexsort((-np.abs(of_class.gap.values[:, 0]), of_class.gap_p.values))",
        "np.lexsort((of_class.gap_p.values, -np.abs(of_class.gap.values[:, 0])))",
        tests=(("test_atlas::test_the_gap_is_that_of_the_smallest_p_value", {}),),
    ),
)  # fmt: skip
