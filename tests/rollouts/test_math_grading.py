import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from raygeo.errors import RaygeoError
from raygeo.rollouts import math_grading
from raygeo.rollouts.grading import Verdict, grader
from raygeo.rollouts.math_grading import MathGrader, final_answer, last_boxed

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
        (r"\boxed{}", ""),
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
    ],
)
def test_symbolic_answers(shared, completion, gold, correct):
    (verdict,) = shared.grade_many([(completion, gold)])
    assert verdict.correct is correct
    assert verdict.extracted
    assert verdict.note == ""


@pytest.mark.parametrize("completion", ["", "18", "we have 18 ducks", r"\boxed{}", r"\boxed{18} " + "x" * 1_000])
def test_a_number_that_is_not_announced_as_the_answer_does_not_count(shared, completion):
    assert shared.grade_many([(completion, "18")]) == [Verdict(None, False, "no answer")]


def test_a_gold_answer_that_cannot_be_read_is_noted(shared):
    assert shared.grade_many([(r"\boxed{1}", "")]) == [Verdict("1", False, "error: gold answer not understood")]


def test_a_hanging_item_is_a_timeout_and_the_next_items_are_judged():
    with MathGrader(seconds=1.0) as g:
        assert g.grade_many([("#### 5", "5"), (HANGS, "5"), ("#### 6", "6")]) == [
            Verdict("5", True),
            Verdict("9^{9^{9^9}}", False, "timeout"),
            Verdict("6", True),
        ]


def test_a_killed_worker_costs_no_verdict():
    with grader("math") as g:
        assert g.grade_many([("#### 5", "5")]) == [Verdict("5", True)]
        os.kill(g._process.pid, signal.SIGKILL)
        assert g.grade_many([("#### 6", "6"), ("#### 6", "7")]) == [Verdict("6", True), Verdict("6", False)]


def test_an_item_that_ends_every_worker_is_an_error(monkeypatch):
    def exchange(process, message, seconds):
        if message is not None:
            raise math_grading.WorkerDied

    monkeypatch.setattr(math_grading, "_exchange", exchange)
    with MathGrader() as g:
        assert g.grade_many([("#### 5", "5")]) == [Verdict("5", False, "error: the grading process died twice")]


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
    command = [sys.executable, "-m", "raygeo.rollouts.math_grading", "0.2"]
    done = subprocess.run(command, input=item, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGALRM
    assert done.stdout == b"true\n"


def test_grading_works_outside_the_main_thread(shared):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shared.grade_many, [(r"\boxed{x+1}", "1+x")]).result() == [Verdict("x+1", True)]


def test_a_worker_that_cannot_start_is_an_error_not_a_verdict(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with MathGrader() as g, pytest.raises(RaygeoError, match="did not start"):
        g.grade_many([("#### 5", "5")])
