"""What the rollouts and evaluation stages say, choose and refuse, with a tiny untrained student and without Ray."""

import io
import json
from collections import Counter

import pyarrow.compute as pc
import pytest
from rich.console import Console
from tiny import save_tiny_student
from transformers import PreTrainedTokenizerFast

from raygeo.cluster.execution import in_process
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.data.scanning import Scan
from raygeo.data.tokens import RolloutTokens
from raygeo.data.verdicts import Grade
from raygeo.errors import DataError, WorkloadError
from raygeo.generation.local import LocalSettings
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.evaluate import evaluate_runs
from raygeo.pipeline.plan import RoundSampling
from raygeo.pipeline.revisions import outdated_tables
from raygeo.pipeline.rollouts import heldout_problems, plan_round, provide_rollouts, provide_round
from raygeo.pipeline.student import Student
from raygeo.progress import Progress
from raygeo.store import Store

pytestmark = pytest.mark.cluster

MARKED = [
    {"prompt": f"{n} + {n}", "completion": f"#### {2 * n + wrong}", "gold": str(2 * n)}
    for n in range(8)
    for wrong in (0, 1)
]
BOXED = [{**row, "completion": row["completion"].replace("#### ", r"\boxed{") + "}"} for row in MARKED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny_student(tmp_path_factory.mktemp("student") / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([r"\boxed{", "}", "none"])  # in rollouts alone: nothing is generated with them
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bench(tmp_path, folder):
    """Provide the rollouts of a study over given rows; returns them, what was said, and the context."""

    def provide(rows, evaluation=None, **settings):
        path = tmp_path / "rollouts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        study = parse_study({
            "name": "s",
            "rollouts": {"read": [{"type": "jsonl", "path": str(path)}], **settings},
            "evaluation": {"answers": {"max_new_tokens": 4}, **(evaluation or {})},
            "runs": [{"loss": {"type": "sft"}}],
        })  # fmt: skip
        said = io.StringIO()
        progress = Progress(Console(file=said, width=500))
        context = StudyContext(Store(tmp_path / "store"), in_process, progress, study=study)
        rollouts = provide_rollouts(context, Student("student", folder, None, "tiny"))
        return rollouts, said, context

    return provide


def test_grading_is_chosen_said_recorded_and_found_again(bench):
    for rows, grading in ((MARKED, "exact"), (BOXED, "math")):
        for reused in (0, 1):
            rollouts, said, context = bench(rows)
            assert rollouts.grading == grading
            assert sum(rollouts.store.table("rollouts")["correct"].to_pylist()) == 8
            assert f"graded by {grading}: 16 of 16 completions" in said.getvalue()
            assert context.reused == reused
    names = context.store.table("counts")["name"].to_pylist()
    assert r"graded by math: 16 of 16 completions answer in \boxed{}" in names


def test_rollouts_of_a_round_are_the_students_own(bench, tmp_path):
    rollouts, _, context = bench(MARKED, max_set_aside=1)
    student = Student("student", save_tiny_student(tmp_path / "model"), None, "tiny")
    drawn = plan_round(context, rollouts, student, student, RoundSampling(samples=2, max_new_tokens=4), 1)
    found = provide_round(context, rollouts, student, drawn, "x-round1")
    assert set(found.train["source"].to_pylist()) == {"student"}


def test_exact_grading_of_boxes_stops_at_the_rollouts(bench):
    with pytest.raises(DataError, match=r"set rollouts\.grading to 'math'"):
        bench(BOXED, grading="exact")


def test_rows_set_aside_are_said_with_their_reasons(bench):
    bad = [{"prompt": "p"}, {"prompt": "p"}, {**MARKED[0], "reward": "[red]"}, {**MARKED[0], "completion": "none"}]
    _, said, _ = bench([*MARKED, *bad], max_set_aside=0.5)
    assert "3 of 20 rows set aside: 2 x missing field 'completion', 1 x reward is not a number" in said.getvalue()
    assert "see the table set_aside" in said.getvalue()
    assert "1 of 17 rollouts: no answer marker" in said.getvalue()


def test_without_gold_answers_it_is_said_that_no_accuracy_can_be_measured(bench):
    rows = [{**row, "gold": None, "reward": n % 2} for n, row in enumerate(MARKED)]
    rollouts, said, context = bench(rows)
    assert "no accuracy on held-out prompts: none of 2 has a gold answer" in said.getvalue()
    assert "fields: gold" in said.getvalue()
    student = Student("student", rollouts, None, "tiny")
    evaluate_runs(context, student, rollouts, [])
    assert "accuracy is not measured" in said.getvalue()
    assert context.store.table("accuracy").num_rows == 0


def test_golds_that_exact_grading_cannot_read_are_left_out_and_said(bench):
    rows = [{**row, "gold": "unknown", "correct": True} if row["prompt"] == "0 + 0" else row for row in MARKED]
    rollouts, said, _ = bench(rows, heldout=0.9)
    assert rollouts.grading == "exact"
    assert "0 + 0" in rollouts.heldout["prompt"].to_pylist(), "choose another seed"
    assert "unknown" not in {problem.gold for problem in heldout_problems(rollouts)}
    assert "1 of 7 held-out prompts have no gold answer to grade against" in said.getvalue()


def test_a_benchmark_decides_too_and_is_read_before_anything_is_trained(bench, tmp_path):
    path = tmp_path / "benchmark.jsonl"
    evaluation = {"benchmarks": [{"name": "halves", "problems": {"type": "jsonl", "path": str(path)}}]}
    with pytest.raises(DataError, match="no file"):
        bench(MARKED, evaluation)
    path.write_text(json.dumps({"prompt": "a half", "gold": r"\frac12"}))
    rollouts, said, _ = bench(MARKED, evaluation)
    assert rollouts.grading == "math"
    assert "graded by math: gold answers of the benchmark 'halves' are not all numbers" in said.getvalue()
    _, said, context = bench(MARKED, grading="math")
    assert context.reused == 1
    assert "graded by math: the study says so" in said.getvalue()
    names = context.store.table("counts")["name"].to_pylist()
    assert [name for name in names if name.startswith("graded")] == ["graded by math: the study says so"]
    with pytest.raises(DataError, match="benchmark 'halves': 1 of 1 gold answers are not numbers"):
        bench(MARKED, evaluation, grading="exact")


def test_undecided_answers_are_counted_and_said(bench, tmp_path, monkeypatch):
    from raygeo.data import exam
    from raygeo.data.grading import ExactGrader, Verdict

    class Undecided(ExactGrader):
        def grade_many(self, items):
            return [Verdict("5", None, "timeout")] * len(items)

    rollouts, said, context = bench(MARKED)
    monkeypatch.setattr(exam, "grader", lambda grading: Undecided())
    student = Student("student", save_tiny_student(tmp_path / "model"), None, "tiny")
    evaluate_runs(context, student, rollouts, [Run("base", "base", None)])
    (row,) = context.store.table("accuracy").to_pylist()
    truncated = row["truncated"]
    assert (row["n"], row["correct"], row["undecided"]) == (2, 0, 2 - truncated)
    assert ("could not be judged" in said.getvalue()) == (truncated < 2)


def test_special_tokens_that_texts_hold_are_counted_and_said_and_a_text_behind_its_end_is_set_aside(bench):
    rows = [dict(row) for row in MARKED]
    for row in rows[:4]:
        row["prompt"] = f"<bos>{row['prompt']}"
    for row in rows[2:5]:
        row["completion"] += "<eos>"
    rows[5]["completion"] += "<eos> 4"
    rollouts, said, context = bench(rows, max_set_aside=0.1)
    counted = {row["name"]: row["value"] for row in context.store.table("counts").to_pylist()}
    assert counted["prompts with their own beginning-of-text"] == 4
    assert counted["completions with their own end"] == 3
    assert counted["correct"] == 8, "an end behind an answer does not hide it from the grader"
    assert "4 of 15 rollouts: prompts with their own beginning-of-text" in said.getvalue()
    assert "3 of 15 rollouts: completions with their own end" in said.getvalue()
    assert "1 of 16 rows set aside: 1 x completion continues behind an end-of-text token" in said.getvalue()
    tokens = RolloutTokens.open(rollouts.tokens)
    for sequence in map(tokens.__getitem__, range(len(tokens))):
        ids = sequence.ids.tolist()
        assert (ids.count(1), ids.count(2)) == (1, 1)
        assert (ids[0], ids[-1]) == (1, 2)


def test_each_text_is_tokenised_once_and_one_that_was_cut_gets_no_end(bench, monkeypatch):
    tokenise, tokenised = PreTrainedTokenizerFast.__call__, []

    def counted(self, text, **how):
        tokenised.extend([text] if isinstance(text, str) else text)
        return tokenise(self, text, **how)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    rows = [{**row, "truncated": n % 3 == 0} for n, row in enumerate(MARKED)]
    rollouts, _, _ = bench([*rows, rows[1]])
    times = Counter(tokenised)
    assert [times[prompt] for prompt in {row["prompt"] for row in rows}] == [1] * 8
    assert sum("####" in text for text in tokenised) == len({row["completion"] for row in rows})
    table = rollouts.store.table("rollouts")
    table = table.filter(pc.equal(table["split"], "train"))
    columns = [table[name].to_pylist() for name in ("prompt", "completion", "truncated")]
    assert 0 < sum(columns[2]) < len(columns[2])
    tokens = RolloutTokens.open(rollouts.tokens)
    for place, (prompt, completion, truncated) in enumerate(zip(*columns, strict=True)):
        expected = rollouts.renderer.encode(prompt, completion, ended=not truncated)
        assert tokens[place].ids.tolist() == expected.ids.tolist()
        assert tokens[place].prompt_length == expected.prompt_length
        assert (tokens[place].ids[-1] == 2) == (not truncated)


def test_parts_are_taken_up_again_and_serve_other_splits(bench, monkeypatch):
    whole, _, _ = bench(MARKED, heldout_seed=1)
    expected = whole.store.read_unit("rollouts", whole.key)
    tokens = RolloutTokens.open(whole.tokens)
    monkeypatch.setattr("raygeo.pipeline.rollouts.PART_ROWS", 5)
    computed = []
    for kind in (Scan, Grade):

        def counted(self, state, payload, compute=kind.compute):
            computed.append(self.name)
            if computed == [Scan.name] * 3:
                raise DataError("the power fails")
            return compute(self, state, payload)

        monkeypatch.setattr(kind, "compute", counted)
    with pytest.raises(WorkloadError, match=r"1 of 4 tasks failed(.|\n)*the power fails"):
        bench(MARKED, heldout_seed=1, grading="exact")
    again, _, context = bench(MARKED, heldout_seed=1, grading="exact")
    assert (context.made, context.reused) == (1, 0)
    assert computed == [Scan.name] * 5 + [Grade.name] * 4
    assert again.store.read_unit("rollouts", again.key).equals(expected)
    assert RolloutTokens.open(again.tokens).ids.tolist() == tokens.ids.tolist()
    other, _, _ = bench(MARKED, heldout_seed=2, heldout=0.5, grading="exact")
    assert len(computed) == 9, "another split needs neither tokeniser nor grader"
    assert other.heldout.num_rows == 8
    assert other.train.num_rows == len(RolloutTokens.open(other.tokens)) == 8


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [((JsonlReader, "reader_revision"), "2.2.1", "2.2.9"), (("raygeo.pipeline.rollouts", "RULES"), "2.2.1", "9.2.1")],
)
def test_rollouts_of_an_older_revision_are_made_anew_and_that_is_said(bench, monkeypatch, place, old, new):
    first, said, _ = bench(MARKED)
    assert "revision" not in said.getvalue()
    owner, name = place
    monkeypatch.setattr(*((f"{owner}.{name}", 9) if isinstance(owner, str) else (owner, name, 9)))
    second, said, context = bench(MARKED)
    assert f"rollouts: 1 unit of revision {old} made anew by revision {new}" in said.getvalue()
    assert (context.made, context.reused) == (1, 0)
    assert second.tokens_key != first.tokens_key
    assert second.store.read_unit("rollouts", second.key).equals(first.store.read_unit("rollouts", first.key))


def test_a_store_says_which_renderer_engine_reader_and_rules_of_grading_are_of_another_revision(bench, monkeypatch):
    rollouts, _, context = bench(MARKED)
    evaluate_runs(context, Student("student", rollouts, None, "tiny"), rollouts, [])
    assert outdated_tables(context.store) == []
    monkeypatch.setattr("raygeo.data.revisions.RULES", 9)
    for kind, revision in ((PlainRenderer, "revision"), (LocalSettings, "revision"), (JsonlReader, "reader_revision")):
        monkeypatch.setattr(kind, revision, 9)
    said = "The table {} was made by other revisions of the code: {}. Run the study again to make it anew."
    both = "grading of revision 2 (now 9), renderer plain of revision 2 (now 9)"
    following = ("answers", "accuracy", "drops", "mcnemar", "pass_at_k")
    assert outdated_tables(context.store) == [
        said.format("rollouts", f"{both}, reader jsonl of revision 1 (now 9)"),
        *(said.format(table, f"{both}, engine local of revision 1 (now 9)") for table in following),
    ]


@pytest.mark.parametrize(("what", "value"), [("identity", "other"), ("revision", PlainRenderer.revision + 1)])
def test_another_renderer_makes_other_rollouts(bench, monkeypatch, what, value):
    first, _, _ = bench(MARKED)
    monkeypatch.setattr(PlainRenderer, what, value)
    second, told, context = bench(MARKED)
    said = told.getvalue()
    assert (context.made, context.reused) == (1, 0)
    assert ("rollouts: 1 unit of revision 2.2.1 made anew by revision 2.3.1, which changed" in said) == (
        what == "revision"
    )
    assert ("rollout tokens: 1 unit of revision 1.2 made anew by revision 1.3" in said) == (what == "revision")
    assert len({first.key, second.key, first.tokens_key, second.tokens_key}) == 4


def test_shuffled_pairs_are_pairs_still(bench):
    rows = [{"prompt": f"{n} + {n}", "chosen": f"#### {2 * n}", "rejected": f"#### {2 * n + 1}"} for n in range(8)]
    plain, shuffled = (bench(rows, heldout=0.25, **change)[0].train for change in ({}, {"shuffle_rewards": 0}))
    sides = [[table["correct"].to_pylist()[i : i + 2] for i in range(0, 12, 2)] for table in (plain, shuffled)]
    assert plain["pair"].to_pylist() == shuffled["pair"].to_pylist()
    assert plain["pair"].null_count == 0
    assert sides[0] == [[True, False]] * 6
    assert sorted(sides[1]) == [[False, True]] * 3 + [[True, False]] * 3
