"""Errors put into decoders, which tests of the audit notice (`tests/mutations.py`)."""

from mutation import Mutation

MUTATIONS = (
    Mutation(
        "tokens drawn from sharpened laws",
        "uturn.corruption.sampling:SymbolLaw.weights",
        "weights = belief.astype(np.float64)",
        "weights = belief.astype(np.float64) ** 1.05",
        tests=(("test_exam::test_divergence_is_its_definition", {}),),
    ),
)  # fmt: skip
