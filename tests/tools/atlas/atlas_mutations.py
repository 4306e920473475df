"""Errors put into the numbers of an atlas (`tests/mutations.py`)."""

from mutation import Mutation

MUTATIONS = (
    Mutation(
        "half-life of the second layer in place of the last one",
        "uturn.tools.atlas.numbers:entries_of",
        "layers.half_life[-1]",
        "layers.half_life[0]",
        tests=(("test_atlas::test_the_last_layer_is_the_last", {}),),
    ),
)  # fmt: skip
