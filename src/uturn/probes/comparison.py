"""Probes that compare two data by symmetric functions: an original with its reconstructions, and the
clones of a noisy datum with each other.

A spec names a probe of one's own by its module and class: `type = "distances:Distance"` for the class
`Distance` of `distances.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.data import N, O, UTurns
from uturn.core.messages import shown
from uturn.core.own_parts import name_of
from uturn.core.protocols import Probe, S
from uturn.measures.clones import over_other_clones

Features = Mapping[Any, np.ndarray]  # any key: names, tree levels, lengths
"""What a comparison needs of the data: arrays with the same leading axes, (items, ..) for originals
and (items, draws, ..) for reconstructions."""


class Comparison(Probe[O, N, S]):
    """A probe of functions f(x, y) = f(y, x) of two data.

    `features` gives what the functions need of each datum, and `compare` applies them to pairs. The
    readings compare each reconstruction with its original. With several clones, the probe also
    reads `clone_<name>` for each variable that is declared `symmetric`: each clone compared with
    the other clones of its noisy datum, averaged over them. If the reconstructions are draws from
    the posterior, both have the same mean.

    Examples
    --------
    >>> import uturn as ut
    >>> class Distance(ut.probes.Comparison):
    ...     def variables(self, source):
    ...         dims = ("noise", "item", "trajectory")
    ...         return {"distance": ut.Variable(dims, "distance of two vectors", start=0, symmetric=True)}
    ...
    ...     def compare(self, first, second):
    ...         return {"distance": np.linalg.norm(first["data"] - second["data"], axis=-1)}
    >>> originals = ut.sources.GaussianMixtureSource(dimension=2).fresh(np.arange(1), seed=0)
    >>> clones = np.array([[[0.0, 0.0], [3.0, 4.0]]])
    >>> Distance().read(ut.UTurns(originals, None, clones, clones=2), None)["clone_distance"]
    array([[5., 5.]])
    """

    def features(self, u_turns: UTurns[O, N], source: S) -> tuple[Features, Features]:
        """Features of the originals {name: (items, ..)}, and of the reconstructions {name: (items,
        draws, ..)}.

        By default the data themselves, as "data".
        """
        originals = u_turns.originals
        return {"data": originals.data}, {"data": originals.data_of(u_turns.reconstructions)}

    @abstractmethod
    def compare(self, first: Features, second: Features) -> Mapping[str, np.ndarray]:
        """The readings {name: (items, draws, ..)} of pairs of data, from their features {name:
        (items, draws, ..)}.

        The first data may have a single draw for each item, the original.
        """

    def read(self, u_turns: UTurns[O, N], source: S) -> dict[str, np.ndarray]:
        before, after = self._checked_features(u_turns, source)
        return self.compared(before, after, u_turns.clones, source)

    def _checked_features(self, u_turns: UTurns[O, N], source: S) -> tuple[Features, Features]:
        """The features; ValueError unless they are two tables of arrays, a row for each item."""
        given: object = self.features(u_turns, source)
        where = f"{name_of(self, self.probe_name)}.features"
        expected = "two tables, {name: array (items, ..)} and {name: array (items, draws, ..)}"
        if not isinstance(given, tuple) or len(given) != 2:
            raise ValueError(f"{where} = {shown(given)}: expected {expected}")
        before, after = given
        items = len(u_turns.originals.items)
        for table in (before, after):
            expect(isinstance(table, Mapping), where, table, expected)
            for name, values in table.items():
                is_array = hasattr(values, "shape")
                expect(is_array, f"{where}: {name!r}", values, "an array (items, ..)")
                shape = np.shape(values)
                fits = shape[:1] == (items,)
                expect(fits, f"{where}: shape of {name!r}", shape, f"({items}, ..): items, ..")
        return before, after

    def compared(
        self, originals: Features, reconstructions: Features, clones: int, source: S
    ) -> dict[str, np.ndarray]:
        """The readings of reconstructions and their originals, from their features, and those of
        the clones.
        """
        readings = self._checked_compare(_with_one_draw(originals), reconstructions)
        if clones == 1:
            return readings
        of_clone = [_clone(reconstructions, k, clones) for k in range(clones)]
        pairs = {
            (j, k): self._checked_compare(of_clone[j], of_clone[k])
            for j, k in combinations(range(clones), 2)
        }
        for name, variable in self.variables(source).items():
            if variable.symmetric:
                self._check_reading(name, readings)
                of_pairs = {pair: values[name] for pair, values in pairs.items()}
                readings[f"clone_{name}"] = _mean_over_others(of_pairs, clones)
        return readings

    def _checked_compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        """The readings of pairs of data; ValueError unless they are a table."""
        readings: object = self.compare(first, second)
        if not isinstance(readings, Mapping):
            where = f"{name_of(self, self.probe_name)}.compare"
            expected = "{name: array (items, draws, ..)}"
            raise ValueError(f"{where} = {shown(readings)}: expected {expected}")
        return dict(readings)

    def _check_reading(self, name: str, readings: Mapping[str, np.ndarray]) -> None:
        """ValueError unless `compare` gives a symmetric variable for every pair."""
        where = f"{name_of(self, self.probe_name)}.compare"
        expect(name in readings, where, list(readings), f"{name!r}, which is declared symmetric")
        shape = np.shape(readings[name])
        expected = "(items, draws, ..), a value for each pair of data"
        expect(len(shape) >= 2, f"{where}: shape of {name}", shape, expected)


def _with_one_draw(features: Features) -> Features:
    """Features of originals (items, ..) as those of one draw of each, (items, 1, ..)."""
    return {name: values[:, None] for name, values in features.items()}


def _clone(features: Features, number: int, clones: int) -> Features:
    """Features of the clones of one number, (items, trajectories, ..)."""
    return {name: values[:, number::clones] for name, values in features.items()}


def _mean_over_others(of_pairs: Mapping[tuple[int, int], np.ndarray], clones: int) -> np.ndarray:
    """Readings (items, draws, ..) of each clone with the others, from the readings (items,
    trajectories, ..) of pairs of clones.
    """
    means = over_other_clones(clones, lambda j, k: of_pairs[j, k])
    table = np.stack(means, axis=2)
    return table.reshape(len(table), -1, *table.shape[3:])
