# %% [markdown]
# # Texts  The noise of a text hides a share of its tokens, and a masked language model draws them
# again, one token a call. Which tokens come back, and how many change together? This notebook uses
# the small model of characters that comes with the package, and compares it with a network of its
# own. Nothing is downloaded; `uturn text --model FOLDER
# --data texts.txt` does the same with models of transformers.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import uturn as ut
from uturn.networks import load_network
from uturn.presets import TextOptions
from uturn.sources.embedded_text import model_file, passages
from uturn.studies import records_of
from uturn.studies.plotting.style import style

passages()[:3]

# %% [markdown]
# ## An experiment  The texts are windows of 24 characters. At each of four noise levels they are
# hidden and drawn again six times, since χ, the number of characters that change together, is
# computed from the differences between U-turns of one text.

# %%
noise = [0.25, 0.5, 0.75, 1.0]
options = TextOptions(
    windows=True, length=24, levels=noise, items=8, trajectories=6, keep=3, device="cpu"
)
experiment = options.experiment()
experiment

# %%
run = ut.run(experiment, progress=True)  # store="runs/text" would keep the results
text = records_of(run).isel(shown_item=0)
print("original", "".join(text.original_piece.values))
for noise_of_row, pieces, changed in zip(
    text.shown_noise.values, text.piece.values, text.changed.values, strict=True
):
    print(f"{noise_of_row:8}", "".join(np.where(changed, np.char.upper(pieces), pieces)))

# %% [markdown]
# Capital letters have changed. With little noise most words survive, or turn into words that are
# spelled similarly. Where all is hidden, the model writes a text of its own.  ## A network of one's
# own  A model is any object with a method `logits(ids, noise)`, which gives logits (batch, length,
# symbols) of the clean tokens, and a `mask_id`. The following one knows how often each character
# occurs, and nothing about its neighbours. A function without arguments returns it; functions of a
# notebook are in the module `__main__`. Texts without a tokenizer are ids in a `.npy` file.

# %%
characters = load_network(model_file()).options["characters"]
ids = np.array([[characters.index(c) for c in text[:24]] for text in passages()])
Path("runs").mkdir(exist_ok=True)
np.save("runs/text-ids.npy", ids)


class Letters:
    mask_id = len(characters)
    log_shares = torch.from_numpy(
        np.log(np.bincount(ids.reshape(-1), minlength=len(characters) + 1) + 1e-9)
    ).float()

    def logits(self, ids, noise):
        return self.log_shares.expand(*ids.shape, -1)


letters = TextOptions(
    model="__main__:Letters",
    data="runs/text-ids.npy",
    levels=noise,
    items=8,
    trajectories=6,
    keep=0,
    device="cpu",
)
warnings.filterwarnings("ignore", message="model check")  # this model is poor on purpose
by_letters = ut.run(letters.experiment(), progress=True)

# %% [markdown]
# ## What is kept, and what changes together  The study of a run has the curve of every reading, the
# noise at which half of the change is done, and how the changes of characters correlate. It prints
# as its tables.

# %%
found = ut.study(run)
found

# %% [markdown]
# The language model brings back more characters. Its characters change in pairs, χ is about 2;
# those of the network of letters change one by one, χ = 1. Bands are 95 % intervals: eight short
# texts measure χ roughly.

# %%
with style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for name, one, color in (
        ("language model", found, "#0072b2"),
        ("letters alone", ut.study(by_letters), "#d55e00"),
    ):
        for axis, curve in (
            (left, one.curve.sel(reading="kept, span = 1")),
            (right, one.chi.isel(changes=0)),
        ):
            value, low, high = curve.values.T
            axis.fill_between(one.noise, low, high, color=color, alpha=0.2, lw=0)
            axis.plot(one.noise, value, "o-", ms=4, color=color, label=name)
    left.set(xlabel="share of hidden characters", ylabel="share of characters kept", ylim=(0, 1.03))
    right.axhline(1, color="0.5", lw=1, ls=":")
    right.set(
        xlabel="share of hidden characters",
        ylabel=r"susceptibility $\chi$ (characters)",
        ylim=(0, None),
    )
    left.legend()

# %% [markdown]
# ## Where to go from here  [Texts](../docs/text.md) says what all numbers mean and shows chemical
# reactions, where whole molecules are lost before single tokens; [decoders](../docs/decoders.md)
# says what it costs to draw several tokens a call. `uturn text
# --out results/text` writes all figures, the numbers with their intervals, and a page on which you can read the
# texts.
