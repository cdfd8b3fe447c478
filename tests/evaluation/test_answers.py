import pytest
from pydantic import ValidationError
from study_cases import draw_rollouts
from tiny import save_tiny_student

from raygeo.data.grading import RULES
from raygeo.data.readers import Prompt
from raygeo.evaluation.answers import Answers, AnswerSettings
from raygeo.generation.choice import LOCAL
from raygeo.generation.engine import Completion
from raygeo.generation.local import LocalSettings
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.run import Run
from raygeo.settings import content_key, unit_key
from raygeo.tables import BASE, to_arrow
from raygeo.toy.word_problems import word_tokenizer

PROBLEMS = [
    Prompt(f"p{i}", row["prompt"], str(i), None) for i, row in enumerate(draw_rollouts(5, samples=1).to_pylist())
]


def asked(folder="unused", problems=PROBLEMS, **options) -> Answers:
    settings = AnswerSettings(**{"problems_per_task": 2, "max_new_tokens": 4, **options})
    renderer = PlainRenderer(word_tokenizer())
    return Answers(settings, [Run(BASE, "k", None)], folder, "base", {"sums": problems}, "exact", renderer)


def test_slices_cover_every_problem_once_and_keys_follow_what_is_asked():
    tasks = asked().tasks()
    assert [[p.prompt_id for p in task.payload[2]] for task in tasks] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    keys = [task.key for task in tasks]
    assert len(set(keys)) == 3
    assert keys == [task.key for task in asked().tasks()]
    assert not set(keys) & {task.key for task in asked(max_new_tokens=5).tasks()}
    fewer = [task.key for task in asked(problems=PROBLEMS[:3]).tasks()]
    assert fewer[0] == keys[0]
    assert fewer[1] not in keys


@pytest.mark.parametrize(
    ("text", "truncated", "correct", "undecided"),
    [
        ("#### 0", False, True, False),
        ("#### 2", False, False, False),
        ("#### 0", True, False, False),
        ("one", False, False, False),
    ],
)
def test_only_finished_right_answers_are_correct(tmp_path, monkeypatch, text, truncated, correct, undecided):
    class Says:
        def __init__(self, *given):
            pass

        def generate(self, request):
            return [[Completion(text, (1, 2, 3), "length" if truncated else "end")] for _ in request.prompts]

    monkeypatch.setattr(LocalSettings, "engine", Says)
    workload = asked(save_tiny_student(tmp_path / "student"), PROBLEMS[:1])
    [task] = workload.tasks()
    rows = workload.compute(workload.setup(), task.payload)["answers"]
    [row] = to_arrow("answers", rows).to_pylist()
    assert (row["correct"], row["undecided"], row["truncated"], row["tokens"]) == (correct, undecided, truncated, 3)
    assert row["extracted"] == (text.split()[-1] if "#" in text else None)


def test_a_student_answers_for_itself(tmp_path):
    workload = asked(save_tiny_student(tmp_path / "student"))
    state = workload.setup()
    rows = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["answers"]]
    assert [row["problem_id"] for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert all(row["tokens"] == 4 or not row["truncated"] for row in rows)


def test_several_answers_are_drawn_with_seeds_and_have_keys_of_their_own(tmp_path):
    folder = save_tiny_student(tmp_path / "student")
    workload = asked(folder, PROBLEMS[:2], samples=3, temperature=1.0)
    state = workload.setup()
    [task] = workload.tasks()
    rows = workload.compute(state, task.payload)["answers"]
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(p, s) for p in ("p0", "p1") for s in range(3)]
    assert rows == workload.compute(state, task.payload)["answers"]
    other = asked(folder, PROBLEMS[:2], samples=3, temperature=1.0, seed=1)
    assert rows != other.compute(state, other.tasks()[0].payload)["answers"]
    greedy = asked(folder, PROBLEMS[:2])
    assert len({each.tasks()[0].key for each in (workload, other, greedy)}) == 3
    assert greedy.tasks()[0].key == asked(folder, PROBLEMS[:2], seed=5).tasks()[0].key
    with pytest.raises(ValidationError, match="all the same"):
        AnswerSettings(samples=2)


def test_keys_of_greedy_answers_hold_neither_temperature_nor_seed():
    settings = {"max_new_tokens": 4, "batch_size": 256, "problems_per_task": 2}
    first = PROBLEMS[:2]
    exam = ["plain", LOCAL.identity, "exact", [(p.prompt, p.gold) for p in first]]
    before = content_key(settings, "base", exam, ["p0", "p1"])
    assert asked().tasks()[0].key == unit_key(
        (Answers.revision, RULES, PlainRenderer.revision, LOCAL.revision), "answers", before, "sums", "k"
    )
