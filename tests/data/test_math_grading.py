import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygeo.data import math_grading
from raygeo.data.grading import Verdict, grader
from raygeo.data.math_grading import MathGrader, final_answer, judge, last_boxed
from raygeo.errors import RaygeoError

HANGS = r"so it is \boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def shared():
    with MathGrader(seconds=30.0) as g:
        yield g


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} and \boxed{\frac{1}{2}", "1"),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{1} \boxed{}", "1"),
        (r"\boxed{}", None),
        (r"\boxed {4}", "4"),
        (r"$\boxed 5$", "5"),
        (r"$\boxed \frac{1}{2}$.", r"\frac{1}{2}"),
        (r"\\boxed{6}", "6"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{1}", "1"),
        (r"\boxed{1}; use \boxed for it", "1"),
        (r"\boxed{1}" + " x" * 5_000, "1"),
        ("none", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_final_answer_prefers_the_box():
    assert final_answer("\\boxed{1}\n#### 2") == "1"
    assert final_answer("\\boxed{}\n#### 2") == "2"
    assert final_answer("A: 3") == "3"
    assert final_answer("####") is None
    assert final_answer("") is None


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        (r"so \boxed{18}", "18", True),
        (r"so \boxed{18}", "19", False),
        (r"\boxed{1} then \boxed{2}", "2", True),
        (r"\boxed{2} then \boxed{1}", "2", False),
        (r"\boxed{073}", "73", True),
        ("#### 1,080", "1080", True),
        ("#### 1/2", "0.5", True),
        (r"\boxed{x+1}", "1+x", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{(x+1)^2}", "x^2+1", False),
        (r"\boxed{\frac{\pi}{2}}", r"\frac12\pi", True),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (r"\boxed{[1, 2)}", "[1,2)", True),
        (r"\boxed{[1, 2]}", "[1,2)", False),
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", True),
        (r"\boxed{\frac{1}{2}}", r"we get $\boxed{\frac{2}{4}}$.", True),
        (r"Therefore the final answer is $\frac{2}{4}$.", "1/2", True),
        (r"\boxed{5}", "x=5", True),
        (r"\boxed {5}", "5", True),
        (r"$\boxed 5$", "5", True),
        (r"\boxed{\boxed{5}}", "5", True),
        (r"\fbox{5}", "5", True),
        (r"\boxed{5}" + " and so on" * 1_000, "5", True),
        (r"\boxed{**5**}", "5", True),
        (r"$\boxed{1}$ and $\boxed{2}$", r"\{2, 1\}", True),
        (r"$\boxed{1}$ and $\boxed{2}$", "2", False),
        (r"#### \boxed{18}", "18", True),
        ("#### Answer: 18", "18", True),
        ("####\n18", "18", True),
        ("#### **18**", "18", True),
        ("#### $18$", "18", True),
        ("**73**", "73", True),
        ("**$73**", "73", True),
        ("In all it is **73**.", "73", True),
        ("In all it is\n$$\\frac{146}{2}$$", "73", True),
        ("73", "73", True),
        ("The answer is 73.", "73", True),
        (r"\boxed{5 \text{ square feet}}", "5", True),
        (r"\boxed{5 \text{ million}}", "5", False),
        (r"\boxed{5 \text{ million}}", r"5\text{ million}", True),
        (r"\boxed{5 \mathrm{ dozen} }", "5", False),
        ("#### 5 pi", "5", False),
        (r"\boxed{1 half}", "1", False),
        (r"\boxed{5 tenths}", "5", False),
        (r"\boxed{5 lakh}", "5", False),
        (r"\boxed{4 squared}", "4", False),
    ],
)
def test_symbolic_answers(shared, completion, gold, correct):
    (verdict,) = shared.grade_many([(completion, gold)])
    assert verdict.correct is correct
    assert verdict.extracted
    assert verdict.note == ""


@pytest.mark.parametrize(
    "completion", ["", "we have 18 ducks", "18\nducks", "**18** ducks swim", r"\boxed{}", r"**\boxed{}**"]
)
def test_a_number_that_is_not_announced_as_the_answer_does_not_count(shared, completion):
    assert shared.grade_many([(completion, "18")]) == [Verdict(None, False, "no answer")]


def test_a_gold_answer_that_cannot_be_read_is_noted(shared):
    assert shared.grade_many([(r"\boxed{1}", "")]) == [Verdict("1", None, "error: gold answer not understood")]


def newest_child() -> psutil.Process:
    return max(psutil.Process().children(), key=psutil.Process.create_time)


@pytest.mark.slow
def test_a_hanging_item_is_a_timeout_and_the_next_items_are_judged():
    with MathGrader(seconds=1.0) as g:
        assert g.grade_many([("#### 5", "5"), (HANGS, "5"), ("#### 6", "6")]) == [
            Verdict("5", True),
            Verdict("9^{9^{9^9}}", None, "timeout"),
            Verdict("6", True),
        ]


def test_a_killed_worker_costs_no_verdict():
    with grader("math") as g:
        assert g.grade_many([("#### 5", "5")]) == [Verdict("5", True)]
        newest_child().kill()
        assert g.grade_many([("#### 6", "6"), ("#### 6", "7")]) == [Verdict("6", True), Verdict("6", False)]


def test_an_item_that_ends_every_worker_is_an_error(monkeypatch, tmp_path):
    worker = tmp_path / "python"
    worker.write_text("#!/bin/sh\necho true\nread -r item\n")  # it starts, and dies of whatever it is given
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    with MathGrader() as g:
        assert g.grade_many([("#### 5", "5")]) == [Verdict("5", None, "error: the grading process died twice")]


def test_an_interrupted_item_does_not_answer_the_next_one(shared, monkeypatch):
    shared.grade_many([("#### 5", "5")])

    def interrupted(text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(math_grading.json, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared.grade_many([("#### 5", "5")])
    assert shared.grade_many([("#### 6", "7")]) == [Verdict("6", False)]


def test_the_worker_ends_by_itself_when_its_parent_is_gone():
    item = json.dumps([HANGS, "5"]).encode() + b"\n"
    command = [sys.executable, "-m", "raygeo.data.math_grading", "0.2"]
    done = subprocess.run(command, input=item, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGPROF
    assert done.stdout == b"true\n"


def test_grading_works_outside_the_main_thread(shared):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shared.grade_many, [(r"\boxed{x+1}", "1+x")]).result() == [Verdict("x+1", True)]


def test_a_worker_that_cannot_start_is_an_error_not_a_verdict(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with MathGrader() as g, pytest.raises(RaygeoError, match="did not start"):
        g.grade_many([("#### 5", "5")])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to a processor here")
def test_other_work_on_the_machine_changes_no_verdict():
    """The first item needs a third of its limit, which would not be enough if waiting counted."""
    slow = (r"\boxed{(x+1)^{50}(x+2)^{50}(x+3)^{50}}", r"(x^2+3x+2)^{50}(x+3)^{50}")
    items = [slow, (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"), (r"\boxed{3}", "4")]
    with MathGrader(seconds=2.0) as g:
        alone = g.grade_many(items)
    with MathGrader(seconds=2.0) as g:
        assert g.grade_many(items[1:]) == alone[1:]
        worker = newest_child()
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
        try:
            for process in (*busy, worker):
                os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
            crowded = g.grade_many(items)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    assert [verdict.correct for verdict in alone] == [True, True, False]
    assert crowded == alone


@pytest.mark.slow
def test_time_in_which_the_worker_does_not_run_is_not_counted():
    with MathGrader(seconds=1.5) as g:
        assert g.grade_many([("#### 5", "5")]) == [Verdict("5", True)]
        worker = newest_child()
        worker.suspend()
        waking = threading.Timer(2.5, worker.resume)
        waking.start()
        assert g.grade_many([(r"\boxed{x+1}", "1+x")]) == [Verdict("x+1", True)]


# -- against math-verify alone ----------------------------------------------------------------------------------

integers = st.integers(-999, 9_999).map(str)
values = (
    integers
    | st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(1, 99), st.integers(2, 99))
    | st.builds("{}.{}".format, st.integers(0, 99), st.integers(1, 99))
    | st.builds(r"{}\sqrt{{{}}}".format, st.integers(2, 9), st.sampled_from([2, 3, 5]))
    | st.builds(r"{}\pi".format, st.integers(2, 9))
)
FORMS = [
    r"\boxed{%s}", r"$\boxed{%s}$", r"so $x = \boxed{%s}$.", r"\[\boxed{%s}\]", r"\boxed{ %s }",
    r"$\boxed{\boxed{%s}}$", r"The final answer is $%s$.", r"**Answer:** $%s$", r"**Final answer: $%s$**", "#### $%s$",
    r"#### \boxed{%s}", r"\boxed{%s \text{ apples}}", r"\boxed{\text{ }%s}",
    r"\boxed{%s}" + "\n" + "I checked this twice. " * 100,
]  # fmt: skip
PLAIN_FORMS = [
    "**%s**",
    "It is **%s**.",
    r"$\boxed %s$",
    r"\boxed %s",
    "#### **%s**",
    "#### Answer: %s",
    "####\n%s",
    "%s",
]


def math_verify_alone(completion, gold):
    from math_verify import parse, verify

    return verify(parse(gold, parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values, values, st.sampled_from(FORMS), integers, integers, st.sampled_from(PLAIN_FORMS))
def test_what_math_verify_alone_accepts_is_accepted(value, other, form, number, another, plain_form):
    logging.disable(logging.ERROR)
    for answer, gold, shape in (
        (value, value, form), (other, value, form), (number, number, plain_form), (another, number, plain_form),
    ):  # fmt: skip
        verdict = judge(shape % answer, rf"${gold}$" if "\\" in gold else gold)
        assert verdict.correct == math_verify_alone(shape % answer, rf"${gold}$" if "\\" in gold else gold)
    logging.disable(logging.NOTSET)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 9_999), st.sampled_from(["half", "tenths", "lakh", "million", "dozen", "squared", "pi"]))
def test_a_word_that_makes_another_number_is_not_dropped_as_a_unit(number, word):
    logging.disable(logging.ERROR)
    for written in (rf"\boxed{{{number} {word}}}", rf"\boxed{{{number}\text{{ {word}}}}}", f"#### {number} {word}"):
        assert judge(written, str(number)).correct is False
    logging.disable(logging.NOTSET)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([r"\boxed", r"\fbox", "{", "}", "5", " ", "$", r"\{", "and", ",", "\n", "####"])))
def test_any_text_has_a_box_or_none(parts):
    text = "".join(parts)
    content = last_boxed(text)
    assert content is None or content.strip()
    assert last_boxed(text + r"\boxed{6}").endswith("6")
