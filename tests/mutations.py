"""Deliberate errors in the package, and the verdict of a figure or the test that must fail for each
of them.

An error is a text replaced in a function, an edit of its syntax tree (`Assigned`, `Replaced`), or
an object that takes the place of a named one. `Mutation.applied()` puts what is wrong in the place
of what is right, wherever that is imported. `tests/test_mutations.py` shows quickly that what is
named fails; `benchmarks/mutations.py` runs the whole figures with the mutations.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mutation import Assigned, Mutation, Replaced
from uturn.corruption.unmasking import Decoder
from uturn.networks import edm_schedule


def of_marginals(
    rhm: Any, log_evidence: np.ndarray, keys: np.ndarray, numbers: np.ndarray
) -> dict[int, np.ndarray]:
    """The draws of a wrong sampler: every node independently from its own marginal."""
    from uturn.core.random import streams, uniforms
    from uturn.exact.inference import infer

    trees = {}
    for level, marginals in infer(rhm, log_evidence).marginals.items():
        below = marginals.cumsum(-1, dtype=float)
        heights = [
            uniforms(streams(keys, len(keys), 64 * level + k), below.shape[1])
            for k in numbers.tolist()
        ]
        drawn = (below <= np.array(heights)[..., None] * below[..., -1:]).sum(-1)
        trees[level] = np.minimum(drawn, marginals.shape[-1] - 1)
    return trees


def of_channel(test: str, kind: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """A test of `test_channels.py` on one kind of channel."""
    return ((f"test_channels::test_{test}", {"kind": kind}),)


LAW, CALIBRATION = "the_noise_has_its_law", "draws_are_calibrated"
MARGINALS = "draws_keep_a_symbol_with_its_marginal_probability"

MUTATIONS = (
    Mutation(
        "Gaussian evidence without sqrt(abar)",
        "uturn.corruption.gaussian:Gaussian._gain",
        "gain = np.sqrt(self.abar(t)) / ",
        "gain = 1 / ",
        tests=of_channel(CALIBRATION, "gaussian"),
    ),
    Mutation(
        "Gaussian evidence times 1.1",
        "uturn.corruption.gaussian:Gaussian._gain",
        "gain = np.sqrt(self.abar(t)) / ",
        "gain = 1.1 * np.sqrt(self.abar(t)) / ",
        tests=of_channel(CALIBRATION, "gaussian"),
    ),
    Mutation(
        "replacement that never redraws the same symbol",
        "uturn.corruption.uniform:UniformReplacement.corrupt",
        "redrawn = (u[:, d:] * vocab_size).astype(np.int64)",
        "redrawn = (leaves + 1 + (u[:, d:] * (vocab_size - 1)).astype(np.int64)) % vocab_size",
        tests=of_channel(LAW, "uniform"),
    ),
    Mutation(
        "10 % too little masking",
        "uturn.corruption.masking:Masking.corrupt",
        "< share[:, None]",
        "< 0.9 * share[:, None]",
        tests=of_channel(LAW, "masking"),
    ),
    Mutation(
        "wrong downward competitor count",
        "uturn.exact.theory:MeanField._messages",
        "wrong = (q * (m - 1) + (1 - q) * m) * self._inverse_T",
        "wrong = m * self._inverse_T",
        tests=(("test_theory::test_competing_rules_of_the_downward_map_are_those_of_random_grammars", {}),),
    ),
    Mutation(
        "intervals without the level of grammars",
        "uturn.measures.readings:independent_groups",
        "if grammar is not None and",
        "if False and",
        tests=(("test_mutations::intervals_see_the_grammars", {}),),
    ),
    Mutation(
        "all trajectories identical",
        "uturn.core.random:Streams.keys",
        "np.asarray(self.trajectories)",
        "np.zeros(self.count, np.int64)",
        tests=(("test_experiment::test_trajectories_are_independent", {"kind": "masking"}),),
    ),
    Mutation(
        "all trajectories identical, channels that draw nothing",
        "uturn.sources.strings:NoisyStrings.posterior_draws",
        "np.asarray(streams.trajectories, np.uint64)",
        "np.zeros(streams.count, np.uint64)",
        tests=(("test_experiment::test_trajectories_are_independent", {"kind": "epsilon"}),),
    ),
    Mutation(
        "all clones identical",
        "uturn.exact.inference:sample_posterior",
        "trees = rhm.posterior_draws(evidence, streams(seed, len(evidence)), numbers)",
        "trees = rhm.posterior_draws(evidence, streams(seed, len(evidence)), 0 * numbers)",
        tests=of_channel(CALIBRATION, "masking"),
    ),
    Mutation(
        "the same noise at all levels",
        "uturn.core.random:Streams.keys",
        "level = np.float64(self.noise).view(np.uint64)",
        "level = np.uint64(0)",
        tests=(
            *of_channel(LAW, "gaussian"),
            ("test_experiment::test_neighbouring_noise_levels_have_streams_of_their_own", {}),
        ),
    ),
    Mutation(
        "E[a^2] for the variance of activations",
        "uturn.probes.hidden_layers:HiddenLayers._compared",
        "statistics.factors(legacy=self.legacy)",
        "statistics.factors(legacy=True)",
        tests=(("test_hidden_layers::test_similarity_equals_brute_force", {}),),
    ),
    Mutation(
        "noising one timestep off",
        "uturn.paper.sampler_laws:scheduler_sampler",
        'reverse.forward.noise_levels["abar"][step]',
        'reverse.forward.noise_levels["abar"][step - 1]',
        {"schedulers": "what the model is asked first"},
    ),
    Mutation(
        "denoising one timestep off",
        "uturn.paper.sampler_laws:scheduler_sampler",
        "reverse.denoise(images, step, ",
        "reverse.denoise(images, max(step - 1, 1), ",
        {"schedulers": "what the model is asked first"},
    ),
    Mutation(
        "a damped C_k",
        "uturn.exact.theory:MeanField.pair_correlations",
        "damping = damping * (a - b) ** 2",
        "damping = 0.9 * damping * (a - b) ** 2",
        tests=(("test_theory::test_pair_correlations_against_the_joint_law", {"v": 8, "m": 3, "s": 2, "n": None}),),
    ),
    Mutation(
        "a wrong pair count in chi, s = 2",
        "uturn.exact.theory:MeanField.susceptibility",
        "(s - 1) * float(s) ** np.arange(depth)",
        "(s - 1) * float(s) ** np.arange(1, depth + 1)",
        tests=(("test_theory::test_susceptibility_is_the_sum_over_all_ordered_pairs", {"v": 8, "m": 3, "s": 2}),),
    ),
    Mutation(
        "a wrong pair count in chi, right for s = 2",
        "uturn.exact.theory:MeanField.susceptibility",
        "(s - 1) * float(s) ** np.arange(depth)",
        "float(s) ** np.arange(depth)",
        tests=(("test_theory::test_susceptibility_is_the_sum_over_all_ordered_pairs", {"v": 4, "m": 2, "s": 3}),),
    ),
    Mutation(
        "changes of different originals in one covariance",
        "uturn.measures.hierarchy:_of_sites",
        "x = x - mean[:, :, None]",
        "x = x - mean.mean(axis=1)[:, None, None]",
        tests=(("test_nesting_index::test_equals_its_definition", {"s": 2, "sites": 8}),),
    ),
    Mutation(
        "nested correlations of independent losses are counted",
        "uturn.measures.hierarchy:nesting",
        "C - (lost**2)[:, None, None] * C[-1]",
        "C",
        tests=(("test_nesting_index::test_what_is_lost_as_in_independent_data_does_not_count", {}),),
    ),
    Mutation(
        "one grammar for all",
        "uturn.sources.strings:RHMSource.grammar",
        "_grammar(self, number, seed)",
        "_grammar(self, 0, seed)",
        tests=(("test_experiment::test_every_grammar_has_rules_of_its_own", {}),),
    ),
    Mutation(
        "a sampler of marginals",
        "uturn.exact.inference:sample_posterior",
        "trees = rhm.posterior_draws(evidence, streams(seed, len(evidence)), numbers)",
        "from mutations import of_marginals; trees = of_marginals(rhm, evidence, streams(seed, len(evidence)), numbers)",
        tests=of_channel(CALIBRATION, "masking"),
    ),
    Mutation(
        "marginals of other evidence than the draws",
        "uturn.sources.strings:NoisyStrings.true_beliefs",
        "return self.rhm.true_beliefs(self.evidence, symbols)",
        "return self.rhm.true_beliefs(Evidence.of(np.float32(1.1) * self.log_evidence), symbols)",
        tests=of_channel(MARGINALS, "gaussian"),
    ),
    Mutation(
        "clones compared with themselves",
        "uturn.probes.comparison:Comparison.compared",
        "self._checked_compare(of_clone[j], of_clone[k])",
        "self._checked_compare(of_clone[j], of_clone[j])",
        tests=(("test_calibration::test_twins_are_their_definition", {}),),
    ),
    Mutation(
        "clones of readings made elsewhere are compared with themselves",
        "uturn.measures.clones:between_clones",
        "f(groups[:, j], groups[:, k])",
        "f(groups[:, j], groups[:, j])",
        tests=(
            (
                "test_readings::test_calibration_equals_that_of_arrays",
                {"shrink": 1.0, "passes": True},
            ),
        ),
    ),
    Mutation(
        "p-values of many tests without Holm's factor",
        "uturn.measures.calibration:holm",
        "flat[order] * np.arange(len(flat), 0, -1)",
        "flat[order] * 1",
        tests=(("test_calibration::test_holm", {}),),
    ),
    Mutation(
        "a p-value of zero hits is 0",
        "uturn.measures.relabelling:p_values",
        "p[active] = (1 + hits) / (done + 1)",
        "p[active] = hits / (done + 1)",
        tests=(("test_calibration::test_wrong_evidence_has_the_smallest_p_value", {}),),
    ),
    Mutation(
        "gaps with the original among the others",
        "uturn.measures.calibration:exchanged_gaps",
        "(total - K * with_others) / (K * (K - 1) / 2)",
        "total / (K * (K + 1) / 2)",
        tests=(("test_calibration::test_a_run_is_read_as_it_is_defined", {}),),
    ),
    Mutation(
        "test on another trajectory than the first",
        "uturn.measures.calibration:calibration",
        "readings.isel(trajectory=0)",
        "readings.isel(trajectory=-1)",
        tests=(("test_calibration::test_a_run_is_read_as_it_is_defined", {}),),
    ),
    Mutation(
        "phi of a mixture with the whole distance for half of it",
        "uturn.measures.cloning:mixture_cloning_probability",
        "np.sqrt(D) / 2",
        "np.sqrt(D)",
        tests=(("test_cloning::test_cloning_probability_of_a_mixture_is_that_of_its_posterior", {}),),
    ),
    Mutation(
        "collapse time without the factor 1/2",
        "uturn.measures.cloning:collapse_time",
        "return 0.5 * float(capacities.sum())",
        "return float(capacities.sum())",
        tests=(("test_cloning::test_speciation_and_collapse_times", {}),),
    ),
    Mutation(
        "F with a wrong exponent",
        "uturn.exact.theory:MeanField._lost_above",
        "power = _power(lost, s)",
        "power = _power(lost, s - 1)",
        {"fig6": "belief one level above the leaves"},
    ),
    Mutation(
        "F with a wrong exponent in what is lost",
        "uturn.exact.theory:MeanField._lost_above",
        "b = -np.expm1(s * _log_kept(lost))",
        "b = -np.expm1((s - 1) * _log_kept(lost))",
        {"fig6": "belief one level above the leaves"},
    ),
    Mutation(
        "covariances pooled over originals",
        "uturn.measures.covariances:Covariances._moments",
        "mean = changes.mean(axis=1)",
        "mean = np.broadcast_to(changes.mean(axis=(0, 1)), changes.shape[::2])",
        tests=(("test_changes::test_pooling_over_originals_would_give_another_answer", {}),),
    ),
    Mutation(
        "leaves whose changes count twice, in the exact chi",
        "uturn.exact.changed_leaves:covariances_within_subtrees",
        "within = (square - mean**2).mean(axis=1)",
        "within = (2 * square - mean**2).mean(axis=1)",
        {"chi": "chi against the exact chi of the same strings, ε"},
    ),
    Mutation(
        "noise that is not counted, in the exact chi",
        "uturn.exact.changed_leaves:covariances_within_subtrees",
        "within += mean.var(axis=1, ddof=1)",
        "within += 0 * mean.var(axis=1, ddof=1)",
        tests=(("test_exact_changes::test_equal_enumeration", {"channel": "masking", "noise": [0.5], "options": {}}),),
    ),
    Mutation(
        "chi without its diagonal",
        "uturn.measures.changes:chi_of",
        "means.mean[:, 0] / means.mean[:, 1]",
        "means.mean[:, 0] / means.mean[:, 1] - 1",
        {"chi": "chi against the exact chi of the same strings, ε"},
        (("test_changes::test_common_changes_have_chi_of_the_number_of_sites", {}),),
    ),
    Mutation(
        "readings of calibration in their own unit",
        "uturn.measures.calibration:calibrate",
        "gaps / np.where(size > 0, size, 1)",
        "1.0 * gaps",
        tests=(("test_calibration::test_the_unit_of_a_reading_does_not_matter", {}),),
    ),
    Mutation(
        "a visible gap where no p-value is small enough",
        "uturn.measures.calibration:_log_share_of_largest",
        "np.log(is_largest.mean(axis=1)).sum(axis=0)",
        "np.log(is_largest.mean(axis=1)).sum(axis=0) - 99",
        tests=(("test_calibration::test_no_gap_is_visible_where_no_p_value_is_small_enough", {}),),
    ),
    Mutation(
        "intervals of chi with the degrees of freedom of all originals",
        "uturn.measures.replicates:Replicates.half_width",
        "decide = np.minimum(number, self.groups)",
        "decide = self.groups + 0.0 * np.asarray(number)",
        tests=(("test_changes::test_intervals_have_the_degrees_of_freedom_of_the_originals_that_decide", {}),),
    ),
    Mutation(
        "C(r) at all distances with the originals that decide the variance",
        "uturn.measures.changes:_Curve.of",
        edit=Replaced("np.minimum(contributing, number[:, None])", "0 * contributing + number[:, None]"),
        tests=(("test_changes::test_correlations_that_rest_on_few_common_changes_have_no_interval", {}),),
    ),
    Mutation(
        "the peak has the degrees of freedom of its own level alone",
        "uturn.measures.peaks:_not_below",
        "np.minimum(number, number[k])",
        "number[k] + 0 * number",
        tests=(("test_changes::test_levels_of_the_peak_pass_one_sided_tests", {"few": 6, "is_level": True}),),
    ),
    Mutation(
        "the tests of the levels of the peak are two-sided",
        "uturn.measures.peaks:_not_below",
        "one_sided = 2 * _CONFIDENCE - 1",
        "one_sided = _CONFIDENCE",
        tests=(("test_changes::test_levels_of_the_peak_pass_one_sided_tests", {"few": 0, "is_level": False}),),
    ),
    Mutation(
        "effective number of a share with z/t counted once",
        "uturn.measures.intervals:_effective_trials",
        "p * (1 - p) / s2 * ratio**2",
        "p * (1 - p) / s2 * ratio",
        tests=(("test_statistics::test_shares_have_the_effective_number_that_t_and_z_leave", {}),),
    ),
    Mutation(
        "width of a fall without what the levels around its ends leave open above",
        "uturn.studies.places:_width",
        "high = np.maximum(high, last[:, 1] - first[:, 0])",
        "high = high + 0 * last[:, 1]",
        tests=(("test_study::test_a_width_can_reach_from_the_level_before_its_first_end_to_that_after_its_second", {}),),
    ),
    Mutation(
        "levels of the peak without half a step beyond them",
        "uturn.measures.peaks:_half_a_step_wider",
        "below = max(first - 1, 0)",
        "below = first",
        tests=(("test_changes::test_the_interval_of_the_peak_is_half_a_step_wider_than_its_levels", {}),),
    ),
    Mutation(
        "the height of the peak read on the half that chose the level",
        "uturn.measures.peaks:_cross_fitted",
        "first[second.argmax()], second[first.argmax()]",
        "first[first.argmax()], second[second.argmax()]",
        tests=(("test_changes::test_the_height_as_found_is_too_high_on_a_plateau_and_the_cross_fitted_one_is_not", {}),),
    ),
    Mutation(
        "intervals of labelled changes over items instead of grammars",
        "uturn.measures.changes:_of_changes",
        "{**changes.coordinates, ",
        '{**{k: v for k, v in changes.coordinates.items() if k == "noise"}, ',
        tests=(("test_changes_probe::test_intervals_of_labelled_changes_are_over_grammars", {}),),
    ),
    Mutation(
        "batches of trajectories joined without the difference of their means",
        "uturn.measures.covariances:Covariances.merge",
        "self._products + other._products + between",
        "self._products + other._products + 0 * between",
        tests=(("test_changes::test_batches_with_other_means_are_joined", {}),),
    ),
    Mutation(
        "all masked tokens are told as noise in all steps",
        "uturn.corruption.unmasking:InOrder.question",
        "self.order.noise(state.noise, state.step, visible, state.chance)",
        "self.order.noise(state.noise, 0 * state.step, visible, state.chance)",
        tests=(("test_unmasking::test_the_denoiser_is_told_the_share_of_masked_tokens", {}),),
    ),
    Mutation(
        "top-p without the token that crosses p",
        "uturn.corruption.sampling:SymbolLaw._truncated",
        "np.cumsum(ordered, axis=-1) - ordered",
        "np.r_[0, np.ones(ordered.shape[-1] - 1)] * np.cumsum(ordered, axis=-1)",
        tests=(("test_unmasking::test_top_p_keeps_the_fewest_symbols_that_reach_p", {"p": 0.5}),),
    ),
    Mutation(
        "a network's ratio of the token that is there is believed",
        "uturn.networks.texts.language:LanguageModel._from_ratios",
        "s = log_ratios.double().exp().masked_fill(is_current, 1.0)",
        "s = log_ratios.double().exp()",
        tests=(("test_language::test_uniform_replacement_reads_ratios_as_the_posterior", {}),),
    ),
    Mutation(
        "Sana counts its steps as Stable Diffusion does",
        "uturn.networks.images.schedules:schedule",
        "counts_down = family.counts_down",
        "counts_down = family.counts_down and not stored.pipeline.startswith('Sana')",
        tests=(("test_schedules::test_the_rule_of_every_image_to_image_pipeline", {}),),
    ),
    # --- parts, and clones ---
    Mutation(
        "what stands beside the class of one's own part does not count as its code",
        "uturn.core.own_parts:code_digest",
        "Path(inspect.getfile(owner)).read_bytes()",
        "inspect.getsource(owner).encode()",
        tests=(("test_own_parts::test_the_digest_of_code_is_of_its_text", {}),),
    ),
    Mutation(
        "draws are cut into clones first, then trajectories",
        "uturn.core.contracts:_with_clones",
        'end = dims.index("trajectory") + 1',
        'end = dims.index("trajectory")',
        tests=(("test_calibration::test_twins_are_their_definition", {}),),
    ),
    Mutation(
        "mean over the other clones divided by the number of all",
        "uturn.measures.clones:over_other_clones",
        "/ (clones - 1)",
        "/ clones",
        tests=(("test_calibration::test_twins_are_their_definition", {}),),
    ),
    Mutation(
        "the original never ranks above all clones that are equal to it",
        "uturn.measures.ranks:_ranks",
        "drawn * (equal + 1)",
        "drawn * equal",
        tests=(("test_ranks::test_ranks_are_their_definition", {}),),
    ),
    Mutation(
        "rank bands without the number of tests",
        "uturn.measures.ranks:ranks",
        "level / rank.isel(item=0).size",
        "level",
        tests=(("test_ranks::test_the_band_counts_all_tests_of_a_call", {}),),
    ),
    Mutation(
        "counts of ranks are drawn from all items at each rank",
        "uturn.measures.ranks:_inside",
        "1 / (K + 1 - r)",
        "1 / (K + 1)",
        tests=(("test_ranks::test_ranks_are_their_definition", {}),),
    ),
    Mutation(
        "clones of a noisy datum count as trajectories",
        "uturn.probes.changes:Changes.accumulate",
        "changed.reshape(items, -1, clones, sites).swapaxes(1, 2)",
        "changed.reshape(items, clones, -1, sites)",
        tests=(("test_changes_probe::test_clones_are_averaged_over_clone_numbers", {}),),
    ),
    # --- queues ---
    Mutation(
        "all images of a call are told the timestep of the first ones",
        "uturn.backward.reverse_diffusion:ReverseDiffusion.step_back",
        "*map(torch.cat, inputs)",
        "*(torch.cat(part)[:1].expand(sum(map(len, part))) if part[0].ndim == 1 else torch.cat(part) for part in inputs)",
        tests=(("test_queue::test_shared_batches_change_nothing", {"name": "ddpm"}),),
    ),
    Mutation(
        "a backward that reads all its input is given the whole run",
        "uturn.core.u_turns:_Stream._noisy",
        "if most is not None and len(self.waiting) >= most:",
        "if False:",
        tests=(("test_u_turn::test_a_backward_that_reads_all_its_input_does_not_hold_the_whole_run", {}),),
    ),
    Mutation(
        "images that enter the queue together draw the same noise",
        "uturn.backward.reverse_diffusion:ReverseDiffusion._step_options",
        "manual_seed(seed) for seed in seeds",
        "manual_seed(seeds[0]) for seed in seeds",
        tests=(("test_queue::test_shared_batches_change_nothing", {"name": "ddpm"}),),
    ),
    Mutation(
        "the learned variance is taken for the noise",
        "uturn.backward.reverse_diffusion:ImageCohort.to_next_timestep",
        "output = output[:, :channels]",
        "output = output[:, channels:]",
        tests=(("test_ancestral::test_learned_variances_are_left_out", {}),),
    ),
    Mutation(
        "tokens that were not kept are drawn with the same numbers again",
        "uturn.corruption.unmasking:InOrder.answered",
        "streams(state.keys, len(masked), state.step)",
        "streams(state.keys, len(masked), 0)",
        tests=(("test_in_time::test_draws_follow_the_law", {"decoder": Decoder("confidence"), "start": (-1, -1, -1)}),),
    ),
    Mutation(
        "the chances of a text in time depend on its padding",
        "uturn.corruption.in_time:_chance",
        "state.lengths[:, None]",
        "width + 0 * state.lengths[:, None]",
        tests=(
            (
                "test_language::test_padding_changes_no_draw",
                {"decoder": {"order": "analytic", "steps": 5}},
            ),
        ),
    ),
    Mutation(
        "the texts of a call get the state of the first one",
        "uturn.backward.language:_TokenQueue._call",
        "state.rows(slice(row, row + 1))",
        "state.rows(slice(0, 1))",
        tests=(("test_language::test_the_queue_draws_what_unmasking_draws", {"decoder": Decoder("confidence", steps=2)}),),
    ),
    Mutation(
        "share of masked tokens among those of the longest text",
        "uturn.corruption.orders:share_of_masked",
        "lengths(values)",
        "values.shape[1]",
        tests=(("test_language::test_the_network_is_told_the_share_of_masked_tokens", {}),),
    ),
    # --- calibration ---
    Mutation(
        "relabellings that tie with the observed gap do not count",
        "uturn.measures.relabelling:p_values",
        "np.abs(mean) - MARGIN",
        "np.abs(mean) + MARGIN",
        tests=(("test_calibration::test_no_gap_is_visible_where_no_p_value_is_small_enough", {}),),
    ),
    Mutation(
        "a test that ended early has the p-value of one that did not",
        "uturn.measures.relabelling:p_values",
        "p[active] = (1 + hits) / (done + 1)",
        "p[active] = (1 + hits) / (relabellings + 1)",
        tests=(("test_calibration::test_the_test_is_the_enumeration_of_all_relabellings", {}),),
    ),
    Mutation(
        "relabellings are spared where one of them is improbable, not all",
        "uturn.measures.relabelling:p_values",
        "log_bound(gaps[:, :, active], least[active]) + np.log(relabellings)",
        "log_bound(gaps[:, :, active], least[active])",
        tests=(("test_calibration::test_hits_too_rare_for_the_first_look_are_counted", {}),),
    ),
    # --- changes ---
    Mutation(
        "covariances over T instead of T - 1 trajectories",
        "uturn.measures.covariances:Covariances.covariance",
        "self._freedom * self.distance.pairs",
        "self.count * self.distance.pairs",
        tests=(("test_changes_probe::test_readings_are_those_of_the_arrays", {"channel": "masking"}),),
    ),
    Mutation(
        "rows and columns of patches exchanged",
        "uturn.probes.changes:_patches",
        "cut.transpose(0, 2, 4, 1, 3, 5)",
        "cut.transpose(0, 4, 2, 1, 3, 5)",
        tests=(("test_changes_probe::test_a_pixel_changes_its_own_patch", {}),),
    ),
    Mutation(
        "correlation length without the power law that is given",
        "uturn.measures.scaling:_Shapes.of",
        "values = r ** -exponents[:, None, None] * decay",
        "values = r ** (0 * exponents[:, None, None]) * decay",
        tests=(("test_changes_figures::test_the_length_of_a_known_law_is_found", {}),),
    ),
    Mutation(
        "collapse with nu in place of 1/nu",
        "uturn.measures.scaling:_spread",
        "x = (noise - critical) * N[:, None] ** (1 / nu)",
        "x = (noise - critical) * N[:, None] ** nu",
        tests=(("test_changes_figures::test_the_collapse_of_a_known_law_is_found", {}),),
    ),
    # --- padding of texts ---
    Mutation(
        "similarity of padding counts",
        "uturn.probes.text_states:TextStates._similarities",
        "states * call.is_token[..., None]",
        "states",
        tests=(("test_text_probes::test_token_similarity_does_not_see_padding", {}),),
    ),
    Mutation(
        "padding in mean and variance of a layer",
        "uturn.probes.text_states:TextStates._fit",
        "float64_copy(values[call.is_token])",
        "float64_copy(values.flatten(0, 1))",
        tests=(("test_text_probes::test_readings_do_not_depend_on_the_batches", {}),),
    ),
    Mutation(
        "the end of a text stands behind its padding",
        "uturn.networks.texts.language:LanguageModel.batches",
        "begin + lengths + k] = token",
        "begin + longest + k] = token",
        tests=(("test_language::test_masked_models_of_transformers", {"kind": "bert"}),),
    ),
    Mutation(
        "likelihood of padding counts",
        "uturn.networks.texts.language:causal_log_likelihoods",
        ".masked_fill(~real[:, first:], 0)",
        "",
        tests=(("test_text_probes::test_without_a_token_for_the_beginning_the_first_token_is_not_counted", {}),),
    ),
    Mutation(
        "pseudo-likelihood with all tokens of a call masked",
        "uturn.networks.texts.language:pseudo_log_likelihoods",
        "masked[rows, places] = MASKED",
        "masked[:, places] = MASKED",
        tests=(("test_text_probes::test_readings_do_not_depend_on_the_batches", {}),),
    ),
    # --- masks, denoisers, schedules ---
    Mutation(
        "all tokens of a text are masked, or none",
        "uturn.corruption.masking:Masking.corrupt",
        "uniforms(streams(seed, len(leaves), NOISE), leaves.shape[1])",
        "uniforms(streams(seed, len(leaves), NOISE), 1)",
        tests=of_channel(LAW, "masking"),
    ),
    Mutation(
        "v with signal and noise exchanged",
        "uturn.corruption.predictions:predicted",
        "a * noise - s * clean",
        "s * noise - a * clean",
        tests=(("test_own_denoisers::test_from_every_step_a_delta_is_rebuilt_exactly", {"schedule": edm_schedule}),),
    ),
    Mutation(
        "sigma of the whole timestep below",
        "uturn.networks.images.noise_schedule:NoiseSchedule.at",
        "torch.lerp(self.levels[low], self.levels[high], time - low)",
        "self.levels[low]",
        tests=(("test_own_denoisers::test_optimal_networks_of_all_types_agree", {"schedule": edm_schedule, "sampler": "heun"}),),
    ),
    Mutation(
        "timesteps of two calls a step are cut as those of one",
        "uturn.networks.images.schedules:schedule",
        "firsts = (steps - ks) * made.order",
        "firsts = steps - ks",
        tests=(
            (
                "test_schedules::test_strength_gives_the_timesteps_of_the_pipeline",
                {"module": "stable_diffusion", "config": {"_class_name": "HeunDiscreteScheduler"}, "steps": 10},
            ),
        ),
    ),
    # --- stores and clusters ---
    Mutation(
        "the file of a task of another run is read",
        "uturn.store.run_folder:RunFolder.read",
        "if file is None or file.about != self._about(task, trajectories):",
        "if file is None:",
        tests=(("test_grow::a_file_of_another_run_is_not_read", {}),),
    ),
    Mutation(
        "a block that was cut short counts as done in a larger run",
        "uturn.store.run_folder:RunFolder._stem",
        'f"noise_{extent.noise!r}-items_{extent.first_item}_{extent.last_item}"',
        'f"noise_{extent.noise!r}-items_{extent.first_item}"',
        tests=(("test_grow::blocks_that_were_cut_short_are_missing", {}),),
    ),
    Mutation(
        "metadata that were changed are read",
        "uturn.store.run_file:RunFile.parsed",
        "digest == _digest(table)",
        "True",
        tests=(("test_grow::metadata_are_as_they_were_written", {}),),
    ),
    Mutation(
        "the second half of a bundle that failed is not handed out again",
        "uturn.engine.cluster:_Tasks.blame",
        "bundle[:half], bundle[half:]",
        "bundle[:half], bundle[:half]",
        tests=(("test_cluster_logic::test_bundles_that_fail_are_handed_out_in_halves", {}),),
    ),
    # --- measurements ---
    Mutation(
        "the covariance of a field is white",
        "uturn.exact.laws:GaussianMixture.covariance",
        "* self.variance",
        "* self.variance.mean()",
        tests=(("test_laws_gaussian::test_log_density_and_share_outside", {}),),
    ),
    # --- texts ---
    Mutation(
        "remasking that tells the denoiser the noise of the step",
        "uturn.corruption.in_time:InTime.question",
        "share_of_masked(state.values)",
        "self._level(state.noise, state.step - 1)",
        tests=(("test_in_time::test_remasking_tells_the_denoiser_what_it_sees", {"order": "random"}),),
    ),
    Mutation(
        "the change of a text is over the tokens of the longest one",
        "uturn.probes.changes:Changes.accumulate",
        "free.sum(axis=1)",
        "np.full(items, sites)",
        tests=(("test_changes_probe::test_the_change_of_a_text_is_that_of_its_own_free_tokens", {"clones": 3}),),
    ),
    # --- stores ---
    # --- places ---
    Mutation(
        "the error of an estimated chance is left out",
        "uturn.studies.search:Search.at",
        edit=Assigned("of_chance", "0.0"),
        tests=(("test_locate::test_the_error_of_a_height_is_that_of_leaving_out_originals", {}),),
    ),
    Mutation(
        "originals of a group count as independent",
        "uturn.studies.search:Readings.independent",
        edit=Replaced("np.unique(self.groups[self.measured])", "self.groups[self.measured]"),
        tests=(("test_locate::test_originals_of_a_group_are_one", {}),),
    ),
    Mutation(
        "levels at which all agree are known without error",
        "uturn.studies.search:Search.at",
        edit=Assigned("of_added", "0.0"),
        tests=(("test_locate::test_levels_at_which_all_agree_are_not_known_without_error", {}),),
    ),
    Mutation(
        "half a kept group is not added",
        "uturn.studies.search:Search.at",
        edit=Replaced("0.5 * added", "0.0 * added"),
        tests=(("test_locate::test_levels_at_which_all_agree_are_not_known_without_error", {}),),
    ),
    Mutation(
        "the threshold does not rise with the number of tests",
        "uturn.studies.search:threshold",
        edit=Replaced("tests + 1", "1"),
        tests=(("test_locate::test_the_threshold_rises", {}),),
    ),
    Mutation(
        "the readings at the ends of an interval are not asked",
        "uturn.studies.search:Search.failing",
        wrong=lambda right: lambda self, low, high, tests: [],
        tests=(("test_locate::test_curves_with_a_shoulder_are_seldom_reached_and_wrong", {"curve": "above the height"}),),
    ),
    Mutation(
        "48 originals at the largest noise decide that there is no place",
        "uturn.studies.search:Search.wanted_at_largest",
        edit=Assigned("is_undecided", "False"),
        tests=(("test_locate::test_a_slow_fall_that_passes_the_height_near_its_end_has_a_place", {}),),
    ),
    # --- studies ---
    Mutation(
        "of two open goals the one that needs fewer originals counts",
        "uturn.studies.choice:_choice",
        edit=Replaced("np.max", "np.min"),
        tests=(("test_choice::test_of_two_open_goals_the_one_that_needs_more_originals_counts", {}),),
    ),
    Mutation(
        "of two open goals the one that needs fewer originals is named",
        "uturn.studies.choice:_answer",
        edit=Replaced("max(tests, key=lambda test: test.more)", "min(tests, key=lambda test: test.more)"),
        tests=(("test_choice::test_of_two_open_goals_the_one_that_needs_more_originals_counts", {}),),
    ),
    Mutation(
        "the difference of two shares is not paired",
        "uturn.studies.paired:_of_shares",
        edit=Assigned("correlation", "0.0"),
        tests=(("test_study::test_differences_of_shares_are_paired", {}),),
    ),
    Mutation(
        "an inversion is sure where the means have swapped order",
        "uturn.studies.series:_inversion",
        edit=Assigned("is_below", "difference(curves.mean) < 0"),
        tests=(("test_study::test_an_inversion_is_sure_where_an_interval_lies_below_0", {}),),
    ),
    Mutation(
        "gaps that are equal in all originals have an interval of width 0",
        "uturn.measures.calibration:_mean_gap",
        edit=Replaced("high - low > 1e-9 * size", "high > -np.inf"),
        tests=(("test_calibration::test_gaps_that_are_equal_in_all_originals_have_no_interval", {}),),
    ),
    # --- recorded files, plans ---
    Mutation(
        "files are named as swapped at half the ratio",
        "uturn.backward.recorded:_SWAPPED",
        wrong=lambda right: right / 2,
        tests=(("test_recorded::test_pairs_are_named_below_the_ratio_that_is_said", {"share": 0.36, "is_named": True}),),
    ),
    Mutation(
        "a plan counts levels whose files have changed as done",
        "uturn.store.resume:trajectories_done",
        edit=Replaced("extent.noise in stale", "False"),
        tests=(("test_recorded::test_a_plan_holds_the_levels_whose_files_have_changed", {}),),
    ),
    # --- exact inference, decoders, clones ---
    Mutation(
        "draws in logarithms without the class prior",
        "uturn.exact.inference.torch_backend:_Tree.draw",
        edit=Assigned("root", "self.up[rhm.depth][:, 0].numpy()"),
        tests=(("test_own_grammars::test_draws_in_logarithms_are_those_of_products", {}),),
    ),
    Mutation(
        "the denoiser is told the share of masked tokens, not the noise of the data",
        "uturn.corruption.orders:Order.noise",
        edit=Replaced("np.where(step == 0, noise, share_of_masked(visible))", "share_of_masked(visible)"),
        tests=(("test_unmasking::test_the_denoiser_is_told_the_noise_of_the_data_first", {"causal": False, "first": 0.9}),),
    ),
    Mutation(
        "expected evaluations do not count the tokens that return",
        "uturn.corruption.in_time:InTime.evaluations",
        edit=Assigned("returning", "0"),
        tests=(("test_in_time::test_planned_evaluations_count_the_tokens_that_return", {}),),
    ),
    Mutation(
        "clones that are both ungrammatical are equal",
        "uturn.probes.tree:_share_of_equal_nodes",
        edit=Replaced("(a == b) & (a >= 0)", "a == b"),
        tests=(("test_u_turn::test_an_unparsed_node_equals_nothing", {}),),
    ),
    # --- pages ---
    Mutation(
        "chance is the share of the most frequent class",
        "uturn.studies.references:_same",
        "np.sum(shares**2)",
        "np.max(shares)",
        tests=(("test_images::test_chance_is_that_of_two_originals", {}),),
    ),
    Mutation(
        "log-SNR of amplitudes",
        "uturn.studies.axes:Axes._of_angle",
        '"log_snr": -2 * np.log(sigma)',
        '"log_snr": -np.log(sigma)',
        tests=(("test_images::test_the_other_axes_follow", {}),),
    ),
    Mutation(
        "points of a thinned curve stand at the noise of others",
        "uturn.pages.charts:chart",
        "axes=_axes(drawn, x)",
        "axes=_axes(values, x)",
        tests=(("test_report::test_points_of_a_thinned_curve_stand_at_their_noise", {}),),
    ),
)  # fmt: skip
# Each tool has its tests, and perhaps errors.
for _folder in sorted(Path(__file__).parent.glob("tools/*/")):
    sys.path.append(str(_folder))
    if (_folder / f"{_folder.name}_mutations.py").exists():
        MUTATIONS += importlib.import_module(f"{_folder.name}_mutations").MUTATIONS
