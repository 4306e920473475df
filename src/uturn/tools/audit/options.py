"""The options of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, SkipValidation

from uturn.presets.texts import TextOptions

if TYPE_CHECKING:
    from uturn.corruption.unmasking import Decoder

COMPARED = (0.5, 1.0)  # noise levels at which decoders are compared


class AuditOptions(TextOptions):
    """The audit of a masked model: the options of `uturn text`, with the probes of an audit and smaller sizes."""

    repetition: bool = Field(True, description=TextOptions.model_fields["repetition"].description)
    levels: SkipValidation[int | list[float]] = Field(4, description=TextOptions.model_fields["levels"].description)
    trajectories: int = Field(2, ge=1, description=TextOptions.model_fields["trajectories"].description)

    def audited(self) -> dict[str, TextOptions]:
        """The options of a run of each audited decoder, by its description; with clones, at the noise levels `COMPARED`.

        Decoders that give the same texts of at most as many tokens as these are one.
        """
        from uturn.tools.audit.decoders import PLAIN

        own = self.model_dump(exclude_unset=True)
        sizes = {"levels": list(COMPARED), "trajectories": 1, "clones": max(2, self.clones), "keep": 2**20}
        probes: dict[str, Any] = {"layers": [], "repetition": True, **dict.fromkeys(("encoder", "likelihood", "classifier"))}
        runs: dict[str, TextOptions] = {}
        for decoder, options in self._decoders():
            runs.setdefault(decoder.description, TextOptions(**{**own, **PLAIN, **options, **sizes, **probes}))
        return runs

    def _decoders(self) -> list[tuple[Decoder, dict[str, Any]]]:
        from uturn.core.registry import build
        from uturn.tools.audit.decoders import audited_decoders

        return audited_decoders(self.denoiser(), build("source", self._source()))

    def _further_probes(self) -> list[dict[str, Any]]:
        from uturn.tools.audit.decoders import with_likelihood

        return [{"type": "order_consistency"}, {"type": "order_likelihood", "decoders": with_likelihood(self._decoders())}]
