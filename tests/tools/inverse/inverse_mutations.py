"""Errors put into measurements, their posteriors and the exam of samplers
(`tests/mutations.py`).
"""

from mutation import Assigned, Mutation

MUTATIONS = (
    Mutation(
        "the weights of modes leave out the determinant",
        "uturn.tools.inverse.linear:LinearPosterior._log_weights",
        " + self._log_det[:, None]",
        "",
        tests=(("test_linear_posterior::test_weights_moments_and_density_are_those_of_integration", {"H": [[1.0, 0.5]]}),),
    ),
    Mutation(
        "the posterior takes sigma for the variance of the noise",
        "uturn.tools.inverse.measured:_posterior",
        "operator.noise.sigma**2",
        "operator.noise.sigma",
        tests=(("test_operators::test_bits_are_the_entropy_that_the_measurement_takes_away", {"name": "boxes", "level": 0.5}),),
    ),
    Mutation(
        "noise falls on what an operator hides",
        "uturn.tools.inverse.operators:Operator.measure",
        "np.where(self.measured, noisy, np.float32(0))",
        "noisy",
        tests=(("test_operators::test_noise_falls_on_what_is_measured_and_the_likelihood_counts_it_alone", {}),),
    ),
    Mutation(
        "all data of a block have the operator of the first",
        "uturn.tools.inverse.measurement:Measurement._operators",
        "int(key)) for key in drawn",
        "int(drawn[0])) for _ in drawn",
        tests=(
            (
                "test_operators::test_a_measurement_depends_on_item_and_trajectory_alone",
                {"options": {"operator": "inpainting"}},
            ),
        ),
    ),
    Mutation(
        "energy distance counts the distance to exact draws once",
        "uturn.tools.inverse.exam_parts:energy",
        "2 * _distances(x, z)",
        "_distances(x, z)",
        tests=(("test_inverse_figure::test_the_energy_distance_is_its_definition", {}),),
    ),
    Mutation(
        "tests of a family without Holm",
        "uturn.tools.inverse.exam:p_of_means",
        " * len(MEANS)",
        "",
        tests=(
            (
                "test_inverse_figure::test_verdicts_can_fail",
                {"changes": {"p": {"ΠGDM": 3e-3}}, "failing": {"far"}},
            ),
        ),
    ),
    Mutation(
        "the level of the relabellings is not shared with the tests of ranks",
        "uturn.tools.inverse.posteriors:_tests_of_means",
        edit=Assigned("share", "1.0"),
        tests=(("test_posterior_tests::test_what_is_visible_is_what_the_strictest_of_means_and_ranks_sees", {}),),
    ),
)  # fmt: skip
