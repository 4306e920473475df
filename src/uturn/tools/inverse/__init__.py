"""Test of posterior samplers of inverse problems: whether they draw from the posterior, without
ground truth about it.
"""

from uturn.core.tools import Tool, ToolFigure

TOOL = Tool(
    parts={
        "corruption": {"operator": "uturn.tools.inverse.measurement:Measurement"},
        "backward": {"sampler": "uturn.tools.inverse.sampler:PosteriorSampler"},
        "probes": {"posterior": "uturn.tools.inverse.probe:Posterior"},
    },
    commands=("uturn.tools.inverse.command",),
    sections={"samplers.zarr": "uturn.tools.inverse.section:samplers_section"},
    folders=("errors",),
    figures={
        "inverse": ToolFigure(
            "uturn.tools.inverse.exam", after="clones", needs=("deepinv", "inverse")
        )
    },
    names={
        "inverse": "uturn.tools.inverse.judge:inverse",
        "posterior_tests": "uturn.tools.inverse.posteriors:posterior_tests",
        "backward.PosteriorSampler": "uturn.tools.inverse.sampler:PosteriorSampler",
        "corruption.Measurement": "uturn.tools.inverse.measurement:Measurement",
        "corruption.Measured": "uturn.tools.inverse.measured:Measured",
        **{
            f"corruption.{name}": f"uturn.tools.inverse.operators:{name}"
            for name in ("Operator", "GaussianNoise", "PoissonNoise", "OtherNoise")
        },
        "probes.Posterior": "uturn.tools.inverse.probe:Posterior",
    },
)
