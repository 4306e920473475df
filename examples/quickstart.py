"""U-turns by hand: draw strings, corrupt them, draw reconstructions from the exact posterior, and
see what has changed.

The first run on a machine compiles the kernels, 10 to 30 s; later ones take a second.
"""

import numpy as np

import uturn as ut

rhm = ut.RandomHierarchyModel(vocab_size=32, multiplicity=8, branching=2, depth=7, seed=0)
originals = ut.sources.Strings(np.arange(256), rhm, rhm.sample(256, seed=0))
true = originals.draw.latents  # {tree_level: (strings, nodes)}

for time in (0.03, 0.06, 0.07, 0.1, 0.3):
    turned = ut.u_turn(originals, ut.Gaussian(), ut.backward.ExactPosterior(), noise=time)
    kept = {
        level: float((turned.reconstructions[level][:, 0] == true[level]).mean())
        for level in (0, 3, 7)
    }
    marginals = turned.noisy.beliefs("marginals")[7]  # of the class, given the noisy string
    expected = np.take_along_axis(marginals, true[7][..., None], axis=-1).mean()
    print(
        f"t = {time:4.2f}: unchanged leaves {kept[0]:.2f}, middle {kept[3]:.2f}, class"
        f" {kept[7]:.2f} (expected {expected:.2f})"
    )
