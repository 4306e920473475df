"""What the check of denoisers (uturn.networks.model_check) says of wrong networks, and of right
ones.

python benchmarks/wrong_networks.py

Two small models, that of the package and that of examples/atlas, are run as they are, with each
wrong convention, and with random weights. "ratio" is the smallest error with one change over the
error as declared; a change below .8 is named. The row with a shift of the time shows what is not
promised.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.corruption.pieces import Pieces
from uturn.networks import DenoiserModel
from uturn.networks.images.own_denoisers import Conversion
from uturn.networks.images.pretrained import DenoisingNetwork
from uturn.networks.model_check import FITS, Probed, check_denoiser
from uturn.sources.fashion_mnist import generator_folder, load_test_set

ATLAS = Path(__file__).parents[1] / "examples" / "atlas"
INPUTS = {
    "made for t in [0, 1]": lambda x, t: (x, 1000 * t),
    "made for 1000 t": lambda x, t: (x, t / 1000),
    "reversed t": lambda x, t: (x, 999 - t),
    "constant t = 0": lambda x, t: (x, 0 * t),
    "constant t = 500": lambda x, t: (x, 0 * t + 500),
    "made for x / 2": lambda x, t: (2 * x, t),
    "made for 2 x": lambda x, t: (x / 2, t),
    "shift of t by 50": lambda x, t: (x, (t + 50).clamp(max=999)),
}


class Changed(nn.Module):
    """A network whose input is changed, or the sign of its output."""

    def __init__(self, network, inputs=lambda x, t: (x, t), sign=1):
        super().__init__()
        self.network, self.inputs, self.sign = network, inputs, sign

    def forward(self, x, t, *labels):
        output = self.network(*self.inputs(x, t), *labels)
        return self.sign * getattr(output, "sample", output)


def originals(name):
    if name == "mnist":
        pixels = np.load(ATLAS / "mnist.npy")[:10]
        return pixels.reshape(10, 1, *pixels.shape[1:3]).astype(np.float32) / 127.5 - 1
    return load_test_set()[0][:10]


def checked(chain, clean, network=None, predicts=None):
    """The errors of a network in the place of that of a chain, declared to predict `predicts`,
    what is said, and seconds.
    """
    model, scheduler = (
        chain.model.network,
        getattr(chain.forward.scheduler, "base", chain.forward.scheduler),
    )
    if predicts is not None:
        conversion = Conversion(DenoiserModel(model.network, scheduler, predicts=predicts))
        model = DenoisingNetwork(model.network, torch.float32, model.condition, conversion)
    if network is not None:
        model = DenoisingNetwork(network, torch.float32, model.condition, model.conversion)
    pieces, begin = Pieces(chain.device, 64), time.perf_counter()
    with torch.inference_mode():
        said = [finding.words for finding in check_denoiser(model, scheduler, clean, None, pieces)]
        seconds = time.perf_counter() - begin
        return Probed(model, scheduler, clean, None, pieces).errors(), said, seconds


def main():
    names = ("embedded", "mnist")
    print(f"{'model':16} {'network':28} {'ratio':>6} {'s':>5}  said")
    for name in names:
        folder = generator_folder() if name == "embedded" else ATLAS / name
        chain = ReverseDiffusion.from_pretrained(folder, "ddpm", 10, device="cpu")
        clean = torch.from_numpy(chain.forward.clean(originals(name)))
        network = chain.model.network.network
        declared = Probed(
            chain.model.network, chain.forward.scheduler, clean, None, Pieces(chain.device, 64)
        ).prediction
        rows = {"right": {}}
        rows |= {words: {"network": Changed(network, inputs)} for words, inputs in INPUTS.items()}
        rows |= {"flipped sign": {"network": Changed(network, sign=-1)}}
        others = [kind for kind in ("x0", "v", "noise") if kind != declared]
        rows |= {f"predicts {declared}, declared {kind}": {"predicts": kind} for kind in others}
        untrained = (
            type(network).from_config(network.config).eval() if hasattr(network, "config") else None
        )
        rows |= {} if untrained is None else {"random weights": {"network": Changed(untrained)}}
        for words, change in rows.items():
            errors, said, seconds = checked(chain, clean, **change)
            ratio = errors.best[1] if errors.depends_on_time and errors.is_judged else float("nan")
            print(
                f"{name:16} {words:28} {ratio:6.2f} {seconds:5.1f}  {'; '.join(said) or '-'}",
                flush=True,
            )


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"changes with a ratio below {FITS} are named")
    main()
