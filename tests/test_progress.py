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
    ("done", "total", "seconds", "said"),
    [(0, 4, 30, "0/4 after 30 s"), (1, 4, 30, "1/4 after 30 s, about 90 s left"), (4, 4, 600, "4/4 after 10 min"),
     (1, 5, 7200, "1/5 after 2.0 h, about 8.0 h left")],
)  # fmt: skip
def test_what_is_left_goes_by_what_is_done(done, total, seconds, said):
    assert counted(done, total, seconds) == said
