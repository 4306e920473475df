"""Exact inference for noise that is correlated along a string: a hidden chain of noise states, one at each leaf.

With noise states a of law `pi(a_1) prod_i A(a_i, a_{i+1})` and evidence `p(y_i | x_i, a_i)` at each leaf, messages of a grammar
are matrices between the noise states at both ends of a subtree. A leaf has `M[x] = diag(p(y_i | x, .)) A`, a node the sum of
`p(rule) M_1[x_1] .. M_s[x_s]`, in order, over its rules y -> (x_1, .., x_s); the evidence is `sum_y p(y) pi M[y] 1`. In a hidden
Markov model, pairs of hidden state and noise state are the states of a larger chain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.random import choices, streams, uniforms
from uturn.exact.hmm import HiddenMarkovModel, as_laws
from uturn.exact.inference import infer, sample_posterior
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import impossible_evidence
from uturn.exact.rhm import RandomHierarchyModel

_AT_ONCE = 2**22  # largest number of values of a message in memory
_MOST_APART = 300.0  # nats between finite values of a leaf; messages of a grammar are numbers relative to their largest
_Messages = list[np.ndarray]


class NoiseChain:
    """A hidden Markov chain of noise states along the leaves of strings of a grammar or of a hidden Markov model.

    Parameters
    ----------
    start : array (noise states,)
        Law pi of the noise state of the first leaf.
    transition : array (noise states, noise states)
        Law A of the state of the next leaf (columns) given that of a leaf (rows).

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=3, seed=0)
    >>> noise = NoiseChain([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]])
    >>> nothing = np.zeros((1, 8, 2, 4))  # no evidence, in either state
    >>> noise.infer(rhm, nothing).marginals[3].round(3).tolist()
    [[[0.25, 0.25, 0.25, 0.25]]]
    """

    def __init__(self, start: Any, transition: Any) -> None:
        self.start, self.transition = as_laws("start", start, 1), as_laws("transition", transition, 2)
        shape, states = self.transition.shape, len(self.start)
        expect(shape == (states, states), "shape of transition", shape, f"({states}, {states}), as start has {states} states")

    def infer(self, model: RandomHierarchyModel | HiddenMarkovModel, log_evidence: Any) -> Beliefs:
        """Exact marginals {tree_level: float64 (batch, nodes, symbols)} and log-evidence (batch,).

        `log_evidence`: log p(y_i | x, a) in nats, (batch, num_leaves, noise states, vocab_size); -inf is allowed. ValueError if
        no string has positive probability, and for grammars if finite values of a leaf are more than 300 nats apart.
        """
        evidence = self._checked(model, log_evidence)
        if isinstance(model, HiddenMarkovModel):
            beliefs = infer(self._joint(model), _joined(evidence), outputs=("marginals", "log_evidence"))
            return Beliefs(marginals=self._split(model, beliefs.marginals), log_evidence=beliefs.log_evidence)
        parts = [self._marginals(model, evidence[rows]) for rows in _parts(model, evidence)]
        total = np.concatenate([log_total for _, log_total in parts])
        if not np.isfinite(total).all():
            raise impossible_evidence(np.flatnonzero(~np.isfinite(total)).tolist())
        levels = range(model.depth + 1)
        return Beliefs(marginals={k: np.concatenate([of[k] for of, _ in parts]) for k in levels}, log_evidence=total)

    def sample_posterior(
        self, model: RandomHierarchyModel | HiddenMarkovModel, log_evidence: Any, keys: np.ndarray, numbers: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Exact posterior draws {tree_level: int64 (draws, batch, nodes)}, as `uturn.sample_posterior` with `num_draws`.

        `keys`: uint64 (batch,), one random stream for each sample; `numbers`: uint64 (draws,).
        """
        evidence = self._checked(model, log_evidence)
        if isinstance(model, HiddenMarkovModel):
            drawn = sample_posterior(self._joint(model), _joined(evidence), keys, numbers)
            return {0: drawn[0] % model.vocab_size, 1: drawn[1] // len(self.start)}
        parts = [self._draws(model, evidence[rows], keys[rows], numbers) for rows in _parts(model, evidence)]
        return {level: np.concatenate([part[level] for part in parts], axis=1) for level in range(model.depth + 1)}

    def _checked(self, model: Any, log_evidence: Any) -> np.ndarray:
        values, expected = np.asarray(log_evidence, float), (model.num_leaves, len(self.start), model.vocab_size)
        expect(values.shape[1:] == expected, "shape of log_evidence", values.shape, f"(batch, {', '.join(map(str, expected))})")
        expect((values < np.inf).all(), "log_evidence", log_evidence, "finite values or -inf")
        if not isinstance(model, HiddenMarkovModel):
            finite = np.where(values == -np.inf, np.nan, values)
            apart = np.fmax.reduce(finite, axis=(2, 3)) - np.fmin.reduce(finite, axis=(2, 3))
            most = float(np.fmax.reduce(apart, axis=None, initial=0))
            expect(most <= _MOST_APART, "log_evidence: nats between finite values of a leaf", most, f"at most {_MOST_APART:g}")
        return values

    # -- hidden Markov models: one chain of pairs (hidden state, noise state), which emits pairs (noise state, symbol) --------
    def _joint(self, model: HiddenMarkovModel) -> HiddenMarkovModel:
        h = len(self.start)
        emission = np.einsum("ab,sx->sabx", np.eye(h), model.emission).reshape(model.num_states * h, -1)
        initial, transition = np.kron(model.initial, self.start), np.kron(model.transition, self.transition)
        return HiddenMarkovModel(initial, transition, emission, length=model.num_leaves)

    def _split(self, model: HiddenMarkovModel, marginals: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        h, shape = len(self.start), marginals[0].shape[:2]
        return {
            0: marginals[0].reshape(*shape, h, model.vocab_size).sum(axis=2),
            1: marginals[1].reshape(*shape, model.num_states, h).sum(axis=3),
        }

    # -- grammars --------------------------------------------------------------------------------------------------------
    def _upward(self, rhm: RandomHierarchyModel, log_evidence: np.ndarray) -> tuple[_Messages, np.ndarray]:
        """M by level, float64 (batch, nodes, symbols, h, h), largest values 1; and the logs left out, (batch,)."""
        top = log_evidence.max(axis=(2, 3), keepdims=True)
        with np.errstate(invalid="ignore"):
            leaf = np.exp(log_evidence - np.where(np.isfinite(top), top, 0)).swapaxes(2, 3)[..., None] * self.transition
        messages, logs = [leaf], top.sum(axis=(1, 2, 3))
        for level in range(1, rhm.depth + 1):
            products = _children(rhm, level, messages[-1])
            node = products[0]
            for child in products[1:]:
                node = node @ child
            node = (node * rhm.rule_probabilities[level][..., None, None]).sum(axis=3)
            size = node.max(axis=(2, 3, 4), keepdims=True)
            messages.append(node / np.where(size > 0, size, 1))
            with np.errstate(divide="ignore"):
                logs = logs + np.log(size).sum(axis=(1, 2, 3, 4))
        return messages, logs

    def _root(self, rhm: RandomHierarchyModel) -> np.ndarray:
        """What lies outside of the root: p(y) pi(a), (classes, h, h), the same for all last states."""
        h = len(self.start)
        return rhm.class_probabilities[:, None, None] * np.repeat(self.start[:, None], h, axis=1)

    def _marginals(self, rhm: RandomHierarchyModel, log_evidence: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        messages, logs = self._upward(rhm, log_evidence)
        outside = np.broadcast_to(self._root(rhm), messages[-1].shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = logs + np.log((outside * messages[-1]).sum(axis=(1, 2, 3, 4)))
        marginals = {}
        for level in range(rhm.depth, -1, -1):
            joint = (outside * messages[level]).sum(axis=(3, 4))
            with np.errstate(invalid="ignore"):
                marginals[level] = joint / joint.sum(axis=2, keepdims=True)
            if level:
                outside = self._outside_of_children(rhm, level, messages[level - 1], outside)
        return marginals, total

    def _outside_of_children(self, rhm: RandomHierarchyModel, level: int, below: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """`outside` of the nodes below a level: child i of a rule has L' O R', with L and R the products left and right of it."""
        children, s = _children(rhm, level, below), rhm.branching
        weighted = outside[:, :, :, None] * rhm.rule_probabilities[level][..., None, None]
        result = np.zeros((*below.shape[:1], below.shape[1] // s, s, *below.shape[2:]))
        for i in range(s):
            part = weighted
            for left in children[:i]:
                part = left.swapaxes(-1, -2) @ part
            for right in reversed(children[i + 1 :]):
                part = part @ right.swapaxes(-1, -2)
            flat = part.reshape(*part.shape[:2], -1, *part.shape[4:])
            symbols = rhm.rules[level][..., i].ravel()
            np.add.at(result[:, :, i], np.index_exp[:, :, symbols], flat)  # type: ignore[arg-type]
        result = result.reshape(below.shape)
        size = result.max(axis=(2, 3, 4), keepdims=True)
        return result / np.where(size > 0, size, 1)

    def _draws(
        self, rhm: RandomHierarchyModel, log_evidence: np.ndarray, keys: np.ndarray, numbers: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Draws from the root down: its symbol and end states; of each node, its rule, then the states between children."""
        messages, logs = self._upward(rhm, log_evidence)
        batch, draws, s, h = len(log_evidence), len(numbers), rhm.branching, len(self.start)
        key = np.concatenate([streams(keys, batch, number) for number in numbers])
        row = np.tile(np.arange(batch), draws)[:, None]  # the sample of each draw
        root = (self._root(rhm) * messages[-1][:, 0]).reshape(batch, -1)
        if not (root.sum(axis=1) > 0).all() or not np.isfinite(logs).all():
            raise impossible_evidence(np.flatnonzero(~((root.sum(axis=1) > 0) & np.isfinite(logs))).tolist())
        chosen = choices(root[row[:, 0]][:, None], uniforms(key, 1))
        symbols, before, after = chosen // (h * h), chosen // h % h, chosen % h  # (draws * batch, nodes)
        latents = {rhm.depth: symbols}
        for level in range(rhm.depth, 0, -1):
            nodes = symbols.shape[1]
            u = uniforms(streams(key, len(key), level), nodes * s).reshape(len(key), nodes, s)
            of_rules = rhm.rules[level][symbols]  # (draws * batch, nodes, m, s)
            below = messages[level - 1].reshape(batch, nodes, s, *messages[level - 1].shape[2:])
            node, child = np.arange(nodes)[:, None], np.arange(s)
            matrices = below[row[..., None, None], node[..., None], child, of_rules]  # (draws * batch, nodes, m, s, h, h)
            whole = matrices[:, :, :, 0]
            for i in range(1, s):
                whole = whole @ matrices[:, :, :, i]
            here = np.arange(len(key))[:, None], np.arange(nodes)
            weights = np.moveaxis(whole, 2, -1)[(*here, before, after)] * rhm.rule_probabilities[level][symbols]
            rule = choices(weights, u[..., 0])
            matrices, children = matrices[(*here, rule)], of_rules[(*here, rule)]
            ends, state = [before], before
            for i in range(s - 1):  # the state between children i and i + 1, given the one before and the one at the end
                rest = matrices[:, :, s - 1]
                for j in range(s - 2, i, -1):
                    rest = matrices[:, :, j] @ rest
                state = choices(matrices[:, :, i][(*here, state)] * rest.swapaxes(-1, -2)[(*here, after)], u[..., i + 1])
                ends.append(state)
            ends.append(after)
            symbols = children.reshape(len(key), -1)
            before, after = (np.stack(states, axis=-1).reshape(len(key), -1) for states in (ends[:-1], ends[1:]))
            latents[level - 1] = symbols
        return {level: nodes.reshape(draws, batch, -1) for level, nodes in latents.items()}


def _joined(evidence: np.ndarray) -> np.ndarray:
    return evidence.reshape(*evidence.shape[:2], -1)


def _parts(rhm: Any, evidence: np.ndarray) -> list[slice]:
    """Rows of a batch at a time."""
    h, rules = evidence.shape[2], max(probabilities.size for probabilities in rhm.rule_probabilities.values())
    size = max(1, _AT_ONCE // (rhm.num_leaves * rules * h * h))
    return [slice(first, first + size) for first in range(0, len(evidence), size)]


def _children(rhm: RandomHierarchyModel, level: int, below: np.ndarray) -> list[np.ndarray]:
    """Messages of child i of each rule of a level, (batch, nodes, symbols, rules of a symbol, h, h), for each i."""
    nodes = below.reshape(len(below), -1, rhm.branching, *below.shape[2:])
    return [nodes[:, :, i][:, :, rhm.rules[level][..., i]] for i in range(rhm.branching)]
