"""Image experiments end to end, on the embedded networks with few steps."""

import json

import numpy as np
import pytest

import uturn as ut

SPEC = {
    "items": 4,
    "chunk": 2,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.0, 0.25, 1.0]},
    "backward": {"type": "diffusion", "steps": 4},
    "probes": [{"type": "network_layers", "reference": 50}, {"type": "images"}],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "store"
    return folder, ut.run(ut.Experiment.from_dict(SPEC), folder).load()


def test_labels_and_the_identity(finished):
    _, ds = finished
    assert ds.similarity.dims == ("noise", "item", "trajectory", "network_layer")
    assert ds.same_class.dims == ("noise", "item", "trajectory")
    assert ds.network_layer.values.tolist()[-1] == "logits"
    assert ds.label.values.tolist() == [0, 1, 2, 3]
    # K = 0, bit for bit.
    assert np.array_equal(ds.image.sel(noise=0)[:, 0], ut.fashion_mnist.load_test_set()[0][:4])
    assert (ds.same_class.sel(noise=0) == 1).all()
    assert np.allclose(ds.similarity.sel(noise=0), 1)
    assert (ds.similarity.sel(noise=0.25) > ds.similarity.sel(noise=1.0)).mean() > 0.9


def test_the_noise_axis(finished):
    _, ds = finished
    assert ds.step.values.tolist() == [0, 1, 4]
    assert {"timestep", "abar", "log_snr", "sigma"} <= set(ds.coords)
    assert ds.abar[0] == 1
    assert (np.diff(ds.abar) < 0).all()
    assert np.allclose(ds.sigma[1:], np.sqrt((1 - ds.abar[1:]) / ds.abar[1:]))
    assert json.loads(ds.attrs["models"])["backward"]


@pytest.mark.usefixtures("unchecked_models")
def test_images_do_not_depend_on_the_batch(finished):
    _, ds = finished
    together = ut.run(ut.Experiment.from_dict({**SPEC, "chunk": 4}))
    # Float32 rounding over four steps; values in [-1, 1].
    assert np.abs(together.image - ds.image).max() < 1e-4


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 28, 28, 3)])
def test_images_of_the_wrong_shape(tmp_path, shape):
    np.save(tmp_path / "images.npy", np.zeros(shape, np.uint8))
    spec = {**SPEC, "source": {"type": "array", "path": str(tmp_path / "images.npy")}}
    with pytest.raises(ValueError, match=r"takes, \(1, 28, 28\)"):
        ut.run(ut.Experiment.from_dict(spec))
