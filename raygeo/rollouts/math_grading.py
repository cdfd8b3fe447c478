"""Symbolic grading by math-verify, in a process of its own that can be killed.

Simplifying an answer such as ``9^{9^{9^9}}`` may take for ever or all memory, and math-verify's own time limits rest on
signals, which fail outside a main thread. So a worker (this module run as a script) judges one item at a time over
pipes, and its parent kills and replaces it when an item exceeds its time.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, Self

from raygeo.errors import RaygeoError
from raygeo.rollouts.grading import Verdict, marked_answer, parse_number

_TAIL_CHARACTERS = 1_000
_START_SECONDS = 120.0
_MEMORY_BYTES = 4 << 30
_BOXES = (r"\boxed{", r"\fbox{")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` or ``\fbox{...}`` whose braces balance; None without one."""
    end = len(text)
    while (start := max(text.rfind(box, 0, end) for box in _BOXES)) >= 0:
        content = text.index("{", start) + 1
        depth = 1
        for position in range(content, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[content:position].strip()
        end = start
    return None


def final_answer(text: str) -> str | None:
    """Return the last boxed answer, else what follows the last ``####`` or ``A:``, else None."""
    return last_boxed(text) or marked_answer(text) or None


class WorkerDied(Exception):
    """The worker ended while judging an item."""


class MathGrader:
    r"""Grades answers symbolically: ``\boxed{}`` first, then ``#### ...``, then phrases like "the final answer is $x$".

    The last 1,000 characters of a completion are judged against ``gold`` (an expression, bare or marked in the same
    ways) by ``math_verify.verify(gold, prediction)``, in that order, which is not symmetric. An item that takes more
    than ``seconds`` is incorrect with the note ``timeout``; one that fails is incorrect with a note ``error: ...``. A
    worker killed from outside costs nothing: the item is judged once more by a new one.

    Holds one worker, started when first needed; not for use by several threads at once.
    """

    def __init__(self, seconds: float = 5.0):
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grade ``(completion, gold)`` items, in order. Raises ``RaygeoError`` when no worker can be started."""
        return [self._grade(completion[-_TAIL_CHARACTERS:], gold) for completion, gold in items]

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
                return Verdict(**_exchange(process, [completion, gold], self._seconds))
            except TimeoutError:
                self.close()
                return Verdict(final_answer(completion), False, "timeout")
            except WorkerDied:
                self.close()
            except BaseException:  # a reply still under way must not answer the next item
                self.close()
                raise
        return Verdict(final_answer(completion), False, "error: the grading process died twice")

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(2 * self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"},
        )
        try:
            _exchange(self._process, None, _START_SECONDS)
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

    truth = final_answer(gold) or gold.strip()
    answer = final_answer(completion)
    if answer is not None and _same_text_or_number(answer, truth):
        return Verdict(answer, True)
    # What stands in a box or after a marker is the whole answer; elsewhere, only an announced answer counts.
    anchored = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    phrases = [anchored, ExprExtractionConfig(try_extract_without_anchor=False)]
    try:
        target = parse(rf"\boxed{{{truth}}}", [anchored], parsing_timeout=None)
        if not target:
            return Verdict(answer, False, "error: gold answer not understood")
        if answer is not None:
            prediction = parse(rf"\boxed{{{answer}}}", [anchored], parsing_timeout=None)
        else:
            prediction = parse(completion, phrases, parsing_timeout=None)
            answer = next((part for part in reversed(prediction) if isinstance(part, str)), None)
        if not prediction:
            return Verdict(answer, False, "no answer" if answer is None else "answer not understood")
        return Verdict(answer, verify(target, prediction, timeout_seconds=None, raise_on_error=True))
    except Exception as error:
        return Verdict(answer, False, f"error: {type(error).__name__}")


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
        # Should the parent die meanwhile, nobody would end a computation that hangs; the alarm ends this process.
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
        verdict = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(vars(verdict)), file=replies, flush=True)


if __name__ == "__main__":
    main()
