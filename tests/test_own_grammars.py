"""Grammars of one's own: different numbers of rules, rules of probability 0, a class prior, and
their files in specs.
"""

import json

import numpy as np
import pytest

import enumeration
import uturn as ut
from small import one_line_error
from uturn.engine.executors import run_tasks
from uturn.engine.schedule import Left
from uturn.exact.inference import prior_entropy
from uturn.exact.inference.torch_backend import sample_torch
from uturn.exact.rhm import cumulative_sums
from uturn.store.run_folder import RunFolder

# Of logarithms of rules of probability 0.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

RULES = {
    1: [[[0, 1], [1, 1], [2, 0]], [[0, 0]], [[2, 2], [1, 0]]],
    2: [[[0, 1]], [[1, 2], [2, 2], [0, 0]], [[2, 1], [1, 0]]],
    3: [[[0, 0], [1, 1]], [[2, 0], [1, 2], [2, 2]]],
}
LAWS = {
    1: [[0.5, 0.25, 0.25], [1.0], [0.3, 0.7]],
    2: [[1.0], [0.2, 0.3, 0.5], [0.0, 1.0]],
    3: [[0.5, 0.5], [0.1, 0.6, 0.3]],
}
PRIOR = [0.3, 0.7]


@pytest.fixture(params=[None, LAWS], ids=["uniform", "with a rule of probability 0"])
def rhm(request):
    return ut.RandomHierarchyModel.from_rules(
        RULES, rule_probabilities=request.param, class_probabilities=PRIOR
    )


@pytest.fixture
def evidence():
    values = 2 * np.random.default_rng(0).normal(size=(3, 8, 3))
    values[1] *= 200  # beyond the range of float32
    values[2] *= 1e6
    return values


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_inference_equals_enumeration(rhm, evidence, backend):
    beliefs = ut.infer(rhm, evidence, backend, ("marginals", "log_evidence"))
    for b in range(3):
        marginals, total = enumeration.marginals(rhm, evidence[b])
        assert beliefs.log_evidence[b] == pytest.approx(total, rel=1e-12, abs=1e-10)
        for level, exact in marginals.items():
            np.testing.assert_allclose(beliefs.marginals[level][b], exact, atol=1e-10)


def test_entropies_equal_enumeration(rhm, evidence):
    entropy = ut.posterior_entropy(rhm, evidence)
    for b in range(3):
        for level, exact in enumeration.joint_entropy(rhm, evidence[b]).items():
            assert entropy[level][b] == pytest.approx(exact, abs=1e-9)
    for level, exact in enumeration.joint_entropy(rhm).items():
        assert prior_entropy(rhm)[level] == pytest.approx(exact, abs=1e-10)


def test_sampler_parser_and_likelihood_equal_enumeration(rhm):
    """Strings and posterior draws without evidence by chi-square at 1e-4; a wrong law fails."""
    from scipy.stats import chisquare

    nodes, weight = enumeration.all_trees(rhm)
    possible = np.isfinite(weight)
    strings, p = nodes[0][possible], np.exp(weight[possible])
    np.testing.assert_allclose(np.exp(rhm.log_likelihood(strings)), p, rtol=1e-12)
    draw = rhm.sample(20_000, seed=0)
    parse = rhm.parse(draw.leaves)
    assert parse.valid[3].all()
    assert all((parse.latents[level] == draw.latents[level]).all() for level in range(4))
    place = {tuple(string): k for k, string in enumerate(strings.tolist())}
    posterior = ut.sample_posterior(rhm, np.zeros((1, 8, 3)), seed=1, num_draws=20_000)[0][:, 0]

    def p_value(leaves, law):
        counts = np.bincount(
            [place[tuple(string)] for string in leaves.tolist()], minlength=len(strings)
        )
        common = law * 20_000 >= 5
        observed, expected = (
            np.append(counts[common], counts[~common].sum()),
            np.append(law[common], law[~common].sum()),
        )
        some = expected > 0
        return chisquare(observed[some], 20_000 * expected[some] / expected.sum()).pvalue

    assert p_value(draw.leaves, p) > 1e-4
    assert p_value(posterior, p) > 1e-4
    assert p_value(draw.leaves, np.sqrt(p) / np.sqrt(p).sum()) < 1e-4


def test_draws_in_logarithms_are_those_of_products():
    """For evidence that products of messages can hold. Without evidence the classes have their
    prior.
    """
    rhm = ut.RandomHierarchyModel.from_rules(
        RULES, rule_probabilities=LAWS, class_probabilities=PRIOR
    )
    log_evidence = np.concatenate(
        [np.zeros((300, 8, 3)), 2 * np.random.default_rng(0).normal(size=(100, 8, 3))]
    )
    streams = ut.random.keys(3, range(400))
    expected = ut.sample_posterior(rhm, log_evidence, seed=streams)
    found = sample_torch(rhm, log_evidence, streams, np.zeros(1, np.uint64), None)
    for level, nodes in expected.items():
        np.testing.assert_array_equal(found[level][0], nodes)
    assert abs(expected[3][:300].mean() - PRIOR[1]) < 4 * np.sqrt(PRIOR[0] * PRIOR[1] / 300)


def test_rounding_draws_no_rule_of_probability_0():
    sums = cumulative_sums(np.array([[0.1] * 10 + [0.0], [0.5] + [0.0] * 9 + [0.5]]))
    assert np.cumsum([0.1] * 10)[-1] < 1  # what a uniform number could exceed
    assert (sums[0, 9:] == 1).all()
    assert (sums[1, :10] == 0.5).all()


def test_a_rule_of_probability_0_is_no_rule():
    rhm = ut.RandomHierarchyModel.from_rules(
        {1: [[[0, 0], [0, 1]], [[1, 1], [0, 1]]]}, rule_probabilities=[[1, 0], [0.5, 0.5]]
    )
    parse = rhm.parse(np.array([[0, 1], [1, 0]]))
    assert parse.latents[1].tolist() == [[1], [-1]]
    assert rhm.log_likelihood(np.array([[1, 0]]))[0] == -np.inf


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_grammar_in_a_file_is_a_source(tmp_path, suffix):
    path = tmp_path / f"grammar.{suffix}"
    rhm = ut.RandomHierarchyModel.from_rules(
        RULES, rule_probabilities=LAWS, class_probabilities=PRIOR
    )
    if suffix == "json":
        path.write_text(
            json.dumps({"rules": RULES, "rule_probabilities": LAWS, "class_probabilities": PRIOR})
        )
    else:
        rhm.save(path)
    experiment = ut.Experiment.from_dict(
        {
            "items": 300,
            "clones": 2,
            "source": {"type": "grammar", "file": str(path)},
            "corruption": {"type": "masking", "noise": [0.3, 0.6]},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}, {"type": "parsed_levels"}],
        }
    )
    source = experiment.parts.source
    assert source.fingerprint() == rhm.fingerprint
    (block,) = source.blocks(np.arange(300), 0, 300)
    assert np.isfinite(rhm.log_likelihood(block.data)).all()
    ds = ut.run(experiment)
    assert ut.calibration(ds, "parsed").attrs["passed"]


def test_rules_that_change_during_a_run_are_not_mixed(tmp_path):
    """A process keeps the rules it began with; one that begins later stops."""
    path = tmp_path / "grammar.json"
    path.write_text(json.dumps({"rules": RULES, "class_probabilities": [0.3, 0.7]}))
    spec = {
        "items": 2,
        "source": {"type": "grammar", "file": str(path)},
        "corruption": {"type": "masking", "noise": [0.3]},
    }
    experiment = ut.Experiment.from_dict(
        {**spec, "backward": {"type": "exact"}, "probes": [{"type": "tree_levels"}]}
    )
    ut.run(experiment, tmp_path / "run")
    source, (task, *_) = experiment.parts.source, RunFolder.open(str(tmp_path / "run")).tasks()
    before = source.fingerprint()
    path.write_text(json.dumps({"rules": RULES, "class_probabilities": [0.25, 0.75]}))
    assert source.grammar(0, 0).fingerprint == before
    with pytest.raises(ValueError, match="as they were when the run began"):
        run_tasks(json.dumps(experiment.to_dict()), str(tmp_path / "run"), [Left(task)])


@pytest.mark.parametrize(
    "text", ['{"rule": {}}', '{"rules": {"1": [[[0, 1]]]}, "vocab_size": 999999999999}']
)
def test_a_file_that_is_no_grammar_is_one_line(tmp_path, text):
    path = tmp_path / "grammar.json"
    path.write_text(text)
    (tmp_path / "grammar.yaml").write_text(text)
    for name in ("grammar.json", "grammar.yaml", "missing.json", "missing.safetensors"):
        file = str(tmp_path / name)
        spec = {
            "items": 2,
            "source": {"type": "grammar", "file": file},
            "corruption": {"type": "masking", "noise": [0.3]},
        }
        with one_line_error(r"grammar\.(json|yaml)|missing"):
            ut.run(
                ut.Experiment.from_dict(
                    {**spec, "backward": {"type": "exact"}, "probes": [{"type": "tree_levels"}]}
                )
            )


def test_a_multiplicity_for_each_level_in_a_spec():
    source = {
        "type": "rhm",
        "vocab_size": 4,
        "multiplicity": [2, 1, 4],
        "branching": 2,
        "depth": 3,
        "zipf_exponent": 1.0,
    }
    spec = {
        "items": 4,
        "source": source,
        "corruption": {"type": "masking", "noise": [0.3]},
        "backward": {"type": "exact"},
    }
    experiment = ut.Experiment.from_dict({**spec, "probes": [{"type": "tree_levels"}]})
    assert experiment.parts.source.grammar(0, 0).multiplicity == {1: 2, 2: 1, 3: 4}
    assert ut.Experiment.from_dict(experiment.to_dict()).hash == experiment.hash
    for wrong in ([2, 1], [2, 0, 4], 0):
        with pytest.raises(ValueError, match="multiplicity"):
            ut.Experiment.from_dict(
                {
                    **spec,
                    "source": {**source, "multiplicity": wrong},
                    "probes": [{"type": "tree_levels"}],
                }
            )
