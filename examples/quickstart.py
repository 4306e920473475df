"""A U-turn by hand: draw a string, corrupt it, infer exactly what is left, draw a reconstruction.

The first run on a machine compiles the kernels, 10 to 30 s; later ones take a second.
"""

import numpy as np

import uturn as ut

rhm = ut.RandomHierarchyModel(vocab_size=32, multiplicity=8, branching=2, depth=7, seed=0)
draw = rhm.sample(256, seed=0)

process = ut.Gaussian()
for time in (0.03, 0.06, 0.07, 0.1, 0.3):
    noisy = process.corrupt(draw.leaves, noise=time, vocab_size=32, seed=1)
    log_evidence = process.log_evidence(noisy)
    beliefs = ut.infer(rhm, log_evidence)  # marginals of every node, given the noisy string
    rebuilt = ut.sample_posterior(rhm, log_evidence, seed=2)  # one draw of the whole tree
    kept = {level: float((rebuilt[level] == draw.latents[level]).mean()) for level in (0, 3, 7)}
    sure = np.take_along_axis(beliefs.marginals[7], draw.latents[7][..., None], axis=-1).mean()
    print(f"t = {time:4.2f}: unchanged leaves {kept[0]:.2f}, middle {kept[3]:.2f}, class {kept[7]:.2f} (expected {sure:.2f})")
