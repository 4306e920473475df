"""Laws of reverse processes: with the right noise many steps draw from the posterior, without it
only from the data law.

On a grammar with 24 strings, all written out. Fixed seeds; a comparison with an exact law fails by
chance in 1e-3 of all seeds.
"""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

import uturn as ut
from enumeration import all_trees
from tiny_denoiser import chain_of
from uturn.backward import StringDiffusion
from uturn.backward.score_model import (
    ScoreModel,
    images_of,
    noisy_images_of,
    observation_of,
    strings_of,
)
from uturn.core.random import keys
from uturn.corruption.denoising import ExactDenoiser, denoise
from uturn.corruption.schedulers import SCHEDULERS
from uturn.networks.files import save_network
from uturn.networks.strings.denoisers import TreeNetwork
from uturn.sources import RHMSource

RHM = ut.RandomHierarchyModel(3, 2, 2, 2, seed=4)
NODES, LOG_P = all_trees(RHM)
STRINGS = NODES[0]
CHANNELS = [(ut.Gaussian(), 0.35), (ut.Masking(), 0.75), (ut.UniformReplacement(), 0.6)]
COUNT = 2500
TIMESTEPS = 512


def place(leaves):
    """Index of every string, 24 for ungrammatical ones."""
    table = np.full(81, len(STRINGS))
    table[STRINGS @ 3 ** np.arange(4)] = np.arange(len(STRINGS))
    return table[leaves @ 3 ** np.arange(4)]


def observed(corruption, noise, copies=COUNT, seed=3):
    """One observation of one string, many times over, and the law of the strings given it."""
    one = corruption.corrupt(RHM.sample(1, seed=0).leaves, noise, vocab_size=3, seed=seed)
    if isinstance(corruption, ut.Masking):  # three leaves hidden, so that they depend on each other
        one.values[0] = [RHM.sample(1, seed=0).leaves[0, 0], -1, -1, -1]
    log_p = LOG_P + corruption.log_evidence(one, np.float64)[0][np.arange(4), STRINGS].sum(1)
    p = np.exp(log_p - log_p.max())
    return ut.Noisy(np.repeat(one.values, copies, 0), np.repeat(one.noise, copies), 3), p / p.sum()


def p_value(leaves, p):
    """Chi-square of strings against a law; rare strings are pooled."""
    counts, p = np.bincount(place(leaves), minlength=len(p) + 1), np.append(p, 0)
    rare = p * len(leaves) < 5
    seen, expected = (
        np.append(counts[~rare], counts[rare].sum()),
        np.append(p[~rare], p[rare].sum()) * len(leaves),
    )
    if expected[-1] < 5:  # merged with the least likely of the others
        least = np.argmin(expected[:-1])
        seen[least], expected[least] = seen[least] + seen[-1], expected[least] + expected[-1]
        seen, expected = seen[:-1], expected[:-1]
    return stats.chisquare(seen, expected / expected.sum() * seen.sum()).pvalue


def schedule(t=0.35):
    """Betas of a schedule whose last timestep is the diffusion time t and whose first is almost
    clean.
    """
    r = 1 / np.expm1(2 * t) - 6 * np.log1p(-np.arange(TIMESTEPS)[::-1] / TIMESTEPS)
    abar = r / (1 + r)
    return (1 - abar / np.r_[1.0, abar[:-1]]).tolist()


def reverse(name, steps, rows=1, eta=None, **options):
    if name.startswith("Flow"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)
    else:
        scheduler = getattr(diffusers, name)(
            num_train_timesteps=TIMESTEPS, trained_betas=schedule(), **options
        )
    return chain_of(
        ScoreModel(ExactDenoiser(RHM, ut.Gaussian()), scheduler, rows),
        scheduler,
        steps,
        eta=eta,
        batch_size=5,
    )


def rebuilt(chain, observation, step, rows=500, seed=5):
    images = noisy_images_of(observation, chain.forward, step, rows)
    return strings_of(chain.denoise(images, step, keys(seed, np.arange(len(images))))).reshape(
        -1, 4
    )


# --- denoise: any denoiser ------------------------------------------------------------------------


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS)
def test_many_steps_draw_from_the_posterior(corruption, noise):
    observation, p = observed(corruption, noise)
    denoiser = ExactDenoiser(RHM, corruption)
    few, many = (
        denoise(denoiser, observation, steps, keys(1, np.arange(COUNT))) for steps in (1, 256)
    )
    assert p_value(many, p) > 1e-3
    assert p_value(few, p) < 1e-6  # negative control: leaves drawn one by one from their marginals


@pytest.mark.parametrize("corruption", [c for c, _ in CHANNELS])
def test_strings_are_generated_from_nothing(corruption):
    full = np.inf if isinstance(corruption, ut.Gaussian) else 1.0
    nothing = corruption.corrupt(np.zeros((COUNT, 4), int), full, vocab_size=3, seed=2)
    made = denoise(ExactDenoiser(RHM, corruption), nothing, 200, keys(2, np.arange(COUNT)))
    assert p_value(made, np.exp(LOG_P)) > 1e-3


def test_one_leaf_at_a_time_is_exact():
    observation, p = observed(ut.Masking(), 0.75)
    masked = int((observation.values[0] < 0).sum())
    denoiser = ExactDenoiser(RHM, ut.Masking())
    exact = denoise(denoiser, observation, masked, keys(1, np.arange(COUNT)))
    assert p_value(exact, p) > 1e-3
    assert np.array_equal(exact, denoise(denoiser, observation, 1000, keys(1, np.arange(COUNT))))
    kept = observation.values >= 0
    assert np.array_equal(exact[kept], observation.values[kept])
    assert p_value(denoise(denoiser, observation, masked - 1, keys(1, np.arange(COUNT))), p) < 1e-6


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS)
def test_a_string_depends_on_its_own_key_alone(corruption, noise):
    leaves = RHM.sample(60, seed=0).leaves
    levels = np.tile([0.0, noise / 2, noise], 20)
    noisy = corruption.corrupt(leaves, levels, vocab_size=3, seed=1)
    denoiser, streams = ExactDenoiser(RHM, corruption), keys(3, np.arange(60))
    together = denoise(denoiser, noisy, 9, streams)
    order = np.random.default_rng(0).permutation(60)[:31]
    apart = denoise(
        denoiser, ut.Noisy(noisy.values[order], noisy.noise[order], 3), 9, streams[order]
    )
    assert np.array_equal(apart, together[order])
    assert np.array_equal(together[::3], leaves[::3])  # no noise: the string itself
    assert not np.array_equal(together, denoise(denoiser, noisy, 9, keys(4, np.arange(60))))


def test_impossible_strings_on_the_way_are_explained_as_well_as_possible():
    """Two leaves unmasked at once can contradict each other; the exact posterior of the rest
    still exists.
    """
    pairs = {tuple(rule) for rule in RHM.rules[1].reshape(-1, 2).tolist()}
    bad = next([a, b] for a in range(3) for b in range(3) if (a, b) not in pairs)
    posterior = ExactDenoiser(RHM, ut.Masking()).posterior(
        ut.Noisy(np.array([[*bad, -1, -1]]), np.array([0.5]), 3)
    )
    assert np.isfinite(posterior).all()
    assert np.allclose(posterior.sum(-1), 1)


# --- the exact score ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_score_is_the_gradient_of_the_log_density(prediction):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    model = ScoreModel(ExactDenoiser(RHM, ut.Gaussian()), scheduler)
    abar = float(scheduler.alphas_cumprod[300])
    noisy = ut.Gaussian().corrupt(
        RHM.sample(5, seed=0).leaves, -0.5 * np.log(abar), vocab_size=3, seed=1
    )
    x = torch.tensor(noisy.values, dtype=torch.float64, requires_grad=True)
    log_p = ut.infer(RHM, x * abar**0.5 / (1 - abar), outputs=("log_evidence",)).log_evidence
    density = log_p - (x**2).sum((1, 2)) / (2 * (1 - abar))
    (score,) = torch.autograd.grad(density.sum(), x)
    images = torch.tensor(np.ascontiguousarray(noisy.values.transpose(0, 2, 1)[:, :, None]))
    output = model(images, torch.tensor(300))[:, :, 0].permute(0, 2, 1).double()
    a, s, x = abar**0.5, (1 - abar) ** 0.5, x.detach()
    epsilon = {
        "epsilon": output,
        "v_prediction": a * output + s * x,
        "sample": (x - a * output) / s,
    }[prediction]
    assert torch.allclose(-epsilon / s, score, atol=2e-5)


def test_the_velocity_of_flow_matching_is_exact():
    """`E[noise - x_0 | x_t]`, by writing out all strings."""
    model = ScoreModel(
        ExactDenoiser(RHM, ut.Gaussian()), diffusers.FlowMatchEulerDiscreteScheduler()
    )
    sigma = 0.4
    x = torch.randn(3, 3, 1, 4, generator=torch.Generator().manual_seed(0))
    images = images_of(STRINGS[:, None], 3)[:, :, 0]  # (strings, v, leaves)
    for one, velocity in zip(
        x[:, :, 0].numpy(), model(x, torch.tensor(1000 * sigma))[:, :, 0].numpy(), strict=True
    ):
        log_p = LOG_P - ((one - (1 - sigma) * images) ** 2).sum((1, 2)) / (2 * sigma**2)
        p = np.exp(log_p - log_p.max())
        mean = np.einsum("k,kal->al", p / p.sum(), images)
        np.testing.assert_allclose(velocity, (one - (1 - sigma) * mean) / sigma - mean, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}])
def test_fractional_timesteps_mean_what_the_scheduler_means(options):
    scheduler = diffusers.EulerDiscreteScheduler(**options)
    scheduler.set_timesteps(37)
    a, s = ScoreModel(ExactDenoiser(RHM, ut.Gaussian()), scheduler).amplitudes(
        scheduler.timesteps.numpy()
    )
    assert (scheduler.timesteps.numpy() % 1 != 0).any()
    np.testing.assert_allclose(s / a, scheduler.sigmas[:-1].numpy(), rtol=2e-4)
    np.testing.assert_allclose(a**2 + s**2, 1)


def test_units_of_schedulers_are_undone():
    leaves = RHM.sample(6, seed=0).leaves.reshape(2, 3, 4)
    for name in ("DDPMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        chain = reverse(name, 8, rows=3)
        noisy = chain.corrupt(images_of(leaves, 3), 5, keys(0, np.arange(2)))
        observation = observation_of(noisy, chain.forward, 5)
        np.testing.assert_allclose(
            noisy_images_of(observation, chain.forward, 5, rows=3), noisy, rtol=1e-6
        )
        signal = np.take_along_axis(observation.values, leaves.reshape(6, 4, 1), 2).mean()
        assert abs(signal - np.exp(-observation.noise[0])) < 0.5
        assert np.isclose(np.exp(-2 * observation.noise[0]), chain.forward.noise_levels["abar"][5])


# --- schedulers of diffusers ----------------------------------------------------------------------

FULL_NOISE = [
    ("DDPMScheduler", {}),
    ("DDIMScheduler", {"eta": 1.0}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
]
NO_NOISE = [
    ("DDIMScheduler", {"eta": 0.0}),
    ("HeunDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {}),
]


@pytest.mark.parametrize(("name", "options"), FULL_NOISE)
def test_schedulers_with_the_full_noise_draw_from_the_posterior(name, options):
    observation, p = observed(ut.Gaussian(), 0.35)
    chain = reverse(name, 128, rows=500, **options)
    assert chain.is_stochastic
    assert p_value(rebuilt(chain, observation, 128), p) > 1e-3
    # Two steps are not enough.
    assert p_value(rebuilt(reverse(name, 2, rows=500, **options), observation, 2), p) < 1e-6


@pytest.mark.parametrize(("name", "options"), [*NO_NOISE, ("DDIMScheduler", {"eta": 0.5})])
def test_other_schedulers_keep_the_data_law_but_not_the_posterior(name, options):
    """U-turns: reconstructions follow the data law, but agree with the originals more often than
    two posterior draws do.
    """
    half = name.startswith("Flow")  # its chain starts in pure noise
    chain, step = reverse(name, 128 if half else 64, rows=500, **options), 64
    leaves = RHM.sample(COUNT, seed=8).leaves
    noisy = chain.corrupt(
        images_of(leaves.reshape(-1, 500, 4), 3), step, keys(6, np.arange(COUNT // 500))
    )
    observation = observation_of(noisy, chain.forward, step)
    back = rebuilt(chain, observation, step, seed=7)
    assert p_value(back, np.exp(LOG_P)) > 1e-3
    marginals = ut.infer(RHM, ut.Gaussian().log_evidence(observation)).marginals[0]
    expected = np.take_along_axis(marginals, leaves[..., None], 2)[..., 0].mean(1)
    gap = (back == leaves).mean(1) - expected
    assert gap.mean() > 10 * gap.std() / np.sqrt(COUNT)
    exact = ut.sample_posterior(RHM, ut.Gaussian().log_evidence(observation), seed=9)[0]
    gap = (exact == leaves).mean(1) - expected
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(COUNT)


# --- experiments ----------------------------------------------------------------------------------


def spec(corruption, backward):
    return {
        "items": 300,
        "trajectories": 2,
        "chunk": 100,
        "source": {
            "type": "rhm",
            "vocab_size": 4,
            "multiplicity": 2,
            "branching": 2,
            "depth": 3,
            "grammars": 2,
        },
        "corruption": corruption,
        "backward": backward,
        "probes": [{"type": "tree_levels"}],
    }


@pytest.mark.parametrize(
    ("corruption", "backward"),
    [
        ({"type": "gaussian", "noise": [0.0, 0.2]}, {"type": "denoiser", "steps": 64}),
        ({"type": "masking", "noise": [0.0, 0.5]}, {"type": "denoiser", "steps": 8}),
        ({"type": "uniform", "noise": [0.0, 0.3]}, {"type": "denoiser", "steps": 64}),
        ({"type": "diffusion", "noise": [0.0, 0.25]}, {"type": "score", "steps": 200}),
    ],
)
def test_experiments_agree_with_exact_beliefs(corruption, backward):
    experiment = ut.Experiment.from_dict(spec(corruption, backward))
    results = ut.run(experiment)
    assert (results.unchanged.isel(noise=0) == 1).all()
    assert (results.belief.isel(noise=0) == 1).all()
    gap = (results.unchanged.mean("trajectory") - results.belief).isel(noise=1)
    error = gap.std("item") / np.sqrt(300)
    assert (abs(gap.mean("item")) < 4 * error + 1e-12).all()
    assert results.unchanged.isel(noise=1).mean() < 0.95
    assert "effective_epsilon" in results.coords
    other = ut.run(ut.Experiment.from_dict({**spec(corruption, backward), "chunk": 37}))
    assert (other.unchanged == results.unchanged).all()


def test_a_network_file_can_take_the_place_of_the_exact_denoiser(tmp_path):

    torch.manual_seed(0)
    path = str(tmp_path / "network.safetensors")
    save_network(TreeNetwork(4, 2, 3, width=8, channel="masking"), path)
    masking = {"type": "masking", "noise": [0.0, 0.5]}
    results, exact = (
        ut.run(
            ut.Experiment.from_dict(spec(masking, {"type": "denoiser", "model": model, "steps": 8}))
        )
        for model in (path, "exact")
    )
    assert (results.unchanged.isel(noise=0) == 1).all()
    assert np.array_equal(results.belief, exact.belief)
    gap = (exact.unchanged - results.unchanged).isel(noise=1, tree_level=slice(1, None)).mean()
    assert gap > 0.02  # it has learned nothing
    assert results.attrs["models"] != exact.attrs["models"]
    with pytest.raises(ValueError, match=r"corruption = Gaussian\(\): expected Masking\(\), which"):
        ut.run(
            ut.Experiment.from_dict(
                spec({"type": "gaussian", "noise": [0.1]}, {"type": "denoiser", "model": path})
            )
        )
    wrong = spec(masking, {"type": "denoiser", "model": path})
    wrong["source"]["vocab_size"] = 5
    with pytest.raises(
        ValueError, match=r"leaves and symbols of the strings = \(8, 5\): expected \(8, 4\)"
    ):
        ut.run(ut.Experiment.from_dict(wrong))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-300, 1e-12, 1e-7, 5e-7, 6e-7, 1e-4])
@pytest.mark.parametrize("corruption", [channel for channel, _ in CHANNELS])
def test_next_to_no_noise_is_next_to_the_identity(corruption, noise):
    leaves = RHM.sample(20, seed=1).leaves
    noisy = corruption.corrupt(leaves, noise, vocab_size=RHM.vocab_size, seed=2)
    rebuilt = denoise(ExactDenoiser(RHM, corruption), noisy, 5, keys(3, np.arange(20)))
    assert (rebuilt == leaves).all()


def test_all_schedulers_of_strings_start_from_one_noise():
    """The schedule is the documented one, not the default of each class."""
    last = {}
    for name in SCHEDULERS:
        spec = StringDiffusion(scheduler=name, steps=10)
        source = RHMSource(vocab_size=4, multiplicity=2, branching=2, depth=2)
        last[name] = float(spec.forward_process(source).axes(np.array([1.0]), source)["abar"][0][0])
    assert max(last.values()) < 1.1 * min(last.values()), last
    for name in ("pipelines", "__version__", "DiffusionPipeline", "nonsense"):
        with pytest.raises(ValueError, match="name of a scheduler class"):
            StringDiffusion(scheduler=name).forward_process(source).axes(np.array([1.0]), source)
