"""The laboratory computes in JavaScript what the package computes: rules, strings, noise,
beliefs, draws and theory.
"""

import numpy as np
import pytest
from scipy.stats import chisquare

import uturn as ut
from enumeration import tree_posterior
from javascript import CHROMIUM, NODE, evaluate
from uturn.core import random

pytestmark = pytest.mark.skipif(
    not (NODE or CHROMIUM), reason="runs JavaScript: neither node nor Chromium is installed"
)

# Grammars with sparse and with dense rules, s = 2, 3, 4, and one in which every tuple is a rule.
SIZES = [
    (32, 8, 2, 6, 0),
    (32, 6, 2, 6, 2**32 - 1),
    (16, 15, 2, 3, 7),
    (5, 3, 3, 3, 1),
    (4, 7, 4, 3, 2),
    (3, 3, 2, 4, 5),
    (2, 1, 2, 1, 9),
]
CHANNELS = {
    "gaussian": ut.Gaussian(),
    "masking": ut.Masking(),
    "replacement": ut.UniformReplacement(),
    "epsilon": ut.EpsilonBelief(),
}
NOISE = {
    "gaussian": (0.0, 0.02, 0.07, 0.5),
    "masking": (0.0, 0.3, 1.0),
    "replacement": (0.0, 0.2, 1.0),
    "epsilon": (0.0, 0.6, 1.0),
}


def settings(sizes):
    return dict(zip("vmsL", sizes[:4], strict=True), seed=sizes[4])


def model(sizes):
    return ut.RandomHierarchyModel(*sizes[:4], seed=sizes[4])


def by_level(levels, rows=1):
    """Lists of JavaScript, {"level": numbers}, as arrays {level: (rows, ...)}."""
    return {int(level): np.array(values).reshape(rows, -1) for level, values in levels.items()}


def test_random_numbers(tmp_path):
    coordinates = [(0,), (1, 2), (2**32 - 1, 5), (7, 0, 2**32 - 1)]
    body = """return seeds.map((seed) => {
      const key = keyOf(...seed);
      return [key, uniforms(key, 9), normals(key, 4001)];
    });"""
    for seed, (key, u, z) in zip(
        coordinates, evaluate(body, tmp_path, seeds=coordinates), strict=True
    ):
        expected = random.keys(*seed)
        assert key[0] + 2**32 * key[1] == int(expected)
        assert u == random.uniforms(expected.reshape(1), 9)[0].tolist()
        np.testing.assert_allclose(
            z, random.normals(expected.reshape(1), 4001)[0], rtol=3e-7, atol=1e-12
        )


def test_rules_and_strings(tmp_path):
    body = """return sizes.map((size) => {
      const grammar = drawGrammar(size);
      return [grammar.rules, [0, 1, 2, 12345].map((string) => sampleTree(grammar, string))];
    });"""
    found = evaluate(body, tmp_path, sizes=[settings(sizes) for sizes in SIZES])
    for sizes, (rules, trees) in zip(SIZES, found, strict=True):
        rhm = model(sizes)
        for level, table in rhm.rules.items():
            assert np.ravel(rules[str(level)]).tolist() == table.ravel().tolist()
        for string, tree in zip([0, 1, 2, 12345], trees, strict=True):
            for level, nodes in rhm.sample(1, seed=string).latents.items():
                assert tree[str(level)] == nodes[0].tolist()


@pytest.mark.parametrize("name", CHANNELS)
def test_noise_beliefs_and_draws(name, tmp_path):
    body = """return sizes.map((size) => levels.map((noise) => {
      const grammar = drawGrammar(size), channel = CHANNELS[name], tree = sampleTree(grammar, 3);
      const noisy = channel.corrupt(tree[0], noise, size.v, 4), evidence = channel.logEvidence(noisy, noise, size.v);
      const { upward, ...beliefs } = propagate(grammar, evidence);
      const draws = [0, 1, 2].map((number) => drawPosterior(grammar, { upward }, 4, number));
      return { noisy, ...beliefs, draws, effective: channel.effectiveEpsilon(noise, size.v) };
    }));"""
    given = {"sizes": [settings(sizes) for sizes in SIZES], "levels": NOISE[name], "name": name}
    channel = CHANNELS[name]
    for sizes, cases in zip(SIZES, evaluate(body, tmp_path, **given), strict=True):
        rhm = model(sizes)
        leaves = rhm.sample(1, seed=3).leaves
        for noise, case in zip(NOISE[name], cases, strict=True):
            noisy = channel.corrupt(leaves, noise, vocab_size=rhm.vocab_size, seed=4)
            np.testing.assert_allclose(
                np.ravel(case["noisy"]), noisy.values.ravel(), rtol=0, atol=1e-6
            )
            evidence = channel.log_evidence(noisy, np.float64)
            beliefs = ut.infer(rhm, evidence, outputs=("marginals", "downward", "log_evidence"))
            assert case["logEvidence"] == pytest.approx(
                float(beliefs.log_evidence[0]), rel=1e-6, abs=1e-6
            )
            for output in ("marginals", "downward"):
                found = by_level(case[output])
                for level, values in getattr(beliefs, output).items():
                    np.testing.assert_allclose(
                        found[level].ravel(), values.ravel(), rtol=0, atol=1e-6
                    )
            for draw, trees in zip(
                case["draws"],
                ut.sample_posterior(rhm, evidence, seed=4, num_draws=3)[0],
                strict=True,
            ):
                assert draw["0"] == trees[0].tolist()
            assert case["effective"] == pytest.approx(
                float(channel.effective_epsilon(noise, rhm.vocab_size)), abs=1e-6
            )


def test_marginals_of_given_evidence(tmp_path):
    """Any evidence, also with differences of hundreds of nats, and not what a channel makes of a
    string.
    """
    rng = np.random.default_rng(0)
    body = (
        "return sizes.map((size, k) => { const { upward, ...kept } = propagate(drawGrammar(size),"
        " evidence[k]); return kept; });"
    )
    models = [model(sizes) for sizes in SIZES]
    evidence = [
        rng.normal(scale=3 + 10 * (k == 0), size=(1, rhm.num_leaves, rhm.vocab_size))
        for k, rhm in enumerate(models)
    ]
    given = {
        "sizes": [settings(sizes) for sizes in SIZES],
        "evidence": [x.ravel().tolist() for x in evidence],
    }
    for rhm, log_evidence, found in zip(
        models, evidence, evaluate(body, tmp_path, **given), strict=True
    ):
        beliefs = ut.infer(rhm, log_evidence, outputs=("marginals", "log_evidence"))
        assert found["logEvidence"] == pytest.approx(float(beliefs.log_evidence[0]), rel=1e-9)
        for level, values in by_level(found["marginals"]).items():
            np.testing.assert_allclose(
                values.ravel(), beliefs.marginals[level].ravel(), rtol=0, atol=1e-9
            )


def test_draws_follow_the_posterior(tmp_path):
    """Chi-square against enumeration; false-alarm rate 1e-4. Draws that use evidence times 1.3
    are noticed.
    """
    sizes = (3, 2, 2, 2, 0)
    rhm = model(sizes)
    evidence = np.random.default_rng(1).normal(size=(4, 3))
    body = """const grammar = drawGrammar(size), sharper = evidence.map((x) => 1.3 * x);
    return [evidence, sharper].map((own) => {
      const beliefs = propagate(grammar, own);
      return Array.from({ length: 20000 }, (_, number) => drawPosterior(grammar, beliefs, 0, number)[0]);
    });"""
    right, wrong = evaluate(
        body, tmp_path, size=settings(sizes), evidence=evidence.ravel().tolist()
    )
    nodes, probability, _ = tree_posterior(rhm, evidence)
    strings = {tuple(leaves): k for k, leaves in enumerate(nodes[0].tolist())}

    def p_value(draws):
        counts = np.bincount([strings[tuple(draw)] for draw in draws], minlength=len(strings))
        usual = probability * len(draws) >= 5
        observed, expected = (
            np.r_[x[usual], x[~usual].sum()] for x in (counts, probability * len(draws))
        )
        return chisquare(observed[expected > 0], expected[expected > 0]).pvalue

    assert p_value(right) > 1e-4
    assert p_value(wrong) < 1e-10


def test_mean_field_theory(tmp_path):
    triples = [
        (32, 8, 2),
        (32, 17, 2),
        (16, 4, 2),
        (16, 2, 3),
        (8, 9, 3),
        (5, 6, 4),
        (8, 3, 2),
        (16, 20, 3),
    ]
    noise = np.linspace(0, 1, 21)
    body = """return triples.map(([v, m, s]) => {
      const theory = new MeanField({ v, m, s });
      const map = noise.map((p) => theory.upwardMap(p));
      const curves = noise.map((epsilon) => theory.curves(epsilon, 6));
      return { phase: theory.phase, fixed: theory.fixedPoint, critical: theory.criticalNoise, map, curves };
    });"""
    for (v, m, s), found in zip(
        triples, evaluate(body, tmp_path, triples=triples, noise=noise.tolist()), strict=True
    ):
        theory = ut.theory.MeanField(v, m, s)
        assert found["phase"] == theory.phase
        for name, expected in (("fixed", theory.fixed_point), ("critical", theory.critical_noise)):
            assert found[name] == (None if expected is None else pytest.approx(expected, abs=1e-9))
        np.testing.assert_allclose(found["map"], theory.upward_map(noise), atol=1e-12)
        for name in ("upward", "downward", "marginals"):
            expected = getattr(theory.curves(noise, 6), name)
            np.testing.assert_allclose(
                [curve[name] for curve in found["curves"]], expected, atol=1e-12
            )


def test_phase_diagram(tmp_path):
    diagram = ut.theory.phase_diagram(32, 2)
    found = evaluate("return phaseDiagram(32, 2);", tmp_path)
    assert [point["m"] for point in found] == diagram.multiplicity.tolist()
    np.testing.assert_allclose(
        [point["noise"] for point in found], diagram.critical_noise, atol=1e-9
    )
    np.testing.assert_allclose(
        [point["density"] for point in found], diagram.rule_density, atol=1e-12
    )


def test_the_story_is_true(tmp_path):
    """Means over 24 strings of the grammar of the story: what its five steps say about classes
    and leaves.
    """
    body = """const grammar = drawGrammar({ v: 32, m: 6, s: 2, L: 6, seed: 0 });
    return levels.map(([name, noise]) => {
      const own = Array.from({ length: 24 }, (_, string) => {
        const tree = sampleTree(grammar, string), noisy = CHANNELS[name].corrupt(tree[0], noise, 32, string);
        const found = beliefIn(propagate(grammar, CHANNELS[name].logEvidence(noisy, noise, 32)).marginals, tree);
        return [mean(found[0]), found[6][0]];
      });
      return [0, 1].map((k) => mean(own.map((pair) => pair[k])));
    });"""
    levels = [
        ("masking", 0),
        ("masking", 0.2),
        ("masking", 0.42),
        ("masking", 0.6),
        ("epsilon", 0.7),
        ("epsilon", 0.95),
    ]
    clean, little, lost, inverted, below, above = evaluate(body, tmp_path, levels=levels)
    assert clean == [pytest.approx(1), pytest.approx(1)]
    assert little[1] > 0.95 > little[0] > 0.9, "the class is known, leaves are not"
    assert 0.2 < lost[1] < 0.6, "in the middle of the transition"
    assert inverted[1] < 0.2 < 0.45 < inverted[0], "the class is lost, leaves are not"
    assert below[1] > 0.9 > 0.1 > above[1], "on the two sides of ε* = .834"
    assert ut.theory.MeanField(32, 6, 2).critical_noise == pytest.approx(0.834, abs=5e-4)
    assert [ut.theory.MeanField(32, m, 2).phase for m in (16, 17)] == ["transition", "always lost"]
