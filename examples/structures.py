"""Which noise keeps which part of a protein? U-turns of structures that another program has made,
from PDB or mmCIF files.

    pip install 'uturn[structures]'
    python examples/structures_data.py runs/structures          # or files of your own
    python examples/structures.py runs/structures --out results/structures

reads the originals `original/NAME.pdb` (or .cif) and their partially diffused versions
`noise_LEVEL/NAME_TRAJECTORY.pdb`, and writes a page with, against noise: the Cα-RMSD after
superposition; the share of residues that keep their secondary structure; the share of the contacts
of the original that are kept, at short, medium and long range along the chain; and how many
residues move together (chi), over which distance along the chain (xi). A version that is missing is
a missing reading.
"""

import argparse
from pathlib import Path

import biotite.structure as struc
import numpy as np
from biotite.structure.io import load_structure

import uturn as ut
from uturn.pages import write_study

CONTACT = 8.0  # largest distance of two Cα in contact, Å
# Separations along the chain, as in CASP.
RANGES = {"short": (6, 12), "medium": (12, 24), "long": (24, 10_000)}


def alpha_carbons(path: Path) -> struc.AtomArray:
    """The Cα atoms of the first model in a file."""
    atoms = load_structure(path)
    atoms = atoms[0] if isinstance(atoms, struc.AtomArrayStack) else atoms
    return atoms[(atoms.atom_name == "CA") & struc.filter_amino_acids(atoms)]


def contacts(atoms: struc.AtomArray) -> np.ndarray:
    """Whether two residues are in contact, (residues, residues)."""
    return np.linalg.norm(atoms.coord[:, None] - atoms.coord[None], axis=-1) < CONTACT


def compared(original: struc.AtomArray, version: struc.AtomArray) -> dict[str, np.ndarray]:
    """The readings of one version of an original with the same residues."""
    if not np.array_equal(original.res_id, version.res_id):
        raise ValueError(
            f"the version has {len(version)} residues, the original {len(original)}; expected the"
            " same residues"
        )
    found = struc.superimpose(original, version)
    # Biotite gives the transformation alone since 2.0.
    version = found[0] if isinstance(found, tuple) else found.apply(version)
    before, after = contacts(original), contacts(version)
    apart = np.subtract.outer(np.arange(len(original)), np.arange(len(original)))
    within = [before & (apart >= low) & (apart < high) for low, high in RANGES.values()]
    return {
        "rmsd": struc.rmsd(original, version),
        "secondary_structure": np.mean(struc.annotate_sse(original) == struc.annotate_sse(version)),
        "contacts": np.array([after[pairs].mean() if pairs.any() else np.nan for pairs in within]),
        "moved": np.linalg.norm(original.coord - version.coord, axis=1),
    }


def readings(folder: Path) -> tuple[dict[str, np.ndarray], list[str], list[float]]:
    """Readings (noise, item, trajectory[, ..]) of the structures in a folder, the names of the
    items, and the noise levels.
    """
    originals = {path.stem: alpha_carbons(path) for path in sorted(folder.glob("original/*"))}
    versions = {
        (float(path.parent.name.removeprefix("noise_")), *path.stem.rsplit("_", 1)): path
        for path in folder.glob("noise_*/*")
    }
    if not originals or not versions:
        raise ValueError(
            f"{folder}: expected structures original/NAME.pdb and noise_LEVEL/NAME_TRAJECTORY.pdb"
            " (or .cif)"
        )
    noise, names = sorted({level for level, _, _ in versions}), list(originals)
    residues = max(map(len, originals.values()))
    shape = len(noise), len(names), 1 + max(int(trajectory) for _, _, trajectory in versions)
    further = {
        "rmsd": (),
        "secondary_structure": (),
        "contacts": (len(RANGES),),
        "moved": (residues,),
    }
    values = {key: np.full((*shape, *axes), np.nan) for key, axes in further.items()}
    for (level, name, trajectory), path in versions.items():
        at = noise.index(level), names.index(name), int(trajectory)
        for key, value in compared(originals[name], alpha_carbons(path)).items():
            values[key][(*at, *map(slice, np.shape(value)))] = value
    return values, names, noise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", default="results/structures")
    parser.add_argument("--unit", default="noise (Å)")
    options = parser.parse_args()
    values, names, noise = readings(options.folder)
    moved = values.pop("moved")
    run = ut.readings(
        values,
        noise,
        unit=options.unit,
        start={"rmsd": 0, "secondary_structure": 1, "contacts": 1},
        units={"rmsd": "Å"},
        long_name={
            "rmsd": "Cα-RMSD (Å)",
            "secondary_structure": "secondary structure kept",
            "contacts": "contacts kept",
        },
        coords={"item": names, "range": list(RANGES)},
        dims={"contacts": ("noise", "item", "trajectory", "range")},
        changes={"residue": moved},
        description="partial diffusion",
    )
    print(write_study(run, options.out))
    print(f"open {options.out}/index.html")


if __name__ == "__main__":
    main()
