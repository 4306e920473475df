"""The decoders that an audit of a masked model compares."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pydantic import JsonValue

from uturn.backward.language import LanguageDenoiser
from uturn.corruption.unmasking import Decoder
from uturn.networks.texts.options import LanguageOptions
from uturn.sources.tokens import TextSource
from uturn.tools.audit.likelihood import is_determined

_COMPARED = (
    Decoder(),
    Decoder(order="blocks", block=1),
    Decoder(order="entropy"),
    Decoder(order="probability"),
    Decoder(order="confidence"),
    Decoder(temperature=0.7),
    Decoder(top_p=0.9),
    Decoder(steps=16),
    Decoder(order="entropy", steps=16),
    Decoder(order="confidence", steps=16),
    Decoder(order="analytic", steps=16),
    Decoder(order="analytic", steps=16, remask="cap"),
)
PLAIN: dict[str, JsonValue] = {
    option.name: LanguageOptions.model_fields[option.name].default for option in fields(Decoder)
}
"""The options of a decoder with their defaults."""


@dataclass(frozen=True)
class Audited:
    """A decoder that is audited."""

    decoder: Decoder

    @property
    def options(self) -> dict[str, JsonValue]:
        """Its options that are not the defaults."""
        values = {option.name: getattr(self.decoder, option.name) for option in fields(Decoder)}
        return {
            option.name: values[option.name]
            for option in fields(Decoder)
            if values[option.name] != option.default
        }


def audited_decoders(own: LanguageDenoiser, source: TextSource) -> list[Audited]:
    """Twelve decoders and one's own on texts of the length of the source."""
    source = source.made_by(own, 0)
    length = int(source.free(range(source.count())).sum(1).max())
    return [Audited(decoder.on_texts_of(length)) for decoder in (*_COMPARED, own.decoder)]


def with_likelihood(audited: list[Audited]) -> list[dict[str, JsonValue]]:
    """Options of the decoders whose likelihood is compared with that from left to right."""
    different = dict.fromkeys(entry.decoder for entry in audited)
    compared = [
        Audited(decoder).options
        for decoder in different
        if is_determined(decoder) and decoder.is_exact_singly
    ]
    return compared[2:]  # random and left to right, the first two, are compared anyway
