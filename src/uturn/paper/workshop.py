"""Where and how a figure does its work: runs, computations and trained networks, each done once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from uturn.core import random
from uturn.core.experiment import Experiment
from uturn.core.processes import in_processes
from uturn.core.progress import progress_bar
from uturn.engine.run import run
from uturn.store.datasets import write_dataset
from uturn.store.outputs import OutputFolder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from uturn.networks.training import History

    Train = Callable[[Path], tuple[Sequence[torch.nn.Module], History]]

Scale = Literal["smoke", "paper"]


@dataclass(frozen=True)
class Workshop:
    """The scale of a figure, and the folder that keeps what is finished; the next call finds it there."""

    scale: Scale
    folder: Path | OutputFolder
    workers: int | None = None
    progress: bool = False
    cluster: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `uturn.run`

    def run(self, label: str, experiment: Experiment) -> xr.Dataset:
        """The results of an experiment; what is missing in `folder/label.zarr` is run."""
        path = self._kept.place(f"{label}.zarr")
        return run(experiment, path, workers=self.workers, progress=self.progress, **self.cluster)

    def runs(self, figure: str, experiments: Mapping[str, Experiment]) -> dict[str, xr.Dataset]:
        """The results of the experiments of a figure; figures that share runs name the same figure."""
        return {label: self.run(f"{figure}-{label}", experiment) for label, experiment in experiments.items()}

    def keep(self, label: str, settings: Mapping[str, Any], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """What `compute()` returns, kept in `folder/label.zarr` with its settings (plain data) and computed once for them."""
        path = self._kept.fetch(f"{label}.zarr")
        identity = json.dumps({**settings, "random_version": random.VERSION}, sort_keys=True)
        if path.exists():
            try:
                kept = xr.open_zarr(path, zarr_format=3).load()
                if kept.attrs.get("settings") == identity and kept.attrs.get("digest") == _digest(kept):
                    return kept
            except (OSError, ValueError, KeyError, RuntimeError):
                pass  # damaged: computed again
        data = compute()
        data = data.assign_attrs(settings=identity, digest=_digest(data))
        write_dataset(data, path)
        self._kept.push(path.name)
        return data

    def trained(self, names: Sequence[str], recipe: Mapping[str, Any]) -> list[Any]:
        """The networks in `folder/name.safetensors`; none if one of them is missing, damaged, or made by another recipe."""
        from uturn.networks.files import load_network

        try:
            found: list[Any] = [load_network(self._kept.fetch(path.name)) for path in self._networks(names)]
        except ValueError:
            return []
        wanted = json.dumps(recipe, sort_keys=True)
        same = (json.dumps(one.facts.get("recipe"), sort_keys=True) == wanted for one in found)
        return found if all(same) and all(isinstance(one.facts.get("steps"), int) for one in found) else []

    def train(self, names: Sequence[str], recipe: Mapping[str, Any], train: Train) -> list[Path]:
        """The files of networks that are trained once for their recipe (plain data).

        `train(checkpoint)` gives the networks, one for each name, and the history of their training, which it takes up from the
        file `checkpoint` if that exists.
        """
        from uturn.networks.files import save_network

        paths = self._networks(names)
        if self.trained(names, recipe):
            return paths
        self._kept.path.mkdir(parents=True, exist_ok=True)
        # Each recipe has a checkpoint of its own: what another one left behind does not matter.
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        checkpoint = self._kept.path.resolve() / f"{names[0]}-{digest[:8]}.checkpoint"
        resumed = checkpoint.exists()
        try:
            networks, history = train(checkpoint)
        except ValueError:
            if not resumed:
                raise
            checkpoint.unlink()  # damaged
            return self.train(names, recipe, train)
        for path, network in zip(paths, networks, strict=True):
            save_network(network, path, recipe=recipe, steps=history.steps, records=history.records)
            self._kept.push(path.name)
        checkpoint.unlink(missing_ok=True)
        return paths

    def each(
        self, what: str, work: Callable[..., tuple[str, xr.Dataset]], tasks: Sequence[tuple[Any, ...]], workers: int
    ) -> dict[str, xr.Dataset]:
        """The labelled datasets `work(*task, workshop)` of all tasks, in processes of one thread each if there are several.

        Threads do not speed up the small networks of strings.
        """
        if workers <= 1:
            return dict(work(*task, self) for task in tasks)
        runs, quiet = {}, replace(self, progress=False)
        with progress_bar(self.progress, what, len(tasks), 0) as advance:
            for label, run in in_processes(work, [(*task, quiet) for task in tasks], workers, threads=1):
                runs[label] = run
                advance()
        return runs

    def layer_statistics(self, name: str, classifier: Path, reference: Callable[[], np.ndarray]) -> Path:
        """The file of the means and variances of the layers of a classifier over reference data, measured once."""
        from uturn.networks.files import load_network
        from uturn.probes.hidden_layers import HiddenLayers

        path = self._kept.fetch(f"{name}.safetensors").resolve()
        probe = HiddenLayers(load_network(classifier), "every block")
        if path.exists():
            try:
                probe.load_statistics(path)
                return path
            except ValueError:
                pass  # damaged, or of another network: measured again
        probe.fit(reference()).save_statistics(path)
        self._kept.push(path.name)
        return path

    def _networks(self, names: Sequence[str]) -> list[Path]:
        return [self._kept.path.resolve() / f"{name}.safetensors" for name in names]

    @property
    def _kept(self) -> OutputFolder:
        return OutputFolder.of(self.folder)


def _digest(data: xr.Dataset) -> str:
    """SHA-256 of all values and labels: a lost chunk would be read as missing values."""
    digest = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        values = data[name].values
        text = values.dtype.kind not in "biufc"
        digest.update(f"{name} {values.shape}".encode() + (repr(values.tolist()).encode() if text else values.tobytes()))
    return digest.hexdigest()
