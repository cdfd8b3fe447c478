"""Records in the shapes that data sets are published in, recognised by their fields and read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygeo.data.merging import validate
from raygeo.data.preview import first_row
from raygeo.data.readers import read_prompts
from raygeo.data.readers.csv import CsvReader
from raygeo.data.readers.joined import JoinedReader
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.data.readers.parquet import ParquetReader
from raygeo.data.validation import Record
from raygeo.errors import DataError
from raygeo.generation.renderer.conversation import conversation_text, messages_of
from raygeo.losses import DPO, SFT


@pytest.fixture
def reads(tmp_path):
    """Write records as JSON lines and read them; returns their rollouts as they are read, or the reasons why not."""

    def read(*records, **how):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return [r.error or dict(r.values) for r in JsonlReader(path=str(path), **how).rollouts()]

    return read


def brief(rows):
    """Prompt, completion, verdict and gold answer of rollouts."""
    return [
        row if isinstance(row, str) else tuple(row.get(n) for n in ("prompt", "completion", "correct", "gold"))
        for row in rows
    ]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Count."}
ASKED = conversation_text([SYSTEM, user("q")])

CASES = {
    # what a record is, the shape it has, and prompt, completion, verdict and gold answer of its rollouts
    "flat": ({"prompt": "q", "completion": "a", "reward": -0.5}, "flat", [("q", "a", None, None)]),
    "TRL prompt-completion, messages": (
        {"prompt": [SYSTEM, user("q")], "completion": [assistant("a")], "correct": True},
        "flat",
        [(ASKED, "a", True, None)],
    ),
    "TRL messages": (
        {"messages": [user("q"), assistant("a")], "correct": False},
        "messages",
        [("q", "a", False, None)],
    ),
    "TRL preference": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "preference",
        [("q", "a", True, None), ("q", "b", False, None)],
    ),
    "TRL preference, messages": (
        {"prompt": [SYSTEM, user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        "preference",
        [(ASKED, "a", True, None), (ASKED, "b", False, None)],
    ),
    "TRL preference, implicit prompt": (
        {"chosen": [SYSTEM, user("q"), assistant("a")], "rejected": [SYSTEM, user("q"), assistant("b")]},
        "preference",
        [(ASKED, "a", True, None), (ASKED, "b", False, None)],
    ),
    "UltraFeedback": (
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "score": 1},
        "preference",
        [("q", "a", True, None), ("q", "b", False, None)],
    ),
    "HH": (
        {"chosen": "Human: q\n\nAssistant: it is good", "rejected": "Human: q\n\nAssistant: it is gone"},
        "preference",
        [("Human: q\n\nAssistant:", " it is good", True, None), ("Human: q\n\nAssistant:", " it is gone", False, None)],
    ),
    "TRL unpaired preference": (
        {"prompt": "q", "completion": "a", "label": False},
        "unpaired",
        [("q", "a", False, None)],
    ),
    "OpenR1": (
        {
            "problem": "q", "solution": "s", "answer": "2", "uuid": "u", "generations": ["a", "b", "c"],
            "correctness_math_verify": [True, False, None], "correctness_llama": None, "correctness_count": 1,
            "finish_reasons": ["stop", "length", None], "messages": [user("q"), assistant("a")],
        },
        "lists",
        [("q", "a", True, "2"), ("q", "b", False, "2"), ("q", "c", None, "2")],
    ),
    "RL0": (
        {
            "prompt": "q", "ground_truth": ["2"], "olmo_completions": ["a", "b"], "verifier_scores": [10.0, 0.0],
            "avg_score": 5.0,
        },
        "lists",
        [("q", "a", None, "2"), ("q", "b", None, "2")],
    ),
    "Dolci": (
        {"prompt": "q", "ground_truth": ["2"], "outputs": ["a"], "passrate": 1.0},
        "lists",
        [("q", "a", None, "2")],
    ),
    "continue_vs_terminate": (
        {"problem": "q", "answer": "2", "responses": ["a", "b"], "rewrads": [1, 0]},
        "lists",
        [("q", "a", None, "2"), ("q", "b", None, "2")],
    ),
    "DeepMath": (
        {"question": "q", "final_answer": "2", "difficulty": 3.0, "r1_solution_1": "a", "r1_solution_2": "b"},
        "lists",
        [("q", "a", None, "2"), ("q", "b", None, "2")],
    ),
    "OpenMathInstruct": (
        {
            "question": "q", "expected_answer": "2", "predicted_answer": "3", "is_correct": False,
            "generated_solution": "a",
        },
        "flat",
        [("q", "a", False, "2")],
    ),
    "OpenThoughts": (
        {
            "problem": "q", "solution": "s", "correct": True, "generated_token_count": 9,
            "conversations": [
                {"from": "system", "value": "Count."}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
            ],
        },
        "messages",
        [(ASKED, "a", True, None)],
    ),
    "QwQ-LongCoT": ({"problem": "q", "qwq": "a", "solution": "s", "verified": True}, "flat", [("q", "a", True, None)]),
    "SYNTHETIC-2": (
        {"problem_id": "i", "task_type": "math", "reward": 0.0, "messages": [user("q"), assistant("a")]},
        "messages",
        [("q", "a", None, None)],
    ),
    "PRM800K": (
        {
            "question": {"problem": "q", "ground_truth_answer": "2", "pre_generated_steps": None},
            "label": {
                "steps": [
                    {"completions": [{"text": "x", "rating": -1}, {"text": "a", "rating": 1}], "chosen_completion": 1},
                    {"completions": [{"text": "b", "rating": -1}], "chosen_completion": None, "human_completion": None},
                ],
                "finish_reason": "found_error",
            },
        },
        "steps",
        [("q", "a\nb", False, "2")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_shape_is_recognised_by_its_fields(reads, tmp_path, case):
    record, shape, expected = CASES[case]
    assert brief(reads(record)) == expected
    found = JsonlReader(path=str(tmp_path / "data.jsonl")).resolved()
    assert found.shape == shape
    assert brief(reads(record, shape=shape)) == expected
    assert brief(r.values for r in found.rollouts()) == expected, "what was found is a reader's settings"
    pq.write_table(pa.Table.from_pylist([{**dict.fromkeys(record), "x": 1}]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{**record, "unused": 1}]), tmp_path / "b.parquet")
    reader = ParquetReader(path=str(tmp_path))
    assert [row for row in brief(r.error or r.values for r in reader.rollouts()) if isinstance(row, tuple)] == expected


def test_finish_reasons_and_nulls_of_parallel_lists(reads):
    record, _, _ = CASES["OpenR1"]
    assert [row["truncated"] for row in reads(record)] == [False, True, None]
    some = reads({**record, "generations": ["a", None, "c"]}, record | {"correctness_math_verify": [True]})
    assert brief(some)[1:] == ["completion is null", ("q", "c", None, "2"),
                               "correctness_math_verify has another length than the completions"]  # fmt: skip
    nothing = reads(record, record | {"generations": None}, record | {"correctness_math_verify": None})
    assert nothing[3] == "missing field 'generations'"
    assert brief(nothing[4:]) == [("q", text, None, "2") for text in "abc"], "no verdict: left to the grader"


def test_a_finish_reason_of_one_completion(reads):
    rows = [{"prompt": "q", "completion": "a", "correct": True, "finish_reason": why} for why in ("stop", "length")]
    assert [row["truncated"] for row in reads(*rows)] == [False, True]
    assert [row["truncated"] for row in reads(*(row | {"truncated": False} for row in rows))] == [False, False]


def test_rewards_become_verdicts_by_a_threshold_that_is_said(reads, tmp_path):
    record, _, _ = CASES["RL0"]
    assert [row["correct"] for row in reads(record, threshold=5)] == [True, False]
    assert [row["correct"] for row in reads(record, threshold=10.5)] == [False, False]
    assert "right from a reward of 5" in first_row(JsonlReader(path=str(tmp_path / "data.jsonl"), threshold=5))
    rows = [{"prompt": "q", "completion": "a", "reward": value} for value in (0.2, 0.8)]
    assert [row["correct"] for row in reads(*rows, threshold=0.5)] == [False, True]
    validated = validate(JsonlReader(path=str(tmp_path / "data.jsonl"), threshold=0.5).rollouts())
    assert validated.rollouts["reward"].to_pylist() == [0.2, 0.8]
    assert validated.rollouts["correct"].to_pylist() == [False, True]


def test_a_file_of_right_solutions_is_said_to_be_one(reads):
    record = {"question": "q", "generated_solution": "a", "expected_answer": "2"}
    assert [row["correct"] for row in reads(record, verdict=True)] == [True]
    assert [row["correct"] for row in reads(record | {"is_correct": False}, verdict=True)] == [False]


def test_steps_by_rule(reads):
    record, _, _ = CASES["PRM800K"]

    def rated(*ratings, **question):
        steps = [{"completions": [{"text": str(r), "rating": r}], "chosen_completion": 0} for r in ratings]
        return {"question": record["question"] | question, "label": {"steps": steps, "finish_reason": "solution"}}

    rows = [rated(-1, 1), rated(0, 1), rated(1, 0), rated(1, None)]
    assert [row["correct"] for row in reads(*rows)] == [True, True, None, None]
    assert [row["correct"] for row in reads(*rows, step_rule="all")] == [False, True, True, None]
    (whole,) = reads(rated(1, -1, pre_generated_steps=["x", "y", "z"]))
    assert (whole["completion"], whole["correct"]) == ("x\ny\nz", False)
    bad = rated(1) | {"label": {**rated(1)["label"], "finish_reason": "bad_problem"}}
    assert reads(rated(1), bad)[1] == "its problem was labelled as bad"


def test_messages_in_parts_with_thinking_of_their_own(reads):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turn = assistant(parts, reasoning_content="so\n")
    rows = reads(
        {"messages": [user(parts), turn], "correct": True},
        {"messages": [user("q"), assistant("<think>\nx\n</think>\n\na", reasoning="x")], "correct": True},
        {"messages": [user("q"), turn, user([{"type": "image"}]), turn], "correct": True},
        {"messages": [user("q"), user("r")], "correct": True},
        {"messages": [assistant("a")], "correct": True},
        {"messages": [user("q"), assistant("a", tool_calls=[{}])], "correct": True},
        {"messages": "q", "correct": True},
    )
    assert brief(rows) == [
        ("ab", "<think>\nso\n</think>\n\nab", True, None),
        ("q", "<think>\nx\n</think>\n\na", True, None),
        "a message is not text",
        "completion is not one message of the assistant",
        "messages hold no prompt",
        "a message calls tools",
        "messages are not a list of role and content",
    ]
    (row,) = reads({"messages": [user("q"), turn, user("r"), assistant("c")], "correct": True})
    assert [message["content"] for message in messages_of(row["prompt"])] == ["q", "ab", "r"]


def test_a_question_template_goes_around_the_last_message(reads):
    (row,) = reads({"prompt": [SYSTEM, user("q")], "completion": "a", "correct": True}, template="{prompt} Box it.")
    assert [message["content"] for message in messages_of(row["prompt"])] == ["Count.", "q Box it."]


def test_pairs_stay_together_through_the_table(reads, tmp_path):
    rows = [{"prompt": "q", "chosen": c, "rejected": r} for c, r in (("a", "b"), ("a", "c"), ("d", "d"), ("e", ""))]
    reads(*rows, {"prompt": "q", "chosen": "a"}, {"prompt": "p", "chosen": "x", "rejected": "y"})
    validated = validate(JsonlReader(path=str(tmp_path / "data.jsonl")).rollouts(), max_set_aside=0.5)
    table = validated.rollouts
    assert table["completion"].to_pylist() == ["a", "b", "a", "c", "e", "x", "y"]
    assert sorted(validated.set_aside["reason"].to_pylist()) == [
        "chosen and rejected are equal", "empty completion", "missing field 'rejected'",
    ]  # fmt: skip
    selection = DPO(pairs_per_prompt=1).select(table)
    assert [example.rows for example in selection.examples] == [(0, 1), (2, 3), (5, 6)]
    assert selection.counts["given_pairs_dropped"] == 1
    assert len(SFT().select(table).examples) == 7


def test_what_the_user_names_goes_before_what_is_recognised(reads):
    record = {"question": "q", "problem": "p", "response": "a", "output": "b", "answer": "2", "score": 0.0}
    assert brief(reads(record)) == [("p", "a", None, "2")]
    named = reads(record, fields={"prompt": "question", "completion": "answer"})
    assert [(row["prompt"], row["completion"], row["gold"]) for row in named] == [("q", "2", None)]
    several = reads(record, fields={"completion": ["response", "output"]})
    assert [row["completion"] for row in several] == ["a", "b"]


def test_records_that_raygeos_own_fields_suffice_for_are_read_by_those_alone(reads, tmp_path):
    """A rollout with a prompt, a completion and a verdict is what it was before shapes were recognised, and so is
    the part that its reader's settings have in keys."""
    record = {"prompt": "q", "completion": "a", "correct": True, "answer": "2", "score": 0.0, "generations": ["b"]}
    assert brief(reads(record)) == [("q", "a", True, None)]
    found = JsonlReader(path=str(tmp_path / "data.jsonl")).resolved()
    before = {
        "template": "{prompt}", "limit": None, "type": "jsonl",
        "fields": {name: name for name in ("prompt", "completion", "gold", "solution", "reward", "correct", "truncated",
                                           "prompt_id", "sample", "source", "logprobs")},
    }  # fmt: skip
    assert found.made_of() == before
    assert found.model_copy(update={"threshold": 0.5}).made_of() == before | {"threshold": 0.5}
    (row,) = reads({**record, "finish_reason": "length"})
    assert row["truncated"]
    assert JsonlReader(path=str(tmp_path / "data.jsonl")).resolved().made_of() != before


def test_the_format_and_a_row_are_said_in_one_line(reads, tmp_path):
    record, _, _ = CASES["OpenR1"]
    reads(record | {"problem": "q" * 100 + "?"})
    said = first_row(JsonlReader(path=str(tmp_path / "data.jsonl")))
    assert "jsonl, lists: prompt 'problem', completion 'generations', gold 'answer'" in said
    assert f"'{'q' * 30} ... {'q' * 29}?' -> 'a' (right)" in said
    reads({"text": "unlabelled"})
    assert "no record can be read" in first_row(JsonlReader(path=str(tmp_path / "data.jsonl")))


PROBLEMS = {
    "Skywork": {"prompt": [user("q")], "reward_model": {"ground_truth": "2"}, "data_source": "x"},
    "Polaris": {"problem": "q", "answer": "2", "difficulty": "1/8"},
    "MATH-500": {"problem": "q", "answer": "2", "solution": "s", "unique_id": "u"},
    "several equal": {"question": "q", "ground_truth": ["2", "2"]},
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_are_recognised_too(tmp_path, case):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PROBLEMS[case]))
    (found,) = read_prompts(JsonlReader(path=str(path), template="{prompt}?"))
    assert (found.prompt, found.gold) == ("q?", "2")


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        'question,response,is_correct,score,sample\n"1, 2?","a\nb",True,0.5,3\nq,,false,1,\nq,[1],0,1,\nq,c\n'
    )
    rows = [r.error or r.values for r in CsvReader(path=str(path)).rollouts()]
    assert brief(rows[:3:2]) == [("1, 2?", "a\nb", True, None), ("q", "[1]", False, None)]
    assert (rows[0]["reward"], rows[0]["sample"]) == (0.5, 3)
    assert rows[1::2] == ["missing field 'response'", "another number of cells than the header has"]
    path.write_text('problem\tgenerations\tcorrect\nq\t"[""a"", ""b""]"\t[true, false]\n')
    lists = CsvReader(path=str(path), delimiter="\t")
    assert brief(r.values for r in lists.rollouts()) == [("q", "a", True, None), ("q", "b", False, None)]
    path.write_bytes(b"prompt,completion\n\xff,a\n")
    with pytest.raises(DataError, match="UTF-8"):
        list(CsvReader(path=str(path)).rollouts())


def test_two_files_joined_on_a_key(tmp_path):
    left = [{"rollout_hash": h, "problem": "q", "response": f"a{h}"} for h in (1, 2, 3, 4)] + [{"problem": "q"}]
    right = [{"rollout_hash": h, "score": h / 2, "response": "x"} for h in (4, 1, 2, 2)]
    (tmp_path / "left.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    pq.write_table(pa.Table.from_pylist(right), tmp_path / "right.parquet")
    reader = JoinedReader(
        left={"type": "jsonl", "path": str(tmp_path / "left.jsonl")},
        right={"type": "parquet", "path": str(tmp_path / "right.parquet")},
        on="rollout_hash", threshold=1,
    )  # fmt: skip
    rows = [r.error or r.values for r in reader.rollouts()]
    assert brief(rows) == [
        ("q", "a1", False, None),
        "several records of the other source have its rollout_hash",
        "no record of the other source has its rollout_hash",
        ("q", "a4", True, None),
        "missing field 'rollout_hash'",
    ]
    assert "path" not in json.dumps(reader.made_of())
    before = reader.fingerprint()
    (tmp_path / "left.jsonl").write_text("{}")
    assert reader.fingerprint() != before


def test_what_is_recognised_may_be_absent_and_what_is_named_may_not(reads):
    rows = [{"prompt": "q", "completion": "a", "correct": True, "finish_reason": why} for why in ("length", None)]
    assert [row["truncated"] for row in reads(*rows)[:1]] == [True]
    assert brief(reads(*rows)) == [("q", "a", True, None)] * 2
    assert reads(*rows, fields={"finish_reason": "finish_reason"})[1] == "missing field 'finish_reason'"
    some = [{"question": "q", "response": "a", "is_correct": True, "answer": gold} for gold in ("2", None)]
    assert brief(reads(*some)) == [("q", "a", True, "2"), ("q", "a", True, None)]
    assert reads(*some, fields={"gold": "answer"})[1] == "missing field 'answer'"


def test_what_is_recognised_enters_keys_apart_from_what_is_named(reads, tmp_path):
    reads({"question": "q", "response": "a", "is_correct": True, "answer": "2"})
    path = str(tmp_path / "data.jsonl")
    found = JsonlReader(path=path).resolved().made_of()
    named = {name: key for name, key in found["fields"].items() if key != name}
    assert JsonlReader(path=path, fields=named).resolved().made_of() != found


def test_inputs_and_system_prompts_belong_to_the_prompt(reads):
    alpaca = [{"instruction": "Add.", "input": text, "output": "a", "correct": True} for text in ("1 1", "", None)]
    assert [row["prompt"] for row in reads(*alpaca)] == ["Add.\n\n1 1", "Add.", "Add."]
    orca = {"system": "Count.", "question": "q", "chosen": "a", "rejected": "b"}
    assert brief(reads(orca)) == [(ASKED, "a", True, None), (ASKED, "b", False, None)]
    assert brief(reads(orca | {"system": ""}))[0][0] == "q"
    said = {"system": "Count.", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert brief(reads(said | {"correct": True})) == [(ASKED, "a", True, None)]
    own = {"messages": [SYSTEM, user("q"), assistant("a")], "system": "Other.", "correct": True}
    assert brief(reads(own)) == [(ASKED, "a", True, None)]
    pair = {"conversations": [{"from": "system", "value": "Count."}, {"from": "human", "value": "q"}]}
    pair |= {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    assert brief(reads(pair)) == [(ASKED, "a", True, None), (ASKED, "b", False, None)]
    full = {side: [user("q"), assistant(side)] for side in ("chosen", "rejected")}
    assert [row[0] for row in brief(reads({"prompt": [SYSTEM, user("q")], **full}))] == [ASKED, ASKED]


def test_a_completion_beside_an_unrelated_list_is_one_rollout(reads):
    record = {"question": "q", "response": "a", "outputs": ["x", "y"], "reward": 0.0}
    assert [(row["completion"], row["reward"]) for row in reads(record)] == [("a", 0.0)]
    listed = reads(record | {"reward": [0.0, 1.0]})
    assert [(row["completion"], row["reward"]) for row in listed] == [("x", 0.0), ("y", 1.0)]


def test_rewards_that_are_never_wrong_need_a_threshold(reads):
    rows = [{"prompt": "q", "response": "a", "score": score} for score in (1, "5")]
    with pytest.raises(DataError, match=r"'score' is from 1 to 5, .* `threshold`"):
        reads(*rows)
    assert [row["correct"] for row in reads(*rows, threshold=3)] == [False, True]
    assert [row["correct"] for row in reads(*rows, verdict=True)] == [True, True]
    with pytest.raises(DataError, match=r"'score' is from 0 to 5, .* every completion from 1 on would be right"):
        reads(*rows, {**rows[0], "score": 0})
    own = {"prompt": "q", "completion": "a"}
    with pytest.raises(DataError, match=r"'reward' is from 0 to 0\.9"):
        reads(*(own | {"reward": value} for value in (0, 0.1, 0.9)))
    with pytest.raises(DataError, match="'scores' is from 1 to 4"):
        reads({"prompt": "q", "responses": ["a", "b"], "scores": [1, 4]})
    assert len(reads(*(row | {"answer": "2"} for row in rows))) == 2


@pytest.mark.parametrize("rewards", [(1, 0), (1.0, -1.0), (10, 0), (-3.5, 2.25, 0.5), (1, 1), (0, -1)])
def test_the_rule_by_which_a_reward_is_a_verdict_is_said(reads, tmp_path, rewards):
    reads(*({"prompt": f"q{value}", "response": "a", "score": value} for value in rewards))
    reader = JsonlReader(path=str(tmp_path / "data.jsonl"))
    assert "right where 'score' is above 0" in reader.resolved().described()
    assert validate(reader.rollouts()).rollouts["correct"].to_pylist() == [value > 0 for value in rewards]
    assert "above 0" not in reader.model_copy(update={"threshold": 0.5}).resolved().described()
    reads({"prompt": "q", "response": "a", "score": 1, "answer": "2"})
    assert "above 0" not in reader.resolved().described(), "graded against the gold answer"


def test_rewards_that_come_late_are_held_to_the_rule_too(reads):
    first = [{"prompt": "q", "response": "a", "score": n % 2} for n in range(120)]
    assert len(reads(*first)) == 120
    with pytest.raises(DataError, match=r"'score' is from 0 to 1, never below 0.* every completion from 0\.3 on"):
        reads(*first, {**first[0], "score": 0.3})
    late = reads(*first, {**first[0], "score": 0.3}, threshold=0.5)
    assert late[-1]["correct"] is False


@pytest.mark.parametrize("early", [{"reward": None}, {"correct": True}, {"gold": "3"}])
def test_rewards_that_judge_after_the_first_rows_are_held_to_the_rule_and_said(reads, early, caplog):
    first = [{"prompt": "q", "completion": "a", **early}] * 120
    with pytest.raises(DataError, match=r"'reward' is from 0\.1 to 0\.8, never below 0, where there is neither"):
        reads(*first, *({"prompt": "q", "completion": "a", "reward": value} for value in (0.1, 0.8)))
    late = reads(*first, *({"prompt": "q", "completion": "a", "reward": value} for value in (0, 1)))
    assert [row["correct"] for row in late[-2:]] == [None, None]
    assert "2 rollouts have neither a verdict nor a gold answer and are right where 'reward' is above 0" in caplog.text


@pytest.mark.parametrize("odd", [10**400, float("nan"), float("-inf"), "high"])
@pytest.mark.parametrize("early", [0, 120])
def test_a_reward_that_is_no_measure_costs_its_row_alone(reads, tmp_path, odd, early):
    rows = [{"prompt": f"q{n}", "completion": "a", "reward": n % 2} for n in range(40 + early)]
    reads(*rows[:early], {"prompt": "q", "completion": "a", "reward": odd}, *rows[early:])
    found = validate(JsonlReader(path=str(tmp_path / "data.jsonl")).rollouts())
    assert found.rollouts["correct"].to_pylist() == [n % 2 == 1 for n in range(40 + early)]
    assert found.set_aside.num_rows == 1


def test_rewards_beside_another_verdict_are_held_to_no_rule(reads):
    scored = {"reward": 3}
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "reward": n} for n in (1, 2, 3)]
    assert [row["correct"] for row in reads(*pairs)] == [True, False] * 3
    assert [row["correct"] for row in reads(*pairs, fields={"reward": "reward"})] == [True, False] * 3
    unpaired = [{"prompt": "q", "completion": "a", "label": n > 2, "score": n} for n in (1, 2, 3)]
    assert [row["correct"] for row in reads(*unpaired)] == [False, False, True]
    steps, _, _ = CASES["PRM800K"]
    assert [row["correct"] for row in reads(steps | scored, steps | {"reward": 2})] == [False, False]
    ones = [{"prompt": "q", "completion": "a", "reward": 1}] * 120
    graded = [{**ones[0], "reward": 0.5, "gold": "3"}, {**ones[0], "reward": 0.2, "correct": True}]
    assert len(reads(*ones, *graded)) == 122
    assert reads(*ones, {"prompt": "q", "reward": 0.5})[-1] == "missing field 'completion'"


def test_a_label_that_is_named_is_the_verdict_whatever_writes_it(reads):
    rows = [{"question": "q", "response": "a", "label": value} for value in (1, 0)]
    assert brief(reads(*rows, fields={"label": "label"})) == [("q", "a", True, None), ("q", "a", False, None)]
    (odd,) = reads({**rows[0], "label": "good"}, fields={"label": "label"})
    with pytest.raises(DataError, match="correct is not true or false"):
        validate([Record("a", 1, odd)])


Q, A = {"question": "q"}, {"response": "a"}
PROPOSED = {
    "flags, whatever else": ({**Q, **A, "rollout_hash": "f0", "passed": 1}, "{correct: passed}"),
    "booleans": ({**Q, **A, "ok": False}, "{correct: ok}"),
    "a gold answer by its name": ({**Q, **A, "id": "x", "model_answer": "2"}, "{gold: model_answer}"),
    "a reward by its name": ({**Q, **A, "n": 3, "rm_score": 0.3}, "{reward: rm_score}"),
    "flags that are answers, or name one": (
        {**Q, **A, "model_answer_ok": True, "best_id": 1},
        "{correct: KEY}",
    ),
    "nothing that could be one": ({**Q, **A, "rollout_hash": "f0", "length": 12}, "{correct: KEY}"),
    "texts are not told apart": ({"a": "q", "b": "x", "correct": 1}, "{prompt: a, completion: b}"),
    "no texts": ({"data": [{"prompt": "q"}]}, "{prompt: KEY, completion: KEY, correct: KEY}"),
}


@pytest.mark.parametrize("case", PROPOSED)
def test_keys_are_proposed_for_what_they_can_hold(tmp_path, case):
    record, fields = PROPOSED[case]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError) as refused:
        JsonlReader(path=str(path)).check()
    assert f"as in fields: {fields}" in str(refused.value)


def test_what_is_proposed_is_what_works(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**Q, **A, "label": n % 2}) + "\n" for n in range(4)))
    with pytest.raises(DataError, match=r"fields: \{correct: label\}"):
        JsonlReader(path=str(path)).check()
    rows = validate(JsonlReader(path=str(path), fields={"correct": "label"}).rollouts()).rollouts
    assert rows["correct"].to_pylist() == [False, True, False, True]


def test_what_comes_after_the_first_records_is_proposed_and_words_are_no_verdicts(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{**Q, **A, "model_answer": "3" if n > 110 else None} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"none of the first 100 records .*fields: \{gold: model_answer\}"):
        JsonlReader(path=str(path)).check()
    path.write_text(json.dumps({**Q, **A, "is_correct": "Wrong"}))
    with pytest.raises(DataError, match=r"'is_correct' holds 'Wrong', and verdicts are true and false, or 1 and 0"):
        JsonlReader(path=str(path)).check()
    path.write_text(json.dumps({**Q, **A, "correct": "yes"}))
    with pytest.raises(DataError, match=r"correct is not true or false.*\(verdicts are true and false, or 1 and 0\)"):
        validate(JsonlReader(path=str(path), fields={"correct": "correct", "prompt": "question"}).rollouts())


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_without_completions_are_told_as_such(tmp_path, case):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PROBLEMS[case]))
    with pytest.raises(DataError, match=r"these are problems with gold answers.*\(rollouts\.sample"):
        JsonlReader(path=str(path)).check()


def test_records_of_a_format_of_its_own_name_their_reader(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "so\n#### 2"}))
    with pytest.raises(DataError, match="set type: gsm8k"):
        JsonlReader(path=str(path)).check()
    graded = {"solution": "so\nA: 2", "is_correct": True}
    path.write_text(json.dumps({"question": "q", "ground_truth": "A: 2", "175b": graded}))
    with pytest.raises(DataError, match="set type: solutions"):
        JsonlReader(path=str(path)).check()


@pytest.mark.parametrize("values", [(1, 0), ("1", "0"), ("true", "False"), (1.0, 0.0)])
def test_flags_and_numbers_as_texts_and_as_one_and_zero(reads, values):
    for names in (("question", "response", "is_correct"), ("prompt", "completion", "correct")):
        rows = [dict(zip(names, ("q", "a", value), strict=True)) | {"score": "0.5", "sample": "3"} for value in values]
        found = reads(*rows)
        assert [row["correct"] for row in found] == [True, False]
        assert [row["sample"] for row in found] == [3, 3]
    assert reads({"question": "q", "response": "a", "is_correct": 1, "score": "-.5e1"})[0]["reward"] == -5


def test_one_verdict_for_several_completions_is_none(reads):
    record = {"problem": "q", "generations": ["a", "b"], "answer": "2"}
    assert reads(record | {"correct": True}) == ["correct is one value for several completions"]
    assert [row["correct"] for row in reads(record | {"correct": [True, False], "reward": 1.0})] == [True, False]
    assert [row["reward"] for row in reads(record | {"reward": 1.0})] == [None, None]
    del record["answer"]
    assert reads(record | {"reward": 0.0}) == ["reward is one value for several completions"]


def test_the_answer_that_may_be_the_models_own_goes_last(reads):
    record = {"question": "q", "response": "a", "answer": "3", "expected_answer": "2"}
    assert brief(reads(record)) == [("q", "a", None, "2")]


def test_finish_reasons_of_other_engines(reads, caplog):
    reasons = ("max_tokens", "MAX_TOKENS", "FinishReason.MAX_TOKENS", "model_length", "EOS", "abort", "abort", "moon")
    rows = [{"prompt": "q", "completion": "a", "correct": True, "finish_reason": reason} for reason in reasons]
    found = reads(*rows)
    assert [row["truncated"] for row in found] == [True] * 4 + [False] * 4
    assert not any("finish_reason" in row for row in found)
    assert [message[:29] for message in caplog.messages] == [
        "2 rollouts ended for 'abort',",
        "1 rollouts ended for 'moon', ",
    ]


def test_steps_that_were_given_up_or_point_nowhere(reads):
    record, _, _ = CASES["PRM800K"]

    def ended(rating, reason="give_up", chosen=0):
        steps = [{"completions": [{"text": "a", "rating": rating}], "chosen_completion": chosen}]
        return {"question": record["question"], "label": {"steps": steps, "finish_reason": reason}}

    assert [row["correct"] for row in reads(ended(1), ended(-1), ended(1, "solution"))] == [None, False, True]
    assert reads(ended(1, chosen=1), ended(1, chosen=-1), ended(1, chosen="x")) == ["a step has no completion"] * 3
    assert reads(ended("good")) == ["a rating is not a number"]
    unsure = {**record, "question": {**record["question"], "pre_generated_steps": 3}}
    assert reads(unsure)[0]["completion"] == reads(record)[0]["completion"]


@pytest.mark.parametrize("chosen", [float("nan"), 5, True])
def test_sides_of_a_preference_are_texts(reads, chosen):
    assert reads({"prompt": "q", "chosen": chosen, "rejected": "b"}) == [
        "chosen and rejected are neither texts nor messages"
    ]


def test_transcripts_are_cut_at_the_assistants_last_turn(reads):
    head = "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant:"
    (row, other) = reads({"chosen": head + " I think yes", "rejected": head + " I think no"})
    assert (row["prompt"], row["completion"], other["completion"]) == (head, " I think yes", " I think no")
    marked = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert reads({"chosen": marked + "I a", "rejected": marked + "I b"})[0]["prompt"] == marked
    apart = {"chosen": "Human: why is it", "rejected": "Human: why was it"}
    assert reads(apart) == ["chosen and rejected answer different prompts"]
    assert reads({"chosen": "It is so: yes", "rejected": "It is so: no"})[0]["prompt"] == "It is so:"


def test_scores_of_a_csv_file_joined(tmp_path):
    left = [{"id": h, "problem": "q", "response": f"a{h}"} for h in (1, 2)]
    (tmp_path / "left.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
    (tmp_path / "right.csv").write_text("id,score,is_correct\n1,0.5,True\n2,-1,False\n")
    reader = JoinedReader(
        left={"type": "jsonl", "path": str(tmp_path / "left.jsonl")},
        right={"type": "csv", "path": str(tmp_path / "right.csv")}, on="id",
    )  # fmt: skip
    rows = [r.error or r.values for r in reader.rollouts()]
    assert [(row["completion"], row["correct"], row["reward"]) for row in rows] == [
        ("a1", True, 0.5),
        ("a2", False, -1),
    ]


def test_a_csv_cell_is_a_list_only_where_lists_are_meant(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,response,is_correct\nq,"[""a"", ""b""]",1\n')
    (row,) = CsvReader(path=str(path)).rollouts()
    assert (row.values["completion"], row.values["correct"]) == ('["a", "b"]', True)
    path.write_text('question,response,is_correct\nq,"[""a"", ""b""]","[1, 0]"\n')
    rows = CsvReader(path=str(path), shape="lists", fields={"completion": "response"}).rollouts()
    assert [(r.values["completion"], r.values["correct"]) for r in rows] == [("a", True), ("b", False)]
    path.write_text('prompt,chosen,rejected\nq,"[{""role"": ""assistant"", ""content"": ""a""}]",b\n')
    assert next(CsvReader(path=str(path)).rollouts()).values["completion"] == "a"


@pytest.mark.parametrize("later", [True, False])
def test_first_records_without_a_verdict_speak_for_all_only_where_none_has_one(tmp_path, later, caplog):
    rows = [{"prompt": "q", "completion": "a", "source": "notes"}] * 120
    rows += [{"prompt": "q", "completion": "a", "correct": True}] * later
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = JsonlReader(path=str(file))
    if later:
        reader.check()
    else:
        with pytest.raises(DataError, match=r"has a verdict, gold answer or reward\. Their keys are .*'source'"):
            reader.check()
    assert f"{file}: none of its first 100 records has a verdict, gold answer or reward; all others" in caplog.text
