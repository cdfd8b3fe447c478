"""A race in turns: every competitor lives in a process of its own, and only the one whose turn it is takes steps.

What else the machine does falls on all of them alike, and none can disturb another's global state.
"""

import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Turn:
    """What a competitor did in one turn: wall and CPU seconds, and the tokens it trained on."""

    seconds: float
    cpu_seconds: float
    completion_tokens: int
    tokens: int
    steps: int


class Turnstile:
    """Called by a training loop before each step; lets it through in its turns only, and keeps the time."""

    def __init__(self, pipe: Connection, steps: int):
        self.pipe, self.steps = pipe, steps
        self.done = self.completion_tokens = self.tokens = 0
        self.waiting = True

    def __call__(self) -> None:
        """Wait for the next turn if the last one is over, or if there was none yet."""
        if self.done == self.steps:
            self._hand_in()
        if self.waiting:
            self.pipe.send(None)
            self.pipe.recv()
            self.waiting, self.began = False, (time.perf_counter(), time.process_time())
        self.done += 1

    def count(self, completion_tokens: int, tokens: int) -> None:
        """Add tokens of a forward pass: those of completions, and all but padding."""
        self.completion_tokens += completion_tokens
        self.tokens += tokens

    def finish(self) -> None:
        """Hand in the last turn."""
        self._hand_in()

    def _hand_in(self) -> None:
        seconds, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.pipe.send(Turn(seconds, cpu, self.completion_tokens, self.tokens, self.done))
        self.done = self.completion_tokens = self.tokens = 0
        self.waiting = True


Competitor = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """The turns of one competitor, the warm-up left out, and what it says of itself when it ends."""

    name: str
    turns: list[Turn]
    reported: dict[str, Any]

    def rate(self, tokens: str = "completion_tokens", seconds: str = "seconds") -> float:
        """Median over turns of tokens per second."""
        return median(self.rates(tokens, seconds))

    def rates(self, tokens: str = "completion_tokens", seconds: str = "seconds") -> list[float]:
        """Tokens per second of every turn."""
        return [getattr(turn, tokens) / getattr(turn, seconds) for turn in self.turns]


def race(
    competitors: dict[str, tuple[Competitor, tuple[Any, ...]]], turns: int, steps: int, threads: int, *, together: bool
) -> list[Result]:
    """Let each competitor, ``function(*arguments, turnstile)``, take ``turns`` turns of ``steps`` steps.

    The first turn is warm-up and is not in the result. The order is reversed from round to round. Not ``together``,
    each takes all of its turns before the next is started, where memory does not hold all of them.

    Raises:
        RuntimeError: a competitor failed; the message is its traceback.
    """
    lanes = [_Lane(name, *entry, steps, threads) for name, entry in competitors.items()]
    for group in [lanes] if together else [[lane] for lane in lanes]:
        for lane in group:
            lane.start()
        for number in range(turns):
            for lane in group if number % 2 == 0 else reversed(group):
                lane.take_turn(last=number == turns - 1)
        for lane in group:
            lane.end()
    return [Result(lane.name, lane.turns[1:], lane.reported) for lane in lanes]


class _Lane:
    def __init__(self, name: str, function: Competitor, arguments: tuple[Any, ...], steps: int, threads: int):
        context = mp.get_context("spawn")
        self.name, self.turns, self.reported = name, list[Turn](), dict[str, Any]()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_compete, args=(function, arguments, theirs, steps, threads), daemon=True)

    def start(self) -> None:
        self.process.start()
        self._receive()

    def take_turn(self, *, last: bool) -> None:
        self.pipe.send(None)
        self.turns.append(self._receive())
        if not last:
            self._receive()

    def end(self) -> None:
        self.reported = self._receive()
        self.process.join()

    def _receive(self) -> Any:
        while not self.pipe.poll(1):
            if not self.process.is_alive() and not self.pipe.poll():
                raise RuntimeError(f"{self.name} died with exit code {self.process.exitcode}")
        message = self.pipe.recv()
        if isinstance(message, str):
            raise RuntimeError(f"{self.name} failed:\n{message}")
        return message


def _compete(function: Competitor, arguments: tuple[Any, ...], pipe: Connection, steps: int, threads: int) -> None:
    import resource

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        reported = function(*arguments, Turnstile(pipe, steps))
        reported["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if torch.cuda.is_available():
            reported["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
        pipe.send(reported)
    except BaseException:
        pipe.send(traceback.format_exc())
        raise
