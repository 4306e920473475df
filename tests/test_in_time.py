"""Samplers that follow time, and remasking: their laws against plain loops, and which of them
keep the posterior.
"""

from itertools import product

import numpy as np
import pytest
from scipy.stats import kstest

import uturn as ut
from enumeration import drawn_as
from tiny_language import Table, TableDenoiser
from uturn.core.protocols import Noisy
from uturn.core.random import keys
from uturn.corruption import in_time
from uturn.corruption.denoising import denoise
from uturn.corruption.unmasking import Decoder, law_of, unmask

V = 3


class Masked(TableDenoiser):
    """A joint law of three symbols out of three."""

    D = num_leaves = 3


class Replaced(TableDenoiser):
    """The posterior of each symbol under uniform replacement, for a law of `length` symbols."""

    corruption = ut.UniformReplacement()

    def __init__(self, length=2):
        self.D = self.num_leaves = length
        super().__init__(seed=1, concentration=0.5)

    def joint(self, values, noise):
        """p(x_0 | x_t) of all strings."""
        seen = np.where(self.strings == values, 1 - noise + noise / V, noise / V).prod(1)
        return self.law * seen / (self.law * seen).sum()

    def posterior(self, noisy):
        onehot = self.strings[..., None] == np.arange(V)
        # Many are equal.
        rows, of = np.unique(np.c_[noisy.values, noisy.noise], axis=0, return_inverse=True)
        return np.array(
            [np.tensordot(self.joint(row[:-1], row[-1]), onehot, 1) for row in rows], np.float32
        )[of]


def divergence(law, posterior):
    """KL(law ‖ posterior) in nats, {string: probability} both; infinite if an impossible string
    is drawn.
    """
    assert sum(law.values()) == pytest.approx(1, abs=1e-6)
    return sum(
        q * np.log(q / posterior[x]) if posterior[x] else np.inf for x, q in law.items() if q > 0
    )


def posterior_of(table, probabilities):
    return dict(zip(map(tuple, table.strings.tolist()), probabilities, strict=True))


def to_posterior(values, decoder, table=None):
    table = table or Masked()
    return divergence(
        law_of(table, np.array(values), decoder), posterior_of(table, table.given(values))
    )


ALL, GIVEN = (-1, -1, -1), (0, -1, -1)


# -- against plain loops ---------------------------------------------------------------------------


def remdm(table, start, noise, steps, eta, cap, given):
    """The sampler of arXiv:2503.00307 in plain loops: every outcome of every step, {string:
    probability}.
    """
    law, free = {tuple(start): 1.0}, [x < 0 or given for x in start]
    first = 1 if given else noise
    for k in range(steps):
        a_t, a_s = (
            1 - noise * (steps - k) / steps / first,
            1 - noise * (steps - k - 1) / steps / first,
        )
        most = 1 if a_t <= 0 else min(1, (1 - a_s) / a_t)
        sigma = min(eta, most) if cap else eta * most
        reveal = (a_s - (1 - sigma) * a_t) / (1 - a_t)
        after = {}
        for z, p in law.items():
            conditional = table.conditionals([z])[0]
            options = []
            for i, x in enumerate(z):
                if x < 0:
                    options.append(
                        [(a, reveal * conditional[i, a]) for a in range(V)] + [(-1, 1 - reveal)]
                    )
                else:
                    options.append([(x, 1 - sigma), (-1, sigma)] if free[i] else [(x, 1.0)])
            for outcome in product(*options):
                string = tuple(x for x, _ in outcome)
                after[string] = after.get(string, 0.0) + p * np.prod([q for _, q in outcome])
        law = after
    return {string: p for string, p in law.items() if min(string) >= 0 and p > 0}


@pytest.mark.parametrize(
    ("remask", "start", "given"),
    [
        *(("none", start, False) for start in (ALL, GIVEN)),
        *(
            (remask, *case)
            for remask in ("cap", "rescale")
            for case in ((ALL, False), (GIVEN, False), (GIVEN, True))
        ),
    ],
)
def test_the_law_of_remasking_is_that_of_plain_loops(remask, start, given):
    decoder = Decoder("analytic", 4, remask=remask, eta=0.4, remask_given=given)
    noise = 0.8 if given else (np.array(start) < 0).mean()
    law = law_of(Masked(), np.array(start), decoder, noise)
    expected = remdm(
        Masked(), start, noise, 4, 0.0 if remask == "none" else 0.4, remask == "cap", given
    )
    assert law.keys() == expected.keys()
    assert law == pytest.approx(expected, abs=1e-6)


def test_one_reveal_at_a_time_is_its_definition():
    """Two steps from all masked, in plain loops: which tokens are revealed or masked again, and
    in which order.
    """
    table, law = Masked(), {}
    decoder = Decoder("random", 2, remask="rescale", eta=0.5)
    (first, none), (second, again) = (
        decoder.remasking.chances(*levels, 1.0) for levels in ((1.0, 0.5), (0.5, 0.0))
    )
    assert (none, second, again) == (0.5, 1.0, 0.0)

    def reveal(string, places, p):
        """Uniformly random order of the places; adds to `law` if no more are masked."""
        if not places:
            return [(string, p)]
        reached = []
        for i in places:
            conditional = table.conditionals([string])[0][i]
            for a in range(V):
                left = [j for j in places if j != i]
                reached += reveal(
                    (*string[:i], a, *string[i + 1 :]), left, p * conditional[a] / len(places)
                )
        return reached

    for turn in product([0, 1], repeat=3):
        p = np.prod([first if on else 1 - first for on in turn])
        for string, q in reveal(ALL, [i for i in range(3) if turn[i]], p):
            for done, r in reveal(string, [i for i in range(3) if string[i] < 0], q):
                law[done] = law.get(done, 0.0) + r
    found = law_of(table, np.array(ALL), decoder)
    assert law == pytest.approx({x: found.get(x, 0.0) for x in law}, abs=1e-6)


MANY = [
    (Decoder("analytic", 3), ALL),
    (Decoder("analytic", 6, remask="cap", eta=0.3), GIVEN),
    (Decoder("analytic", 6, temperature=0.6, remask="rescale", eta=0.6), ALL),
    (Decoder("random", 4, remask="rescale", eta=0.6), GIVEN),
    (Decoder("random", 4, top_k=2, remask="cap", eta=0.3, remask_given=True), GIVEN),
    (Decoder("analytic", 4, remask="rescale", eta=0.6, remask_given=True), GIVEN),
    (Decoder("blocks", 1, 2, causal=True), ALL),
    (Decoder("blocks", block=1, causal=True), GIVEN),
]


@pytest.mark.parametrize(
    ("decoder", "start"), MANY, ids=lambda value: getattr(value, "description", str(value))
)
def test_draws_follow_the_law(decoder, start):
    """8 tests at 1e-5."""
    count, noise = 20_000, (np.array(start) < 0).mean()
    noisy = Noisy(np.tile(start, (count, 1)), np.full(count, noise), V)
    strings = unmask(Masked(), noisy, keys(0, range(count)), decoder)
    assert drawn_as(strings, law_of(Masked(), np.array(start), decoder)) > 1e-5
    # Another law is seen.
    assert (
        drawn_as(strings, law_of(Masked(), np.array(start), Decoder(steps=1, temperature=2.0)))
        < 1e-5
    )


# -- which of them draw from the posterior ---------------------------------------------------------


@pytest.mark.parametrize("start", [ALL, GIVEN])
@pytest.mark.parametrize("remask", ["cap", "rescale"])
def test_remasking_drawn_tokens_one_at_a_time_keeps_the_posterior(remask, start):
    singly, together = (
        Decoder(order, 6, remask=remask, eta=0.5) for order in ("random", "analytic")
    )
    assert singly.is_exact
    assert not together.is_exact
    assert abs(to_posterior(start, singly)) < 1e-7  # beliefs are float32
    assert to_posterior(start, together) > 1e-2


def test_steps_of_remasking_factorise_and_converge_slowly():
    """From all masks, four sites: more steps are better, and remasking costs more of them than
    it repairs.
    """
    table, masks = TableDenoiser(), np.full(4, -1)
    plain, remasked = (
        [
            to_posterior(masks, Decoder("analytic", steps, remask=remask, eta=0.5), table)
            for steps in (4, 16, 64)
        ]
        for remask in ("none", "rescale")
    )
    assert plain[0] > 3 * plain[1] > 9 * plain[2] > 0
    assert remasked[0] > remasked[1] > remasked[2] > 3 * plain[2]
    # Computed by independent code.
    assert (round(remasked[2], 2), round(plain[2], 2)) == (0.16, 0.04)


@pytest.mark.parametrize("order", ["random", "analytic"])
def test_remasking_given_tokens_keeps_the_law_of_the_data_but_not_the_posterior(order):
    """Singly, over all originals and masks the law of the data is drawn; for given tokens
    neither it nor the posterior.
    """
    table, noise, steps = Masked(), 0.6, 3
    decoder = Decoder(order, steps, remask="rescale", eta=0.5, remask_given=True)
    assert not decoder.is_exact
    data, marginal = (
        posterior_of(table, table.law),
        dict.fromkeys(map(tuple, table.strings.tolist()), 0.0),
    )
    for values in product(range(-1, V), repeat=3):
        fits = ((table.strings == values) | (np.array(values) < 0)).all(1)
        p = table.law[fits].sum() * np.prod([noise if x < 0 else 1 - noise for x in values])
        if p > 0:
            for string, q in law_of(table, np.array(values), decoder, noise).items():
                marginal[string] += p * q
    if order == "random":
        assert marginal == pytest.approx(data, abs=1e-6)
    else:
        assert divergence(marginal, data) > 1e-2  # its steps factorise
    law = law_of(table, np.array(GIVEN), decoder, noise)
    assert max(abs(law.get(x, 0) - p) for x, p in data.items()) > 0.05
    assert to_posterior(GIVEN, decoder) == np.inf  # the given token changes


def by_confidence(table, steps, singly):
    """The law of "conf" with eta 1 from all masked, in plain loops: states are strings with the
    probabilities of their draws.
    """
    law = {((-1,) * table.D, (1.0,) * table.D): 1.0}

    def drawn(z, psi, places, p):
        """Tokens drawn at some places: independently, or one after the other in random order."""
        if not places:
            return [(z, psi, p)]
        reached = []
        for i in places if singly else places[:1]:
            conditional = table.conditionals([z if singly else seen])[0][i]
            for a in range(V):
                after = (*z[:i], a, *z[i + 1 :]), (*psi[:i], conditional[a], *psi[i + 1 :])
                share = p * conditional[a] / (len(places) if singly else 1)
                reached += drawn(*after, [j for j in places if j != i], share)
        return reached

    for k in range(steps):
        now, later = 1 - k / steps, 1 - (k + 1) / steps
        most, reveal = 1.0 if k == 0 else min(1, later / (1 - now)), (now - later) / now
        after = {}
        for (z, psi), p in law.items():
            kept = [i for i in range(table.D) if z[i] >= 0]
            total = sum(np.exp(-psi[i]) for i in kept)
            chance = [
                most * np.exp(-psi[i]) / total if i in kept else reveal for i in range(table.D)
            ]
            for turn in product([0, 1], repeat=table.D):
                q = p * np.prod([c if on else 1 - c for c, on in zip(chance, turn, strict=True)])
                if q == 0:
                    continue
                seen, lost = z, [i for i in kept if turn[i]]
                start = tuple(-1 if singly and i in lost else x for i, x in enumerate(z))
                for string, sure, share in drawn(
                    start, psi, [i for i in range(table.D) if turn[i] and i not in kept], q
                ):
                    state = tuple(-1 if i in lost else x for i, x in enumerate(string)), sure
                    after[state] = after.get(state, 0.0) + share
        law = after
    strings = {}
    for (z, _), p in law.items():
        strings[z] = strings.get(z, 0.0) + p
    return strings


class Pairs(TableDenoiser):
    D = num_leaves = 2


@pytest.mark.parametrize("order", ["random", "analytic"])
def test_remasking_by_confidence_does_not_keep_the_posterior(order):
    """What is masked again depends on what was drawn. One token at a time the error is small.
    Chi-square at 1e-5.
    """
    table, count = Pairs(), 20_000
    law = by_confidence(table, 4, order == "random")
    error = divergence(law, posterior_of(table, table.law))
    decoder = Decoder(order, 4, remask="conf", eta=1.0)
    assert not decoder.is_exact
    assert error > (1e-6 if order == "random" else 1e-2)
    noisy = Noisy(np.full((count, 2), -1), np.ones(count), V)
    assert drawn_as(unmask(table, noisy, keys(0, range(count)), decoder), law) > 1e-5
    with pytest.raises(
        ValueError, match="remask = 'conf': expected another one to enumerate its law"
    ):
        law_of(table, np.array([-1, -1]), decoder)


def test_causal_blocks_draw_from_the_posterior_only_without_kept_tokens_on_the_right():
    table = TableDenoiser()
    for block in (1, 2):
        decoder = Decoder("blocks", block=block, causal=True)
        assert not decoder.is_exact
        assert "only where no kept token lies in a later block" in decoder.warning
        for values in ([-1, -1, -1, -1], [1, 0, -1, -1]):  # the second is likely under the table
            assert abs(to_posterior(values, decoder, table)) < 1e-7
        for values in ([1, -1, -1, 0], [-1, -1, -1, 0]):
            assert to_posterior(values, decoder, table) > 1e-2
    # In the block itself, kept tokens on the right are seen.
    assert abs(to_posterior([1, 0, -1, 0], Decoder("blocks", block=2, causal=True), table)) < 1e-7


# -- first hitting ---------------------------------------------------------------------------------


def test_first_hitting_is_random_order_one_at_a_time():
    """The same strings in every draw, as the noise level that is told is the only difference."""
    values = np.tile([[-1, -1, 1, -1], [-1, 0, -1, -1]], (50, 1))
    noisy = Noisy(values, np.full(100, 0.8), V)
    found = [
        unmask(TableDenoiser(), noisy, keys(0, range(100)), Decoder(order))
        for order in ("random", "first_hitting")
    ]
    np.testing.assert_array_equal(*found)
    assert Decoder("first_hitting").is_exact
    assert law_of(TableDenoiser(), values[0], Decoder("first_hitting")) == law_of(
        TableDenoiser(), values[0], Decoder()
    )


def test_first_hitting_tells_the_times_of_the_continuous_process():
    """With n masked tokens at level t, the next level is t u^(1/n) (arXiv:2409.02908).
    Kolmogorov-Smirnov at 1e-4.
    """
    heard = []

    class Listening(TableDenoiser):
        def posterior(self, noisy):
            heard.append(noisy.noise)
            return super().posterior(noisy)

    count = 4000
    unmask(
        Listening(),
        Noisy(np.full((count, 4), -1), np.full(count, 0.9), V),
        keys(0, range(count)),
        Decoder("first_hitting"),
    )
    levels = np.array([np.full(count, 0.9), *heard])
    for k in range(4):
        assert kstest((levels[k + 1] / levels[k]) ** (4 - k), "uniform").pvalue > 1e-4


# -- uniform replacement ---------------------------------------------------------------------------


def replaced(length, values, steps, order, noise=0.7):
    return law_of(Replaced(length), np.array(values), Decoder(order, steps), noise)


def to_exact(length, values, steps, order, noise=0.7):
    table = Replaced(length)
    return divergence(
        replaced(length, values, steps, order, noise),
        posterior_of(table, table.joint(values, noise)),
    )


def test_analytic_steps_are_exact_for_one_site_and_eulers_are_not():
    for steps in (1, 2, 3, 7):
        assert abs(to_exact(1, [1], steps, "analytic")) < 1e-7
    euler = [to_exact(1, [1], steps, "euler") for steps in (2, 8, 32)]
    assert euler[0] > 4 * euler[1] > 16 * euler[2] > 1e-6
    assert abs(to_exact(1, [1], 1, "euler")) < 1e-7  # the last step is the belief


def test_both_steps_converge_to_the_posterior_of_several_sites():
    for order in ("analytic", "euler"):
        errors = [to_exact(2, [1, 2], steps, order) for steps in (1, 4, 16, 64)]
        assert errors[0] > 2 * errors[2] > 4 * errors[3] > 0
    assert to_exact(2, [1, 2], 4, "euler") > to_exact(2, [1, 2], 4, "analytic")


def test_steps_are_those_of_sedd():
    """From the ratios p_t(x with b at i) / p_t(x) of the enumerated p_t, and the exact marginals
    of x_s given x_t.
    """
    table, now, later = Replaced(2), 0.6, 0.35  # noise levels

    def kernel(alpha):
        return alpha * np.eye(V) + (1 - alpha) / V

    density = np.einsum("ab,xa,yb->xy", table.law.reshape(V, V), kernel(1 - now), kernel(1 - now))
    step = kernel((1 - now) / (1 - later))  # q(x_t | x_s)
    joint = np.einsum("ab,xa,yb->xy", table.law.reshape(V, V), kernel(1 - later), kernel(1 - later))
    for x, y in product(range(V), repeat=2):
        belief = table.posterior(Noisy(np.array([[x, y]]), np.array([now]), V))
        laws = {
            euler: table.corruption.step_law(belief, np.array([[x, y]]), 1 - now, 1 - later, euler)[
                0
            ]
            for euler in (0, 1)
        }
        exact = joint * step[x][:, None] * step[y][None]  # p(x_s, x_t)
        exact /= exact.sum()
        np.testing.assert_allclose(laws[0], [exact.sum(1), exact.sum(0)], atol=1e-6)
        rate = (now - later) / (1 - now) / V  # -d log alpha, and 1 / V of the rate matrix
        for i, ratios in enumerate((density[:, y] / density[x, y], density[x] / density[x, y])):
            expected = rate * ratios
            expected[(x, y)[i]] = 0
            expected[(x, y)[i]] = 1 - expected.sum()
            np.testing.assert_allclose(laws[1][i], expected, atol=1e-6)


def test_eulers_step_on_masks_is_the_analytic_one():
    """-d log alpha times the ratio p_t(x with a) / p_t(x), with p_t enumerated: (t - s) / t
    times p(x_i = a | kept tokens).
    """
    table, t, s = Masked(), 0.6, 0.45

    def density(values):
        fits = ((table.strings == values) | (np.array(values) < 0)).all(1)
        return table.law[fits].sum() * np.prod([t if x < 0 else 1 - t for x in values])

    values = [int(table.strings[table.law.argmax()][0]), -1, -1]
    reveal, _ = Decoder("euler", 4).remasking.chances(t, s, t)
    conditional = table.conditionals([values])[0]
    for a in range(V):
        ratio = density([values[0], a, -1]) / density(values)
        assert (t - s) / (1 - t) * ratio == pytest.approx(reveal * conditional[1, a], abs=1e-9)
    laws = [law_of(table, np.array(values), Decoder(order, 4)) for order in ("euler", "analytic")]
    assert laws[0] == laws[1]


@pytest.mark.parametrize("order", ["analytic", "euler"])
def test_draws_of_replaced_symbols_follow_the_law(order):
    count, values = 20_000, [1, 2]
    noisy = Noisy(np.tile(values, (count, 1)), np.full(count, 0.7), V)
    sampler = Decoder(order, 3).sampler_for(ut.UniformReplacement())
    strings = denoise(Replaced(2), noisy, 3, keys(0, range(count)), sampler)
    other = {"analytic": "euler", "euler": "analytic"}[order]
    assert drawn_as(strings, replaced(2, values, 3, order)) > 1e-4
    assert drawn_as(strings, replaced(2, values, 3, other)) < 1e-4


# -- options, plans, experiments -------------------------------------------------------------------


def test_planned_evaluations_are_those_that_are_made():
    """The expected number, rounded up, within five standard errors of the mean."""
    count, heard = 400, np.zeros(400)

    class Counting(TableDenoiser):
        D = num_leaves = 4

        def posterior(self, noisy):
            heard[0] += len(noisy.values)
            return super().posterior(noisy)

    decoders = [
        Decoder("random", 8, remask="rescale", eta=0.6, remask_given=given)
        for given in (False, True)
    ]
    decoders += [Decoder("analytic", 8), Decoder("analytic", 8, remask="cap", eta=0.3)]
    for decoder in decoders:
        heard[:] = 0
        strings = np.zeros((count, 4), int)
        noisy = Counting.corruption.corrupt(strings, 0.7, vocab_size=V, seed=1)
        unmask(Counting(), noisy, keys(0, range(count)), decoder)
        assert (
            decoder.sampler.evaluations(0.7, 4) - 1 - 0.3
            < heard[0] / count
            < decoder.sampler.evaluations(0.7, 4) + 0.3
        )


def test_planned_evaluations_count_the_tokens_that_return():
    """With "conf", a step masks up to one revealed token again, which another evaluation
    reveals: an upper bound.
    """
    decoder, count, made = Decoder("random", 8, remask="conf", eta=1.0), 400, []

    class Counting(TableDenoiser):
        def posterior(self, noisy):
            made.append(len(noisy.values))
            return super().posterior(noisy)

    noisy = Noisy(np.full((count, Table.D), -1), np.ones(count), Table.V)
    unmask(Counting(), noisy, keys(0, range(count)), decoder)
    assert (
        Table.D + 1 < sum(made) / count < decoder.sampler.evaluations(1.0, Table.D) <= Table.D + 8
    )


CHAIN = {"type": "hmm", "states": 2, "symbols": 3, "length": 10, "persistence": 0.9}


def gap(corruption="masking", noise=0.8, **backward):
    """Calibration of the hidden states and symbols of chains."""
    spec = {
        "items": 400,
        "clones": 2,
        "source": CHAIN,
        "corruption": {"type": corruption, "noise": [noise]},
    }
    spec |= {"backward": {"type": "denoiser", **backward}, "probes": [{"type": "tree_levels"}]}
    return ut.calibration(ut.run(ut.Experiment.from_dict(spec)), "unchanged")


@pytest.mark.slow
def test_chains_are_denoised_and_remasking_singly_is_calibrated():
    assert gap(order="random", steps=8, remask="cap", eta=0.3).attrs["passed"]
    assert gap("uniform", order="analytic", steps=64).attrs["passed"]
    given = {"order": "random", "steps": 8, "remask": "rescale", "eta": 0.9}
    assert gap(noise=0.3, **given).attrs["passed"]
    assert not gap(noise=0.3, **given, remask_given=True).attrs["passed"]


def test_the_table_is_not_of_independent_symbols():
    """A control: the laws of these tests have correlations that one-step draws miss."""
    assert to_posterior(ALL, Decoder("analytic", 1)) > 0.3
    assert Table().law.max() > 0.05


@pytest.mark.parametrize("order", ["random", "analytic"])
def test_remasking_tells_the_denoiser_what_it_sees(order):
    """One token at a time: the share of masked tokens, as the posterior of what is kept needs;
    else the noise of the step.
    """
    told, levels = [], set(in_time.levels(0.75, 6).round(12).tolist())

    class Told(TableDenoiser):
        def posterior(self, noisy):
            told.extend(
                zip(noisy.noise.tolist(), (noisy.values < 0).mean(axis=1).tolist(), strict=True)
            )
            return super().posterior(noisy)

    values = np.where(np.arange(Table.D) < 3, -1, 1)[None].repeat(50, axis=0)
    decoder = Decoder(order, 6, remask="rescale", eta=0.7)
    unmask(Told(), Noisy(values, np.full(50, 0.75), Table.V), keys(0, range(50)), decoder)
    level, share = np.array(told).T
    assert len(np.unique(share)) == 3
    if order == "random":
        np.testing.assert_array_equal(level, share)
    else:
        assert set(level.round(12).tolist()) <= levels
        assert (level != share).any()
