"""Audit of a masked model: whether its conditionals belong to one joint law, and what each
decoder costs on it.
"""

from uturn.core.tools import Tool, ToolFigure

TOOL = Tool(
    parts={
        "probes": {
            "order_consistency": "uturn.tools.audit.probes:OrderConsistency",
            "order_likelihood": "uturn.tools.audit.probes:OrderLikelihood",
        }
    },
    commands=("uturn.tools.audit.command",),
    sections={"audit.json": "uturn.tools.audit.section:audit_section"},
    figures={"exam": ToolFigure("uturn.tools.audit.exam", after="schedulers")},
    names={
        "audit": "uturn.tools.audit.judge:audit",
        "order_discrepancy": "uturn.tools.audit.orders:order_discrepancy",
    },
)
