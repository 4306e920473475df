"""A run of `uturn text --classifier MODEL --layers MODEL` as a figure like Fig. 2.

    python examples/text/class_figure.py results/reaction-classes figure.png --classes
    out/classes.txt --text 3

Above: a text and its reconstructions, with the tokens that were masked (grey) and that changed
(red), and the predicted class. Below: cosine similarity of the hidden states of the classifier,
layer by layer, and the shares of classes, tokens and segments that are kept, with 95 % intervals.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import uturn as ut
from uturn.studies.plotting.curves import draw_curve, draw_legend, draw_transition
from uturn.studies.plotting.style import (
    ACCENT,
    CLASS,
    MUTED,
    THEORY,
    level_colors,
    save_figure,
    style,
)
from uturn.studies.records import records_of

SHARES = {  # readings of the panel on the right, in the order of the legend
    "same_class": ("predicted class", CLASS),
    "kept, span = 1": ("tokens", ACCENT),
    "kept_segments": ("whole molecules", "#2a9d8f"),
}
WIDTH = 78  # characters of a text that are shown
GREY, RED = "#e4e4e4", "#f7d6d2"


def draw_text(axis, run: xr.Dataset, item: int, names: list[str]) -> None:
    """The original with its class, and below it the reconstructions of trajectory 0 and clone 0."""
    texts = records_of(run)
    some = run.isel(trajectory=0, clone=0, missing_dims="ignore").sortby("noise")
    before = int(some.original_class.values[0, item])
    of_text = texts.sel(shown_item=item)
    rows = [("original", before, of_text.original_piece.values, None, None)]
    for k, noise in enumerate(of_text.shown_noise.values):
        level = of_text.isel(shown_noise=k)
        predicted = some.predicted_class.sel(noise=noise).values[item]
        rows.append(
            (f"{noise:g}", predicted, level.piece.values, level.noised.values, level.changed.values)
        )
    width = WIDTH
    axis.set(xlim=(-11, width + 17), ylim=(len(rows) + 0.1, -1.1))
    axis.set_axis_off()
    axis.text(-1.5, -0.5, "masked fraction", ha="right", va="center", color=MUTED, fontsize=9.5)
    axis.text(width + 2, -0.5, "predicted class", va="center", color=MUTED, fontsize=9.5)
    for y, (label, predicted, pieces, noised, changed) in enumerate(rows):
        axis.text(-1.5, y + 0.5, label, ha="right", va="center", fontsize=10.5)
        at = 0
        for k, piece in enumerate(pieces):
            end = at + len(piece)
            if end > width:
                axis.text(at + 0.5, y + 0.52, "..", va="center_baseline", color=MUTED)
                break
            if noised is not None and noised[k] and piece:
                axis.fill(
                    [at, end, end, at],
                    [y + 0.06, y + 0.06, y + 0.94, y + 0.94],
                    color=RED if changed[k] else GREY,
                    lw=0,
                )
            for place, character in enumerate(piece):
                look = {
                    "family": "DejaVu Sans Mono",
                    "fontsize": 10,
                    "ha": "center",
                    "va": "center_baseline",
                    "parse_math": False,
                }
                color = CLASS if changed is not None and changed[k] else "black"
                axis.text(at + place + 0.5, y + 0.52, character, color=color, **look)
            at = end
        name = (
            "unreadable"
            if np.isnan(predicted)
            else names[int(predicted)]
            if names
            else f"{int(predicted)}"
        )
        same = predicted == before
        axis.text(
            width + 2,
            y + 0.5,
            name,
            va="center",
            fontsize=10.5,
            color="black" if same else CLASS,
            weight="normal" if same else "bold",
        )


def draw_figure(run: xr.Dataset, item: int, names: list[str]):
    study = ut.study(run)
    noise = study.noise.values
    star = study.half_life.sel(axis="noise")[
        study.reading.values.tolist().index("same_class")
    ].values
    with style() as plt:
        figure = plt.figure(figsize=(12, 8.6), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(0.8, 1), hspace=0.04)
        draw_text(above.subplots(), run, item, names)
        left, right = below.subplots(1, 2)
        layers = np.flatnonzero(study.variable.values == "text_similarity")
        for color, k in zip(level_colors(len(layers)), layers, strict=True):
            edge = k in (layers[0], layers[-1])
            look = {"lw": 2.4, "marker": "o", "ms": 4, "zorder": 3} if edge else {"lw": 1}
            named = edge or (k - layers[0]) % 4 == 0
            draw_curve(
                left,
                noise,
                study.curve.values[k],
                color,
                0.15 if edge else 0,
                label=study.level.values[k] if named else None,
                **look,
            )
        left.set(
            title="layers of the classifier",
            xlabel="masked fraction",
            ylabel="cosine similarity of hidden states",
        )
        for reading, (name, color) in SHARES.items():
            if reading not in study.reading.values:
                continue
            k = study.reading.values.tolist().index(reading)
            place = study.half_life.values[k, 0]
            words = (
                f"{name}, half lost at {place[0]:.2f} [{place[1]:.2f}, {place[2]:.2f}]"
                if np.isfinite(place[0])
                else name
            )
            draw_curve(
                right,
                noise,
                study.curve.values[k],
                color,
                0.15,
                lw=2.2,
                marker="o",
                ms=4,
                label=words,
            )
        chance = float(study.chance.values[study.reading.values == "same_class"][0])
        right.axhline(chance, color=CLASS, lw=1, ls=":", label="class of two different originals")
        right.set(title="kept", xlabel="masked fraction", ylabel="share kept")
        for axis in (left, right):
            draw_transition(axis, star, CLASS, True)
            axis.set(xlim=(0, 1.02), ylim=(-0.05, 1.03))
        left.text(star[0] + 0.01, 0.97, "$t^*$", color=CLASS, va="top", fontsize=13)
        draw_legend(left, "lower left")
        draw_legend(right, "lower left")
        right.text(
            1,
            1.02,
            f"{run.sizes['item']} originals; bands: 95 % intervals",
            transform=right.transAxes,
            ha="right",
            color=THEORY,
            fontsize=9,
        )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder with run")
    parser.add_argument("picture", type=Path, help="file to write, .png or .pdf")
    parser.add_argument(
        "--classes", type=Path, help="text file with the name of each class on a line"
    )
    parser.add_argument(
        "--text", type=int, default=0, help="number of the text above the curves (default: 0)"
    )
    options = parser.parse_args()
    names = options.classes.read_text().split() if options.classes else []
    save_figure(
        draw_figure(xr.open_dataset(options.results / "run", engine="uturn"), options.text, names),
        options.picture,
    )


if __name__ == "__main__":
    main()
