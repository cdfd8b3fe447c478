"""Progress on the driver: live bars on a terminal, a line now and then in a log, and the study's stage table."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from raygeo.logs import shown
from raygeo.paths import without_credentials

_LOG_SECONDS = 10.0
"""The least between two lines of a log; what has taken long is told of less often, by ``_LOG_SHARE`` of its time."""
_LOG_SHARE = 0.05
_PACE_SECONDS = 5.0
"""The least time from which a speed is told: units that were begun together end together."""


@dataclass
class Bar:
    """A running count; ``update`` is cheap enough to call at every step."""

    total: int
    show: Callable[["Bar", str], None]
    done: int = 0

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Set the count, and the total if it has become known only now."""
        self.done = done
        self.total = total or self.total
        self.show(self, note)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Raise the count."""
        self.update(self.done + by, note)


class Progress:
    """Shows what the driver is doing, and writes it into the log. ``console`` defaults to standard error."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line, without user and password in its URIs."""
        text = without_credentials(text)
        self.console.print(text, highlight=False, soft_wrap=True)
        shown.info("%s", Text.from_markup(text).plain)

    def show(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)
        written = io.StringIO()
        Console(width=120, file=written).print(table)
        shown.info("\n%s", written.getvalue().rstrip())

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """Show a bar for ``total`` units of work; where there is no terminal, lines with the time that is left."""
        started = last = time.monotonic()
        first: tuple[int, float] | None = None
        write = shown.info if self.console.is_terminal else self.say

        def log(bar: Bar, note: str) -> None:
            nonlocal last, first
            now = time.monotonic()
            first = first or (bar.done, now)
            if now - last >= max(_LOG_SECONDS, _LOG_SHARE * (now - started)):
                last = now
                pace = (bar.done - first[0], now - first[1])
                write(f"  {title}: {counted(bar.done, bar.total, now - started, *pace)} {note}".rstrip())

        if not self.console.is_terminal:
            yield Bar(total, log)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self.console, transient=True) as rich:
            task = rich.add_task(title, total=total, note="")

            def draw(bar: Bar, note: str) -> None:
                rich.update(task, completed=bar.done, total=bar.total, note=note)
                log(bar, note)

            yield Bar(total, draw)


def counted(done: int, total: int, seconds: float, recently: int, within: float) -> str:
    """How far something that began ``seconds`` ago has come, and how long the rest takes once that can be told.

    The speed is that of the ``recently`` counted units, ``within`` so many seconds after the first count: what came
    before it, such as the start of workers and what an earlier call had done, says nothing of the rest.
    """
    known = done < total and recently and within >= _PACE_SECONDS
    left = f", about {duration(within * (total - done) / recently)} left" if known else ""
    return f"{done}/{total} after {duration(seconds)}{left}"


def duration(seconds: float) -> str:
    """A time as one would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, and how many of its units were made now and found in the store."""

    stage: str
    seconds: float
    made: int
    reused: int


def stage_table(times: list[StageTime]) -> Table:
    """A printable table of stage timings with their total."""
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "seconds", "made", "from store"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in times:
        table.add_row(row.stage, f"{row.seconds:.1f}", str(row.made), str(row.reused))
    table.add_section()
    table.add_row("total", f"{sum(t.seconds for t in times):.1f}", "", "")
    return table
