"""Helix bundles and partially diffused versions of them as PDB files: data for `structures.py`,
made without a network.

    python examples/structures_data.py runs/structures

writes `original/NAME.pdb` and `noise_SIGMA/NAME_TRAJECTORY.pdb`. The noise is Gaussian, of standard
deviation SIGMA in Å for each coordinate of a Cα. The denoiser is an elastic network along the
chain, in two steps. First the law of chains is taken to be Gaussian, with bonds that are correlated
as those of the originals, and a chain is drawn from its posterior given the noisy coordinates. Then
springs of the lengths in a helix pull residues up to four apart into place, unless they are
stretched too far. It knows how stiff a chain is and what a helix is, and nothing about folds.
"""

import argparse
from pathlib import Path

import biotite.structure as struc
import numpy as np
from biotite.structure.io import save_structure
from scipy.linalg import toeplitz

NOISE = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)  # Å
_LOOP = 5  # residues between two helices
_FAR = 20  # bonds farther apart are taken to be independent
_HELIX = {1: 3.8, 2: 5.5, 3: 5.2, 4: 6.2}  # Å, distance of two Cα by their separation along a helix
_STRENGTH = 0.5  # Å, the noise at which noisy coordinates pull as hard as a spring
_BREAKS = 2.5  # Å, a longer stretch breaks a spring; bonds never break


def helix_bundle(rng: np.random.Generator) -> np.ndarray:
    """Cα positions of three or four antiparallel helices with loops between them, (residues, 3),
    in Å.
    """
    pieces: list[np.ndarray] = []
    for k in range(rng.integers(3, 5)):
        n = int(rng.integers(12, 19))
        angle = np.deg2rad(100) * np.arange(n) + rng.uniform(0, 2 * np.pi)
        helix = np.stack(
            [2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * (np.arange(n) - n / 2) * (-1) ** k],
            axis=1,
        )
        helix += 9.5 * np.array([k in (1, 2), k // 2, 0]) + rng.normal(0, 0.5, 3)
        if pieces:
            a, b, share = pieces[-1][-1], helix[0], np.linspace(0, 1, _LOOP + 2)[1:-1, None]
            top = (a + b) / 2 + [0, 0, 14 * (-1) ** (k - 1)]
            pieces.append((1 - share) ** 2 * a + 2 * share * (1 - share) * top + share**2 * b)
        pieces.append(helix)
    return relaxed(np.concatenate(pieces))


def modes(chains: list[np.ndarray], residues: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances and directions of the normal modes of a centred chain, whose bonds are
    correlated as those of some chains.
    """
    bonds = [np.diff(chain, axis=0) for chain in chains]
    correlation = np.zeros(residues - 1)
    for k in range(min(_FAR, residues - 1)):
        correlation[k] = np.mean([(of[k:] * of[: len(of) - k]).mean() for of in bonds]) * (
            1 - k / _FAR
        )
    positions = np.tril(np.ones((residues, residues)), -1)[:, :-1]  # sums of bonds
    positions -= positions.mean(axis=0)
    variances, directions = np.linalg.eigh(positions @ toeplitz(correlation) @ positions.T)
    return variances.clip(0), directions


def redrawn(
    chain: np.ndarray,
    sigma: float,
    network: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """A chain after noise of size sigma and the draw of a chain from the posterior of the
    elastic network.
    """
    variances, directions = network
    noisy = directions.T @ (chain - chain.mean(axis=0) + sigma * rng.normal(size=chain.shape))
    share = variances / (variances + sigma**2)
    drawn = directions @ (
        share[:, None] * noisy + sigma * np.sqrt(share)[:, None] * rng.normal(size=chain.shape)
    )
    return relaxed(drawn, directions @ noisy, min(_STRENGTH / sigma, 2.0) ** 2)


def relaxed(
    chain: np.ndarray, noisy: np.ndarray | float = 0.0, strength: float = 0.0, steps: int = 150
) -> np.ndarray:
    """A chain whose residues up to four apart are pulled to their distances in a helix, and to
    the noisy coordinates.
    """
    for _ in range(steps):
        force = strength * (noisy - chain)
        for apart, length in _HELIX.items():
            d = chain[apart:] - chain[:-apart]
            r = np.linalg.norm(d, axis=1, keepdims=True)
            pull = np.where((abs(r - length) < _BREAKS) | (apart == 1), (1 - length / r) * d, 0)
            force[:-apart] += pull
            force[apart:] -= pull
        chain = chain + 0.1 * force
    return chain


def write(path: Path, chain: np.ndarray) -> None:
    """Write Cα positions as a chain of alanines."""
    atoms = struc.AtomArray(len(chain))
    atoms.coord = chain
    atoms.chain_id[:], atoms.res_name[:], atoms.atom_name[:], atoms.element[:] = (
        "A",
        "ALA",
        "CA",
        "C",
    )
    atoms.res_id = np.arange(1, len(chain) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_structure(path, atoms)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--originals", type=int, default=16)
    parser.add_argument("--trajectories", type=int, default=8)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    chains = [helix_bundle(rng) for _ in range(options.originals)]
    for k, chain in enumerate(chains):
        network = modes(chains, len(chain))
        write(options.folder / "original" / f"bundle{k:02d}.pdb", chain)
        for sigma in NOISE:
            for trajectory in range(options.trajectories):
                path = options.folder / f"noise_{sigma:g}" / f"bundle{k:02d}_{trajectory}.pdb"
                write(path, redrawn(chain, sigma, network, rng))


if __name__ == "__main__":
    main()
