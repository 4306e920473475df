# %% [markdown]
# # The solvable world  A **U-turn** takes a datum, noises it up to some level, denoises it back,
# and looks at what has changed. Here the data are strings of a random grammar, so that every step
# can be computed exactly: by belief propagation, and in the mean by a theory. You see the class of
# a string get lost abruptly at a critical noise, while its leaves decay smoothly. This is a phase
# transition.  The Random Hierarchy Model rewrites a class as a tuple of symbols, each of these as
# another tuple, and so on down to the leaves. Every symbol has `multiplicity` rules to choose from.

# %%
import matplotlib.pyplot as plt
import numpy as np

import uturn as ut
from uturn.measures.statistics import estimate, transition
from uturn.studies.plotting.style import level_bar, level_colors, style
from uturn.studies.plotting.trees import canvas, donut, draw_tree, leaf_centres

small = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=4, seed=0)
small

# %% [markdown]
# ## A U-turn by hand  `ut.u_turn` is a corruption followed by a backward, U = Backward ∘
# Corruption. Here each leaf is hidden with probability 0.6, and a string is drawn from the exact
# posterior, given the leaves that can still be seen.

# %%
strings = small.sample(40, seed=0)  # the leaves, and all latents above them
originals = ut.sources.Strings(np.arange(40), small, strings)
turned = ut.u_turn(originals, ut.Masking(), ut.backward.ExactPosterior(), noise=0.6)
turned

# %% [markdown]
# Here are two of the reconstructed strings, with rings around the symbols that have changed. As
# many leaves have changed in the one as in the other, but on the left they are other words for the
# same class.

# %%
changed = {
    level: turned.reconstructions[level][:, 0] != strings.latents[level] for level in range(5)
}
with style():
    figure, panels = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for item, panel in zip((0, 2), panels, strict=True):
        tree = {level: turned.reconstructions[level][item, 0] for level in range(5)}
        canvas(panel, (-0.7, 15.7), (-0.7, 9.4))
        draw_tree(
            panel,
            tree,
            leaf_centres(2, 4),
            2.2 * np.arange(5),
            {level: changed[level][item] for level in range(5)},
        )
        lost = "lost" if changed[4][item, 0] else "kept"
        panel.set_title(f"{changed[0][item].sum()} of 16 leaves changed, class {lost}")

# %% [markdown]
# ## Belief propagation  `ut.infer` gives the exact probability of every symbol at every node, given
# what is seen of the leaves. The entropy of these beliefs says what is still known: half of the
# leaves are hidden here, and most of them follow from the others.

# %%
masking = ut.Masking()
noisy = {
    noise: masking.corrupt(strings.leaves, noise, vocab_size=8, seed=0) for noise in (0.5, 0.8)
}
beliefs = {noise: ut.infer(small, masking.log_evidence(one)) for noise, one in noisy.items()}
beliefs[0.5]

# %% [markdown]
# The picture shows one string at two noise levels. Each ring shows the probabilities of the eight
# symbols of a node.

# %%
with style():
    figure, panels = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for (noise, found), panel in zip(beliefs.items(), panels, strict=True):
        canvas(panel, (-0.7, 15.7), (-0.7, 9.4))
        centres = leaf_centres(2, 4)
        for level in range(5):
            for node, x in enumerate(centres[level]):
                if level < 4:
                    panel.plot(
                        [x, centres[level + 1][node // 2]],
                        [2.2 * level, 2.2 * level + 2.2],
                        color="0.8",
                        lw=1,
                        zorder=1,
                    )
                donut(
                    panel, x, 2.2 * level, found.marginals[level][0, node], radius=0.42, width=0.42
                )
        panel.set_title(
            f"{noise:.0%} of the leaves hidden, largest belief in a class"
            f" {found.marginals[4][0].max():.2f}"
        )

# %% [markdown]
# ## An experiment  An experiment is one sentence of plain data. The ε-process lowers the belief in
# the true symbol of each leaf to 1 - ε + ε/v. The probe `tree_levels` reads what is kept of each
# level, and `changes` which leaves change together.

# %%
experiment = ut.Experiment.from_dict(
    {
        "items": 48,
        "trajectories": 12,
        "chunk": 48,
        "source": {
            "type": "rhm",
            "vocab_size": 32,
            "multiplicity": 8,
            "branching": 2,
            "depth": 7,
            "grammars": 12,
        },
        "corruption": {"type": "epsilon", "noise": np.r_[0:0.6:7j, 0.63:0.84:8j, 0.88:1:4j]},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}, {"type": "changes"}],
    }
)
experiment

# %%
# Store="runs/world" would keep the results, and continue an interrupted run.
results = ut.run(experiment, progress=True)
theory = ut.theory.MeanField(vocab_size=32, multiplicity=8, branching=2)
fine = np.linspace(0, 1, 401)
predicted = theory.curves(fine, depth=7).marginals

with style():
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for level, color in enumerate(level_colors(8)):
        axis.plot(fine, predicted[:, level], color=color, lw=1.4)
        axis.plot(
            results.noise,
            results.belief.mean("item").isel(tree_level=level),
            "o",
            ms=4,
            color=color,
        )
    axis.axvline(theory.critical_noise, color="0.5", lw=1, ls=":")
    axis.plot([], [], "o", color="0.4", label="belief propagation")
    axis.plot([], [], color="0.4", label="mean-field theory")
    axis.set(
        xlabel=r"noise $\epsilon$", ylabel="belief in the true symbol", xlim=(0, 1), ylim=(0, 1.03)
    )
    axis.legend(loc="lower left")
    level_bar(plt, axis, 8, "tree level (7 = class)")

# %% [markdown]
# Where is the class lost? `transition` finds the noise at which a curve has fallen halfway, and
# `estimate` gives a 95 % interval from the differences between the twelve grammars. The theory has
# no free parameter: its value for this depth follows. In deep trees the class is lost at ε* (the
# dotted line).

# %%
noise, of_class = results.noise.values, results.belief.isel(tree_level=-1)
in_theory = transition(fine, predicted[:, -1], bottom=1 / 32).location
print(f"in theory {in_theory:.3f}, in deep trees {theory.critical_noise:.3f}")
estimate(of_class, lambda curve: transition(noise, curve, bottom=1 / 32).location)

# %% [markdown]
# ## The susceptibility  Near the transition, leaves change together, in blocks as large as the
# subtrees of latents that change. The susceptibility χ counts how many: it is 1 if every leaf
# changes on its own, and has its peak near ε*.

# %%
chi = ut.susceptibility(results)
with style():
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    axis.fill_between(chi.noise, chi.low, chi.high, color="#0072b2", alpha=0.2, lw=0)
    axis.plot(chi.noise, chi.chi, "o", ms=4, color="#0072b2", label="48 strings, 95 % interval")
    axis.plot(
        fine[1:],
        theory.susceptibility(fine[1:], depth=7),
        color="0.3",
        lw=1.4,
        label="mean-field theory",
    )
    axis.axvline(theory.critical_noise, color="0.5", lw=1, ls=":")
    axis.set(
        xlabel=r"noise $\epsilon$",
        ylabel=r"susceptibility $\chi$ (leaves)",
        xlim=(0, 1),
        ylim=(0, None),
    )
    axis.legend(loc="upper left")

# %% [markdown]
# ## Where to go from here  Change `vocab_size`, `multiplicity` or `depth`, or the corruption:
# `gaussian`, `masking` and `uniform` are on the same axis, `results.effective_epsilon`. `uturn
# explore` shows the same world in the browser, with the noise under your mouse. The
# [tutorial](../docs/tutorial.md) goes on from here: it tests whether a sampler draws from the
# posterior, and adds a corruption of your own. The notebook
# [own_image_model](own_image_model.ipynb) does the same with images.
