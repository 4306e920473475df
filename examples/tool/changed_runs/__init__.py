"""A tool for uturn: how long the runs of leaves are that change together in a U-turn of strings."""

from uturn.core.tools import Tool

TOOL = Tool(
    parts={"probes": {"changed_runs": "changed_runs.tool:ChangedRuns"}},
    commands=("changed_runs.command",),
    sections={"changed-runs.json": "uturn.pages.reports:report_section"},
    names={"changed_runs": "changed_runs.tool:changed_runs"},
)
