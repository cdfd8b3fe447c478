"""Entries of runs in stages and rounds: names, settings, keys, and what is refused."""

import pytest
import yaml

from raygeo.data.sampling import DecodingSettings
from raygeo.errors import ConfigError
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.pipeline.plan import described
from raygeo.records import FINISHED, RunRecord, configurations
from raygeo.training.settings import RunSpec

SFT, DPO, GRPO = {"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}}, {"loss": {"type": "grpo"}}


def study(*runs, **changes):
    plain = {"name": "s", "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]}, "runs": list(runs)}
    return parse_study(plain | changes)


def trainings(*runs, **changes):
    return [spec for run in study(*runs, **changes).plan.trials() for spec in run.trainings]


def test_stages_take_the_settings_of_the_entry_and_the_study_unless_they_say_otherwise():
    stages = [SFT, DPO | {"lr": 1e-6, "epochs": 2, "lora": {"r": 4}}]
    first, second = trainings({"stages": stages, "lr": 1e-4}, training={"steps": 7, "batch_size": 16})
    assert (first.loss.type, second.loss.type) == ("sft", "dpo")
    assert (first.training.lr, second.training.lr) == (1e-4, 1e-6)
    assert (first.training.steps, first.training.epochs) == (7, None)
    assert (second.training.steps, second.training.epochs) == (None, 2)
    assert (first.training.lora, second.training.lora.r) == (None, 4)
    assert (first.training.batch_size, second.training.batch_size) == (16, 16)


def test_a_run_is_named_after_its_stages_and_each_stage_after_the_run():
    runs = study({"stages": [SFT, DPO | {"lr": 1e-6}], "seed": [0, 1]}, {"stages": [SFT, DPO], "name": "mine"})
    names = [run.shown for run in runs.plan.trials()]
    assert names == [
        [f"sft+dpo-lr1e-05+1e-06-s{seed}{leg}" for leg in ("", "-leg1", "-leg2")] for seed in (0, 1)
    ] + [["mine", "mine-leg1", "mine-leg2"]]  # fmt: skip


def test_rounds_are_trainings_of_one_stage():
    [run] = study({"stages": [SFT, GRPO | {"rounds": 2}]}).plan.trials()
    assert run.name == "sft+grpo-2rounds-lr1e-05-s0"
    assert [spec.name.removeprefix(run.name) for spec in run.trainings] == ["-leg1", "-leg2-round1", "-leg2-round2"]
    assert [spec.reference for spec in run.trainings] == ["start", "base", "base"]
    [alone] = study(GRPO | {"rounds": 3}).plan.trials()
    assert [spec.name for spec in alone.trainings] == [f"grpo-3rounds-lr1e-05-s0-round{n}" for n in (1, 2, 3)]
    assert alone.shown == [alone.name]


def test_what_a_round_draws_follows_the_study_and_its_own_number():
    [run] = study(GRPO | {"rounds": 2, "sampling": {"samples": 3, "seed": 5}}).plan.trials()
    sampling = run.stages[0].sampling
    default = DecodingSettings(samples=16, temperature=0.7, max_new_tokens=99)
    one, two = (sampling.decoding(default, number) for number in (1, 2))
    assert (one.samples, one.temperature, one.max_new_tokens) == (3, 0.7, 99)
    assert one.seed != two.seed
    assert one == sampling.decoding(default, 1)


def test_the_key_of_a_stage_holds_what_it_starts_from_and_what_it_compares_with():
    spec = trainings({"stages": [SFT, DPO]})[1]
    key = spec.key("start", "rollouts", base_key="base")
    assert key != spec.key("elsewhere", "rollouts", base_key="base")
    assert key == spec.key("start", "rollouts", base_key="another base")
    on_base = spec.model_copy(update={"reference": "base"})
    assert (
        len(
            {
                key,
                on_base.key("start", "rollouts", base_key="base"),
                on_base.key("start", "rollouts", base_key="another"),
            }
        )
        == 3
    )


def test_a_stage_that_compares_with_nothing_has_one_key_whatever_the_reference():
    spec = trainings({"stages": [SFT, SFT | {"lr": 1e-6}]})[1]
    assert spec.key("s", "r", base_key="b") == spec.model_copy(update={"reference": "base"}).key("s", "r", base_key="b")


def test_a_first_stage_is_the_run_of_that_loss_alone():
    staged, alone = trainings({"stages": [SFT, DPO]})[0], trainings(SFT)[0]
    assert staged.key("student", "rollouts") == alone.key("student", "rollouts")


def test_adapters_ask_what_they_start_from_and_nothing_else():
    """A run with adapters has its start in memory; the study's base is another model."""
    loss = next(s.loss for s in trainings({"loss": "all"}) if "reference_logits" in s.loss.needs)
    plain = {"name": "r", "loss": loss, "training": {"lora": {"r": 4}}}
    assert RunSpec.model_validate(plain).asks_base
    assert not RunSpec.model_validate(plain | {"reference": "base"}).asks_base


def test_a_study_with_stages_is_written_and_read_again():
    runs = [
        {"stages": [SFT, DPO | {"reference": "base", "steps": 3}], "lr": [1e-5, 1e-4]},
        GRPO | {"rounds": 2, "sampling": {"samples": 2}},
    ]
    given = study(*runs)
    assert parse_study(yaml.safe_load(study_yaml(given))) == given


def test_a_first_training_compares_with_the_base_by_whatever_name():
    """So it has one key, and with adapters none of the base's answers need be stored."""
    loss = next(s.loss for s in trainings({"loss": "all"}) if "reference_logits" in s.loss.needs)
    entry = {"loss": loss.model_dump(), "lora": {"r": 2}, "reference": "base"}
    for given in (study(entry), study({"stages": [entry, SFT]})):
        [first] = given.plan.referring()[:1]
        assert first.reference == "start"
        assert first.needs == loss.needs - {"reference_logits"}


def test_runs_that_a_search_chooses_have_the_keys_of_their_trainings():
    search = {"sweep": {"search": "optuna"}, "training": {"lr": [1e-5, 1e-4]}}
    named, unnamed = (study(DPO | more, **search).plan for more in ({"reference": "base"}, {}))
    [run], [other] = (plan.runs_of(0, {("lr",): 1e-5}) for plan in (named, unnamed))
    assert run.spec.key("student", "rollouts") == other.spec.key("student", "rollouts", base_key="student")
    assert "start" == run.spec.reference == run.trainings[0].reference


def test_only_what_the_base_is_asked_by_refers_to_it():
    given = study({"stages": [SFT, DPO]}, {"stages": [DPO, DPO | {"reference": "base"}], "name": "twice"}, DPO)  # once
    assert [spec.name for spec in given.plan.referring() if spec.needs] == ["twice-leg1", "twice-leg2"]


def test_a_study_may_not_call_a_run_as_a_stage_or_round_of_another():
    for runs, twice in (
        ([{"stages": [SFT, DPO], "name": "x"}, SFT | {"name": "x-leg2"}], "x-leg2"),
        ([GRPO | {"rounds": 2, "name": "x"}, SFT | {"name": "x-round1"}], "x-round1"),
        ([{"stages": [SFT, GRPO | {"rounds": 2}], "name": "x"}, SFT | {"name": "x-leg2-round2"}], "x-leg2-round2"),
    ):
        with pytest.raises(ConfigError, match=f"{twice}'.* once as a stage or round of another run"):
            study(*runs)
    study(GRPO | {"rounds": 2, "name": "x"}, SFT | {"name": "x-round3"})


@pytest.mark.parametrize("part", ["x-leg1", "x-leg2", "x-leg2-round1"])
def test_other_runs_are_not_compared_with_a_part_of_a_run(part):
    runs = [SFT, {"stages": [SFT, GRPO | {"rounds": 2}], "name": "x"}]
    with pytest.raises(ConfigError, match=f"'{part}' is only a part of a run; give 'x'"):
        study(*runs, reference_run=part)
    assert study(*runs, reference_run="x").reference_run == "x"


@pytest.mark.parametrize("altered", [{"shuffle_rewards": 0}, {"negative_share": 0.5}])
def test_what_is_done_to_the_rollouts_of_the_study_is_refused_with_rounds(altered):
    rollouts = {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]} | altered
    for entry in (GRPO | {"rounds": 2}, {"stages": [SFT, GRPO | {"rounds": 2}]}):
        with pytest.raises(ConfigError, match=rf"rollouts\.{next(iter(altered))} is not applied"):
            study(SFT, entry, rollouts=rollouts)
    study(SFT, {"stages": [SFT, DPO]}, rollouts=rollouts)


def test_losses_on_a_teacher_need_one_that_can_be_asked_of_rounds():
    taught = {"loss": {"type": "kd-forward"}}
    sampled = {"rollouts": {"sample": {"decoding": {"top_logprobs": 4}}}}
    for changes in (sampled, {}):
        for entry in (taught | {"rounds": 2}, {"stages": [SFT, taught | {"rounds": 2}]}):
            with pytest.raises(ConfigError, match=r"learns in rounds .* teacher: \{model: FOLDER\}"):
                study(entry, **changes)
    study({"stages": [taught, SFT | {"rounds": 2}]}, **sampled)
    [run] = study(taught | {"rounds": 2}, teacher={"model": "some/model"}, **sampled).plan.trials()
    assert run.stages[0].sampling.decoding(DecodingSettings(top_logprobs=4), 1).top_logprobs == 0  # nobody reads them


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "give either loss, or stages"),
        (SFT | {"stages": [SFT, DPO]}, "give either loss, or stages"),
        ({"stages": [SFT]}, "one stage is a run"),
        ({"stages": [SFT, DPO | {"lr": [1e-5, 1e-4]}]}, "nothing varies within a stage"),
        (
            {"stages": [SFT, {"loss": {"type": "dpo", "beta": {"uniform": [0.1, 0.5]}}}]},
            "nothing varies within a stage",
        ),
        ({"stages": [SFT, DPO], "rounds": 2}, "each stage says this for itself"),
        (SFT | {"sampling": {"samples": 2}}, "give rounds"),
        (SFT | {"rounds": 0}, "greater than or equal to 1"),
        ({"stages": [SFT, DPO | {"epochs": 1, "steps": 2}]}, "either steps or epochs"),
    ],
)
def test_what_makes_no_run_is_refused(entry, said):
    with pytest.raises(ConfigError, match=said):
        study(entry)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": {"search": "optuna"}, "training": {"lr": [1e-5, 1e-4]}}, "Optuna trains no stages"),
        ({"sweep": {"scheduler": {"type": "asha"}}}, "count anew"),
        ({"evaluation": {"engine": {"type": "endpoint", "base_url": "http://x", "model": "m"}}}, "evaluation.engine"),
        ({"evaluation": {"monitor": {}, "benchmarks": [{"name": "train", "problems": 4}]}}, "the monitor calls"),
    ],
)
def test_what_runs_in_rounds_cannot_be_used_with_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        study(GRPO | {"rounds": 2}, **changes)


def test_the_rank_of_all_stages_together_must_fit_the_engine():
    engine = {"evaluation": {"engine": {"type": "vllm", "max_lora_rank": 8}}}
    stages = {"stages": [SFT, DPO], "lora": {"r": 8}}
    with pytest.raises(ConfigError, match="rank 16"):
        study(stages, **engine)
    assert study(stages, evaluation={"engine": {"type": "vllm", "max_lora_rank": 16}})


def test_seed_groups_hold_runs_of_the_same_stages():
    def conditions(*entries):
        found = []
        for run in study(*entries).plan.trials():
            plain = [described(stage) for stage in run.stages]
            record = RunRecord("r", "k", FINISHED, plain[-1]["loss"], plain[-1]["training"], stages=plain)
            found.append(RunRecord.of({**record.row(), "reason": None}).condition)
        return found

    runs = [{"stages": [SFT, DPO], "seed": [0, 1, 2]}, {"stages": [SFT, DPO | {"seed": 3}]}]
    other = [
        {"stages": [GRPO, DPO]},
        {"stages": [SFT, DPO], "lr": 1e-3},
        {"stages": [SFT, DPO | {"reference": "base"}], "name": "on base"},
    ]
    assert configurations(conditions(*runs, *other)) == [[0, 1, 2, 3], [4], [5], [6]]
    first, second, *_ = conditions(*runs)
    assert first.seeds(second) == "order"
