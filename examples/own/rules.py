"""A grammar with rules of one's own as the source of an experiment."""

import numpy as np

import uturn as ut

# {tree level: table (symbols, rules of a symbol, branching)} of symbols 0, 1, .. of the level below; the last level is the root.
RULES = {
    1: np.array([[[0, 1], [2, 0]], [[1, 2], [0, 0]], [[2, 1], [1, 1]]]),
    2: np.array([[[0, 0], [1, 2]], [[0, 2], [2, 1]], [[1, 0], [2, 2]]]),
    3: np.array([[[0, 1], [1, 1]], [[2, 0], [0, 2]]]),  # two classes
}
GRAMMAR = ut.RandomHierarchyModel.from_rules(RULES)  # or RandomHierarchyModel.load("grammar.safetensors"), which .save wrote


class Rules(ut.protocols.Source):
    """Strings of this grammar."""

    kind = "strings"
    vocab_size, branching, depth = GRAMMAR.vocab_size, GRAMMAR.branching, GRAMMAR.depth

    def grammar(self, number, seed):
        return GRAMMAR

    def blocks(self, items, seed, num_items):
        keys = ut.random.keys(seed, ut.random.Purpose.ORIGINAL, items)
        yield ut.sources.Strings(items, GRAMMAR, GRAMMAR.sample(len(items), keys))
