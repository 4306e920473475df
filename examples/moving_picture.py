"""The moving picture of the README: U-turns of a digit at growing noise, above the curves that they
follow.

`python moving_picture.py` measures both with the model in `atlas/mnist`, in about two minutes on
two idle cores, and writes `docs/images/u-turn.webp`. What was measured is kept in `results/`.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

import uturn as ut
from uturn.networks import load_network
from uturn.presets import ImageOptions
from uturn.studies.plotting.style import style

ATLAS = Path(__file__).parent / "atlas"
OUT = Path(__file__).parents[1] / "docs" / "images" / "u-turn.webp"
STORE = Path(__file__).parents[1] / "results" / "moving-picture"
STEPS, TURNS, ITEM, SEED = 40, (0.2, 0.35, 0.6, 0.8), 5, 5
WIDTH, HEIGHT, MILLISECONDS = 800, 540, 60
CARD, PALE, WORDS = "#141923", "#3a4354", "#dfe5ee"
KEPT, LOST, CLASS, DETAIL = "#4fd07f", "#ff5f52", "#ffc15a", "#62b6ff"
SIDE, LANES, LEFT, ZERO, ONE, BOTTOM = 112, (102, 254), 84, 200, 690, (362, 484)


# -- what is shown ---------------------------------------------------------------------------------
def curves():
    """Noise levels, the shares of the class and of the similarity of the first layer that are
    kept, and the half-life.
    """
    names = {"model": "mnist", "data": "mnist.npy", "labels": "mnist-labels.npy"}
    paths = {name: str(ATLAS / path) for name, path in names.items()}
    classifier = str(ATLAS / "mnist-classifier.safetensors")
    options = ImageOptions(
        **paths, classifiers=[classifier], steps=STEPS, levels=10, items=100, keep=0, device="cpu"
    )
    study = ut.study(ut.run(options.experiment(), STORE, progress=True)).sel(estimate="value")
    kept, first = (
        study.sel(reading="same_class"),
        study.isel(reading=study.variable == "similarity").isel(reading=0),
    )
    return (
        study.noise.values,
        kept.curve.values,
        first.curve.values,
        float(kept.half_life.sel(axis="noise")),
    )


@torch.inference_mode()
def u_turns(item, seed):
    """For each turn: states of a digit on its way up and on its way back, and its class at the
    end; and its class.
    """
    network = (
        UNet2DModel.from_pretrained(ATLAS / "mnist" / "unet", low_cpu_mem_usage=False)
        .float()
        .eval()
    )
    scheduler = DDPMScheduler.from_pretrained(ATLAS / "mnist" / "scheduler")
    scheduler.set_timesteps(STEPS)
    classify = load_network(ATLAS / "mnist-classifier.safetensors").eval()
    generator = torch.Generator().manual_seed(seed)
    original = (
        torch.from_numpy(np.load(ATLAS / "mnist.npy")[item]).permute(2, 0, 1)[None] / 127.5 - 1
    )
    noise = torch.randn(original.shape, generator=generator)
    found = []
    for turn in TURNS:
        times = scheduler.timesteps[-round(turn * STEPS) :]
        up = [original, *(scheduler.add_noise(original, noise, t[None]) for t in times.flip(0))]
        back = [up[-1]]
        for t in times:
            back.append(
                scheduler.step(
                    network(back[-1], t).sample, t, back[-1], generator=generator
                ).prev_sample
            )
        found.append((up, back, int(classify(back[-1]).argmax())))
    return found, int(classify(original).argmax())


# -- frames ----------------------------------------------------------------------------------------
def frames(turns, of_original):
    """What each frame shows: the turn, the place of the digit, its picture, and whether it is back.

    The place is a noise level and a lane, 0 above and 1 below; the noise level -1 is the column of
    the originals.
    """
    for k, (up, back, _) in enumerate(turns):
        turn = TURNS[k]
        way = np.r_[-1, np.linspace(0, turn, 5 + round(20 * turn))]
        for level in way:
            yield k, (level, 0), up[round(max(level, 0) * STEPS)], False
        for lane in (0.2, 0.5, 0.8):
            yield k, (turn, lane), back[0], False
        for level in way[::-1]:
            yield k, (level, 1), back[round((turn - max(level, 0)) * STEPS)], level < 0
        for _ in range(22 if turn == TURNS[-1] else 13):
            yield k, (-1, 1), back[-1], True


def across(level):
    """Pixels of a noise level."""
    return LEFT if level < 0 else ZERO + (ONE - ZERO) * level


def tile(axis, x, y, picture, color):
    """A digit with a frame, centred at (x, y)."""
    picture = np.clip((np.asarray(picture).squeeze() + 1) / 2, 0, 1)
    ends = (x - SIDE / 2, x + SIDE / 2, y + SIDE / 2, y - SIDE / 2)
    axis.imshow(
        picture, cmap="gray", vmin=0, vmax=1, extent=ends, interpolation="nearest", zorder=5
    )
    axis.plot(
        *np.array([(ends[k], ends[j]) for k, j in ((0, 2), (1, 2), (1, 3), (0, 3), (0, 2))]).T,
        color=color,
        lw=3,
        zorder=6,
    )


def draw(plt, measured, turns, of_original, shown):
    """One frame as an RGBA array."""
    from matplotlib.patches import FancyBboxPatch

    k, (level, lane), picture, is_back = shown
    noise, kept, detail, star = measured
    turn, digit = TURNS[k], turns[k][2]
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    card = "round,pad=0,rounding_size=18"
    axis.add_patch(
        FancyBboxPatch((1, 1), WIDTH - 2, HEIGHT - 2, boxstyle=card, fc=CARD, ec=PALE, lw=1.5)
    )

    def say(x, y, words, color=WORDS, **look):
        axis.text(x, y, words, **{"color": color, "fontsize": 17, "va": "center", **look})

    # The way: up above, back below.
    bend = np.linspace(-np.pi / 2, np.pi / 2, 30)
    middle, half = np.mean(LANES), (LANES[1] - LANES[0]) / 2
    way = (
        np.r_[LEFT, across(turn) + 34 * np.cos(bend), LEFT],
        np.r_[LANES[0], middle + half * np.sin(bend), LANES[1]],
    )
    axis.plot(*way, color=PALE, lw=5, solid_capstyle="round", zorder=1)
    say(LEFT - SIDE / 2, LANES[0] - SIDE / 2 - 20, "noise it →", ha="left")
    say(LEFT - SIDE / 2, np.mean(LANES), "← denoise it", ha="left")
    # The digits.
    tile(axis, LEFT, LANES[0], turns[0][0][0], WORDS)
    result = KEPT if digit == of_original else LOST
    if is_back:
        words = f"still a {digit}" if digit == of_original else f"now a{'n' * (digit == 8)} {digit}"
        say(
            LEFT + SIDE / 2 + 16,
            LANES[1],
            words,
            result,
            weight="bold",
            fontsize=21,
            zorder=7,
            bbox={"fc": CARD, "ec": "none", "pad": 6},
        )
    x, y = across(level) + 34 * np.sin(np.pi * lane), LANES[0] + (LANES[1] - LANES[0]) * lane
    if level >= 0 or lane:
        tile(axis, x, y, picture, result if is_back else WORDS)

    # The curves.
    high, low = BOTTOM
    below = lambda share: low - (low - high) * np.asarray(share)  # noqa: E731
    axis.plot([ZERO, ZERO, ONE], [high - 4, low, low], color=PALE, lw=2)
    axis.plot([across(star)] * 2, [high - 4, low], color=CLASS, lw=1.5, ls=(0, (1, 2)), zorder=1)
    say(across(star), high - 18, "class lost", CLASS, ha="center", fontsize=15)
    for values, color, words in ((detail, DETAIL, "detail"), (kept, CLASS, "class")):
        axis.plot(ZERO + (ONE - ZERO) * noise, below(values), color=color, lw=3.5)
        say(ONE + 10, below(values[-1]), words, color, weight="bold")
    say(ZERO - 12, below(1), "all", ha="right")
    say(ZERO - 12, below(0.5), "kept", ha="right")
    say(ZERO - 12, below(0), "none", ha="right")
    say((ZERO + ONE) / 2, low + 26, "noise at the turn", ha="center")
    for past in range(k + is_back):
        color = KEPT if turns[past][2] == of_original else LOST
        at = np.interp(TURNS[past], noise, kept)
        axis.plot(across(TURNS[past]), below(at), "o", ms=13, mfc=color, mec=CARD, mew=2, zorder=4)
    if not is_back:
        now = turn if lane else max(level, 0)
        axis.plot([across(now)] * 2, [high - 4, low], color=WORDS, lw=1.2, ls=(0, (2, 2)), zorder=2)
        for values, color in ((detail, DETAIL), (kept, CLASS)):
            axis.plot(
                across(now),
                below(np.interp(now, noise, values)),
                "o",
                ms=11,
                mfc=color,
                mec=CARD,
                mew=2,
                zorder=4,
            )
    axis.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    figure.canvas.draw()
    found = np.asarray(figure.canvas.buffer_rgba()).copy()
    plt.close(figure)
    return Image.fromarray(found)


def main():
    measured, (turns, of_original) = curves(), u_turns(ITEM, SEED)
    print(f"a {of_original}; after the turns {', '.join(str(turn[2]) for turn in turns)}")
    with style() as plt:
        pictures = [
            draw(plt, measured, turns, of_original, shown) for shown in frames(turns, of_original)
        ]
    first, *others = pictures
    OUT.parent.mkdir(exist_ok=True)
    first.save(
        OUT,
        save_all=True,
        append_images=others,
        duration=MILLISECONDS,
        loop=0,
        quality=70,
        method=6,
        minimize_size=True,
    )
    print(f"{OUT}: {len(pictures)} frames, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
