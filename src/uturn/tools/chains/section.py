"""The section of a page for chains of U-turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.pages.charts import chart
from uturn.pages.sections import Reader, card, existing, new_section
from uturn.tools.chains.measures import known
from uturn.tools.chains.results import FORMAT, table_of, words_of


def chains_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of the file `relaxation.zarr` of `uturn chains`."""
    data, folder = read.dataset(path), path.parent
    form, names = (data.attrs.get("format"), data.attrs.get("version")), data.reading.values.tolist()
    expect(form == (FORMAT, 1), f"format of {path}", form, f"{FORMAT}, version 1")
    is_small = data.sizes["u_turn_noise"] <= 64 and len(names) <= 512 and max(map(len, names), default=0) <= 200
    expect(is_small, f"sizes of {path}", dict(data.sizes), "at most 64 noise levels and 512 readings")
    section = new_section("chains", "chains", "chains", "Chains of U-turns")
    section["covers"], section["files"] = "*.zarr", existing(folder, ("relaxation.csv", "relaxation.pdf"))
    section["words"], section["caption"] = words_of(data), str(data.attrs.get("description", ""))
    section["overview"] = table_of(data)._asdict()
    read.add_picture(section, folder / "relaxation.png", "chains")
    of_known = data[["time", "left"]].sel(reading=known(data)).drop_vars(["variable", "order"])
    times = of_known.time.rename(u_turn_noise="noise").transpose("noise", "reading", "estimate")
    if (np.isfinite(times.sel(estimate="value")).sum("noise") > 1).any():
        section["charts"].append(chart("time", "relaxation time", times, "noise", y="U-turns", joined=True, shown=True))
    doublings = data.noise.values[np.isin(data.noise, 2.0 ** np.arange(40))]  # a logarithmic axis
    if "energy" in data:
        energy = data.energy.transpose("noise", "u_turn_noise", "estimate")
        section["charts"].append(chart("energy", "mean energy", energy, "noise", y="", shown=True))
    for x in data.u_turn_noise.values:
        left = of_known.left.sel(u_turn_noise=x, noise=doublings, drop=True).transpose("noise", "reading", "estimate")
        if left.size:
            section["charts"].append(chart(f"left-{x:g}", f"left of the original, noise {x:g}", left, "noise", y="", shown=True))
        read.add_picture(section, folder / f"strip-{x:g}.png", f"chains at noise {x:g}")
    for name, place in zip(data.series.values.tolist(), data.inversion.values, strict=True):
        if np.isfinite(place[0]):
            claim = "First and last level have one relaxation time at this noise; the range is between measured levels."
            section["headlines"].append(card(f"order of {name} inverts", "noise of a U-turn", place, claim, is_range=True))
    return section
