"""Symbolic grading by math-verify, in a process of its own that can be killed.

Simplifying an answer such as ``9^{9^{9^9}}`` may take for ever or all memory, and math-verify's own time limits rest on
signals, which fail outside a main thread. So a worker (this module run as a script) judges one item at a time over
pipes. Its limit is processor time of its own, so that no verdict depends on what else the machine is doing.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, Self

from raygeo.data.grading import Verdict, last_boxed, marked_answer, parse_number, unlabelled
from raygeo.data.units import changes_number
from raygeo.errors import RaygeoError

UNREADABLE_GOLD = "error: gold answer not understood"
_TAIL_CHARACTERS = 1_000
_SILENCE_SECONDS = 600.0
_MEMORY_BYTES = 4 << 30
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{(\s*([^\s{}]+)[^{}]*)\}")
_BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*\s*[.!]?")
_MATHEMATICS = re.compile(r"(?:\$\$?|\\\[|\\\()\s*([^$\n]+?)\s*(?:\$\$?|\\\]|\\\))\s*\.?")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)")
_PROSE = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}[\s,]+[A-Za-z]{2,}")


def final_answer(text: str) -> str | None:
    """Return the last boxed answer, else what follows the last ``####`` or ``A:``, else None."""
    return unlabelled(last_boxed(text) or "") or marked_answer(text) or None


def shown_answer(text: str) -> str | None:
    """Return an answer that no word announces but its place: in bold at the end, or alone on the last line.

    A line without emphasis counts only if it is the whole text and no prose. None without such an answer.
    """
    above, _, line = text.strip().rpartition("\n")
    if _EMPTY_BOX.search(line):
        return None
    bold = list(_BOLD_END.finditer(line))
    if bold and bold[-1].end() == len(line):
        return unlabelled(bold[-1][1]) or None
    mathematics = _MATHEMATICS.fullmatch(line)
    if mathematics:
        return mathematics[1]
    return line if line and not above and not _PROSE.search(line) else None


class WorkerDied(Exception):
    """The worker ended while judging an item."""


class MathGrader:
    r"""Grades answers symbolically: ``\boxed{}`` first, then ``#### ...``, then phrases like "the final answer is $x$".

    Where there is none of these, a value that ends the completion in bold, or alone on its last line, is the answer;
    phrases are looked for in its last 1,000 characters. It is judged against ``gold`` (an expression, bare or marked in
    the same ways) by ``math_verify.verify(gold, prediction)``, in that order, which is not symmetric. An item that
    takes more than ``seconds`` of processor time is not decided, with the note ``timeout``; one that fails is not
    decided either, with a note ``error: ...``. A worker killed from outside costs nothing: the item is judged once more
    by a new one.

    Holds one worker, started when first needed; not for use by several threads at once.
    """

    def __init__(self, seconds: float = 5.0):
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __del__(self) -> None:
        self.close()

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade ``(completion, gold)`` items, in order. Raises ``RaygeoError`` when no worker can be started."""
        return [self._grade(completion, gold) for completion, gold in items]

    def close(self) -> None:
        """End the worker; the next item would start another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _grade(self, completion: str, gold: str) -> Verdict:
        for _ in range(2):
            process = self._process or self._start()
            try:
                return Verdict(**_exchange(process, [completion, gold], _SILENCE_SECONDS))
            except TimeoutError:
                self.close()
                return Verdict(final_answer(completion), None, "error: the grading process does not answer")
            except WorkerDied:
                self.close()
                if process.returncode == -signal.SIGPROF:
                    return Verdict(final_answer(completion), None, "timeout")
            except BaseException:  # a reply still under way must not answer the next item
                self.close()
                raise
        return Verdict(final_answer(completion), None, "error: the grading process died twice")

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"},
        )
        try:
            _exchange(self._process, None, _SILENCE_SECONDS)
        except (TimeoutError, WorkerDied) as error:
            self.close()
            raise RaygeoError(
                "the process that grades mathematics did not start; see its output above, and check that "
                f"`{sys.executable} -c 'import math_verify'` works"
            ) from error
        return self._process


def _exchange(process: subprocess.Popen[bytes], message: Any, seconds: float) -> Any:
    """Send one JSON line, unless it is None, and return the next one received within ``seconds``."""
    assert process.stdin is not None
    assert process.stdout is not None
    if message is not None:
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise WorkerDied from error
    deadline = time.monotonic() + seconds
    reply = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not reply.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            received = os.read(process.stdout.fileno(), 1 << 16)
            if not received:
                raise WorkerDied
            reply += received
    return json.loads(reply)


def judge(completion: str, gold: str) -> Verdict:
    """Judge one item in this process, without any limit of time."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy.core.random import seed

    seed(0)  # sympy tests equality at random points: no verdict may depend on the items before
    truth = _spelled_out(final_answer(gold) or gold.strip())
    answer = final_answer(completion)
    # What stands in a box or after a marker is the whole answer; elsewhere, only an announced answer counts.
    anchored = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    phrases = [anchored, ExprExtractionConfig(try_extract_without_anchor=False)]
    prediction: list[Any] = []
    try:
        if answer is None:
            prediction = parse(completion[-_TAIL_CHARACTERS:], phrases, parsing_timeout=None)
            if prediction:
                answer = unlabelled(str(prediction[-1]))  # as written, after what it was read as
            else:
                answer = shown_answer(completion)
            if answer is None:
                return Verdict(None, False, "no answer")
        if _same_text_or_number(_spelled_out(answer), truth):
            return Verdict(answer, True)
        target = parse(rf"\boxed{{{truth}}}", [anchored], parsing_timeout=None)
        if not target:
            return Verdict(answer, None, UNREADABLE_GOLD)
        prediction = prediction or parse(rf"\boxed{{{_spelled_out(answer)}}}", [anchored], parsing_timeout=None)
        if not prediction:
            return Verdict(answer, False, "answer not understood")
        return Verdict(answer, verify(target, prediction, timeout_seconds=None, raise_on_error=True))
    except Exception as error:
        return Verdict(answer, None, f"error: {type(error).__name__}")


def _spelled_out(answer: str) -> str:
    r"""Take words that make another number out of ``\text{}``, all of which math-verify drops as if it were a unit."""
    return _TEXT.sub(lambda text: f" {text[1].strip()} " if changes_number(text[2]) else text[0], answer)


def _same_text_or_number(answer: str, truth: str) -> bool:
    if answer == truth:
        return True
    a, b = parse_number(answer), parse_number(truth)
    return a is not None and b is not None and Fraction(a) == Fraction(b)


def main() -> None:
    """Serve ``[completion, gold]`` lines from standard input until it ends; every reply is a verdict, as JSON."""
    import logging
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for a reply
    logging.disable(logging.ERROR)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import math_verify  # noqa: F401

    print("true", file=replies, flush=True)
    for line in sys.stdin:
        # The default action of the signal ends this process, even within a computation that never returns to Python.
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        verdict = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(vars(verdict)), file=replies, flush=True)


if __name__ == "__main__":
    main()
