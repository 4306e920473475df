"""The queue of U-turns: full batches, shared by images at different steps, also when the device
runs out of memory.
"""

import threading

import diffusers
import numpy as np
import pytest
import torch

import uturn as ut
from tiny_denoiser import chain_of
from uturn.backward.reverse_diffusion import ImageWork
from uturn.core.protocols import Coordinate, Variable
from uturn.core.random import keys
from uturn.corruption.schedulers import SCHEDULERS, scheduler_like
from uturn.store.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("unchecked_models")


class Network(torch.nn.Module):
    """Treats every image by itself and by its own timestep; counts rows of each call."""

    def __init__(self, most=10**9):
        super().__init__()
        self.rows, self.most = [], most
        self.eval()

    def forward(self, noisy, timestep, labels=None):
        if len(noisy) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.rows.append(len(noisy))
        t = timestep.to(noisy).view(-1, 1, 1, 1) / 1000
        told = 0 if labels is None else labels.view(-1, 1, 1, 1) / 10
        return torch.tanh(noisy) * (0.2 + t) + 0.1 * noisy.mean((1, 2, 3), keepdim=True) + told


class Halves(torch.nn.Module):
    """A codec that keeps every second row, at a third of its size."""

    def encode(self, images):
        return images[:, :, ::2] / 3

    def decode(self, latents):
        return 3 * latents.repeat_interleave(2, dim=2)


def reverse(name="ddpm", steps=10, network=None, **options):
    return chain_of(
        network or Network(), scheduler_like(diffusers.DDPMScheduler(), name), steps, **options
    )


def images_of(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, 4, 4)).astype(np.float32)


def ladder(backward, images, steps):
    """ImageWork for the queue: noisy images at several steps."""
    streams = keys(0, np.arange(len(images)))
    noisy = {k: backward.corrupt(images, k, streams) for k in steps}
    return [
        ImageWork(noisy[k][i], k, streams[i], name=(k, i))
        for k in steps
        for i in range(len(images))
    ]


@pytest.mark.parametrize(
    "name", [*sorted(SCHEDULERS), "DEISMultistepScheduler", "DPMSolverSinglestepScheduler"]
)
def test_shared_batches_change_nothing(name):
    images, steps = images_of(5), (10, 7, 2, 1, 0)
    queue = reverse(name, batch_size=7)
    queued = dict(queue.queue(ladder(queue, images, steps)))
    assert len(queued) == 25
    for k in steps:
        alone = reverse(name).u_turn(images, k, keys(0, np.arange(5)))
        np.testing.assert_allclose(
            np.stack([queued[k, i] for i in range(5)]), alone, rtol=0, atol=2e-6
        )


def test_batches_are_full_and_no_row_is_done_twice():
    network = Network()
    queue = reverse(steps=50, network=network, batch_size=64)
    work = ladder(queue, images_of(40), range(50, 0, -5))
    assert len(list(queue.queue(work))) == 400
    rows = np.array(network.rows)
    assert rows.sum() == 40 * sum(range(5, 51, 5))
    assert rows.mean() / 64 >= 0.95  # a loop over inversion times reaches 40 of 64


def test_work_is_read_as_places_become_free():
    read = []

    def endless():
        for n in range(10**9):
            read.append(n)
            yield ImageWork(np.zeros((1, 4, 4), np.float32), 3, np.uint64(n), name=n)

    queue = reverse(batch_size=4).queue(endless())
    for done in range(1, 20):
        next(queue)
        assert len(read) - done <= 2 * 4  # in the network, or done and not yet handed out
    assert not torch.is_inference_mode_enabled()


# --- memory ---------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved():
    images = images_of(30)
    small = reverse(network=Network(most=5), batch_size=24)
    result = small.u_turn(images, 6, keys(0, np.arange(30)))
    np.testing.assert_allclose(
        result, reverse().u_turn(images, 6, keys(0, np.arange(30))), rtol=0, atol=1e-6
    )
    assert small.batch_size == 3  # 24, 12, 6, 3
    assert max(small.model.network.rows) <= 5


def test_a_codec_that_needs_more_memory_does_not_shrink_the_batches_of_the_network():
    class Large(Halves):
        failures = 1

        def decode(self, latents):
            if len(latents) > 3:
                raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
            if len(latents) == 1 and self.failures:
                self.failures = 0
                raise MemoryError  # for a moment
            return super().decode(latents)

    images, streams = images_of(9), keys(0, np.arange(9))
    options = {"image_shape": (1, 4, 4), "latent_shape": (1, 2, 4), "batch_size": 8}
    small = reverse(codec=Large(), **options)
    result = small.u_turn(images, 6, streams)
    np.testing.assert_allclose(
        result, reverse(codec=Halves(), **options).u_turn(images, 6, streams), atol=1e-6
    )
    assert small.model.network.rows == [8] * 6 + [1] * 6


def test_other_failures_of_the_network_are_not_swallowed():
    class Broken(Network):
        def forward(self, noisy, timestep):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(
        RuntimeError,
        match=r"shapes cannot be multiplied\nin the model, of noisy images \(2, 1, 4, 4\)",
    ):
        reverse(network=Broken()).u_turn(images_of(2), 3, keys(0, [0, 1]))


def test_automatic_batch():
    assert reverse(batch_size="auto").batch_size == 64  # on the CPU
    with pytest.raises(ValueError, match="'big': expected at least 1 image, or 'auto'"):
        reverse(batch_size="big")


# --- conditional models, latents, pure noise ------------------------------------------------------


def test_labels_follow_their_images():
    images, streams, labels = images_of(6), keys(0, np.arange(6)), np.arange(6)
    told = reverse(num_classes=6, batch_size=4, image_shape=(1, 4, 4))
    together = told.u_turn(images, 5, streams, labels)
    for i in range(6):
        alone = told.u_turn(images[i : i + 1], 5, streams[i : i + 1], labels[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-6)
    assert np.abs(together - told.u_turn(images, 5, streams, labels[::-1].copy())).max() > 1e-3
    assert told.generate(streams, labels).shape == images.shape
    for bad in (None, labels[:2], labels + 1):
        with pytest.raises(ValueError, match=r"expected 6 integers, the classes 0 \.\. 5"):
            told.u_turn(images, 5, streams, bad)


def test_noise_is_added_to_latents():
    images, streams = images_of(3), keys(0, np.arange(3))
    latent = reverse(codec=Halves(), image_shape=(1, 4, 4), latent_shape=(1, 2, 4))
    assert np.array_equal(latent.u_turn(images, 0, streams), images)
    codec, pixel = Halves(), reverse()
    latents = codec.encode(torch.from_numpy(images))
    noisy = pixel.corrupt(latents, 6, streams)
    np.testing.assert_array_equal(latent.corrupt(images, 6, streams), noisy)
    # Without clipping in between: the latents of denoise are clipped to [-1, 1] only after
    # decoding.
    raw = reverse()
    raw_state = dict(
        raw.queue([ImageWork(x, 6, streams[i], name=i) for i, x in enumerate(noisy.numpy())])
    )
    expected = codec.decode(torch.from_numpy(np.stack([raw_state[i] for i in range(3)]))).clamp(
        -1, 1
    )
    np.testing.assert_allclose(latent.u_turn(images, 6, streams), expected, atol=1e-6)
    assert latent.generate(streams).shape == (3, 1, 4, 4)


def test_pure_noise_forgets_the_image():
    streams = keys(0, np.arange(3))
    pure, first = reverse(pure_noise=True), reverse()
    assert np.array_equal(
        pure.u_turn(images_of(3, 0), 10, streams), pure.u_turn(images_of(3, 1), 10, streams)
    )
    assert not np.array_equal(
        first.u_turn(images_of(3, 0), 10, streams), first.u_turn(images_of(3, 1), 10, streams)
    )
    assert pure.forward.noise_levels["abar"][-1] == 0
    assert pure.forward.noise_levels["log_snr"][-1] == -np.inf
    assert 0 < first.forward.noise_levels["abar"][-1] < 1e-3
    np.testing.assert_array_equal(
        pure.forward.noise_levels["abar"][:-1], first.forward.noise_levels["abar"][:-1]
    )
    np.testing.assert_array_equal(
        pure.u_turn(images_of(3), 9, streams), first.u_turn(images_of(3), 9, streams)
    )
    assert pure.fingerprint() != first.fingerprint()


# --- runs -----------------------------------------------------------------------------------------

SPEC = {
    "items": 6,
    "chunk": 2,
    "source": {"type": "fashion_mnist"},
    "corruption": {"type": "diffusion", "noise": [0.25, 0.5, 1.0]},
    "backward": {"type": "diffusion", "model": "tiny_denoiser:network", "steps": 4},
    "probes": [{"type": "images"}],
}


def experiment(**backward):
    return ut.Experiment.from_dict({**SPEC, "backward": {**SPEC["backward"], **backward}})


@pytest.fixture(scope="module")
def whole():
    return ut.run(experiment()).load()


def test_shares_fill_one_store(tmp_path, whole):
    half = ut.run(experiment(), tmp_path / "run", shard=(1, 2)).load()
    missing = np.isnan(half.image).any(("trajectory", "channel", "row", "column"))
    assert missing.sum() == 8  # of 18 (noise, item): four tasks of two
    assert missing.any("item").all()  # every noise level is shared out
    full = ut.run(experiment(), tmp_path / "run", shard=(2, 2)).load()
    assert np.abs(full.image - whole.image).max() < 2e-5
    for shard, message in [((0, 2), "shard = 0"), ((3, 2), r"shard = .3, 2.: expected")]:
        with pytest.raises(ValueError, match=message):
            ut.run(experiment(), tmp_path / "run", shard=shard)
    with pytest.raises(ValueError, match="give its folder"):
        ut.run(experiment(), shard=(1, 2))
    for options, message in (
        ({"shard": 2}, r"shard = 2: expected \(i, n\)"),
        ({"shard": (1, 2, 3)}, r"shard = .*: expected \(i, n\)"),
        ({"workers": "two"}, "workers = 'two': expected a number of processes, or 'auto'"),
        ({"cluster": 3}, "cluster = 3: expected an address, as text"),
    ):
        with pytest.raises(ValueError, match=message):
            ut.run(experiment(), tmp_path / "run", **options)


LAYOUT = (  # of the smallest store there is
    {"change": Variable(("noise", "item"), "a variable")},
    {dim: Coordinate((dim,), np.array([0])) for dim in ("noise", "item", "trajectory")},
    {
        "spec": {},
        "identity": {"items": 1, "trajectories": 1, "chunk": 1, "corruption": {"noise": [0]}},
        "models": {},
        "spec_hash": "",
        "random_version": 1,
    },
)


def test_a_store_is_made_once(tmp_path):
    """Many makers of different runs at once: one makes its run, the others get None, nothing is
    left beside it.
    """
    made, start = [], threading.Barrier(8)
    variables, coordinates, attributes = LAYOUT

    def make(seed):
        start.wait()
        own = {**attributes, "seed": seed}
        made.append(RunFolder.create(tmp_path / "run", variables, coordinates, own))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    (ours,) = [store for store in made if store is not None]
    assert RunFolder.open(tmp_path / "run").attributes == ours.attributes
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_killed_run_loses_what_is_in_flight_only(tmp_path, monkeypatch, whole):
    folder, written = tmp_path / "run", RunFolder.write

    def killed(self, task, arrays):
        if killed.left == 0:
            raise KeyboardInterrupt
        killed.left -= 1
        written(self, task, arrays)

    killed.left = 4
    monkeypatch.setattr(RunFolder, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ut.run(experiment(), folder)
    killed.left = 5  # and no more are left to do
    resumed = ut.run(experiment(), folder).load()
    assert killed.left == 0
    assert np.abs(resumed.image - whole.image).max() < 2e-5
