from dataclasses import replace

import pytest
from connectivity_cases import exam, noise, save_run, save_student
from view_cases import axes_of, finished, row_of, sheet_of, view_of

from raygeo.analyses.diversity import report
from raygeo.analyses.diversity.workload import Diversity, DiversitySettings
from raygeo.errors import DataError
from raygeo.evaluation.diversity import ead
from raygeo.evaluation.statistics import pass_at
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

DRAWN = DiversitySettings(samples=3, max_new_tokens=5, problems=2, bootstrap=100, seed=4)
PROBLEMS = [("? a", "7"), ("? b", "8"), ("? c", "8")]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def runs(student, tmp_path):
    return [Run(BASE, "key-base", None), save_run(tmp_path, "r1", noise(student, 1))]


def answers(texts, benchmark="heldout", runs=(BASE, "r1")):
    """Rows of the table: answers by problem, each with whether it is right."""
    rows = [
        {"run": run, "benchmark": benchmark, "problem_id": problem, "sample": sample, "completion": text}
        | {"extracted": text.split()[-1], "correct": right, "truncated": False, "undecided": False}
        for run in runs
        for problem, given in texts.items()
        for sample, (text, right) in enumerate(given)
    ]
    return to_arrow("answers", rows)


def computed(workload):
    state = workload.setup()
    rows = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["diversity"]]
    assert to_arrow("diversity", rows, workload.tables["diversity"]).num_rows == len(rows)
    return rows


def test_answers_are_drawn_where_the_evaluation_drew_one_each(student, runs):
    asked = exam(student, PROBLEMS)
    once = answers({"p": [("a #### 7", True)]})
    rows = computed(Diversity(DRAWN, runs, student, asked, once))
    assert {row["run"] for row in rows} == {BASE, "r1"}
    assert {(row["drawn"], row["problems"], row["samples"]) for row in rows} == {("here", 2, 3)}
    students = asked.engine.students(student, runs)
    with students.mixed(runs[1].mixture()) as model:
        given = asked.first(2).samples(model, max_new_tokens=5, batch_size=64, samples=3, temperature=1.0, seed=4)
    tokenizer = load_tokenizer(student)
    expected = [ead([tokenizer(answer.text)["input_ids"] for answer, _ in drawn], len(tokenizer)) for drawn in given]
    [value] = [row["value"] for row in rows if (row["run"], row["quantity"]) == ("r1", "ead_per_input")]
    assert value == pytest.approx(sum(expected) / 2)
    assert computed(Diversity(DRAWN, runs, student, asked, once)) == rows


def test_answers_of_the_evaluation_are_taken_where_there_are_several(student, runs):
    given = answers({"p": [("a #### 7", True), ("b #### 8", False)], "q": [("c #### 8", True), ("c #### 8", True)]})
    workload = Diversity(replace_settings(problems=5), runs, student, exam(student, PROBLEMS), given)
    assert workload.setup() is None
    rows = {row["quantity"]: row for row in computed(workload) if row["run"] == "r1"}
    assert {(row["drawn"], row["problems"], row["samples"]) for row in rows.values()} == {("evaluation", 2, 2)}
    assert rows["distinct_answers"]["value"] == 1.5
    assert rows["pass@2"]["value"] == 1
    assert rows["pass@1"]["value"] == (pass_at(1, 1, 2) + 1) / 2
    first = Diversity(replace_settings(problems=2, bootstrap=150), runs, student, exam(student, PROBLEMS), given)
    assert {task.key for task in first.tasks()}.isdisjoint(task.key for task in workload.tasks())
    other = answers({"p": [("a #### 7", True), ("b #### 7", True)]})
    changed = Diversity(replace_settings(problems=5), runs, student, exam(student, PROBLEMS), other)
    assert {task.key for task in changed.tasks()}.isdisjoint(task.key for task in workload.tasks())


def replace_settings(**changes):
    return DRAWN.model_copy(update=changes)


def test_there_must_be_problems_or_answers(student, runs):
    asked = exam(student, PROBLEMS)
    with pytest.raises(DataError, match="no answers to 'aime' to compare"):
        Diversity(replace_settings(benchmark="aime"), runs, student, asked, answers({}))
    with pytest.raises(DataError, match="no answers to 'heldout'"):
        Diversity(DRAWN, runs, student, replace(asked, problems=[]), answers({}))


def test_runs_that_lack_answers_are_left_out(student, runs):
    texts = {"p": [("a 7", True), ("b 8", False)], "q": [("c 8", True), ("c 8", True)]}
    rows = [*answers(texts).to_pylist()]
    part = to_arrow("answers", [row for row in rows if row["run"] == BASE or row["problem_id"] == "p"])
    assert {row["run"] for row in computed(Diversity(DRAWN, runs, student, exam(student, PROBLEMS), part))} == {BASE}


def test_diversity_stands_beside_accuracy_out_of_distribution():
    rows = [
        {"run": run, "benchmark": "heldout", "drawn": "here", "quantity": quantity, "value": value, "low": value - 0.1}
        | {"high": value + 0.1, "problems": 64, "samples": 16}
        for run, shift in ((BASE, 0.0), ("sft", -0.2))
        for quantity, value in (("ead_per_input", 0.7 + shift), ("distinct_answers", 4.0), ("pass@1", 0.5))
    ]
    accuracy = [
        {"run": run, "benchmark": benchmark, "n": n, "correct": right}
        for run in (BASE, "sft")
        for benchmark, n, right in (("far", 100, 50), ("further", 300, 30), ("near", 10, 9))
    ]
    shifts = [{"benchmark": name, "shift": shift} for name, shift in (("far", "ood"), ("further", "ood"), ("near", ""))]
    view = view_of(runs=finished("sft"), diversity=rows, accuracy=accuracy[:-2], benchmarks=shifts)
    sheet = sheet_of(report.values, view)
    assert row_of(sheet, BASE)["accuracy out of distribution"] == "20.0 %"
    assert row_of(sheet, "sft")["accuracy out of distribution"] == "–"
    titles = [ax.get_title() for ax in axes_of(report.diversity, view)]
    assert titles[-2:] == ["pass@k, %", "accuracy on far, further, %"]
    assert ("sft", "diversity_per_input", pytest.approx(0.5)) in list(report.metrics(view))
    assert "16 answers to each of 64 problems" in report.limits(view)[0]
