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
    objectives = ["eval/accuracy", "eval/heldout/nll", "geometry/top_eigenvalue", "geometry/sharpness/asam/0.5"]
    judged = study(objectives, constraints=[{"metric": "geometry/kl_to_base", "at_most": 0.1}]).judged
    assert [(one.metric, one.mode) for one in judged.objectives] == [
        ("eval/heldout/accuracy", "max"), ("eval/heldout/nll", "min"), ("geometry/top_eigenvalue/hessian", "min"),
        ("geometry/sharpness/asam/0.5", "min"),
    ]  # fmt: skip
    assert judged.metrics == [*(one.metric for one in judged.objectives), "geometry/kl_to_base"]
    assert judged.modes == ["max", "min", "min", "min"]


def test_accuracy_is_that_of_the_first_benchmark_that_is_answered():
    evaluation = {"heldout": False, "benchmarks": [{"name": "hard", "problems": 4}]}
    assert study(["eval/accuracy"], evaluation=evaluation).judged.metrics == ["eval/hard/accuracy"]
    assert study(["eval/hard/accuracy"], evaluation=evaluation | {"heldout": True}).judged.metrics == [
        "eval/hard/accuracy"
    ]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("eval/acuracy", "sweep.objectives.0.metric: 'eval/acuracy' is no metric; did you mean 'eval/accuracy'"),
        ("delta_nrm", "did you mean 'geometry/delta_norm'"),
        ("accuracy", "did you mean 'eval/accuracy'"),
        ("accuracy.heldout", "did you mean 'eval/heldout/accuracy'"),
        ("heldout_nll", "did you mean 'eval/heldout/nll'"),
        ("nll", "did you mean 'train/nll'"),
        ("top_eigenvalue", "did you mean 'geometry/top_eigenvalue'"),
        ("sharpness.sam.0.05", "did you mean 'geometry/sharpness/sam/0.05'"),
        ("coherence_at_run", "did you mean 'geometry/coherence_at_run'"),
        ("eval/hard/accuracy", "eval/hard/accuracy is not measured; of its kind are eval/heldout/accuracy"),
        (
            "geometry/sharpness/sam/0.3",
            "geometry/sharpness/sam/0.3 is not measured; of its kind are geometry/sharpness/sam/0.05, geometry/",
        ),
        ("geometry/coherence_at_run", "measured by geometry.coherence, which is not asked for"),
        ("geometry/cosine_to_reference", "sweep.objectives.0.mode: neither more nor less of geometry/cosine_to"),
        ("geometry/top_eigenvalue/ggn", "of its kind are geometry/top_eigenvalue/hessian"),
    ],
)
def test_what_is_not_measured_is_refused_with_what_is(objective, said):
    with pytest.raises(ConfigError, match=said):
        study([objective], geometry={"coherence": None})


def test_a_bound_on_what_is_not_measured_is_refused():
    with pytest.raises(ConfigError, match=r"sweep.constraints.0.metric: 'forgeting' is no metric"):
        study(["eval/accuracy"], constraints=[{"metric": "forgeting", "at_most": 1}])


def test_metrics_among_all_runs_are_for_grids_and_draws():
    objective = [{"metric": "geometry/cosine_to_reference", "mode": "max"}]
    assert study(objective, run=SEARCHED, sweep={"search": "random"}).judged.metrics == ["geometry/cosine_to_reference"]
    with pytest.raises(ConfigError, match=r"known once all runs are trained.*judges each when it ends.*kl_to_base"):
        study(objective, run=SEARCHED, sweep={"search": "optuna"})
    study([{"metric": "geometry/kl_to_base", "mode": "min"}], run=SEARCHED, sweep={"search": "optuna"})


def test_a_space_that_depends_on_the_runs_does_not_judge_them_one_by_one():
    lora = {"target_modules": ["q_proj"], "r": 2}
    both = {"runs": [SEARCHED | {"lora": lora}, SFT | {"name": "all", "lora": lora | {"target_modules": ["v_proj"]}}]}
    given = {"search": "optuna", "objectives": [{"metric": "geometry/top_eigenvalue"}]}
    with pytest.raises(ConfigError, match=r"runs adapt different modules.*geometry\.curvature take it over all"):
        parse_study(tiny_study(sweep=given, **both))
    parse_study(tiny_study(sweep=given, **both, geometry={"curvature": {"spaces": ["all", "span"]}}))
    parse_study(tiny_study(sweep=given | {"search": "random"}, **both))


def test_the_span_alone_judges_no_single_run():
    with pytest.raises(
        ConfigError, match=r"top_eigenvalue is not measured of single runs with these settings of geometry\.curvature"
    ):
        study(["geometry/top_eigenvalue"], geometry={"curvature": {"spaces": ["span"]}})


@pytest.mark.parametrize(
    ("sweep", "said"),
    [({"objectives": [{"metric": "eval/accuracy"}]}, "eval/accuracy needs problems: hold prompts out"),
     ({"objectives": [{"metric": "eval/heldout/nll"}]}, "eval/heldout/nll is measured on held-out prompts"),
     ({"objectives": [{"metric": "geometry/delta_norm", "mode": "min"}], "scheduler": {"type": "asha"}},
      "give rollouts.held")],
)  # fmt: skip
def test_without_held_out_prompts_only_what_needs_none_judges(sweep, said):
    quiet = dict.fromkeys(type(parse_study(tiny_study()).geometry).model_fields) | {"norms": {}}
    parts = {"rollouts": {"sample": {"prompts": 8}, "heldout": 0}, "geometry": quiet}
    with pytest.raises(ConfigError, match=said):
        parse_study(tiny_study(sweep=sweep, **parts))
    parse_study(tiny_study(sweep={"objectives": [{"metric": "geometry/delta_norm", "mode": "min"}]}, **parts))


HARD = {"name": "hard", "problems": 4, "shift": "ood"}


def test_a_drop_is_that_of_a_shifted_benchmark_and_known_at_the_end():
    evaluation = {"benchmarks": [{"name": "near", "problems": 4}, HARD]}
    assert study(["eval/drop"], evaluation=evaluation).judged.metrics == ["eval/hard/drop"]
    with pytest.raises(ConfigError, match=r"eval/near/drop is not measured; of its kind are eval/hard/drop"):
        study(["eval/near/drop"], evaluation=evaluation)
    with pytest.raises(ConfigError, match="eval/drop needs a benchmark with shift: ood"):
        study(["eval/drop"])
    with pytest.raises(ConfigError, match="needs a benchmark with shift: ood, and one without a shift"):
        study(["eval/hard/drop"], evaluation={"heldout": False, "benchmarks": [HARD]})
    with pytest.raises(ConfigError, match=r"eval/hard/drop is made of what is known once all runs are trained"):
        study(["eval/hard/drop"], run=SEARCHED, sweep={"search": "optuna", "samples": 2}, evaluation=evaluation)


def test_pass_at_k_is_of_so_many_answers():
    evaluation = {"answers": {"max_new_tokens": 40, "samples": 4, "temperature": 1.0}}
    assert study(["eval/heldout/pass_at_2"], evaluation=evaluation).judged.metrics == ["eval/heldout/pass_at_2"]
    with pytest.raises(ConfigError, match=r"pass_at_3 is not measured; of its kind are eval/heldout/pass_at_1"):
        study(["eval/heldout/pass_at_3"], evaluation=evaluation)
    with pytest.raises(ConfigError, match=r"eval/heldout/pass_at_2 needs several answers a problem"):
        study(["eval/heldout/pass_at_2"])
