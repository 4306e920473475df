"""Atlas: many models of images, each a run of `uturn images`, with their transitions on one
axis.
"""

from uturn.core.tools import Tool

TOOL = Tool(
    commands=("uturn.tools.atlas.command",),
    sections={"atlas.zarr": "uturn.tools.atlas.numbers:atlas_section"},
)
