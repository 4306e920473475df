"""Check of a noise knob: whether the outputs of a pipeline change with its knob as they should."""

from uturn.core.tools import Tool

TOOL = Tool(
    names={"check_knob": "uturn.tools.check_knob.check:check_knob"},
)
