import pytest
from study_cases import tiny_study

from raygeo.errors import ConfigError
from raygeo.pipeline.config import parse_study

SFT = {"loss": {"type": "sft"}}
SEARCHED = SFT | {"lr": {"log_uniform": [1e-5, 1e-3]}}


def study(objectives, *, constraints=(), run=SFT, sweep=None, **changes):
    given = {"objectives": [{"metric": one} if isinstance(one, str) else one for one in objectives]}
    given |= {"constraints": list(constraints), **(sweep or {})}
    return parse_study(tiny_study(runs=[run], sweep=given, **changes))


def test_a_metric_has_its_full_name_and_its_better_way():
    objectives = ["accuracy", "heldout_nll", "top_eigenvalue", "sharpness.asam.0.5"]
    judged = study(objectives, constraints=[{"metric": "kl_to_base", "at_most": 0.1}]).judged
    assert [(one.metric, one.mode) for one in judged.objectives] == [
        ("accuracy.heldout", "max"), ("heldout_nll", "min"), ("top_eigenvalue.hessian", "min"),
        ("sharpness.asam.0.5", "min"),
    ]  # fmt: skip
    assert judged.metrics == [*(one.metric for one in judged.objectives), "kl_to_base"]
    assert judged.modes == ["max", "min", "min", "min"]


def test_accuracy_is_that_of_the_first_benchmark_that_is_answered():
    evaluation = {"heldout": False, "benchmarks": [{"name": "hard", "problems": 4}]}
    assert study(["accuracy"], evaluation=evaluation).judged.metrics == ["accuracy.hard"]
    assert study(["accuracy.hard"], evaluation=evaluation | {"heldout": True}).judged.metrics == ["accuracy.hard"]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("acuracy", "sweep.objectives.0.metric: 'acuracy' is no metric; did you mean 'accuracy'"),
        ("delta_nrm", "did you mean 'delta_norm'"),
        ("accuracy.hard", "accuracy.hard is not measured; of its kind are accuracy.heldout"),
        (
            "sharpness.sam.0.3",
            "sharpness.sam.0.3 is not measured; of its kind are sharpness.sam.0.05, sharpness.sam.0.5, ",
        ),
        ("coherence_at_run", "measured by geometry.coherence, which is not asked for"),
        ("cosine_to_reference", "sweep.objectives.0.mode: neither more nor less of cosine_to_reference is better"),
        ("top_eigenvalue.ggn", "of its kind are top_eigenvalue.hessian"),
    ],
)
def test_what_is_not_measured_is_refused_with_what_is(objective, said):
    with pytest.raises(ConfigError, match=said):
        study([objective], geometry={"coherence": None})


def test_a_bound_on_what_is_not_measured_is_refused():
    with pytest.raises(ConfigError, match=r"sweep.constraints.0.metric: 'forgeting' is no metric"):
        study(["accuracy"], constraints=[{"metric": "forgeting", "at_most": 1}])


def test_metrics_among_all_runs_are_for_grids_and_draws():
    objective = [{"metric": "cosine_to_reference", "mode": "max"}]
    assert study(objective, run=SEARCHED, sweep={"search": "random"}).judged.metrics == ["cosine_to_reference"]
    with pytest.raises(ConfigError, match=r"known once all runs are trained.*judges each when it ends.*kl_to_base"):
        study(objective, run=SEARCHED, sweep={"search": "optuna"})
    study([{"metric": "kl_to_base", "mode": "min"}], run=SEARCHED, sweep={"search": "optuna"})


def test_a_space_that_depends_on_the_runs_does_not_judge_them_one_by_one():
    lora = {"target_modules": ["q_proj"], "r": 2}
    both = {"runs": [SEARCHED | {"lora": lora}, SFT | {"name": "all", "lora": lora | {"target_modules": ["v_proj"]}}]}
    given = {"search": "optuna", "objectives": [{"metric": "top_eigenvalue"}]}
    with pytest.raises(ConfigError, match=r"runs adapt different modules.*geometry\.curvature take it over all"):
        parse_study(tiny_study(sweep=given, **both))
    parse_study(tiny_study(sweep=given, **both, geometry={"curvature": {"spaces": ["all", "span"]}}))
    parse_study(tiny_study(sweep=given | {"search": "random"}, **both))


def test_the_span_alone_judges_no_single_run():
    with pytest.raises(
        ConfigError, match=r"top_eigenvalue is not measured of single runs with these settings of geometry\.curvature"
    ):
        study(["top_eigenvalue"], geometry={"curvature": {"spaces": ["span"]}})


@pytest.mark.parametrize(
    ("sweep", "said"),
    [({"objectives": [{"metric": "accuracy"}]}, "accuracy needs problems: hold prompts out"),
     ({"objectives": [{"metric": "heldout_nll"}]}, "heldout_nll is measured on held-out prompts"),
     ({"objectives": [{"metric": "delta_norm", "mode": "min"}], "scheduler": {"type": "asha"}}, "give rollouts.held")],
)  # fmt: skip
def test_without_held_out_prompts_only_what_needs_none_judges(sweep, said):
    quiet = dict.fromkeys(type(parse_study(tiny_study()).geometry).model_fields) | {"norms": {}}
    parts = {"rollouts": {"sample": {"prompts": 8}, "heldout": 0}, "geometry": quiet}
    with pytest.raises(ConfigError, match=said):
        parse_study(tiny_study(sweep=sweep, **parts))
    parse_study(tiny_study(sweep={"objectives": [{"metric": "delta_norm", "mode": "min"}]}, **parts))


HARD = {"name": "hard", "problems": 4, "shift": "ood"}


def test_a_drop_is_that_of_a_shifted_benchmark_and_known_at_the_end():
    evaluation = {"benchmarks": [{"name": "near", "problems": 4}, HARD]}
    assert study(["drop"], evaluation=evaluation).judged.metrics == ["drop.hard"]
    with pytest.raises(ConfigError, match=r"drop\.near is not measured; of its kind are drop\.hard"):
        study(["drop.near"], evaluation=evaluation)
    with pytest.raises(ConfigError, match="drop needs a benchmark with shift: ood"):
        study(["drop"])
    with pytest.raises(ConfigError, match="needs a benchmark with shift: ood, and one without a shift"):
        study(["drop.hard"], evaluation={"heldout": False, "benchmarks": [HARD]})
    with pytest.raises(ConfigError, match=r"drop\.hard is made of what is known once all runs are trained"):
        study(["drop.hard"], run=SEARCHED, sweep={"search": "optuna", "samples": 2}, evaluation=evaluation)


def test_pass_at_k_is_of_so_many_answers():
    evaluation = {"answers": {"max_new_tokens": 40, "samples": 4, "temperature": 1.0}}
    assert study(["pass_at_2.heldout"], evaluation=evaluation).judged.metrics == ["pass_at_2.heldout"]
    with pytest.raises(ConfigError, match=r"pass_at_3\.heldout is not measured; of its kind are pass_at_1\.heldout"):
        study(["pass_at_3.heldout"], evaluation=evaluation)
    with pytest.raises(ConfigError, match=r"pass_at_2\.heldout needs several answers a problem"):
        study(["pass_at_2.heldout"])
