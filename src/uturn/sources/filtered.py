"""Hierarchical filtering: strings of a grammar whose tree above one level is replaced by independent draws (arXiv:2408.15138)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from uturn.exact.rhm import zipf
from uturn.sources.strings import RHMSource, check_rules


class FilteredRHMSource(RHMSource):
    """Strings of the Random Hierarchy Model whose structure above tree level `filtered_above` is removed.

    The nodes of level k = `filtered_above` are independent and uniform over the symbols; the subtrees below them are those of
    source `rhm` with the same options and seed. k = depth is the source `rhm` itself, k = 0 gives independent leaves. In
    arXiv:2408.15138 the nodes of level k are independent given the class, each with its exact law given the class; here they
    share no class, so that nothing is left above level k.

    This is again a Random Hierarchy Model, in which every tuple of symbols is a rule at the levels above k: v**(s - 1) rules of a
    symbol, so that a uniform class gives independent, uniform symbols. Hence belief propagation, draws and parsing are exact as
    they are. A node above level k, and so the class, is a random function of the nodes of level k below it: it is determined by
    the string, but nothing in the string depends on it. `zipf_exponent` applies up to level k.
    """

    type: Literal["filtered_rhm"] = "filtered_rhm"  # type: ignore[assignment]
    filtered_above: int = Field(ge=0)

    @model_validator(mode="after")
    def _filtered(self) -> FilteredRHMSource:
        v, n, s, L = self.vocab_size, self.num_classes or self.vocab_size, self.branching, self.depth
        if self.filtered_above > L:
            raise ValueError(f"filtered_above = {self.filtered_above}: expected a tree level 0 .. {L}; {L} changes nothing")
        if self.filtered_above < L and v**s % n:
            raise ValueError(
                f"num_classes = {n}: expected a divisor of vocab_size**branching = {v**s}, so that all classes own as many tuples"
            )
        check_rules(v**s, s, L - self.filtered_above, f"filtered_above = {self.filtered_above}", "branching or vocab_size")
        return self

    def rules(self) -> dict[str, Any]:
        v, n, s, L, k = self.vocab_size, self.num_classes or self.vocab_size, self.branching, self.depth, self.filtered_above
        sizes = {level: self.multiplicity if level <= k else v**s // (n if level == L else v) for level in range(1, L + 1)}
        if self.zipf_exponent is None:
            return {"multiplicity": sizes}
        laws = {level: zipf(m, self.zipf_exponent) if level <= k else None for level, m in sizes.items()}
        return {"multiplicity": sizes, "rule_probabilities": laws}
