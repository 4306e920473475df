"""The solvable world: the grammar, belief propagation, mean-field theory, population dynamics,
laws of mixtures and fields.
"""
