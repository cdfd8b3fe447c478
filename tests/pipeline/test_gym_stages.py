"""A tiny student of reasoning-gym's problems from its making to the tables of accuracy, without Ray."""

import io

import pytest
from rich.console import Console
from tiny import TINY

from raygeo.cluster.execution import in_process
from raygeo.errors import ConfigError
from raygeo.models.run import Run
from raygeo.pipeline import student as stage
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.evaluate import evaluate_runs
from raygeo.pipeline.problems import benchmark_problems, check_builtin
from raygeo.pipeline.report import about_study
from raygeo.pipeline.rollouts import provide_rollouts
from raygeo.pipeline.student import provide_student
from raygeo.progress import Progress
from raygeo.store import Store

pytestmark = pytest.mark.cluster

TRAINING = {"steps": 3, "batch_size": 4, "warmup_steps": 1}
BENCHMARKS = [
    {"name": "usual", "problems": 8},
    {"name": "harder", "problems": 6, "level": "harder", "shift": "ood"},
    {"name": "others", "problems": 6, "families": "heldout", "shift": "ood"},
    {"name": "gcd", "problems": 3, "families": ["gcd"], "level": "harder", "shift": "ood"},
    {"name": "before", "problems": 6, "families": "retained", "shift": "retention"},
]


def study(benchmarks=BENCHMARKS, gym=None, **changes):
    architecture = TINY.model_copy(update={"context": 384}).model_dump(exclude_unset=True)
    teacher = {"corpus": 16, "training": TRAINING}
    recipe = {"architecture": architecture, "corpus": 32, "training": TRAINING, "teacher": teacher}
    return parse_study({
        "name": "s",
        "student": {"model": "builtin:reasoning-gym", "gym": recipe | (gym or {})},
        "rollouts": {
            "sample": {"prompts": 16, "decoding": {"samples": 1, "temperature": 1.0, "max_new_tokens": 4}},
            "heldout": 0.25,
        },
        "evaluation": {"answers": {"max_new_tokens": 4}, "benchmarks": benchmarks},
        "runs": [{"loss": {"type": "sft"}}],
    } | changes)  # fmt: skip


@pytest.fixture
def context(tmp_path, monkeypatch):
    def here(work, what, progress, *, cpus, gpus):
        work(lambda done, total, note: None)

    monkeypatch.setattr(stage, "call", here)
    said = io.StringIO()
    return lambda asked: StudyContext(
        Store(tmp_path / "store"), in_process, Progress(Console(file=said, width=300)), study=asked
    ), said


def test_from_the_student_to_the_tables(context):
    make, said = context
    asked = make(study())
    student = provide_student(asked)
    rollouts = provide_rollouts(asked, student)
    assert rollouts.grading == "exact"
    table = asked.store.table("rollouts").to_pylist()
    families = {row["prompt_id"].split("-")[0] for row in table}
    assert families == {"chain_sum", "products", "gcd", "base_conversion"}
    evaluate_runs(asked, student, rollouts, [Run("base", "base", None)])
    shifts = {row["benchmark"]: (row["shift"], row["problems"]) for row in asked.store.table("benchmarks").to_pylist()}
    assert shifts == {
        "heldout": ("none", 4), "usual": ("none", 8), "harder": ("ood", 6), "others": ("ood", 6), "gcd": ("ood", 3),
        "before": ("retention", 6),
    }  # fmt: skip
    accuracy = {row["benchmark"]: row for row in asked.store.table("accuracy").to_pylist()}
    assert list(accuracy) == list(shifts)
    drops = asked.store.table("drops").to_pylist()
    assert [(row["benchmark"], row["within"]) for row in drops] == [(n, "heldout") for n in ("harder", "others", "gcd")]
    answered = {}
    for row in asked.store.table("answers").to_pylist():
        answered.setdefault(row["benchmark"], set()).add(tuple(row["problem_id"].split("-")[:2]))
    assert answered["others"] == {("lcm", "usual"), ("leg_counting", "usual")}
    assert answered["before"] == {("count_bits", "usual"), ("letter_counting", "usual")}
    assert answered["gcd"] == {("gcd", "harder")}
    assert "harder (out of distribution): 6 problems" in said.getvalue()
    assert "before (retention): 6 problems" in said.getvalue()

    again = make(study())
    assert provide_student(again).key == student.key
    assert again.made == 0
    other = make(study(gym={"corpus": 40}))
    assert provide_student(other).key != student.key


def test_the_version_of_the_package_is_part_of_the_key(context, monkeypatch):
    make, _ = context
    key = provide_student(make(study())).key
    monkeypatch.setattr(stage, "gym_version", lambda: "0.1.26")
    assert provide_student(make(study())).key != key


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        ({"level": "harder"}, "not those of the rollouts; give shift: ood, or retention"),
        ({"families": "heldout"}, "not those of the rollouts"),
        ({"families": ["chain_sum", "lcm"]}, "not those of the rollouts"),
        ({"shift": "ood"}, "those of the rollouts, without a shift of 'ood'; leave shift out"),
        ({"families": ["sums"]}, "'sums' is not a family"),
        ({"problems": "some.jsonl", "level": "harder", "shift": "ood"}, "level are of the problems of builtin:reason"),
    ],
)
def test_a_benchmark_says_how_it_is_shifted(benchmark, said):
    with pytest.raises(ConfigError, match=said):
        study([{"name": "b", "problems": 4} | benchmark])


def test_families_and_levels_are_of_this_student_alone():
    with pytest.raises(ConfigError, match="level are of the problems of builtin:reasoning-gym"):
        study([{"name": "b", "problems": 4, "level": "harder"}], student={"model": "builtin:word-problems"})
    with pytest.raises(ConfigError, match="no retained families to draw from"):
        study(BENCHMARKS[-1:], gym={"retained": []})


def test_other_peoples_benchmarks_only_need_the_shift(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "1 + 1", "answer": "2"}\n')
    asked = study([{"name": "mine", "problems": str(path), "shift": "ood"}])
    assert len(benchmark_problems(asked, asked.evaluation.benchmarks[0])) == 1


def test_more_problems_than_there_are_are_refused_before_anything_is_made():
    small = {"levels": {"gcd": {"usual": {"value": [2, 4]}}}}
    with pytest.raises(ConfigError, match=r"16 different problems are asked for, but gcd \(usual\)"):
        check_builtin(study(gym={**small, "trained": ["gcd"], "heldout": ["chain_sum"], "retained": []}, evaluation={}))


def test_the_page_says_what_is_planted():
    assert any("planted slips" in caveat for caveat in about_study(study(), ()).caveats)
