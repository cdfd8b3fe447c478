"""What a run would refuse of its rollouts is known before it, where they and the student's tokenizer are here."""

import json

import pytest
from study_cases import tiny_study
from tiny import save_tiny_student

from raygeo.errors import DataError, StudentError, UnusableError
from raygeo.pipeline.budget.facts import SAMPLE
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import STAGES
from raygeo.pipeline.tried import try_rollouts

pytestmark = pytest.mark.cluster

ROWS = [
    {"prompt": f"{n} + {n}", "completion": f"#### {2 * n + wrong}", "gold": str(2 * n), "correct": not wrong}
    for n in range(8)
    for wrong in (0, 1)
]
NO_GEOMETRY = dict.fromkeys(parse_study(tiny_study()).geometry.asked())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("student") / "model", context=64)


@pytest.fixture
def trying(tmp_path, folder):
    """Try given rows of a study."""

    def trying(rows=ROWS, *, loss="sft", stages=STAGES, model=None, **rollouts):
        path = tmp_path / "rollouts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        study = parse_study({
            "name": "s",
            "student": {"model": str(folder)} if model is None else {"model": model},
            "rollouts": {"read": [{"type": "jsonl", "path": str(path)}], **rollouts},
            "training": {"batch_size": 4},
            "evaluation": {"answers": {"max_new_tokens": 4}},
            "runs": [{"loss": {"type": loss}}],
            "geometry": NO_GEOMETRY,
        })  # fmt: skip
        return try_rollouts(study, stages)

    return trying


def test_rows_that_a_run_would_take_are_counted(trying):
    tried = trying()
    assert tried.error is None
    assert "to learn from: sft 12 rows" in tried.said
    assert "to learn from: sft 12 rows" in trying(model="builtin:word-problems").said


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ({"max_tokens": 4}, r"16 of 16 records cannot be used .*longer than max_tokens \(4\)"),
        ({"max_tokens": 65}, "the student reads 64 tokens at most"),
        ({"heldout": 0.999}, "cannot hold out 0.999 of 8 prompts"),
        ({"loss": "off-policy-grpo"}, "off-policy-grpo: 12 of 12 rollouts lack the log-probabilities"),
        ({"rows": [row | {"correct": True} for row in ROWS], "loss": "dpo"}, "DPO finds nothing to learn from"),
    ],
)
def test_what_a_run_would_refuse_is_known(trying, rollouts, said):
    tried = trying(**rollouts)
    assert isinstance(tried.error, DataError)
    with pytest.raises(DataError, match=said):
        raise tried.error


def test_what_comes_after_the_last_stage_is_not_refused(trying):
    assert trying(loss="off-policy-grpo", stages=STAGES[:2]).error is None
    assert trying(max_tokens=4, stages=STAGES[:1]).error is None


def test_of_many_rows_the_first_are_tried_and_refuse_what_no_others_make_good(trying):
    many = [row | {"prompt": f"{n} + {row['prompt']}", "gold": None} for n in range(SAMPLE // 16 + 1) for row in ROWS]
    tried = trying(many, loss="off-policy-grpo")
    assert tried.error is None
    assert tried.said[0] == "of the first 2,000 rows alone:"
    assert tried.said[-1].startswith("  off-policy-grpo: ")
    assert isinstance(trying(many, max_tokens=4).error, UnusableError)
    assert "the student reads 64 tokens at most" in str(trying(many, max_tokens=65).error)


def test_nothing_is_known_without_the_tokenizer(trying):
    tried = trying(max_tokens=4, model="nobody/nothing")
    assert (tried.said, tried.error) == ((), None)


@pytest.mark.parametrize(
    ("rules", "error", "said"),
    [
        ({"heldout": 0.999}, DataError, "cannot hold out 0.999 of 30 prompts"),
        ({"max_tokens": 10}, DataError, r"30 of 30 records cannot be used .*prompt longer than max_tokens \(10\)"),
        ({"max_tokens": 4000}, DataError, "the student reads"),
        ({"new": 4000}, StudentError, "exceeds the teacher's context"),
    ],
)
def test_prompts_that_are_to_be_answered_are_looked_at(rules, error, said):
    new = rules.pop("new", 40)
    sample = {"prompts": 30, "decoding": {"samples": 4, "temperature": 1.0, "max_new_tokens": new}}
    found = try_rollouts(parse_study(tiny_study(rollouts={"sample": sample, **rules})), STAGES)
    assert isinstance(found.error, error)
    with pytest.raises(error, match=said):
        raise found.error
    fitting = parse_study(tiny_study())
    assert try_rollouts(fitting, STAGES).error is None
