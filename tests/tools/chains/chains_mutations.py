"""Errors put into chains of U-turns, which verdicts of the figure `chains` notice
(`tests/mutations.py`).
"""

from mutation import Assigned, Mutation, Replaced


def of_verdicts(what: str):
    """The verdicts on a small measurement."""
    return (("test_chains_figure::test_verdicts_of_a_small_measurement_pass", {"what": what}),)


def of_chains(name: str):
    """A test of chains without arguments."""
    return ((f"test_repeated::test_{name}", {}),)


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
        "uturn.corruption.masking:Masking.log_likelihoods",
        "-np.inf",
        "-4.0",
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
    Mutation(
        "reversibility tests stationarity alone",
        "uturn.tools.chains.measures:_swapped",
        edit=Replaced("[y - x, x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y]", "[y - x]"),
        tests=of_chains("a_chain_that_keeps_the_law_and_runs_in_one_direction_is_not_reversible"),
    ),
    Mutation(
        "the seed of the swaps is ignored",
        "uturn.tools.chains.measures:keys",
        wrong=lambda right: lambda seed, *numbers: right(0, *numbers),
        tests=of_chains("the_seed_of_the_swaps_counts"),
    ),
    Mutation(
        "effective draws count the U-turns before the chain has its law",
        "uturn.tools.chains.measures:effective_draws",
        edit=Assigned("burn_in", "0"),
        tests=of_chains("chains_with_an_energy_are_counted_without_their_first_half"),
    ),
    Mutation(
        "the burn-in that is asked for is not left out",
        "uturn.tools.chains.measures:_chains",
        edit=Replaced("checked_integer('burn_in', burn_in, 0)", "0"),
        tests=of_chains("chains_with_an_energy_are_counted_without_their_first_half"),
    ),
    Mutation(
        "calls of the network are taken for steps",
        "uturn.tools.chains.results:calls_of",
        edit=Replaced(
            "forward.placed(forward.step_of(of['noise']))[1]", "range(forward.step_of(of['noise']))"
        ),
        tests=of_chains("calls_of_the_network_are_counted"),
    ),
)
