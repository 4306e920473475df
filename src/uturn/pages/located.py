"""The place that a search (`--until`) has located, from its file `located.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uturn.measures.statistics import Estimate
from uturn.pages.sections import Reader, card, new_section
from uturn.studies.headline import Headline

LOCATED = "located.json"


def located(numbers: Mapping[str, Any]) -> list[Headline]:
    """The located place, named as what it is; empty if the search found none."""
    reading, way = numbers["reading"], "half" if numbers["share"] == 0.5 else f"{numbers['share']:g}"
    label = "located half-life" if way == "half" else f"located {way} of the way"
    claim = f"By all runs of the search, {reading} has gone {way} of the way from its start to chance at this noise"
    return [Headline(label, reading, np.array(list(numbers["axes"].values())), claim)] if numbers["axes"] else []


def located_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a search, the first of its page."""
    numbers = json.loads(read.content(path))
    section = new_section("located", "located", "price", f"Search of a place of {numbers['reading']}")
    section["caption"] = f"The interval was to be narrower than {numbers['wanted']:g}."
    section["covers"], section["files"] = "*.zarr", [path]  # the stores of its runs, which have studies
    section["words"] = numbers["remark"][:1].upper() + numbers["remark"][1:]
    for label, reading, place, claim in located(numbers):
        levels = ", ".join(f"{level:.4g}" for level in numbers["levels"])
        width = f"{numbers['width']:.3g}, {'as narrow as wanted' if numbers['reached'] else 'wider than wanted'}"
        section["headlines"] = [card(f"{label} of {reading}", numbers["unit"], place[0], claim)]
        found = f"The {label} of {reading} is {Estimate(*place[0])!r}, {numbers['unit']}. {claim}."
        section["words"] = f"{found} {section['words']}".strip()
        section["caption"] += f" It is {width}, with up to {numbers['items']} originals at each of {levels}."
        rows = [(axis, repr(Estimate(*at))) for axis, at in zip(numbers["axes"], place, strict=True)]
        section["overview"] = {"title": f"{label} of {reading}", "heads": ("axis", "place [95 % interval]"), "rows": rows}
    return section
