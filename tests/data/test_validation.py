import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygeo.data import math_grading
from raygeo.data.grading import Choice
from raygeo.data.merging import validate
from raygeo.data.validation import (
    Record,
    Validated,
    counts,
    prompt_digest,
    recorded_grading,
    split_heldout,
)
from raygeo.errors import DataError
from raygeo.tables import SCHEMAS, to_arrow


def records(*rows, **common):
    return [Record("data.jsonl", line, {**common, **row}) for line, row in enumerate(rows, 1)]


GOOD = {"prompt": "1 + 1 =", "completion": "#### 2", "correct": True}


def rows_of(*rows, **settings):
    return validate(records(*rows), max_set_aside=1.0, **settings).rollouts.to_pylist()


def test_a_complete_record_is_kept_as_given():
    given_row = {
        "prompt": "p",
        "completion": "c",
        "gold": "2",
        "reward": 0.25,
        "correct": True,
        "truncated": True,
        "prompt_id": "x",
        "sample": 3,
        "source": "teacher",
        "logprobs": [-0.5, -2, 0.0],
        "pair": "y",
        "weight": 0.5,
        "top_ids": [3, 1, 4, 2, 0, 3],
        "top_logprobs": [-0.5, -1.5, -1.0, -2.0, -0.75, -2.25],
        "top_tail": [],
    }
    mass = np.exp(given_row["top_logprobs"]).reshape(3, 2).sum(1)
    given_row["top_tail"] = (1 - mass).astype(np.float32).tolist()
    validated = validate(records(given_row))
    assert validated.rollouts.schema == SCHEMAS["rollouts"]
    assert validated.rollouts.to_pylist() == [{**given_row, "split": "train"}]
    assert validated.set_aside.schema == SCHEMAS["set_aside"]
    assert validated.set_aside.num_rows == 0


def test_defaults():
    (row,) = rows_of(GOOD)
    assert row["prompt_id"] == prompt_digest("1 + 1 =")[:8].hex()
    assert (row["sample"], row["reward"], row["truncated"], row["gold"]) == (0, 1.0, False, None)
    assert row["source"] == "data.jsonl"
    assert row["logprobs"] is None


def test_logprobs_above_zero_by_rounding_are_zero():
    assert rows_of({**GOOD, "logprobs": (-1, 4e-4)})[0]["logprobs"] == [-1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "correct", "reward"),
    [
        ({"correct": True, "reward": 0.0, "gold": "3"}, True, 0.0),  # a given verdict wins, a given reward stays
        ({"correct": False}, False, 0.0),
        ({"gold": "2"}, True, 1.0),
        ({"gold": 2}, True, 1.0),
        ({"gold": 2.0}, True, 1.0),
        ({"gold": "1 + 1 = 2\n#### 2"}, True, 1.0),
        ({"gold": "3", "reward": 0.7}, False, 0.7),  # graded against the gold answer, not by the reward
        ({"reward": 0.7}, True, 0.7),
        ({"reward": 0}, False, 0.0),
        ({"reward": -1}, False, -1.0),
        ({"reward": True}, True, 1.0),
    ],
)
def test_verdict_and_reward(values, correct, reward):
    (row,) = rows_of({"prompt": "p", "completion": "#### 2", **values})
    assert (row["correct"], row["reward"]) == (correct, reward)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "missing field 'prompt'"),
        ({"prompt": " \n"}, "empty prompt"),
        ({"prompt": ["a"]}, "prompt is not text"),
        ({"completion": None}, "missing field 'completion'"),
        ({"completion": ""}, "empty completion"),
        ({"completion": "\ud800"}, "completion is not valid Unicode"),
        ({"reward": math.nan}, "reward is not finite"),
        ({"reward": math.inf}, "reward is not finite"),
        ({"reward": 10**400}, "reward is not finite"),
        ({"reward": "1.0"}, "reward is not a number"),
        ({"correct": 1}, "correct is not true or false"),
        ({"correct": "yes"}, "correct is not true or false"),
        ({"truncated": 0}, "truncated is not true or false"),
        ({"prompt_id": ""}, "empty prompt_id"),
        ({"prompt_id": 1.5}, "prompt_id is not text"),
        ({"sample": -1}, "sample is not a number from 0"),
        ({"sample": 1 << 63}, "sample is not a number from 0"),
        ({"sample": True}, "sample is not a number from 0"),
        ({"gold": True}, "gold is not text"),
        ({"gold": math.nan}, "gold is not finite"),
        ({"logprobs": [-0.1, 0.5]}, "logprobs above 0"),
        ({"logprobs": [-0.1, -math.inf]}, "logprobs are not finite"),
        ({"logprobs": [-0.1, math.nan]}, "logprobs are not finite"),
        ({"logprobs": [-1e39]}, "logprobs are not finite"),
        ({"logprobs": []}, "logprobs is not a list of numbers"),
        ({"logprobs": -0.1}, "logprobs is not a list of numbers"),
        ({"logprobs": [-0.1, None]}, "logprobs is not a list of numbers"),
        ({"logprobs": [[-0.1], [-0.1, -0.2]]}, "logprobs is not a list of numbers"),
        ({"logprobs": [[-0.1]]}, "logprobs is not a list of numbers"),
        ({"logprobs": [True]}, "logprobs is not a list of numbers"),
        ({"logprobs": ["-0.1"]}, "logprobs is not a list of numbers"),
        ({"logprobs": {"content": []}}, "logprobs is not a list of numbers"),
        ({"logprobs": [-(10**400)]}, "logprobs is not a list of numbers"),
        ({"correct": None}, "no verdict: neither correct, gold nor reward"),
        ({"correct": None, "gold": " "}, "no verdict: neither correct, gold nor reward"),
        ({"correct": None, "gold": "two"}, "gold is not a number"),
        ({"prompt": "x" * 6}, "prompt longer than the context"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_the_good_one_is_kept(change, reason):
    good, bad = {**GOOD, "prompt": "short"}, {**GOOD, **change}
    validated = validate(
        records(bad, good) if "prompt" in change else records({**bad, "prompt": "short"}, good),
        max_set_aside=0.5,
        unfit=lambda prompt, completion: "prompt longer than the context" if len(prompt) > 5 else None,
    )
    (set_aside,) = validated.set_aside.to_pylist()
    assert (set_aside["source"], set_aside["line"], set_aside["reason"]) == ("data.jsonl", 1, reason)
    assert [row["prompt"] for row in validated.rollouts.to_pylist()] == ["short"]


def test_errors_of_the_reader_are_kept_with_their_text():
    bad = Record("data.jsonl", 7, error="not JSON", text="{'a': \ud800" + "x" * 500)
    (set_aside,) = validate([bad, *records(GOOD)], max_set_aside=0.5).set_aside.to_pylist()
    assert (set_aside["line"], set_aside["reason"]) == (7, "not JSON")
    assert set_aside["text"].startswith("{'a': \\ud800xxx")
    assert len(set_aside["text"]) < 210


def test_too_many_bad_rows_are_refused_with_counts_and_three_examples():
    bad = [{**GOOD, "completion": ""}] * 3 + [{**GOOD, "reward": "high"}] * 3
    assert validate(records(*bad, *[GOOD] * 114)).rollouts.num_rows == 114  # 5 % is allowed
    with pytest.raises(DataError) as raised:
        validate(records(*bad, *[GOOD] * 113))
    message = str(raised.value)
    assert "6 of 119 records" in message
    assert "3 x empty completion" in message
    assert "3 x reward is not a number" in message
    assert message.count("data.jsonl:") == 3
    assert message.endswith("Correct them, or raise max_set_aside.")


def test_the_limit_itself_is_allowed_despite_rounding():
    assert validate(records(*[{}] * 29, *[GOOD] * 71), max_set_aside=0.29).set_aside.num_rows == 29


def test_nothing_usable_is_refused_whatever_the_limit():
    with pytest.raises(DataError, match="no records"):
        validate([])
    with pytest.raises(DataError, match="1 of 1") as refused:
        validate(records({}), max_set_aside=0.5)
    assert "max_set_aside" not in str(refused.value), "raising it helps nobody"
    with pytest.raises(DataError, match="one object a line, or as one list"):
        validate([Record("data.json", 1, error="not JSON", text="{")])


def test_samples_are_numbered_in_order_and_never_collide():
    values = [
        ("a", None),
        ("b", None),
        ("a", None),
        ("a", 5),
        ("a", None),
        ("a", 5),
        ("c", 1),
        ("c", None),
        ("c", None),
    ]
    rows = rows_of(*({**GOOD, "prompt": prompt, "sample": sample} for prompt, sample in values))
    assert [row["sample"] for row in rows] == [0, 0, 1, 5, 2, 3, 1, 0, 2]


def test_prompts_and_ids_are_one_to_one():
    rows = [("a", "1"), ("a", None), ("b", None), ("c", "1"), ("a", "2"), ("a", "1"), ("b", "3")]
    validated = validate(records(*({**GOOD, "prompt": p, "prompt_id": i} for p, i in rows)), max_set_aside=0.5)
    assert [(r["prompt"], r["prompt_id"]) for r in validated.rollouts.to_pylist()] == [
        ("a", "1"),
        ("a", "1"),
        ("b", "3"),  # the id is given by a later record
        ("a", "1"),
        ("b", "3"),
    ]
    assert [(r["line"], r["reason"]) for r in validated.set_aside.to_pylist()] == [
        (4, "prompt_id names another prompt in an earlier record"),
        (5, "prompt has another prompt_id in an earlier record"),
    ]


def test_integer_ids_are_text():
    assert rows_of({**GOOD, "prompt_id": 12})[0]["prompt_id"] == "12"


def test_grading_notes_are_counted():
    validated = validate(records({"completion": "#### 2"}, {"completion": "2"}, prompt="p", gold="2"))
    assert validated.rollouts["correct"].to_pylist() == [True, False]
    assert validated.notes == {"no answer marker": 1}


def test_symbolic_grading_rejects_an_unreadable_gold_answer():
    good = {"prompt": "p", "completion": r"\boxed{x + 1}", "gold": "1 + x"}
    validated = validate(records(good, {**good, "gold": r"\boxed{}"}), grading="math", max_set_aside=0.5)
    assert validated.rollouts["correct"].to_pylist() == [True]
    assert validated.set_aside["reason"].to_pylist() == ["gold cannot be read as mathematics"]


BOXED = {"prompt": "p", "completion": r"so \boxed{2}", "gold": "2"}


def test_boxed_rollouts_are_graded_by_what_is_there_or_refused():
    validated = validate(records(BOXED, {**BOXED, "completion": r"\boxed{3}"}), grading="auto")
    assert validated.rollouts["correct"].to_pylist() == [True, False]
    assert (validated.grading.grading, validated.graded) == ("math", 2)
    assert "2 of 2" in validated.grading.reason
    for row in (BOXED, {**BOXED, "correct": True}):
        with pytest.raises(DataError, match=r"1 of 1 completions answer in \\boxed\{\} .* 'math' or 'auto'"):
            validate(records(row), grading="exact")


def test_numbers_after_markers_are_graded_exactly():
    validated = validate(records({"prompt": "p", "completion": "#### 2", "gold": "2"}, GOOD), grading="auto")
    assert (validated.grading.grading, validated.graded) == ("exact", 1)


@pytest.mark.parametrize("grading", ["exact", "math", "auto"])
def test_rollouts_in_which_no_answer_can_be_found_are_refused(grading):
    row = {"prompt": "p", "completion": "so we have two ducks", "gold": "2"}
    with pytest.raises(DataError, match="no answer in any of 2 completions") as raised:
        validate(records(row, row), grading=grading)
    assert "two ducks" in str(raised.value)
    assert validate(records(row, {**row, "correct": True}), grading=grading).rollouts.num_rows == 2


def test_a_verdict_that_cannot_be_decided_is_not_wrong(monkeypatch):
    monkeypatch.setattr(math_grading.MathGrader.__init__, "__defaults__", (1.0,))
    hangs = {**BOXED, "completion": r"\boxed{9^{9^{9^9}}}"}
    validated = validate(
        records(BOXED, hangs, {**BOXED, "completion": r"\boxed{3}"}), grading="math", max_set_aside=0.5
    )
    assert validated.rollouts["correct"].to_pylist() == [True, False]
    assert validated.set_aside.select(["line", "reason"]).to_pylist() == [{"line": 2, "reason": "undecided: timeout"}]


@pytest.mark.slow
@pytest.mark.parametrize("grading", ["exact", "math"])
@pytest.mark.parametrize("verdict", [None, True])
def test_contradicting_golds_of_one_prompt_are_set_aside_in_any_order(grading, verdict):
    rows = [
        {"prompt": "p", "completion": "#### 18", "gold": "18", "correct": verdict},
        {"prompt": "p", "completion": "#### 18", "gold": "16 + 3\n#### 19", "correct": verdict},
        {"prompt": "p", "completion": "#### 18", "correct": True},
        {"prompt": "q", "completion": "#### 18", "gold": "18", "correct": verdict},
        {"prompt": "q", "completion": "#### 18", "gold": 18.0, "correct": verdict},
        {"prompt": "q", "completion": "#### 18", "gold": "16 + 2\n#### 18", "correct": verdict},
    ]
    for order in (rows, rows[::-1]):
        validated = validate(records(*order), grading=grading, max_set_aside=0.5)
        assert validated.rollouts["prompt"].to_pylist() == ["q"] * 3
        set_aside = validated.set_aside.to_pylist()
        assert [row["reason"] for row in set_aside] == ["gold differs from another of its prompt"] * 3
        assert all(row["text"].startswith("golds '16 + 3\\n#### 19', '18': ") for row in set_aside)


def test_golds_that_are_equal_as_mathematics_do_not_contradict_each_other():
    golds = [r"\frac12", "0.5", r"$\frac{2}{4}$", "1/2"]
    row = {"prompt": "p", "completion": r"\boxed{\frac12}"}
    validated = validate(records(*({**row, "gold": gold} for gold in golds)), grading="math")
    assert validated.rollouts["correct"].to_pylist() == [True] * 4
    with pytest.raises(DataError, match="3 x gold differs from another"):
        validate(records(*({**row, "gold": gold} for gold in (*golds[:2], "0.6"))), grading="math")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
names = [name for name in SCHEMAS["rollouts"].names if name != "split"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.sampled_from(names), json_values)))
def test_any_record_is_either_kept_or_set_aside(values):
    validated = validate([*records(GOOD), *records(*values)], max_set_aside=1.0)
    assert validated.rollouts.num_rows + validated.set_aside.num_rows == 1 + len(values)
    rows = validated.rollouts.to_pylist()
    assert rows[0]["completion"] == "#### 2"
    assert all(row["correct"] is not None and math.isfinite(row["reward"]) for row in rows)
    assert len({(row["prompt_id"], row["sample"]) for row in rows}) == len(rows)


def table(prompts=10, samples=4):
    return to_arrow(
        "rollouts",
        [
            {
                "prompt_id": f"p{p}",
                "prompt": f"prompt {p}",
                "sample": s,
                "completion": "same" if s < 2 else f"c{s}",
                "reward": 1.0,
                "correct": s < p,  # p0: none right, p1..p3: mixed, from p4 on: all right
                "truncated": s == 3,
                "split": "train",
            }
            for s in range(samples)
            for p in range(prompts)
        ],
    )


def heldout(rollouts):
    pairs = zip(rollouts["prompt_id"].to_pylist(), rollouts["split"].to_pylist(), strict=True)
    return {prompt_id for prompt_id, split in pairs if split == "heldout"}


@pytest.mark.parametrize(("share", "prompts"), [(0, 0), (3, 3), (0.0, 0), (0.2, 2), (0.01, 1), (9, 9)])
def test_split_heldout_takes_whole_prompts(share, prompts):
    rollouts = split_heldout(table(), share, seed=0)
    chosen = heldout(rollouts)
    assert len(chosen) == prompts
    assert rollouts["split"].to_pylist() == [
        "heldout" if p in chosen else "train" for p in rollouts["prompt_id"].to_pylist()
    ]
    assert rollouts.schema == SCHEMAS["rollouts"]
    assert rollouts.drop_columns("split") == table().drop_columns("split")


def test_split_heldout_depends_on_the_seed_and_not_on_the_order_of_rows():
    first = heldout(split_heldout(table(), 5, seed=0))
    shuffled = table().take(list(reversed(range(40))))
    assert heldout(split_heldout(shuffled, 5, seed=0)) == first
    assert heldout(split_heldout(table(), 5, seed=1)) != first
    assert heldout(split_heldout(table(), 6, seed=0)) > first


@pytest.mark.parametrize("share", [10, -1, 1.0, -0.1])
def test_split_heldout_leaves_something_to_learn_from(share):
    with pytest.raises(DataError, match="hold out"):
        split_heldout(table(), share, seed=0)


def test_a_share_that_leaves_no_prompt_says_how_many_it_would_hold_out():
    with pytest.raises(DataError, match=r"cannot hold out 0\.999 of 10 prompts: that is 10 of them, .* one must stay"):
        split_heldout(table(), 0.999, seed=0)


def test_completions_that_are_right_and_wrong_are_counted():
    found = validate(records(GOOD, {**GOOD, "correct": False}, GOOD, {**GOOD, "completion": "c"}))
    named = {row["name"]: row["value"] for row in counts(found.rollouts)}
    assert (named["duplicates"], named["contradictory_duplicates"]) == (2, 1)
    alike = validate(records(GOOD, GOOD, {**GOOD, "completion": "c", "correct": False}))
    assert "contradictory_duplicates" not in {row["name"] for row in counts(alike.rollouts)}


def test_counts():
    set_aside = to_arrow("set_aside", [{"reason": "not JSON"}, {"reason": "not JSON"}, {"reason": "empty prompt"}])
    validated = Validated(table(), set_aside, {"no answer": 3}, Choice("math", "why"), graded=5)
    rows = counts(split_heldout(table(), 2, seed=0), validated)
    assert recorded_grading(to_arrow("counts", rows)) == "math"
    assert to_arrow("counts", rows).num_rows == len(rows)
    assert {row["stage"] for row in rows} == {"rollouts"}
    assert {row["name"]: row["value"] for row in rows} == {
        "rows": 40,
        "prompts": 10,
        "heldout_prompts": 2,
        "correct": 30,
        "wrong": 10,
        "truncated": 10,
        "mixed_prompts": 3,
        "all_correct_prompts": 6,
        "all_wrong_prompts": 1,
        "duplicates": 10,
        "contradictory_duplicates": 1,
        "set_aside": 3,
        "set aside: not JSON": 2,
        "set aside: empty prompt": 1,
        "graded by math: why": 5,
        "grading: no answer": 3,
    }
