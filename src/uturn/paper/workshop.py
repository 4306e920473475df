"""Runs, computations and trained networks of the figures, each computed once and stored in a
folder.
"""

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

from uturn.core.checks import expect
from uturn.core.experiment import Experiment
from uturn.core.processes import cores, in_processes
from uturn.core.progress import progress_bar
from uturn.engine.run import run
from uturn.paper.identity import identity_of
from uturn.store.folders import is_empty
from uturn.store.outputs import OutputFolder, digest_of_dataset, write_dataset
from uturn.store.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from uturn.networks.training import History

    Train = Callable[[Path], tuple[Sequence[torch.nn.Module], History]]

Scale = Literal["smoke", "paper"]


@dataclass(frozen=True)
class Workshop:
    """The scale of a figure, and the folder that stores its results; later calls reuse them."""

    scale: Scale
    folder: Path | OutputFolder
    workers: int | None = None
    """Processes of a run; by default those of `uturn.run(workers="auto")`."""
    progress: bool = False
    cluster: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `uturn.run`

    def run(self, label: str, experiment: Experiment) -> xr.Dataset:
        """The results of an experiment; items that are missing in `folder/label` are computed.

        A run of another experiment, or with other models, is replaced: the constants of a figure
        have changed.
        """
        place = self._kept.location_of(label)
        if not self._is_run_of(experiment, place):
            self._kept.remove(label)
        options: dict[str, Any] = {"progress": self.progress, **self.cluster}
        if self.workers is not None or not self.cluster.get("cluster"):
            options["workers"] = self.workers or "auto"
        return run(experiment, place, **options)

    def _is_run_of(self, experiment: Experiment, place: str) -> bool:
        """Whether a place is empty, or holds a run of this experiment."""
        if is_empty(place):
            return True
        attributes = RunFolder.open(place).attributes
        same_spec = attributes.get("spec_hash") == experiment.hash
        return same_spec and attributes["models"] == experiment.models()

    def runs(
        self, figure: str, experiments: Mapping[str, Experiment], apart: bool = False
    ) -> dict[str, xr.Dataset]:
        """The results of the experiments of a figure; figures that share runs name the same figure.

        `apart`: run the experiments side by side, each in a single process. This is faster for
        small experiments with networks, whose processes start slowly.
        """
        named = {f"{figure}-{label}": experiment for label, experiment in experiments.items()}
        if apart and self.cluster.get("cluster") is None:
            new = [
                job for job in named.items() if not Path(self._kept.location_of(job[0])).exists()
            ]
            self.each(figure, Workshop.run, new)
        return {
            label: self.run(name, named[name])
            for label, name in zip(experiments, named, strict=True)
        }

    def keep(
        self, label: str, function: Callable[..., xr.Dataset], /, **arguments: Any
    ) -> xr.Dataset:
        """The dataset `function(**arguments)`, stored in `folder/label.zarr`.

        It is computed again if the arguments, the code and constants that the function uses, or the
        version of the package have changed (`uturn.paper.identity`). The function is one of a
        module, so that other processes find it.
        """
        return self.keep_all(label, function, {label: arguments})[label]

    def keep_all(
        self, what: str, function: Callable[..., xr.Dataset], calls: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, xr.Dataset]:
        """The datasets `function(**arguments)` of several calls {label: arguments}, each stored as
        by `keep`.

        Missing ones are computed side by side in several processes; `what` names them in the
        progress bar.
        """
        identities = {label: identity_of(function, arguments) for label, arguments in calls.items()}
        stored = {label: self._stored(label, identity) for label, identity in identities.items()}
        missing = [label for label, data in stored.items() if data is None]
        tasks = [(label, identities[label], function, calls[label]) for label in missing]
        if len(missing) == 1:
            self._compute(*tasks[0])
        else:
            self.each(what, Workshop._compute, tasks, threads=0)
        return {
            label: self._read(label) if data is None else data for label, data in stored.items()
        }

    def _compute(
        self,
        label: str,
        identity: str,
        function: Callable[..., xr.Dataset],
        arguments: Mapping[str, Any],
    ) -> None:
        """Compute a dataset and store it."""
        data = function(**arguments).assign_attrs(identity=identity)
        write_dataset(data, self._kept.path / f"{label}.zarr")
        self._kept.push(f"{label}.zarr")

    def _stored(self, label: str, identity: str) -> xr.Dataset | None:
        """The stored dataset of a label, if it is complete and that of this computation."""
        path = self._kept.fetch(f"{label}.zarr")
        if not path.exists():
            return None
        try:
            data = self._read(label)
        except (OSError, ValueError, KeyError, RuntimeError):
            return None  # damaged
        return data if data.attrs.get("identity") == identity else None

    def _read(self, label: str) -> xr.Dataset:
        """The dataset in `folder/label.zarr`; ValueError if files of it are missing or damaged."""
        path = self._kept.path / f"{label}.zarr"
        data = xr.open_zarr(path, zarr_format=3).load()
        expect(
            data.attrs.pop("digest", "") == digest_of_dataset(path),
            f"{path}: files",
            "damaged ones",
            "those that were written",
        )
        return data

    def trained(self, names: Sequence[str], recipe: Mapping[str, Any]) -> list[Any]:
        """The networks in `folder/name.safetensors`; an empty list if one is missing, damaged,
        or has another recipe.
        """
        from uturn.networks.files import load_network

        try:
            networks: list[Any] = [
                load_network(self._kept.fetch(path.name)) for path in self.files(names)
            ]
        except ValueError:
            return []
        wanted = json.dumps(recipe, sort_keys=True)
        facts = [network.facts for network in networks]
        same = (
            json.dumps(of.get("recipe"), sort_keys=True) == wanted
            and isinstance(of.get("steps"), int)
            for of in facts
        )
        return networks if all(same) else []

    def train(self, names: Sequence[str], recipe: Mapping[str, Any], train: Train) -> list[Path]:
        """The files of networks, which are trained unless files of the same recipe (plain data)
        exist.

        `train(checkpoint)` returns one network for each name, and the history of their training; it
        resumes from the file `checkpoint` if that exists.
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

    def classifier(
        self,
        name: str,
        recipe: Mapping[str, Any],
        prepare: Callable[[], tuple[Any, ...]],
        **training: Any,
    ) -> Path:
        """The file of a classifier, trained by cross-entropy up to the held-out accuracy that is
        the `target` of its recipe.

        `prepare()` gives the network, the function step -> (inputs, classes) of batches, and
        held-out inputs and classes.
        """
        import torch

        from uturn.networks.training import train

        recipe = {
            **recipe,
            "identity": identity_of(prepare, {"recipe": recipe, "training": training}),
        }

        def trained(checkpoint: Path) -> tuple[list[Any], History]:
            network, batch, held_out = prepare()

            def loss(model: Any, step: int) -> torch.Tensor:
                inputs, classes = batch(step)
                return torch.nn.functional.cross_entropy(
                    model(torch.from_numpy(inputs)), torch.from_numpy(classes)
                )

            options: dict[str, Any] = {
                "recipe": recipe,
                "learning_rate": recipe["learning_rate"],
                "progress": self.progress,
            }
            options |= {
                "checkpoint": checkpoint,
                "target": ("accuracy", recipe["target"]),
                **training,
            }
            options["evaluate"] = lambda model: {"accuracy": accuracy(model, *held_out)}
            return [network], train(network, loss, recipe["steps"], **options)

        return self.train([name], recipe, trained)[0]

    def denoisers(
        self,
        names: Sequence[str],
        recipe: Any,
        rhm: Any,
        channel: str,
        strings: Callable[[], np.ndarray],
        **training: Any,
    ) -> list[Any]:
        """Denoisers trained once on strings of the grammar `rhm`: the best state, and for a
        second name the last one.
        """
        from uturn.networks.strings import denoisers

        recipe = {
            **recipe,
            "identity": identity_of(strings, {"recipe": recipe, "training": training}),
        }

        def trained(checkpoint: Path) -> tuple[list[Any], History]:
            options = {**training, "checkpoint": checkpoint, "progress": self.progress}
            *states, history = denoisers.train_denoiser(rhm, channel, strings(), **options)
            return states[: len(names)], history

        self.train(names, recipe, trained)
        return self.trained(names, recipe)

    def each(
        self,
        what: str,
        work: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        threads: int = 1,
    ) -> None:
        """`work(workshop, *task)`, which stores its results, for all tasks in processes of
        `threads` threads (0: equal shares).

        The default of `threads` is 1, because threads do not speed up small networks and small
        arrays.
        """
        workers = min(self.workers or cores(), len(tasks))
        quiet = replace(self, progress=False, workers=1)
        jobs = [(work, quiet, *task) for task in tasks]
        if jobs:
            with progress_bar(self.progress, what, len(jobs), 0, unit="parts") as advance:
                for _ in (
                    in_processes(_alone, jobs, workers, threads)
                    if workers > 1
                    else starmap(_alone, jobs)
                ):
                    advance()

    def layer_statistics(
        self, name: str, classifier: Path, reference: Callable[[], np.ndarray]
    ) -> Path:
        """The file of the means and variances of the layers of a classifier over reference data,
        measured once.
        """
        from uturn.networks.files import load_network
        from uturn.probes.hidden_layers import HiddenLayers

        identity = identity_of(reference, {})
        path = self._kept.fetch(f"{name}-{identity[:8]}.safetensors").resolve()
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

    def identity(self) -> str:
        """What a computation depends on that gets this workshop: its scale."""
        return self.scale

    def files(self, names: Sequence[str]) -> list[Path]:
        return [self._kept.path.resolve() / f"{name}.safetensors" for name in names]

    @property
    def _kept(self) -> OutputFolder:
        return OutputFolder.of(self.folder)


def accuracy(network: Any, inputs: np.ndarray, classes: np.ndarray) -> float:
    """Share of inputs whose class is the network's first choice."""
    import torch

    with torch.inference_mode():
        first = [
            network(torch.from_numpy(inputs[k : k + 500])).argmax(1).numpy()
            for k in range(0, len(inputs), 500)
        ]
    return float((np.concatenate(first) == classes).mean())


def file_name(label: str) -> str:
    """A label as a file name: lower case, without characters other than letters, digits, "-" and
    ".".
    """
    return "".join(c for c in label.lower().replace("η", "eta") if c.isalnum() or c in "-.")


def _alone(work: Callable[..., Any], *arguments: Any) -> None:
    """Call a function whose results are read from the store, not sent between processes."""
    work(*arguments)
