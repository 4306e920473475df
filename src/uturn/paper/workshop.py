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
from uturn.core.processes import cores, in_processes
from uturn.core.progress import progress_bar
from uturn.engine.run import run
from uturn.store.datasets import write_dataset
from uturn.store.outputs import OutputFolder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from uturn.exact.rhm import RandomHierarchyModel
    from uturn.networks.training import History

    Train = Callable[[Path], tuple[Sequence[torch.nn.Module], History]]
    Kept = tuple[Mapping[str, Any], Callable[[], xr.Dataset]]
    """Settings of a computation, and the function."""

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

    def runs(self, figure: str, experiments: Mapping[str, Experiment], apart: bool = False) -> dict[str, xr.Dataset]:
        """The results of the experiments of a figure; figures that share runs name the same figure.

        `apart`: each of the experiments in one process, for small ones with networks, whose processes take long to start.
        """
        named = {f"{figure}-{label}": experiment for label, experiment in experiments.items()}
        if apart and not self.cluster:
            new = [job for job in named.items() if not Path(self._kept.place(f"{job[0]}.zarr")).exists()]
            self.each(figure, _run_alone, new)
        return {label: self.run(name, named[name]) for label, name in zip(experiments, named, strict=True)}

    def keep(self, label: str, settings: Mapping[str, Any], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """What `compute()` returns, kept in `folder/label.zarr` with its settings (plain data) and computed once for them."""
        data = self._found(label, settings)
        if data is not None:
            return data
        data = compute()
        data = data.assign_attrs(settings=_identity(settings), digest=_digest(data))
        write_dataset(data, self._kept.path / f"{label}.zarr")
        self._kept.push(f"{label}.zarr")
        return data

    def keep_all(self, what: str, jobs: Mapping[str, Kept]) -> dict[str, xr.Dataset]:
        """`keep` of independent computations by label, in several processes as far as they are missing."""
        missing = [(label, *job) for label, job in jobs.items() if self._found(label, job[0]) is None]
        self.each(what, _keep_alone, missing, threads=0)
        return {label: self.keep(label, *job) for label, job in jobs.items()}

    def _found(self, label: str, settings: Mapping[str, Any]) -> xr.Dataset | None:
        """What is kept under a label, if it is whole and has these settings."""
        path = self._kept.fetch(f"{label}.zarr")
        if path.exists():
            try:
                data = xr.open_zarr(path, zarr_format=3).load()
                if data.attrs.get("settings") == _identity(settings) and data.attrs.get("digest") == _digest(data):
                    return data
            except (OSError, ValueError, KeyError, RuntimeError):
                pass  # damaged: computed again
        return None

    def trained(self, names: Sequence[str], recipe: Mapping[str, Any]) -> list[Any]:
        """The networks in `folder/name.safetensors`; none if one of them is missing, damaged, or made by another recipe."""
        from uturn.networks.files import load_network

        try:
            networks: list[Any] = [load_network(self._kept.fetch(path.name)) for path in self.files(names)]
        except ValueError:
            return []
        wanted = json.dumps(recipe, sort_keys=True)
        same = (json.dumps(network.facts.get("recipe"), sort_keys=True) == wanted for network in networks)
        return networks if all(same) and all(isinstance(network.facts.get("steps"), int) for network in networks) else []

    def train(self, names: Sequence[str], recipe: Mapping[str, Any], train: Train) -> list[Path]:
        """The files of networks that are trained once for their recipe (plain data).

        `train(checkpoint)` gives the networks, one for each name, and the history of their training, which it takes up from the
        file `checkpoint` if that exists.
        """
        from uturn.networks.files import save_network

        paths = self.files(names)
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

    def denoisers(
        self,
        names: Sequence[str],
        recipe: Mapping[str, Any],
        rhm: RandomHierarchyModel,
        channel: str,
        strings: Callable[[], np.ndarray],
        **training: Any,
    ) -> list[Any]:
        """Denoisers trained once on strings of a grammar: the best state, and for a second name the last one."""
        from uturn.networks.strings import denoisers

        def trained(checkpoint: Path) -> tuple[list[Any], History]:
            options = {**training, "checkpoint": checkpoint, "progress": self.progress}
            *states, history = denoisers.train_denoiser(rhm, channel, strings(), **options)
            return states[: len(names)], history

        self.train(names, recipe, trained)
        return self.trained(names, recipe)

    def each(
        self, what: str, work: Callable[..., tuple[str, Any]], tasks: Sequence[tuple[Any, ...]], threads: int = 1
    ) -> dict[str, Any]:
        """The labelled results `work(*task, workshop)` of all tasks, in several processes of so many threads (0: what there is).

        Threads do not speed up small networks and small arrays.
        """
        workers, quiet = min(self.workers or cores(), len(tasks)), replace(self, progress=False, workers=1)
        jobs, results = [(*task, quiet) for task in tasks], {}
        if jobs:
            with progress_bar(self.progress, what, len(jobs), 0) as advance:
                pairs = in_processes(work, jobs, workers, threads) if workers > 1 else (work(*job) for job in jobs)
                for label, result in pairs:
                    results[label] = result
                    advance()
        return results

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

    def files(self, names: Sequence[str]) -> list[Path]:
        """The files of trained networks."""
        return [self._kept.path.resolve() / f"{name}.safetensors" for name in names]

    @property
    def _kept(self) -> OutputFolder:
        return OutputFolder.of(self.folder)


def file_name(label: str) -> str:
    """A label of a figure as a part of a file's name."""
    return "".join(c for c in label.lower().replace("η", "eta") if c.isalnum() or c in "-.")


def _run_alone(label: str, experiment: Experiment, workshop: Workshop) -> tuple[str, None]:
    workshop.run(label, experiment)
    return label, None


def _keep_alone(label: str, settings: Any, compute: Any, workshop: Workshop) -> tuple[str, None]:
    workshop.keep(label, settings, compute)
    return label, None


def _identity(settings: Mapping[str, Any]) -> str:
    return json.dumps({**settings, "random_version": random.VERSION}, sort_keys=True)


def _digest(data: xr.Dataset) -> str:
    """SHA-256 of all values and labels: a lost chunk would be read as missing values."""
    digest = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        values = data[name].values
        text = values.dtype.kind not in "biufc"
        digest.update(f"{name} {values.shape}".encode() + (repr(values.tolist()).encode() if text else values.tobytes()))
    return digest.hexdigest()
