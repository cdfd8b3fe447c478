from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raygeo.data.grading import (
    Answers,
    Verdict,
    choose_grading,
    gold_answer,
    gold_kind,
    grade_exact,
    grader,
    last_boxed,
    marked_answer,
    parse_number,
)
from raygeo.data.units import is_unit
from raygeo.errors import DataError


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("so #### 4", "#### 4"),
        ("so\nA: 18", "16 - 3\nA: 18"),
        ("#### 3\nno, wait\n#### 18", "18"),
        ("A: 3\n#### 18", "18"),
        ("#### 3\nA: 18\n", "18"),
        ("#### 18.00", "18"),
        ("#### $18.", "18"),
        ("#### 18 .", "18"),
        ("#### $ 1,080.50", "1080.5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### \N{MINUS SIGN}5", "-5"),
        ("#### $18$", "18"),
        ("#### **18**", "18"),
        ("#### 25%", "25"),
        (r"#### 25\%", "25"),
        ("#### 18 dollars", "18"),
        ("#### 18 dollars.", "18"),
        ("#### 7/14", "0.5"),
        ("#### 1/3", "2/6"),
        ("#### .5", "1/2"),
        ("#### 007", "7"),
        ("#### 109,200,000", "109200000"),
        ("#### 0.1", "0.10"),
        (r"#### \boxed{18}", "18"),
        (r"#### $\boxed{18}$.", "18"),
        (r"#### $\boxed 18$", "18"),
        ("#### Answer: 18", "18"),
        ("#### **Final Answer:** 18", "18"),
        ("#### The answer is 18.", "18"),
        ("####\n18", "18"),
        ("#### Answer\n\n**18**\nThat is all.", "18"),
        ("#### 5 apples", "5"),
        ("#### 5 km", "5"),
        ("#### 5 degrees", "5"),
        ("#### 5 tents", "5"),
        ("#### 5 stallions", "5"),
        ("#### 5 seconds", "5"),
        ("#### 5 percent", "5"),
        ("#### 18", r"\boxed{18}"),
    ],
)
def test_right_answers(completion, gold):
    assert grade_exact(completion, gold).correct


@pytest.mark.parametrize(
    ("completion", "extracted", "note"),
    [
        ("", None, "no answer marker"),
        ("the answer is 18", None, "no answer marker"),
        ("PLEA: 18", None, "no answer marker"),
        ("#### 18\n####", None, "answer is not a number"),
        ("#### 16 + 2 = 18", None, "answer is not a number"),
        ("#### 17 or 18", None, "answer is not a number"),
        ("#### 18 million", None, "answer is not a number"),
        ("#### 18 pi", None, "answer is not a number"),
        ("#### 18 e", None, "answer is not a number"),
        ("#### 18 xy", None, "answer is not a number"),
        ("#### 18 or", None, "answer is not a number"),
        (r"so \boxed{18}", None, "no answer marker"),
        ("**18**", None, "no answer marker"),
        ("####\n18 and\n19", None, "answer is not a number"),
        ("#### 18 and a half", None, "answer is not a number"),
        ("#### 1,8", None, "answer is not a number"),
        ("#### 1$8", None, "answer is not a number"),
        ("#### 18e0", None, "answer is not a number"),
        ("#### 18x", None, "answer is not a number"),
        ("#### 1_8", None, "answer is not a number"),
        ("#### 18/0", None, "answer is not a number"),
        ("#### \u0661\u0668", None, "answer is not a number"),  # digits of another script
        ("#### " + "1" * 5_000, None, "answer is not a number"),
        ("#### 18.000000000000000001", "18.000000000000000001", ""),
        ("#### 18\n#### 19", "19", ""),
    ],
)
def test_everything_else_is_wrong_against_18(completion, extracted, note):
    assert grade_exact(completion, "18") == Verdict(extracted, False, note)


def test_the_verdict_shows_the_number_as_written():
    assert grade_exact("#### $1,018.00", "1018") == Verdict("1018.00", True)


def test_numbers_beyond_float_precision_are_told_apart():
    assert not grade_exact("#### 9007199254740993", "9007199254740992").correct


@pytest.mark.parametrize("gold", ["", "####", "x + 1", "#### one", r"\frac12"])
def test_a_gold_answer_that_is_no_number_is_refused(gold):
    assert gold_answer(gold) is None
    with pytest.raises(DataError, match="not a number"):
        grade_exact("#### 18", gold)


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12)


NO_UNITS = """
half halves third thirds quarter quarters fifth tenth tenths hundredths twentieths seven twenty twelve hundred thousands
million Million billions zillion trillionth dozen dozens score gross lakh crore double twice fold tenfold squared cubed
square cube pi PI theta infinity plus minus over factorial mod or and to point
"""
CHANGES = NO_UNITS.split()


@pytest.mark.parametrize("word", CHANGES)
def test_a_word_that_makes_another_number_is_no_unit(word):
    assert not is_unit(word)
    assert grade_exact(f"#### 5 {word}", "5") == Verdict(None, False, "answer is not a number")


COUNTED = ["apple", "dollar", "egg", "kilometer", "hour", "second", "month", "mile", "ticket", "teenager", "box"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(decimals, st.sampled_from(COUNTED), st.sampled_from(["", "s"]), st.sampled_from(["", "."]))
def test_a_unit_changes_nothing_and_so_does_a_box(value, unit, plural, stop):
    for written in (f"{value:f} {unit}{plural}{stop}", rf"\boxed{{{value:f}}}", rf"$\boxed {value:f}$"):
        assert Fraction(parse_number(written)) == Fraction(value)
        assert grade_exact(f"#### {written}", f"{value:f}").correct
    for word in CHANGES:
        assert parse_number(f"{value:f} {word}") is None


@pytest.mark.parametrize(
    ("golds", "completions", "grading"),
    [
        (["18", "#### 5"], ["#### 18", "A: 5", "cut"], "exact"),
        (["18", "unknown"], ["#### 18", "#### 5"], "exact"),
        (["A", "B"], ["#### A", "#### B"], "math"),
        (["18", r"\frac12"], ["#### 18", "#### 5"], "math"),
        (["18", "x = 3"], ["#### 18", "#### 5"], "math"),
        (["18", "5"], ["#### 18", r"\boxed{5}"], "math"),
        (["18", "5"], ["the answer is 18", "5", "#### 5"], "math"),
        ([], ["#### 18"], "exact"),
        ([], [r"\boxed{5}"], "math"),
        ([], [], "exact"),
    ],
)
def test_the_grading_chosen_can_read_what_is_there(golds, completions, grading):
    boxed, marked = (sum(find(text) is not None for text in completions) for find in (last_boxed, marked_answer))
    answers = Answers(Counter(map(gold_kind, golds)), len(completions), boxed, marked)
    assert choose_grading(answers).grading == grading


def test_marked_answer():
    assert marked_answer("a #### 5 dollars\nmore") == "5 dollars"
    assert marked_answer("a\n  A: 5") == "5"
    assert marked_answer("none") is None


def test_exact_grader_keeps_the_order():
    with grader("exact") as g:
        verdicts = g.grade_many([("#### 1", "1"), ("#### 2", "1"), ("", "1")])
    assert verdicts == [Verdict("1", True), Verdict("2", False), Verdict(None, False, "no answer marker")]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(decimals)
def test_every_spelling_of_a_decimal_is_the_same_number(value):
    for text in (f"{value:f}", f"{value:,f}", f"${value:,f}.", f"{value:f}000", f"**{value:f}**", f"{value:f} apples"):
        number = parse_number(text)
        assert number is not None
        assert Fraction(number) == Fraction(value)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(), st.integers(min_value=1))
def test_fractions_are_exact(numerator, denominator):
    assert Fraction(parse_number(f"{numerator}/{denominator}")) == Fraction(numerator, denominator)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(decimals, decimals)
@example(0, 0)
def test_verdict_equals_equality_of_numbers(a, b):
    assert grade_exact(f"#### {a:f}", f"{b:f}").correct == (Fraction(a) == Fraction(b))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text() | st.from_regex(r"(####|\nA:)[ 0-9.,/$%+-]*", fullmatch=True))
def test_any_text_gets_a_verdict_and_only_readable_numbers_are_extracted(completion):
    verdict = grade_exact(completion, "18")
    if verdict.extracted is None:
        assert not verdict.correct
        assert verdict.note
    else:
        assert verdict.correct == (Fraction(verdict.extracted) == 18)
