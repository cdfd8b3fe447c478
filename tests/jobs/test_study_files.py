"""The studies that come with raygeo say what they claim to; that they are valid is tested with the study itself."""

from pathlib import Path

import pytest

from raygeo.losses.registry import LOSSES
from raygeo.pipeline.config import load_study

GROUPED = {name for name, loss in LOSSES.items() if loss.in_groups}
STUDIES = Path(__file__).parents[2] / "raygeo" / "studies"


def load(name, *overrides):
    return load_study(STUDIES / f"{name}.yaml", overrides)


def test_learning_rates_are_matched_for_every_loss_and_seed():
    study = load("lr-matched")
    runs = {(s.loss.type, s.training.lr, s.training.seed) for s in study.specs()}
    assert runs == {(loss, lr, seed) for loss in GROUPED for lr in (5e-5, 1.6e-4, 5e-4) for seed in (0, 1)}
    rates = load("lr-matched", "training.lr=[5e-7, 5e-6, 5e-5]", "training.seed=[0, 1, 2]").specs()
    assert {s.training.lr for s in rates} == {5e-7, 5e-6, 5e-5}
    assert len(rates) == len(GROUPED) * 9


def test_mixed_prompts_holds_every_loss_to_them():
    specs = load("mixed-prompts").specs()
    assert {s.loss.type for s in specs} == GROUPED
    assert {getattr(s.loss, "prompts", "mixed") for s in specs} == {"mixed"}
    assert len({s.training.lr for s in specs}) == 1


def test_a_batch_holds_equally_many_rollouts_for_all_losses():
    for name in ("lr-matched", "mixed-prompts", "negative-share", "shuffled-rewards"):
        rows = {s.training.batch_size * (2 if s.loss.unit == "pair" else 1) for s in load(name).specs()}
        assert rows == {32}, name


def test_stages_begin_with_one_sft_run_of_each_seed():
    runs = load("sft-then-dpo").plan.trials()
    first = {run.trainings[0].key("student", "rollouts") for run in runs if run.is_chain}
    assert first == {run.spec.key("student", "rollouts") for run in runs if run.name.startswith("sft-lr")}
    assert len({tuple(spec.training.batch_size for spec in run.trainings) for run in runs if run.is_chain}) == 2


def test_all_numbers_of_rounds_take_as_many_steps_and_prompts():
    runs = load("rounds").plan.trials()
    assert [len(run.trainings) for run in runs] == [1, 2, 4, 8]
    assert {sum(spec.training.steps for spec in run.trainings) for run in runs} == {64}
    assert {run.stages[0].sampling.prompts * len(run.trainings) for run in runs[1:]} == {512}
    assert len({spec.loss for run in runs for spec in run.trainings}) == 1


def test_the_direction_of_distillation_is_crossed_with_the_learning_rate():
    study = load("kd-direction")
    runs = {(s.loss.type, s.training.lr, s.training.seed) for s in study.specs()}
    losses = ("sft", "kd-forward", "kd-jsd", "kd-reverse")
    assert runs == {(loss, lr, seed) for loss in losses for lr in (5e-5, 1.6e-4, 5e-4) for seed in (0, 1)}
    assert study.teacher.model == "builtin"


def test_the_negative_share_is_one_setting():
    study = load("negative-share", "rollouts.negative_share=0.05")
    assert study.rollouts.negative_share == 0.05
    assert {"rift-negative=paper-lr0.00016-s0", "grpo-bias0-surrogate=p-lr0.00016-s0"} <= {
        s.name for s in study.specs()
    }


def test_rewards_are_shuffled_or_not():
    assert load("shuffled-rewards").rollouts.shuffle_rewards == 0
    assert load("shuffled-rewards", "rollouts.shuffle_rewards=null").rollouts.shuffle_rewards is None


def test_the_papers_study_puts_problems_alike_in_training_and_in_benchmarks():
    study = load("paper-qwen3-4b")
    readers = [*study.rollouts.read, *(benchmark.problems for benchmark in study.evaluation.benchmarks)]
    (asked,) = {reader.template for reader in readers}
    assert asked == "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert study.student.chat.template == "chat"


@pytest.mark.parametrize("loss", ["sft", "rft", "dft", "rift", "grpo", "dpo"])
def test_the_papers_protocol(loss):
    study = load("paper-qwen3-4b")
    [spec] = [s for s in study.specs() if s.loss.type == loss]
    training = spec.training
    assert study.student.model == "Qwen/Qwen3-4B-Instruct-2507"
    assert training.lr == (5e-7 if loss == "dpo" else 5e-6)
    assert (training.steps, training.schedule_steps) == (1000, 1500)
    assert (training.lr_scheduler_type, training.warmup_ratio) == ("cosine", 0.05)
    assert (training.batch_size, training.weight_decay, training.max_grad_norm, training.seed) == (32, 0.01, 1.0, 42)
    assert (training.lora.r, training.lora.lora_alpha, training.precision) == (32, 64, "bf16")
    assert training.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    expected = {
        "sft": {}, "rft": {}, "dft": {"rows": "all"}, "rift": {"negative": "paper"},
        "grpo": {"bias": 0.1, "bias_on": "all", "surrogate": "logp", "scale_rewards": False}, "dpo": {"beta": 0.1},
    }[loss]  # fmt: skip
    assert expected.items() <= spec.loss.model_dump().items()
