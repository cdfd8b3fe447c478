"""What is known to fail once a study's rows are is refused before anything is asked of a model, and no later."""

import io
import json

import pytest
from rich.console import Console
from tiny import save_tiny_student

from raygeo.cluster.execution import in_process
from raygeo.errors import DataError
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.foreseen import foresee
from raygeo.pipeline.published import KIND
from raygeo.pipeline.rollouts import provide_rollouts
from raygeo.pipeline.student import Student
from raygeo.pipeline.study import STAGES, check_settings
from raygeo.progress import Progress
from raygeo.store import Store

pytestmark = pytest.mark.cluster

ROWS = [
    {"prompt": f"{n} + {n}", "completion": f"#### {2 * n + wrong}", "gold": str(2 * n), "correct": not wrong}
    for n in range(8)
    for wrong in (0, 1)
]
RIGHT = [row for row in ROWS if row["correct"]]
NO_GEOMETRY = dict.fromkeys(parse_study({
    "name": "s", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]
}).geometry.asked())  # fmt: skip
CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture
def bench(tmp_path, folder):
    """Foresee a study over given rows; returns what was said."""

    def provide(
        rows=ROWS,
        *,
        loss="sft",
        stages=STAGES,
        fields=None,
        rules=None,
        teacher_context=None,
        geometry=None,
        **settings,
    ):
        path = tmp_path / "rollouts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        study = parse_study({
            "name": "s",
            "student": {"model": str(folder)},
            "rollouts": {"read": [{"type": "jsonl", "path": str(path), "fields": fields or {}}], **(rules or {})},
            "training": {"batch_size": 4},
            "evaluation": {"answers": {"max_new_tokens": 4}},
            "runs": [{"loss": {"type": loss}}],
            "geometry": NO_GEOMETRY | (geometry or {}),
            **settings,
        })  # fmt: skip
        said = io.StringIO()
        store = Store(tmp_path / "store")
        if teacher_context is not None:
            save_tiny_student(store.stored(KIND, "teacher"), context=teacher_context)
        student = Student("student", folder, None, "tiny", None if teacher_context is None else "teacher")
        context = StudyContext(store, in_process, Progress(Console(file=said, width=500)), study=study)
        rollouts = provide_rollouts(context, student)
        foresee(context, student, rollouts, stages)
        return said.getvalue()

    return provide


def refusal(bench, *rows, **settings):
    with pytest.raises(DataError) as refused:
        bench(*rows, **settings)
    return str(refused.value)


def test_it_is_said_how_many_examples_each_loss_has_and_where_they_are_fewer_than_a_batch(bench):
    said = bench(runs=[{"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}, "batch_size": 16}])
    assert "to learn from: sft 12 rows, dpo 6 pairs" in said
    assert "dpo: 6 pairs for batches of 16; every step takes some of them more than once" in said
    assert "sft: 12 rows for batches" not in said


def test_every_loss_without_examples_is_named_before_the_base_is_asked(bench):
    runs = [{"loss": {"type": kind}} for kind in ("sft", "dpo", "ipo")]
    first, second = refusal(bench, RIGHT, runs=runs).splitlines()
    assert (first[:3], second[:3]) == ("DPO", "IPO")
    assert "finds nothing to learn from in 6 rollouts" in first
    assert "DPO finds nothing to learn from" in bench(RIGHT, runs=runs, stages=STAGES[:3])


def test_losses_in_rounds_learn_from_other_rollouts(bench):
    bench(RIGHT, runs=[{"loss": {"type": "dpo"}, "rounds": 2, "sampling": {"samples": 2, "max_new_tokens": 4}}])


def test_what_should_have_come_with_the_rows_is_missed_at_once(bench):
    assert "off-policy-grpo: 12 of 12 rollouts lack the log-probabilities" in refusal(bench, loss="off-policy-grpo")
    runs = [{"loss": {"type": "sft"}}, {"loss": {"type": "off-policy-grpo"}}]
    said = bench(runs=runs, stages=STAGES[:2])
    assert "to learn from: sft 12 rows\n" in said
    assert "off-policy-grpo: 12 of 12 rollouts lack the log-probabilities" in said
    rows = [{**row, "ids": [[1], [2]], "scores": [[-0.1], [-0.1]]} for row in ROWS]
    fields = {"top_ids": "ids", "top_logprobs": "scores"}
    assert "kd-forward: rollouts lack a teacher's" in refusal(bench, rows, loss="kd-forward", fields=fields)
    runs = [{"loss": {"type": kind}} for kind in ("kd-forward", "kd-reverse", "sft")]
    said = bench(rows, runs=runs, fields=fields, stages=STAGES[:2])
    assert "to learn from: sft 12 rows\n" in said
    assert "kd-forward, kd-reverse: rollouts lack a teacher's" in said


def test_prompts_that_leave_no_room_for_answers_are_named_with_the_setting(bench, tmp_path):
    path = tmp_path / "benchmark.jsonl"
    path.write_text(json.dumps({"prompt": "1 + " * 70 + "1", "gold": "71"}) + "\n")
    evaluation = {"answers": {"max_new_tokens": 4}, "benchmarks": [{"name": "long", "problems": str(path)}]}
    said = refusal(bench, evaluation=evaluation)
    assert said.startswith("evaluation.answers.max_new_tokens, long prompts: the longest prompt has 1")
    assert f"context of {CONTEXT}" in said
    bench(evaluation=evaluation, stages=STAGES[:4])
    soups = refusal(bench, geometry={"soups": {"accuracy_problems": 4, "max_new_tokens": 512}})
    assert "geometry.soups.max_new_tokens, heldout prompts: " in soups
    assert "with max_new_tokens=512 that exceeds" in soups
    bench(geometry={"soups": {}})
    rounds = [{"loss": {"type": "rft"}, "rounds": 2, "sampling": {"max_new_tokens": 4000}}]
    assert "sampling.max_new_tokens of rft-2rounds-lr1e-05-s0, train prompts: " in refusal(bench, runs=rounds)


def test_rows_that_the_teacher_cannot_read_whole_are_refused_with_the_length_that_it_can(bench):
    settings = {"loss": "kd-forward", "teacher": {"model": "somewhere", "top_k": 2}}
    assert "reads 4 at most; set rollouts.max_tokens=4" in refusal(bench, teacher_context=4, **settings)
    bench(teacher_context=64, **settings)


def test_rows_that_the_student_cannot_read_are_not_asked_for(bench):
    assert f"student reads {CONTEXT} tokens at most" in refusal(bench, rules={"max_tokens": CONTEXT + 1})
    bench(rules={"max_tokens": CONTEXT})


def test_a_sweep_is_judged_by_what_can_be_measured(bench):
    ungraded = [{name: value for name, value in row.items() if name != "gold"} for row in ROWS]
    sweep = {
        "runs": [{"loss": {"type": "sft"}, "lr": [1e-3, 1e-4]}],
        "sweep": {"objectives": [{"metric": "eval/accuracy"}]},
    }
    assert "sweep: eval/heldout/accuracy needs problems with gold answers" in refusal(bench, ungraded, **sweep)
    bench(**sweep)
    nll = {**sweep, "sweep": {"objectives": [{"metric": "eval/heldout/nll"}]}}
    wrong = [row | {"correct": False} for row in ROWS]
    assert "sweep: eval/heldout/nll is measured on correct solutions of held-out" in refusal(bench, wrong, **nll)
    bench(ungraded, **nll)


def test_analyses_on_solutions_are_refused_where_there_is_none(bench):
    wrong = [row | {"correct": False} for row in ROWS]
    assert "geometry: each of cka, drift is measured on correct solutions" in refusal(
        bench, wrong, geometry={"cka": {}, "drift": {}}
    )
    bench(geometry={"cka": {}})


def test_verdicts_that_are_all_alike_are_said(bench):
    said = bench([row | {"correct": False} for row in ROWS])
    assert "16 rollouts: 0 right, 16 wrong; 8 prompts: 0 with both right and wrong ones, 2 held out" in said
    assert "no rollout is right" in said
    assert "verdicts came with the rows" in said
    assert "every rollout is right" in bench(RIGHT)
    graded = [{"prompt": row["prompt"], "completion": "#### 99", "gold": row["gold"]} for row in ROWS]
    assert "ends '#### 99', and its gold answer is '" in bench(graded)
    assert "rollout is right" not in bench()


def test_completions_without_a_marker_are_said_loudly_where_they_are_many(bench):
    rows = [{"prompt": row["prompt"], "completion": "7", "gold": row["gold"]} for row in ROWS]
    marked = {"prompt": "0 + 0", "completion": "#### 0", "gold": "0"}
    assert "16 of 17 completions name no answer" in bench([*rows, marked], rules={"grading": "exact"})


def test_first_rows_without_a_verdict_are_refused_with_their_keys_before_anything_starts(tmp_path, folder):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1 + 1", "response": "#### 2", "truth": "2"}) + "\n")

    def study(**reader):
        return parse_study({
            "name": "s",
            "rollouts": {"read": [{"type": "jsonl", "path": str(path), **reader}]},
            "runs": [{"loss": {"type": "sft"}}],
        })  # fmt: skip

    with pytest.raises(DataError, match=r"keys are 'question', 'response', 'truth': .* fields: \{gold: truth\}"):
        check_settings(study())
    check_settings(study(), "student")
    check_settings(study(fields={"gold": "truth"}))
    check_settings(study(verdict=True))
    with pytest.raises(DataError, match="has a prompt nor a verdict"):
        check_settings(study(fields={"prompt": "asked"}))
