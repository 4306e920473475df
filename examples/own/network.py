"""A network whose hidden layers are probed; `python network.py` writes the statistics that
standardise its activations.
"""

import numpy as np
import torch
from torch import nn


def network():
    """A convolutional classifier of series (batch, length); weights that were trained would be
    loaded here.
    """
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv1d(width, 8, 5, stride=2, padding=2), nn.ReLU()) for width in (1, 8, 8)
    ]
    return nn.Sequential(nn.Unflatten(1, (1, -1)), *blocks, nn.Flatten(), nn.Linear(64, 2)).eval()


if __name__ == "__main__":
    from series import Series

    from uturn.core.random import keys
    from uturn.probes.hidden_layers import HiddenLayers

    reference = Series(length=64).draw(keys(1, range(1000))).astype(np.float32)
    HiddenLayers(network(), "every block").fit(reference).save_statistics("statistics.safetensors")
