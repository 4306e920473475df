"""The options of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, SkipValidation

from uturn.presets.texts import TextOptions

if TYPE_CHECKING:
    from uturn.core.inputs import Table
    from uturn.tools.audit.decoders import Audited

COMPARED = (0.5, 1.0)
"""Noise levels at which decoders are compared."""
_LEFT_OUT = {"Measures", "Decoding"}
"""Panels of `TextOptions` that an audit does not have."""


class AuditOptions(TextOptions):
    """The audit of a masked model: options of `uturn text`, with the probes of an audit and
    smaller sizes.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{panel: names for panel, names in TextOptions.panels.items() if panel not in _LEFT_OUT},
        "Decoder of your own": ("order", "steps", "block", "temperature", "top_k", "top_p"),
        "Judgement": ("tolerance", "false_alarm_rate"),
    }

    repetition: bool = True
    levels: SkipValidation[int | list[float]] = Field(
        4, description=TextOptions.model_fields["levels"].description
    )
    trajectories: int = Field(
        2, ge=1, description=TextOptions.model_fields["trajectories"].description
    )

    tolerance: float | None = Field(
        None,
        ge=0,
        description=(
            "Mean inconsistency of two orders of two tokens, in nats a pair, that is tolerated. The"
            " exit code is 1 if it is larger at some noise level. By default nothing is judged."
        ),
    )
    false_alarm_rate: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="Probability that a model within the tolerance fails, over all noise levels.",
    )

    def audited(self) -> dict[str, TextOptions]:
        """The options of a run of each audited decoder, by its description; with clones, at the
        noise levels `COMPARED`.

        Decoders that give the same texts of at most as many tokens as these are one.
        """
        from uturn.tools.audit.decoders import PLAIN

        own = self.model_dump(exclude_unset=True, exclude={"tolerance", "false_alarm_rate"})
        sizes = {
            "levels": list(COMPARED),
            "trajectories": 1,
            "clones": max(2, self.clones),
            "keep": 2**20,
        }
        runs: dict[str, TextOptions] = {}
        for audited in self._decoders():
            options = {**own, **PLAIN, **audited.options, **sizes, "repetition": True}
            runs.setdefault(audited.decoder.description, TextOptions(**options))
        return runs

    def _decoders(self) -> list[Audited]:
        from uturn.core.registry import build
        from uturn.tools.audit.decoders import audited_decoders

        return audited_decoders(self.denoiser(), build("source", self._source()))

    def _further_probes(self) -> list[Table]:
        from uturn.tools.audit.decoders import with_likelihood

        return [
            {"type": "order_consistency"},
            {"type": "order_likelihood", "decoders": with_likelihood(self._decoders())},
        ]
