"""Errors put into chains of U-turns, which verdicts of the figure `chains` notice (`tests/mutations.py`)."""

from mutation import Mutation


def of_verdicts(what: str):
    """The verdicts on a small measurement."""
    return (("test_chains_figure::test_verdicts_of_a_small_measurement_pass", {"what": what}),)


MUTATIONS = (
    Mutation(
        "all U-turns of a chain have the same random numbers",
        "uturn.tools.chains.chain:UTurnStep.after",
        "Purpose.CHAIN, state.step + 1",
        "Purpose.CHAIN, 1",
        tests=of_verdicts("matrix") + of_verdicts("minimal"),
    ),
    Mutation(
        "the Metropolis step has the wrong sign",
        "uturn.tools.chains.chain:UTurnStep._accepted",
        "-self.beta *",
        "self.beta *",
        tests=of_verdicts("energies"),
    ),
    Mutation(
        "a rejected proposal leaves its energy",
        "uturn.tools.chains.chain:UTurnStep._accepted",
        "np.where(accepted,",
        "np.where(every,",
        tests=of_verdicts("energies"),
    ),
    Mutation(
        "masked strings are read with evidence of replacement",
        "uturn.corruption.masking:Masking.evidence",
        "certain - np.inf",
        "certain - 4",
        tests=of_verdicts("matrix") + of_verdicts("minimal"),
    ),
    Mutation(
        "one leaf too many is masked",
        "uturn.tools.chains.parts:MaskedLeaves.corrupt",
        "order < count[:, None]",
        "order <= count[:, None]",
        tests=of_verdicts("minimal"),
    ),
    Mutation(
        "overlaps are those of one more U-turn than the matrix has",
        "uturn.tools.chains.exam_runs:overlaps_of",
        "((2 * k, power), (2 * k + 1, after))",
        "((2 * k, after), (2 * k + 1, power))",
        tests=of_verdicts("matrix"),
    ),
)
