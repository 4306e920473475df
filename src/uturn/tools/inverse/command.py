"""`uturn inverse`."""

from __future__ import annotations

import typer

from uturn.cli.app import STUDIES, command
from uturn.cli.options import Out, Running
from uturn.cli.running import results_into
from uturn.tools.inverse.options import InverseOptions


@command(STUDIES)
def inverse(out: Out = "results/inverse", *, chosen: InverseOptions, running: Running) -> None:
    """Test whether posterior samplers of an inverse problem draw from the posterior, without ground
    truth about it.

    Images are measured, y = A(x) + noise, at several strengths of the operator A. Each sampler
    draws several reconstructions of each measurement. Given y, the original and exact draws from
    p(x | y) are exchangeable, so any reading that tells them apart shows an error. The command
    tests the distance of two images, their class, the likelihood log p(y | x) and the ranks of the
    original among its reconstructions, and says which kind of error it is: too sure, not sure
    enough, shifted, wrong modes, deaf to the data. The table also has the share of kept classes,
    t\\*, and the number of calls of the network.

    With real images, sampler and model are judged together; --data generated, originals drawn by
    the model, judges the sampler alone, as do vectors of a law of your own, which need no model.
    Several can be given. Samplers and operators are those of deepinv by name, or your own:
    module:function. A function without a denoiser needs no model either.

    Writes the page `index.html` (truth, measurement, reconstructions and their spread at each
    strength), `inverse.json`, `inverse.csv`, the report `inverse-report.json`, `errors/`, the files
    of `uturn images`, and a store for each sampler. The command can be stopped at any time; running
    it again resumes. More samplers, items or levels extend the results. The exit code is 0 if no
    test of a sampler rejects, 1 if one does, and 2 for wrong input. Without options, it tests two
    samplers of deepinv on the package's Fashion-MNIST model, behind hidden boxes, in five minutes.
    Needs uturn[inverse].

    Example:

    ```
    uturn inverse --out results/inverse
    uturn inverse --data fashion_mnist --data generated --sampler deepinv:DPS --out results/inverse
    uturn inverse --model google/ddpm-cifar10-32 --data photos --size 32 \\
      --operator blur --levels 0.5,1,2 --sampler 'deepinv:DiffPIR steps=50 zeta=0.3' \\
      --sampler own:langevin --out results/blur
    ```
    """
    from uturn.tools.inverse.judge import SamplerJudge

    procedure = SamplerJudge(chosen)
    results_into(out, procedure, running)
    if procedure.exit_code:
        raise typer.Exit(procedure.exit_code)
