"""`uturn audit`: order consistency, likelihood in several orders, repetition, fixed tokens, and
the files of an audit.
"""

import json
import sys
from itertools import permutations, product

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from command_line import uturn
from small import one_line_error
from tiny_language import Table, TableDenoiser
from uturn.corruption.sampling import ArrayBeliefs
from uturn.corruption.unmasking import Decoder, law_of
from uturn.measures.report import Report, Verdict
from uturn.pages import write_page
from uturn.pages.page import collect
from uturn.presets import TextOptions
from uturn.tools.audit.likelihood import log_likelihoods
from uturn.tools.audit.numbers import AuditNumbers, decoder_numbers
from uturn.tools.audit.options import COMPARED, AuditOptions
from uturn.tools.audit.orders import distance_ranges, drawn_pairs, order_discrepancy
from uturn.tools.audit.report import audit_report
from uturn.tools.audit.words import meaning

V, D = Table.V, Table.D
ORDERS = [
    Decoder(),
    Decoder("blocks", block=1),
    Decoder("blocks", block=2),
    Decoder("entropy"),
    Decoder("probability"),
]


class Inconsistent:
    """Laws of masked sites that belong to no joint law: drawn independently for each site and
    each text with masks.
    """

    def __init__(self, seed=0):
        self.table = np.random.default_rng(seed).dirichlet(np.ones(V), ((V + 1) ** D, D))

    def conditionals(self, ids):
        """Laws (texts, D, V) of texts (texts, D); masked where -1 or V."""
        ids = np.where(np.asarray(ids) < 0, V, ids)
        return self.table[ids @ (V + 1) ** np.arange(D)]

    def joint(self, text, i, j):
        """P_ij (V, V): both tokens of a text drawn in the order i, j, indexed by the tokens at i
        and at j.
        """
        text = np.array(text)
        after = np.tile(text, (V, 1))
        after[:, i] = np.arange(V)
        return self.conditionals(text[None])[0, i][:, None] * self.conditionals(after)[:, j]


def divergence(model, text, i, j):
    """KL(P_ij ‖ P_ji)."""
    p, q = model.joint(text, i, j), model.joint(text, j, i).T
    return float((p * np.log(p / q)).sum())


def at(model):
    """The model as the function that `order_discrepancy` takes."""
    return lambda texts, rows, positions: model.conditionals(texts)[rows, positions]


def beliefs(model, values):
    """The model as the beliefs that `log_likelihoods` takes."""
    return ArrayBeliefs(model.conditionals(values))


def likelihoods(model, texts, values, decoder, seed=0):
    keys = np.tile(ut.random.keys(seed), len(texts))  # one order for all texts
    return log_likelihoods(
        lambda values, noise: beliefs(model, values), texts, values, keys, [decoder] * len(texts)
    )


# --- two tokens in two orders ---------------------------------------------------------------------


def test_one_joint_law_has_no_discrepancy_in_any_draw():
    table = Table(concentration=1.0)
    partly = [text for text in product([-1, 0, 1], repeat=D) if text.count(-1) >= 2]
    pairs = [
        (text, i, j)
        for text in partly
        for i, j in permutations(range(D), 2)
        if text[i] == text[j] == -1
    ]
    texts, first, second = (np.array(column) for column in zip(*pairs, strict=True))
    assert np.abs(order_discrepancy(at(table), texts, first, second)).max() < 1e-10


@pytest.mark.parametrize(
    ("seed", "text", "pair"),
    [(0, [-1, -1, 2, -1], (0, 3)), (0, [-1, -1, 2, -1], (3, 0)), (1, [-1, -1, -1, -1], (1, 2))],
)
def test_a_known_divergence_is_the_mean(seed, text, pair):
    """Within four standard errors (6e-5 for each); 0 and the divergence of the other order are
    not.
    """
    model, count = Inconsistent(seed), 20000
    draws = order_discrepancy(
        at(model),
        np.tile(text, (count, 1)),
        np.full(count, pair[0]),
        np.full(count, pair[1]),
        seed=1,
    )
    error = draws.std() / np.sqrt(count)
    assert abs(draws.mean() - divergence(model, text, *pair)) < 4 * error
    assert draws.mean() > 4 * error
    assert abs(draws.mean() - divergence(model, text, *pair[::-1])) > 4 * error


def test_impossible_in_the_other_order_is_infinite_and_wrong_sites_are_an_error():
    # The second site repeats the first; the first one does not look at the second.
    def law(texts, rows, positions):
        seen = np.where(positions == 1, texts[rows, 0], -1)
        return np.where(seen[:, None] < 0, [1.0, 0.0], seen[:, None] == [1, 0])

    assert order_discrepancy(law, [[-1, -1]], [0], [1])[0] == np.inf
    for sites in ([0], [0]), ([0], [1]):
        with pytest.raises(ValueError, match="expected two different masked sites"):
            order_discrepancy(law, [[-1, 1]], *sites)


def test_pairs_are_uniform_in_each_range_of_distances():
    masked = np.array([1, 1, 0, 1, 0, 1, 1, 0, 0, 1], bool)
    ends, count = distance_ranges(len(masked)), 20000
    pairs, shares = drawn_pairs(np.tile(masked, (count, 1)), ends, ut.random.keys(0, range(count)))
    sites = np.flatnonzero(masked)
    for k, end in enumerate(ends):
        possible = [
            (i, j)
            for i, j in permutations(sites, 2)
            if (ends[k - 1] if k else 0) < abs(i - j) <= end
        ]
        assert shares[0, k] == pytest.approx(len(possible) / (len(sites) * (len(sites) - 1)))
        drawn, counts = np.unique(pairs[:, k], axis=0, return_counts=True)
        assert set(map(tuple, drawn)) == set(possible)
        expected = count / len(possible)  # chi-square, four standard deviations
        assert ((counts - expected) ** 2 / expected).sum() < len(possible) + 4 * np.sqrt(
            2 * len(possible)
        )
    assert (drawn_pairs(np.zeros((1, 10), bool), ends, ut.random.keys(0, [0]))[0] == -1).all()


# --- the likelihood of a text ---------------------------------------------------------------------

STRINGS = np.array(list(product(range(V), repeat=D)))


@pytest.mark.parametrize("steps", [None, 2, 3, 1])
@pytest.mark.parametrize("decoder", ORDERS, ids=str)
def test_likelihoods_of_all_texts_add_up_to_one(decoder, steps):
    """Although the conditionals belong to no joint law, and for several tokens a step."""
    decoder = Decoder(decoder.order, steps, decoder.block)
    nats = likelihoods(Inconsistent(), STRINGS, np.full_like(STRINGS, -1), decoder)
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"steps": 2}, {"steps": 1}, {"temperature": 0.5}, {"top_k": 2}]
)
def test_likelihoods_are_the_law_of_the_decoder(options):
    """Of those with one order, which `law_of` enumerates; with a prompt."""
    denoiser = TableDenoiser(concentration=1.0)
    given = np.array([-1, 1, -1, -1])
    texts = STRINGS[STRINGS[:, 1] == 1]
    for order in ("entropy", "probability", "blocks"):
        decoder = Decoder(order, block=1, **options)
        law = law_of(denoiser, given, decoder)
        nats = likelihoods(denoiser, texts, np.tile(given, (len(texts), 1)), decoder)
        # Float32.
        np.testing.assert_allclose(
            np.exp(nats), [law.get(tuple(text), 0.0) for text in texts], atol=1e-6
        )


def test_of_one_joint_law_the_order_has_no_part_in_it_and_of_others_it_has():
    table = Table(concentration=1.0)
    masked = np.full_like(STRINGS, -1)
    for decoder in ORDERS:
        np.testing.assert_allclose(
            likelihoods(table, STRINGS, masked, decoder), np.log(table.law), atol=1e-10
        )
    several = [likelihoods(Inconsistent(), STRINGS, masked, decoder) for decoder in ORDERS]
    assert np.abs(several[0] - several[1]).max() > 0.5
    assert (
        np.abs(likelihoods(table, STRINGS, masked, Decoder(steps=2)) - np.log(table.law)).max()
        > 0.01
    )


def test_rows_with_several_decoders_and_lengths_are_independent():
    model = Inconsistent()
    texts = np.array([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 1, 1]])
    values = np.array([[-1, -1, -1, -1], [1, -1, -1, 2], [-1, 0, -1, -1]])
    decoders, keys = (
        [Decoder(), Decoder("entropy", 2), Decoder("blocks", block=1)],
        ut.random.keys(5, range(3)),
    )
    together = log_likelihoods(
        lambda values, noise: beliefs(model, values), texts, values, keys, decoders
    )
    shares = []

    def recorded(values, noise):
        shares.append(noise)
        return beliefs(model, values)

    alone = [
        log_likelihoods(recorded, texts[[k]], values[[k]], keys[[k]], [decoders[k]])[0]
        for k in range(3)
    ]
    np.testing.assert_array_equal(together, alone)
    assert [float(share[0]) for share in shares] == [1, 0.75, 0.5, 0.25, 0.5, 0.25, 0.75, 0.5, 0.25]


def test_random_orders_are_uniform():
    """The mean of q over keys is that over all orders, within four standard errors (6e-5)."""
    model, text, count = Inconsistent(), [2, 0, 1, 1], 4000
    by_order = []
    for order in permutations(range(D)):
        values, q = [-1] * D, 1.0
        for i in order:
            q *= model.conditionals([values])[0, i, text[i]]
            values[i] = text[i]
        by_order.append(q)
    texts, keys = np.tile(text, (count, 1)), ut.random.keys(0, range(count))
    drawn = np.exp(
        log_likelihoods(
            lambda values, noise: beliefs(model, values),
            texts,
            -np.ones_like(texts),
            keys,
            [Decoder()] * count,
        )
    )
    assert len(np.unique(drawn.round(12))) == len(by_order)
    assert abs(drawn.mean() - np.mean(by_order)) < 4 * drawn.std() / np.sqrt(count)
    assert np.ptp(by_order) > 0.1 * np.mean(by_order)


# --- the probes -----------------------------------------------------------------------------------

MODELS = '''
import numpy as np
import torch

from test_audit import Inconsistent
from tiny_language import Table
from uturn.networks.texts.tokenizers import Vocabulary


class Network:
    mask_id = 3

    def __init__(self, model):
        self.model = model

    def logits(self, ids, noise):
        if ids.shape[1] != Table.D:
            return torch.zeros(*ids.shape, Table.V)
        return torch.from_numpy(np.log(self.model.conditionals(ids.numpy())))


def exact():
    return Network(Table(concentration=1.0))


def wrong():
    return Network(Inconsistent())


class Impossible:
    """A symbol repeats its left neighbour, and is any where that is masked."""

    def conditionals(self, ids):
        left = np.pad(ids, ((0, 0), (1, 0)), constant_values=3)[:, :-1]
        return np.where(left[..., None] < 3, left[..., None] == np.arange(3), 1 / 3)


def impossible():
    return Network(Impossible())


class Letters:
    """A letter is that of its left neighbour with probability .8, or of its right neighbour where there is none: no joint law."""

    mask_id = 3
    tokenizer = Vocabulary(("a", "b", "c"), "characters", framed=False)

    def logits(self, ids, noise):
        ids = ids.numpy()
        left = np.pad(ids, ((0, 0), (1, 0)), constant_values=3)[:, :-1]
        right = np.pad(ids, ((0, 0), (0, 1)), constant_values=3)[:, 1:]
        near = np.where(left < 3, left, right)
        law = np.where(near[..., None] == np.arange(3), 0.8, 0.1)
        return torch.from_numpy(np.log(np.where(near[..., None] < 3, law, 1 / 3)))


def letters():
    return Letters()


class Counting(Letters):
    """Counts the texts that it has read."""

    rows = 0

    def logits(self, ids, noise):
        Counting.rows += len(ids)
        return super().logits(ids, noise)


def counting():
    return Counting()
'''


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    (place / "audit_models.py").write_text(MODELS)
    rng = np.random.default_rng(0)
    np.save(place / "ids.npy", rng.integers(0, V, (60, D)))
    (place / "letters.txt").write_text(
        "\n".join("".join(rng.choice(list("abc"), n)) for n in rng.integers(6, 11, 12))
    )
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))


def run_of(folder, model, *probes, noise=(0.5, 1.0), trajectories=1, **more):
    spec = {
        "items": 60,
        "trajectories": trajectories,
        "chunk": 20,
        "source": {"type": "tokens", "path": str(folder / "ids.npy")},
    }
    spec |= {
        "corruption": {"type": "masking", "noise": list(noise)},
        "probes": [{"type": name} for name in probes],
    }
    spec |= {"backward": {"type": "language", "model": f"audit_models:{model}"}} | more
    return ut.run(ut.Experiment.from_dict(spec), workers=1)


def test_an_exact_model_is_consistent_in_a_run(folder):
    run = run_of(folder, "exact", "order_consistency", "order_likelihood")
    assert float(np.abs(run.order_discrepancy).max()) < 1e-10
    assert float(np.abs(run.order_discrepancy_at).max()) < 1e-10
    for name in ("order_nats", "random_orders_differ"):
        assert float(np.abs(run[name]).max()) < 1e-10
    whole = run.left_to_right.sel(noise=1.0).values
    law = dict(zip(map(tuple, STRINGS.tolist()), Table(concentration=1.0).law, strict=True))
    np.testing.assert_allclose(
        whole, [np.log(law[tuple(ids)]) for ids in np.load(folder / "ids.npy").tolist()], rtol=1e-5
    )


def test_an_inconsistent_model_has_its_known_divergence_within_its_interval(folder):
    """At noise 1 all texts are alike: the mean of KL over all ordered pairs, and over those at
    each distance.
    """
    run = run_of(
        folder, "wrong", "order_consistency", "order_likelihood", noise=[1.0], trajectories=30
    )
    study, model, text = ut.study(run), Inconsistent(), [-1] * D
    known = {pair: divergence(model, text, *pair) for pair in permutations(range(D), 2)}

    def check(reading, wanted):
        value, low, high = study.curve.sel(reading=reading, noise=1.0).values
        assert abs(value - wanted) < 2 * (high - low) / 2  # four standard errors
        assert low > 0.05

    check("order_discrepancy", np.mean(list(known.values())))
    for k, end in enumerate(distance_ranges(D)):
        near = [nats for (i, j), nats in known.items() if (0, 1, 2)[k] < abs(i - j) <= end]
        check(f"order_discrepancy_at, pair_distance = {end}", np.mean(near))
    texts = np.load(folder / "ids.npy")
    masked = np.full_like(texts, -1)
    nats = [
        likelihoods(model, texts, masked, decoder)
        for decoder in (Decoder("entropy"), Decoder("blocks", block=1))
    ]
    np.testing.assert_allclose(
        run.order_nats.sel(noise=1.0, decoder="entropy"), nats[0] - nats[1], atol=1e-5
    )
    assert float(run.random_orders_differ.mean()) > 0.3


def test_two_random_orders_are_compared_with_each_other(folder):
    """Of two tokens, a random order is left to right or not: the two orders agree, or differ by
    twice their mean difference.
    """
    source = {"type": "tokens", "path": str(folder / "ids.npy"), "keep_first": D - 2}
    run = run_of(folder, "wrong", "order_likelihood", noise=[1.0], source=source)
    nats, differ = (
        np.abs(run.order_nats.sel(decoder="random").values),
        run.random_orders_differ.values,
    )
    agree = differ < 1e-6
    np.testing.assert_allclose(differ, np.where(agree, 0, 2 * nats), atol=1e-5)
    assert (agree & (nats > 1e-6)).any()  # two orders from right to left
    assert not agree.all()


def test_a_run_resumes_and_does_not_depend_on_batches(folder):
    run = run_of(folder, "wrong", "order_consistency", "order_likelihood")
    probes = [
        {"type": "order_consistency", "batch_size": 3},
        {"type": "order_likelihood", "batch_size": 5},
    ]
    small = run_of(folder, "wrong", probes=probes)
    for name in ("order_discrepancy", "order_discrepancy_at", "order_nats", "random_orders_differ"):
        np.testing.assert_allclose(run[name], small[name], atol=1e-6)
    fewer = run_of(folder, "wrong", probes=probes, chunk=7)
    np.testing.assert_allclose(run.order_discrepancy, fewer.order_discrepancy, atol=1e-6)


def test_texts_that_the_model_never_draws_are_told(folder):
    for probe, message in {
        "order_likelihood": (
            r"gives text \d+ the probability 0: .* remove it from the text, or fix it \(fixed\)"
        ),
        "order_consistency": (
            r"text \d+: the model draws two tokens in one order that have the probability 0 in the"
            r" other"
        ),
    }.items():
        with one_line_error(message):
            run_of(folder, "impossible", probe, noise=[1.0])


def test_repetition_against_a_plain_loop(folder):
    probes = [{"type": "repetition", "ngrams": [1, 2]}, {"type": "tokens"}]
    run = run_of(folder, "wrong", probes=probes, clones=2)

    def read(ids, n):
        grams = [tuple(ids[k : k + n]) for k in range(len(ids) - n + 1)]
        shares = [grams.count(gram) / len(grams) for gram in set(grams)]
        again = [gram in grams[:k] for k, gram in enumerate(grams)]
        return -sum(p * np.log(p) for p in shares), np.mean(again)

    for item, clone, n in product(range(4), range(2), (1, 2)):
        here = {"item": item, "noise": 1.0, "trajectory": 0}
        entropy, repeats = read(run.token.sel(**here, clone=clone).values.tolist(), n)
        assert float(run.ngram_entropy.sel(**here, clone=clone, ngram=n)) == pytest.approx(
            entropy, abs=1e-6
        )
        assert float(run.repeated_ngrams.sel(**here, clone=clone, ngram=n)) == pytest.approx(
            repeats, abs=1e-6
        )
        entropy, _ = read(np.load(folder / "ids.npy")[item].tolist(), n)
        assert float(
            run.original_ngram_entropy.sel(item=item, noise=1.0, ngram=n)
        ) == pytest.approx(entropy, abs=1e-6)
    ids = run.token.values
    np.testing.assert_allclose(
        run.repeated_tokens, (ids[..., 1:] == ids[..., :-1]).mean(-1), atol=1e-6
    )
    study = ut.study(run)
    assert {"ngram_entropy, ngram = 2", "repeated_tokens"} <= set(study.reading.values.tolist())
    # Texts of several lengths.
    run = ut.run(letters(folder, repetition=True).experiment(), workers=1)
    for item, line in enumerate((folder / "letters.txt").read_text().splitlines()):
        assert float(
            run.original_repeated_ngrams.sel(item=item, noise=1.0, ngram=2)
        ) == pytest.approx(read(line, 2)[1], abs=1e-6)
        ids = run.token.values[1, item, 2, : len(line)]
        assert float(run.repeated_tokens.values[1, item, 2]) == pytest.approx(
            (ids[1:] == ids[:-1]).mean(), abs=1e-6
        )


# --- fixed tokens ---------------------------------------------------------------------------------


def letters(folder, kind=TextOptions, **more):
    chosen = {
        "model": "audit_models:letters",
        "data": str(folder / "letters.txt"),
        "levels": [0.6, 1.0],
        "keep": 12,
    }
    return kind.from_dict(chosen | {"trajectories": 3} | more)


def masks(folder):
    """A table of texts whose fixed tokens are the first and the third."""
    lines = (folder / "letters.txt").read_text().splitlines()
    rows = [
        {"text": line, "fixed": "101" + "0" * (len(line) - 3)} for line in lines if line.strip()
    ]
    (folder / "mask.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "mask.jsonl")


@pytest.mark.parametrize("kind", ["first", "mask"])
def test_fixed_tokens_are_never_masked_and_not_read(folder, kind):
    fixed = {"keep_first": 2} if kind == "first" else {"data": masks(folder)}
    where = [0, 1] if kind == "first" else [0, 2]
    experiment = letters(folder, clones=2, **fixed).experiment()
    run, plain = (
        ut.run(of, workers=1) for of in (experiment, letters(folder, clones=2).experiment())
    )
    ids = experiment.parts.source.ids(range(12))
    # (noise, item, trajectory, clone, position).
    noisy, after = run.noisy_token.values, run.token.values
    assert (noisy[..., where] == ids[:, None, None, where]).all()
    assert (after[..., where] == ids[:, None, None, where]).all()
    free = ids >= 0
    free[:, where] = False
    assert (noisy[1][:, 0, 0][free] == -1).all()
    others = (np.array(plain.noisy_token) == noisy) | ~np.isin(np.arange(noisy.shape[-1]), where)
    assert others[..., 3:].all()  # the other tokens are masked as without fixed ones
    kept = ((after == ids[:, None, None]) & free[:, None, None]).sum(-1) / free.sum(-1)[
        :, None, None
    ]
    np.testing.assert_allclose(run.kept.sel(span=1), kept, atol=1e-6)
    pairs = free[:, 1:] & free[:, :-1]
    same = (after == ids[:, None, None])[..., 1:] & (after == ids[:, None, None])[..., :-1]
    two = (same & pairs[:, None, None]).sum(-1) / pairs.sum(-1)[:, None, None]
    np.testing.assert_allclose(run.kept.sel(span=2), two, atol=1e-6)
    assert run.length.values.tolist() == free.sum(1).tolist()
    assert ut.study(run).sizes["changes"] == 1


def test_tables_of_ids_regions_and_segments(folder):
    ids = np.load(folder / "ids.npy")
    rows = [{"text": row.tolist(), "fixed": "0" + "1" + "0" * (D - 2)} for row in ids]
    (folder / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = run_of(
        folder, "wrong", "tokens", source={"type": "tokens", "path": str(folder / "ids.jsonl")}
    )
    assert (run.noisy_token.sel(noise=1.0).values != -1)[..., 1].all()
    lines = (folder / "letters.txt").read_text().splitlines()
    (folder / "regions.csv").write_text(
        "\n".join(["text,regions", *(f"{x},{'P' * 2 + 'T' * (len(x) - 2)}" for x in lines)])
    )
    source = (
        letters(folder, data=str(folder / "regions.csv"), segments=["c"], keep_first=2)
        .experiment()
        .parts.source
    )
    assert (source.regions_of(range(3))[:, :2] == -1).all()
    assert (source.segments_of(range(3))[:, :2] == -1).all()


@pytest.mark.parametrize(
    "decoder",
    [
        {"order": "confidence", "steps": 2},
        {"order": "blocks", "block": 2, "causal": True},
        {"order": "analytic", "steps": 8, "remask": "cap", "eta": 1.0},
    ],
    ids=str,
)
def test_no_decoder_changes_fixed_tokens(folder, decoder):
    experiment = letters(folder, clones=2, keep_first=2, **decoder).experiment()
    after, ids = ut.run(experiment, workers=1).token.values, experiment.parts.source.ids(range(12))
    assert (after[..., :2] == ids[:, None, None, :2]).all()
    assert (after[..., 2:] != ids[:, None, None, 2:]).any()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        {"order": "blocks", "block": 4, "steps": 3},
        {"order": "analytic", "steps": 6},
    ],
    ids=str,
)
def test_calls_of_a_decoder_are_those_that_its_run_makes(folder, own):
    """Per text; where chance decides, the expected number rounded up, within six standard errors
    (at most .5 calls).

    The check of the model before a run reads some texts, too: .1 for each of the 480 draws.
    """
    audited = letters(
        folder, AuditOptions, model="audit_models:counting", keep_first=1, **own
    ).audited()
    name, options = [*audited.items()][-1]
    experiment = options.model_copy(update={"clones": 40}).experiment()
    assert experiment.parts.source.max_length  # the texts are read, for which the network is called
    network = sys.modules["audit_models"].Counting
    network.rows = 0
    run = ut.run(experiment, workers=1)
    made = network.rows / 12 / 40
    row = decoder_numbers(name, run, options).model_dump()
    decoder = options.denoiser().decoder
    assert len(audited) == 10  # nine that differ on nine tokens, and one's own
    assert not row["is_exact"]
    rounded, error = (len(COMPARED), 0.5) if decoder.in_time else (0, 0.15)
    assert made - error <= sum(row["calls"]) <= made + rounded + error


@pytest.mark.parametrize(
    "option", ["layers", "encoder", "repetition", "causal", "remask", "eta", "remask_given"]
)
def test_measures_of_texts_and_other_decoders_are_no_options_of_an_audit(option):
    with pytest.raises(ValueError, match=f"options = .*{option}"):
        AuditOptions.from_dict({option: TextOptions.model_fields[option].default})


@pytest.mark.parametrize(("length", "fixed", "listed"), [(17, 0, 12), (17, 1, 9), (40, 23, 12)])
def test_decoders_that_are_equal_on_short_texts_are_one(folder, length, fixed, listed):
    (folder / "one_length.txt").write_text("a" * length + "\n" + "b" * (length - 1) + "\n")
    chosen = letters(folder, AuditOptions, data=str(folder / "one_length.txt"), keep_first=fixed)
    audited = chosen.audited()
    assert len(audited) == listed
    assert all(name == options.denoiser().decoder.description for name, options in audited.items())
    assert ("order confidence, 16 steps" in audited) == (listed == 12)
    (likelihood,) = [
        probe for probe in chosen.experiment().parts.probes if probe.type == "order_likelihood"
    ]
    assert ({"steps": 16} in likelihood.decoders) == (listed == 12)


@pytest.mark.parametrize("length", [3, 4])
def test_a_decoder_on_short_texts_has_the_law_of_its_simplest_form(length):
    """By enumeration, over all decoders of up to four steps and blocks."""
    denoiser = TableDenoiser(concentration=0.5)
    values = np.array([-1, -1, 1, -1][:length] + [2] * (D - length))
    for order, steps, block in product(
        ("random", "blocks", "entropy", "confidence"), (None, 2, 3, 4), (1, 2, 3, 4)
    ):
        decoder = Decoder(order, steps, block)
        law = law_of(denoiser, values, decoder)
        assert law == pytest.approx(
            law_of(denoiser, values, decoder.on_texts_of(length)), abs=1e-12
        )
    assert Decoder("blocks", 3, 2).on_texts_of(length) == Decoder(
        "blocks", None if length == 3 else 3, 2
    )
    assert Decoder("blocks", 2, 9, causal=True).on_texts_of(length) == Decoder("random", 2)


NUMBERS = AuditNumbers(
    description="texts",
    texts=30,
    tokens=[8.0] * 30,
    noise=[0.2, 0.5, 1.0],
    order_discrepancy=[(0.1, 0.05, 0.15)] * 3,
    order_discrepancy_at={},
    left_to_right=[(-8.0, -9.0, -7.0)] * 3,
    order_nats={},
    random_orders_differ=[(0.5, 0.4, 0.6)] * 3,
    compared=[0.5, 1.0],
    original_ngram_entropy=2.0,
    decoders=[],
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory, blank_figures):
    """The embedded model on two passages of twelve characters, the first of which is fixed."""
    place = tmp_path_factory.mktemp("command")
    arguments = ("audit", "--windows", "--length", 12, "--items", 2, "--keep-first", 1, "--levels", "0.5,1.0",
                 "--keep", 0, "--trajectories", 2, "--workers", 1, "--out", "results")  # fmt: skip
    return place / "results", arguments, uturn(*arguments, cwd=place)


def test_an_audit_writes_its_numbers_and_its_section(audited):
    out, _, done = audited
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((out / "audit.json").read_text())
    assert (numbers["texts"], numbers["noise"], numbers["tokens"]) == (2, [0.5, 1.0], [11, 11])
    for name in ("order_discrepancy", "random_orders_differ", "left_to_right"):
        assert np.array(numbers[name], float).shape == (2, 3)
        assert np.isfinite(np.array(numbers[name], float)).all()
    assert numbers["random_orders_differ"][1][0] > 0  # no trained network is quite consistent
    # With 16 steps they are the same on 11 tokens.
    assert set(numbers["order_nats"]) == {"random", "entropy", "probability"}
    assert 0 < numbers["original_ngram_entropy"] < np.log(12)
    rows = {row["decoder"]: row for row in numbers["decoders"]}
    exact = [name.removeprefix("order ") for name, row in rows.items() if row["is_exact"]]
    assert exact == ["random", "blocks of 1", "entropy", "probability"]
    assert len(rows) == 9
    assert rows["order blocks of 1"]["calls"][1] == 11
    assert (out / "audit.png").exists()
    sections = {section.kind: section for section in collect([out]).sections}
    assert list(sections) == ["audit", "study"]
    assert [card.unit for card in sections["audit"].cards] == [
        "nats a pair",
        "nats a text",
    ]
    assert len(sections["audit"].overview.rows) == 9
    words = meaning(AuditNumbers.model_validate(numbers))
    assert words in sections["audit"].words
    assert words in " ".join(done.stdout.split())
    assert sections["audit"].pictures
    assert "Audit of the masked model" in (out / "index.html").read_text()
    for text in ("what each decoder costs on this model", "order_discrepancy", "random order"):
        assert text in done.stdout


def test_from_python_an_audit_is_a_report(audited):
    """The numbers are those of the command; `report` judges the inconsistency of pairs."""
    out, _, _ = audited
    options = {"windows": True, "length": 12, "items": 2, "keep_first": 1, "levels": [0.5, 1.0]}
    report = ut.audit(store=out, keep=0, trajectories=2, **options)
    numbers = AuditNumbers.model_validate_json((out / "audit.json").read_text())
    largest = numbers.largest_discrepancy
    assert report["two tokens in two orders"].measured == pytest.approx(largest.nats)
    assert report["gap, left to right"].measured.value == numbers.decoders[1].gap[0][0]
    assert report.passed
    assert {line.verdict for line in report.lines} == {Verdict.REPORTED}
    stored = Report.from_dict(json.loads((out / "audit-report.json").read_text()))
    assert [line.words for line in stored.lines] == [line.words for line in report.lines]
    with one_line_error("items = 0"):
        ut.audit(items=0)


@pytest.mark.parametrize(
    ("tolerance", "passed"), [(0.0, False), (0.2, False), (0.3, True), (1.0, True)]
)
def test_the_consistency_of_pairs_is_judged_against_a_tolerance(tolerance, passed):
    """30 texts with a mean of 0.27 nats a pair at one of three noise levels, error 0.01."""
    numbers = NUMBERS.model_copy(
        update={"noise": [0.2, 0.5, 1.0], "order_discrepancy": [(0.0, 0.0, 0.0), (0.27, 0.25, 0.29), (None, None, None)]}
    )  # fmt: skip
    values = np.zeros((3, 30))
    values[1] = 0.27 + 0.05 * np.random.default_rng(0).standard_normal(30)
    values[2] = np.nan
    run = xr.Dataset({"order_discrepancy": (("noise", "item"), values)})
    report = audit_report(numbers, run, tolerance=tolerance)
    assert report.passed is passed
    line = report["two tokens in two orders"]
    assert line.measured == (0.27, 0.25, 0.29)
    assert line.remark == f"at masked fraction 0.5, tolerated: {tolerance:g}"


def test_models_within_the_tolerance_fail_at_the_stated_rate():
    """1,000 audits of 30 texts at three noise levels, mean at the tolerance, rate 0.05."""
    rng = np.random.default_rng(1)
    failed = 0
    for _ in range(1000):
        values = 0.1 + 0.05 * rng.standard_normal((3, 30))
        run = xr.Dataset({"order_discrepancy": (("noise", "item"), values)})
        report = audit_report(NUMBERS, run, tolerance=0.1, false_alarm_rate=0.05)
        failed += not report.passed
    assert 25 <= failed <= 75


@pytest.mark.slow
def test_an_audit_continues_and_damage_is_told(audited):
    out, arguments, _ = audited
    before = (out / "audit.json").read_text()
    stores = {path: path.stat().st_mtime_ns for path in out.glob("audit/*/tasks/*")}
    again = uturn(*arguments, cwd=out.parent)
    assert again.returncode == 0
    assert (out / "audit.json").read_text() == before
    assert stores
    assert stores == {path: path.stat().st_mtime_ns for path in stores}  # nothing is measured again
    shared = uturn(*arguments, "--shard", "1/2", cwd=out.parent)
    assert shared.returncode == 2
    assert "leave out --shard" in shared.stderr
    (out / "audit.json").write_text("{")
    # No figure of this name.
    assert [problem.file for problem in collect([out]).problems] == [str(out / "audit.json")]
    (out / "audit.json").write_text("{}")
    collected = collect([out])
    assert [section.kind for section in collected.sections] == ["study"]
    assert "expected an audit" in collected.problems[0].words
    (out / "audit.json").write_text(before)
    write_page(out)
