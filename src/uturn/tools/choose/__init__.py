"""The choice of a noise level that keeps a reading, from the command line (`uturn.choose` in
Python).
"""

from uturn.core.tools import Tool

TOOL = Tool(commands=("uturn.tools.choose.command",))
