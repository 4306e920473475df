"""Runs, computations and trained networks of the figures, each computed once and stored in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from uturn.core import random
from uturn.core.experiment import Experiment
from uturn.core.processes import cores, in_processes
from uturn.core.progress import progress_bar
from uturn.engine.run import run
from uturn.store.outputs import OutputFolder, digest_of_dataset, write_dataset

if TYPE_CHECKING:
    import torch

    from uturn.networks.training import History

    Train = Callable[[Path], tuple[Sequence[torch.nn.Module], History]]
    Kept = tuple[Mapping[str, Any], Callable[[], xr.Dataset]]
    """Settings of a computation, and the function."""

Scale = Literal["smoke", "paper"]


@dataclass(frozen=True)
class Workshop:
    """The scale of a figure, and the folder that stores its results; later calls reuse them."""

    scale: Scale
    folder: Path | OutputFolder
    workers: int | None = None
    progress: bool = False
    cluster: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `uturn.run`

    def run(self, label: str, experiment: Experiment) -> xr.Dataset:
        """The results of an experiment; items that are missing in `folder/label.zarr` are computed."""
        path = self._kept.place(f"{label}.zarr")
        return run(experiment, path, workers=self.workers, progress=self.progress, **self.cluster)

    def runs(self, figure: str, experiments: Mapping[str, Experiment], apart: bool = False) -> dict[str, xr.Dataset]:
        """The results of the experiments of a figure; figures that share runs name the same figure.

        `apart`: run the experiments side by side, each in a single process. This is faster for small experiments with networks,
        whose processes start slowly.
        """
        named = {f"{figure}-{label}": experiment for label, experiment in experiments.items()}
        if apart and self.cluster.get("cluster") is None:
            new = [job for job in named.items() if not Path(self._kept.place(f"{job[0]}.zarr")).exists()]
            self.each(figure, Workshop.run, new)
        return {label: self.run(name, named[name]) for label, name in zip(experiments, named, strict=True)}

    def keep(self, label: str, settings: Mapping[str, Any], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The dataset `compute()`, stored in `folder/label.zarr` and computed again only if its settings (plain data) change."""
        data = self._stored(label, settings)
        if data is None:
            data = compute()
            data = data.assign_attrs(settings=_identity(settings))
            write_dataset(data, self._kept.path / f"{label}.zarr")
            self._kept.push(f"{label}.zarr")
        return data

    def keep_all(self, what: str, jobs: Mapping[str, Kept]) -> dict[str, xr.Dataset]:
        """`keep` for independent computations by label; missing ones run in several processes."""
        stored = {label: self._stored(label, settings) for label, (settings, _) in jobs.items()}
        self.each(what, Workshop.keep, [(label, *jobs[label]) for label, data in stored.items() if data is None], threads=0)
        return {label: self.keep(label, *jobs[label]) if data is None else data for label, data in stored.items()}

    def _stored(self, label: str, settings: Mapping[str, Any]) -> xr.Dataset | None:
        """The stored dataset of a label, if it is complete and has these settings."""
        path = self._kept.fetch(f"{label}.zarr")
        if path.exists():
            try:
                data = xr.open_zarr(path, zarr_format=3).load()
                if data.attrs.get("settings") == _identity(settings) and data.attrs.pop("digest", "") == digest_of_dataset(path):
                    return data
            except (OSError, ValueError, KeyError, RuntimeError):
                pass  # damaged: it is computed again
        return None

    def trained(self, names: Sequence[str], recipe: Mapping[str, Any]) -> list[Any]:
        """The networks in `folder/name.safetensors`; an empty list if one is missing, damaged, or has another recipe."""
        from uturn.networks.files import load_network

        try:
            networks: list[Any] = [load_network(self._kept.fetch(path.name)) for path in self.files(names)]
        except ValueError:
            return []
        wanted, facts = json.dumps(recipe, sort_keys=True), [network.facts for network in networks]
        same = (json.dumps(of.get("recipe"), sort_keys=True) == wanted and isinstance(of.get("steps"), int) for of in facts)
        return networks if all(same) else []

    def train(self, names: Sequence[str], recipe: Mapping[str, Any], train: Train) -> list[Path]:
        """The files of networks, which are trained unless files of the same recipe (plain data) exist.

        `train(checkpoint)` returns one network for each name, and the history of their training; it resumes from the file
        `checkpoint` if that exists.
        """
        from uturn.networks.files import save_network

        paths = self.files(names)
        if self.trained(names, recipe):
            return paths
        self._kept.path.mkdir(parents=True, exist_ok=True)
        # The name contains the recipe, so that a checkpoint of another recipe is not resumed.
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

    def classifier(self, name: str, recipe: Mapping[str, Any], prepare: Callable[[], tuple[Any, ...]], **training: Any) -> Path:
        """The file of a classifier, trained by cross-entropy up to the held-out accuracy that is the `target` of its recipe.

        `prepare()` gives the network, the function step -> (inputs, classes) of batches, and held-out inputs and classes.
        """
        import torch

        from uturn.networks.training import train

        def trained(checkpoint: Path) -> tuple[list[Any], History]:
            network, batch, held_out = prepare()

            def loss(model: Any, step: int) -> torch.Tensor:
                inputs, classes = batch(step)
                return torch.nn.functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(classes))

            options: dict[str, Any] = {"recipe": recipe, "learning_rate": recipe["learning_rate"], "progress": self.progress}
            options |= {"checkpoint": checkpoint, "target": ("accuracy", recipe["target"]), **training}
            options["evaluate"] = lambda model: {"accuracy": accuracy(model, *held_out)}
            return [network], train(network, loss, recipe["steps"], **options)

        return self.train([name], recipe, trained)[0]

    def denoisers(
        self, names: Sequence[str], recipe: Any, rhm: Any, channel: str, strings: Callable[[], np.ndarray], **training: Any
    ) -> list[Any]:
        """Denoisers trained once on strings of the grammar `rhm`: the best state, and for a second name the last one."""
        from uturn.networks.strings import denoisers

        def trained(checkpoint: Path) -> tuple[list[Any], History]:
            options = {**training, "checkpoint": checkpoint, "progress": self.progress}
            *states, history = denoisers.train_denoiser(rhm, channel, strings(), **options)
            return states[: len(names)], history

        self.train(names, recipe, trained)
        return self.trained(names, recipe)

    def each(self, what: str, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], threads: int = 1) -> None:
        """`work(workshop, *task)`, which stores its results, for all tasks in processes of `threads` threads (0: equal shares).

        The default of `threads` is 1, because threads do not speed up small networks and small arrays.
        """
        workers, quiet = min(self.workers or cores(), len(tasks)), replace(self, progress=False, workers=1)
        jobs = [(work, quiet, *task) for task in tasks]
        if jobs:
            with progress_bar(self.progress, what, len(jobs), 0) as advance:
                for _ in in_processes(_alone, jobs, workers, threads) if workers > 1 else starmap(_alone, jobs):
                    advance()

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
                pass  # damaged, or of another network: it is measured again
        probe.fit(reference()).save_statistics(path)
        self._kept.push(path.name)
        return path

    def files(self, names: Sequence[str]) -> list[Path]:
        return [self._kept.path.resolve() / f"{name}.safetensors" for name in names]

    @property
    def _kept(self) -> OutputFolder:
        return OutputFolder.of(self.folder)


def accuracy(network: Any, inputs: np.ndarray, classes: np.ndarray) -> float:
    """Share of inputs whose class is the network's first choice."""
    import torch

    with torch.inference_mode():
        first = [network(torch.from_numpy(inputs[k : k + 500])).argmax(1).numpy() for k in range(0, len(inputs), 500)]
    return float((np.concatenate(first) == classes).mean())


def file_name(label: str) -> str:
    """A label as a file name: lower case, without characters other than letters, digits, "-" and "."."""
    return "".join(c for c in label.lower().replace("η", "eta") if c.isalnum() or c in "-.")


def _alone(work: Callable[..., Any], *arguments: Any) -> None:
    """Call a function whose results are read from the store, not sent between processes."""
    work(*arguments)


def _identity(settings: Mapping[str, Any]) -> str:
    return json.dumps({**settings, "random_version": random.VERSION}, sort_keys=True)
