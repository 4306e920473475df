"""Chains of U-turns: what is lost when the U-turn is repeated (arXiv:2605.27006), and sampling
with an energy.
"""

from uturn.core.tools import Tool, ToolFigure

_HERE = "uturn.tools.chains"
TOOL = Tool(
    parts={
        "corruption": {
            "repeated": f"{_HERE}.parts:Repeated",
            "masked_leaves": f"{_HERE}.parts:MaskedLeaves",
        },
        "backward": {"repeated": f"{_HERE}.parts:RepeatedBackward"},
        "probes": {"chain": f"{_HERE}.probe:ChainReadings"},
    },
    commands=(f"{_HERE}.command",),
    sections={"relaxation.zarr": f"{_HERE}.results:chains_section"},
    figures={"chains": ToolFigure(f"{_HERE}.exam")},
    names={
        "MaskedLeaves": f"{_HERE}.parts:MaskedLeaves",
        "chain": f"{_HERE}.chain:chain",
        "relaxation": f"{_HERE}.measures:relaxation",
        "reversibility": f"{_HERE}.measures:reversibility",
        "to_arviz": f"{_HERE}.measures:to_arviz",
    },
)
