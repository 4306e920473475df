"""The decoders that an audit of a masked model compares."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from uturn.backward.language import LanguageDenoiser
from uturn.corruption.unmasking import Decoder
from uturn.networks.texts.options import LanguageOptions
from uturn.tools.audit.likelihood import is_determined

_COMPARED: tuple[dict[str, Any], ...] = (
    {},
    {"order": "blocks", "block": 1},
    {"order": "entropy"},
    {"order": "probability"},
    {"order": "confidence"},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"steps": 16},
    {"order": "entropy", "steps": 16},
    {"order": "confidence", "steps": 16},
    {"order": "analytic", "steps": 16},
    {"order": "analytic", "steps": 16, "remask": "cap"},
)
PLAIN = {
    option.name: LanguageOptions.model_fields[option.name].default for option in fields(Decoder)
}
"""The options of a decoder with their defaults."""


def audited_decoders(own: LanguageDenoiser, source: Any) -> list[tuple[Decoder, dict[str, Any]]]:
    """Twelve decoders and one's own on texts of the length of the source, with their options
    that are not the defaults.
    """
    source = source.made_by(own, 0)
    length = int(source.free(range(source.count())).sum(1).max())
    decoders = [
        of.on_texts_of(length)
        for of in (*(Decoder(**options) for options in _COMPARED), own.decoder)
    ]
    return [
        (
            of,
            {
                option.name: value
                for option in fields(of)
                if (value := getattr(of, option.name)) != option.default
            },
        )
        for of in decoders
    ]


def with_likelihood(decoders: list[tuple[Decoder, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Options of the decoders whose likelihood is compared with that from left to right."""
    compared = [
        options
        for of, options in dict(decoders).items()
        if is_determined(of) and of.is_exact_singly
    ]
    return compared[2:]  # random and left to right, the first two, are compared anyway
