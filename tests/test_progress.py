"""Progress in a log: plain lines, not too many, that say how long it will take."""

from io import StringIO

import pytest
from rich.console import Console

from raygeo import progress
from raygeo.progress import Progress, counted


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_how_long_it_will_take(clock):
    console = Console(file=StringIO(), width=200)
    with Progress(console).bar("training steps", 400) as bar:
        for step in range(1, 401):
            clock[0] += 1.0
            bar.update(step, "sft-lr0.001-s0")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "  training steps: 10/400 after 10 s, about 6 min left sft-lr0.001-s0"
    assert len(lines) < 400 / 10, "long work is told of less often"
    assert all("about" in line for line in lines)


@pytest.mark.parametrize(
    ("count", "said"),
    [((0, 4, 30, 0, 0), "0/4 after 30 s"), ((1, 4, 30, 0, 0), "1/4 after 30 s"),
     ((2, 4, 60, 1, 30), "2/4 after 60 s, about 60 s left"), ((4, 4, 600, 3, 450), "4/4 after 10 min"),
     ((3, 5, 14400, 2, 7200), "3/5 after 4.0 h, about 2.0 h left"), ((9, 40, 60, 8, 0.1), "9/40 after 60 s")],
)  # fmt: skip
def test_what_is_left_goes_by_what_was_done_since_the_first_count(count, said):
    assert counted(*count) == said


def test_neither_the_start_of_workers_nor_what_was_done_before_counts_as_speed(clock):
    console = Console(file=StringIO(), width=200)
    with Progress(console).bar("training steps", 960) as bar:
        clock[0] += 20.0
        for step in range(480, 560):
            bar.update(step)
            clock[0] += 0.5
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == [
        "  training steps: 480/960 after 20 s",
        "  training steps: 500/960 after 30 s, about 4 min left",
    ]
