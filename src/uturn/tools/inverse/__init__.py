"""Test of posterior samplers of inverse problems: whether they draw from the posterior, without ground truth about it."""

from uturn.core.tools import Tool

TOOL = Tool(commands=("uturn.tools.inverse.command",), sections={"samplers.zarr": "uturn.tools.inverse.section:samplers_section"})
