"""Chains on trial: the runs of the figure `chains`, and what enumeration says of small grammars."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from uturn.core.experiment import Experiment
from uturn.core.progress import begun
from uturn.core.registry import build
from uturn.core.u_turns import u_turn
from uturn.engine.run import run
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper.specs import experiment_of, rhm
from uturn.paper.workshop import Scale, Workshop
from uturn.sources.strings import Strings
from uturn.tools.chains.chain import chain

LARGE = rhm(6, 3, 2, 4)
SMALL = rhm(6, 3, 2, 3)
"""Sources: a grammar that is not enumerated, and one of 13,122 strings."""
BACKWARDS: dict[str, dict[str, Any]] = {
    "exact": {"type": "exact"},
    "confidence": {"type": "denoiser", "order": "confidence"},
    "argmax": {"type": "denoiser", "order": "probability", "top_k": 1},
}
LAWS = {"masking": ("masking", 0.6, "exact"), "Gaussian": ("gaussian", 0.1, "exact"),
        "confidence": ("masking", 0.6, "confidence"), "argmax": ("masking", 0.6, "argmax")}  # fmt: skip
"""Chains that are tested for reversibility: corruption, noise, backward."""
ENERGIES = {"leaves": (LARGE, "symbol number=0"), "pairs": (SMALL, f"{__name__}:with_pairs")}
BETAS = (0.5, 1.5)
SEED = 1
# U-turns of the chains that are tested, and of those with an energy
ENDS = (1, 16)
STEPS = 64
SETTINGS: dict[Scale, dict[str, Any]] = {
    "smoke": {
        "chains": 3000,
        "minimal": {"m2": (2, 6, 512, 500), "m3": (3, 1, 1024, 1000)},
    },
    "paper": {
        "chains": 20000,
        "minimal": {"m2": (2, 6, 512, 4000), "m3": (3, 6, 1024, 4000)},
    },
}
"""`minimal`: multiplicity, grammars, U-turns, chains of each."""


def with_pairs(leaves: np.ndarray) -> np.ndarray:
    """An energy that is no sum over leaves: the number of symbols 0, and of pairs of equal
    neighbours.
    """
    return (leaves == 0).sum(axis=1) + (leaves[:, 1:] == leaves[:, :-1]).sum(axis=1)


def chains_of(
    source: Any,
    corruption: str,
    noise: float,
    read: Any,
    items: int,
    backward: str = "exact",
    **energy: Any,
) -> Any:
    """The spec of chains of U-turns at a noise level, read after some numbers of U-turns."""
    repeated = {"type": "repeated", "of": {"type": corruption}}
    again = {"type": "repeated", "of": BACKWARDS[backward], "noise": noise, **energy}
    probe = {"type": "chain", "has_energy": bool(energy)}
    return experiment_of(
        source, repeated, read, probe, backward=again, items=items, chunk=items, seed=SEED
    ).to_dict()


def specs(scale: Scale) -> dict[str, Any]:
    """The specs of the runs by label, the longest first."""
    plan = SETTINGS[scale]
    made = {}
    for name, (source, energy) in ENERGIES.items():
        for backward, beta in (("exact", 0.0), *product(("exact", "confidence"), BETAS)):
            step = {"energy": energy, "beta": beta}
            label = f"energy-{name}-{backward}-{beta}"
            made[label] = chains_of(
                source, "masking", 0.4, [STEPS], plan["chains"], backward, **step
            )
    laws = {
        name: chains_of(LARGE, corruption, noise, ENDS, plan["chains"], by)
        for name, (corruption, noise, by) in LAWS.items()
    }
    return made | {f"law-{name}": spec for name, spec in laws.items()}


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    """The runs, and chains on enumerated grammars: "matrix", "matrix-argmax", "m2-0", ..
    (`against_enumeration`).
    """
    plan = SETTINGS[workshop.scale]
    masked = {
        "grammar": (4, 2, 2, 3),
        "corruption": "masking",
        "noise": 0.3,
        "chains": plan["chains"],
        "seed": SEED,
    }
    small = {"matrix": {**masked, "backward": "exact", "read": _powers(64)}}
    small["matrix-argmax"] = {**masked, "backward": "argmax", "read": [1]}
    for name, (m, grammars, turns, chains) in plan["minimal"].items():
        leaf = {
            "grammar": (6, m, 2, 3),
            "corruption": "masked_leaves",
            "noise": 1.0,
            "backward": "exact",
        }
        small |= {
            f"{name}-{g}": {**leaf, "chains": chains, "read": _powers(turns), "seed": g}
            for g in range(grammars)
        }
    enumerated = {f"chains-{label}": job for label, job in reversed(small.items())}
    runs = {f"chains-{label}": {"spec": spec} for label, spec in specs(workshop.scale).items()}
    kept = workshop.keep_all("enumerated chains", against_enumeration, enumerated)
    kept |= workshop.keep_all("chains", run_of, runs)
    return {label.removeprefix("chains-"): data for label, data in kept.items()}


def run_of(spec: Any) -> xr.Dataset:
    """The run of a spec, without the warning that a decoder does not draw from the posterior."""
    with warnings.catch_warnings(action="ignore"):
        return run(Experiment.from_dict(spec), workers=1)


def _powers(most: int) -> list[int]:
    """1, 2, 4, .. up to `most`."""
    return [2**k for k in range(most.bit_length())]


# -- by enumeration --------------------------------------------------------------------------------


def every_tree(grammar: Any) -> dict[int, np.ndarray]:
    """All trees of a grammar with uniform rules, which are equally probable, {tree_level:
    (trees, nodes)}.
    """
    levels = [np.arange(grammar.num_classes)[:, None]]
    for level in range(grammar.depth, 0, -1):
        rules = np.asarray(grammar.rules[level])
        above = levels[-1]
        choices = np.stack(
            np.meshgrid(*[np.arange(rules.shape[1])] * above.shape[1], indexing="ij"), -1
        ).reshape(-1, above.shape[1])
        below = rules[above[:, None], choices[None]].reshape(len(above) * len(choices), -1)
        levels = [np.repeat(nodes, len(choices), axis=0) for nodes in levels] + [below]
    return dict(enumerate(reversed(levels)))


def transition(leaves: np.ndarray, share: float | None) -> csr_matrix:
    """Matrix P(x, x') = sum over masked sets S of P(S) p(x' | x outside of S), of equally probable
    strings (strings, leaves).

    Each leaf is masked with probability `share`; None: one leaf is masked, drawn uniformly.
    """
    n, d = leaves.shape
    total = csr_matrix((n, n))
    for number in range(2**d) if share is not None else 2 ** np.arange(d):
        masked = np.array([int(number) >> k & 1 for k in range(d)], bool)
        weight = (
            1 / d if share is None else share ** masked.sum() * (1 - share) ** (d - masked.sum())
        )
        group = np.unique(leaves[:, ~masked], axis=0, return_inverse=True)[1].ravel()
        member = csr_matrix((np.ones(n), (np.arange(n), group)))
        total = total + member.multiply(weight / np.bincount(group)) @ member.T
    return total.tocsr()


def against_enumeration(
    grammar: tuple[int, int, int, int],
    corruption: str,
    noise: float,
    backward: str,
    read: list[int],
    chains: int,
    seed: int,
) -> xr.Dataset:
    """Chains on a small grammar, and what its transition matrix says.

    `overlap` (k, tree_level, moment): mean over chains, standard error; `exact` (k, tree_level): by
    powers of the matrix; `limit` (tree_level): for infinitely many U-turns; `chance`. `clones`
    (tree_level, moment): overlap of two clones of one noisy datum. `alone`, `moved` (chain):
    whether U-turns cannot change the original, and whether one has.
    """
    with begun(1):
        model = RandomHierarchyModel(*grammar, seed=seed)
        originals = Strings(np.arange(chains), model, model.sample(chains, seed))
        parts = build("corruption", {"type": corruption}), build("backward", BACKWARDS[backward])
        first = originals.draw.latents
        moved = np.zeros(chains, bool)
        overlaps = []
        for state in chain(originals, *parts, noise, steps=max(read), streams=seed):
            moved |= (state.data != originals.data).any(axis=1)
            if state.step in read:
                overlaps.append(_moments(state.originals.draw.latents, first))
        twins = u_turn(originals, *parts, noise, seed + 1000, clones=2).reconstructions
        clones = _moments(*({level: nodes[:, k] for level, nodes in twins.items()} for k in (0, 1)))
        trees = every_tree(model)
        P = transition(trees[0], noise if corruption == "masking" else None)
        component = connected_components(P, directed=False)[1]
        number = {leaves.tobytes(): k for k, leaves in enumerate(trees[0].astype(np.int64))}
        row = [number[leaves.tobytes()] for leaves in originals.data]
        names = "tree_level", "moment"
        return xr.Dataset(
            {
                "overlap": (("k", *names), np.array(overlaps)),
                "exact": (("k", "tree_level"), overlaps_of(trees, P, read)),
                "clones": (names, clones),
                "limit": ("tree_level", limit_of(trees, component)),
                "chance": ("tree_level", limit_of(trees, np.zeros_like(component))),
                "alone": ("chain", (np.bincount(component) == 1)[component[row]]),
                "moved": ("chain", moved),
            },
            {"k": read, "moment": ["mean", "error"]},
        )


def _moments(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray]) -> np.ndarray:
    """Overlap of trees, mean over chains and its standard error, (tree_level, 2)."""
    same = np.array([(a[level] == b[level]).mean(axis=1) for level in sorted(b)])
    return np.stack([same.mean(axis=1), same.std(axis=1, ddof=1) / np.sqrt(same.shape[1])], axis=1)


def _indicators(nodes: np.ndarray) -> np.ndarray:
    """Whether a node has a symbol, for all nodes and symbols of a level, (trees, nodes *
    symbols).
    """
    return (nodes[:, :, None] == np.arange(nodes.max() + 1)).reshape(len(nodes), -1).astype(float)


def overlaps_of(trees: Mapping[int, np.ndarray], P: csr_matrix, read: list[int]) -> np.ndarray:
    """Overlap after k U-turns, (k, tree_level): mean of f P^k f over trees, as P is symmetric,
    from k / 2 powers.
    """
    overlaps = []
    for level in sorted(trees):
        power = _indicators(trees[level])
        shares = dict[int, float]()
        for k in range(max(read) // 2 + 1):
            after = P @ power
            for turns, other in ((2 * k, power), (2 * k + 1, after)):
                if turns in read:
                    shares[turns] = (power * other).sum() / trees[level].size
            power = after
        overlaps.append([shares[k] for k in read])
    return np.transpose(overlaps)


def limit_of(trees: Mapping[int, np.ndarray], component: np.ndarray) -> np.ndarray:
    """Mean over nodes of sum over components C of P(C) sum_a P(a | C)^2, (tree_level,)."""
    member = csr_matrix((np.ones(len(component)), (component, np.arange(len(component)))))
    sums = [member @ _indicators(trees[level]) for level in sorted(trees)]
    size = np.bincount(component)[:, None]
    return np.array(
        [
            (of**2 / size).sum() / len(component) / trees[level].shape[1]
            for level, of in enumerate(sums)
        ]
    )
