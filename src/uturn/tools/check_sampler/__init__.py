"""Check of a sampler of image-to-image: whether it makes the U-turns that its model, steps and
noise imply.
"""

from uturn.core.tools import Tool

TOOL = Tool(
    commands=("uturn.tools.check_sampler.command",),
    names={
        "check_sampler": "uturn.tools.check_sampler.check:check_sampler",
        "two_samplers": "uturn.tools.check_sampler.two_samplers:two_samplers",
    },
)
