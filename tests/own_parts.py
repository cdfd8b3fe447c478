"""Losses and analyses as somebody writes them beside a study: two that work and two that fail."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from raygeo.analyses.analysis import Analysis
from raygeo.losses.base import LossInputs
from raygeo.losses.pairwise import Pairwise
from raygeo.models.run import Run
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts
from raygeo.report.sheets import Sheet, section
from raygeo.report.view import View
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload


class Hinge(Pairwise):
    """Hinge on the margin of a pair."""

    title: ClassVar[str] = "Hinge"
    paper: ClassVar[str] = "nobody's"
    formula: ClassVar[str] = "max(0, margin - beta d)"

    beta: float = Field(default=0.1, gt=0)
    margin: float = Field(default=1.0, gt=0)

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        return (self.margin - self.beta * self.margins(inputs)).clamp(min=0)


class Broken(Hinge):
    """Fails in a worker."""

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        raise ValueError("the margin of somebody's own loss")


class MovedSettings(Settings):
    """What counts as moved."""

    above: float = Field(0.0, ge=0)


class Moved(Workload):
    """Entries of each run's delta that changed."""

    name = "moved"
    tables: ClassVar = {"moved": schema("Entries that changed.", "run: text; entries: int")}

    def __init__(self, settings: MovedSettings, runs: Sequence[Run]):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]

    def tasks(self) -> list[Task]:
        return [Task(self.key(self.settings, run.name, run.key), 1.0, run, f"moved of {run.name}") for run in self.runs]

    def setup(self) -> None:
        pass

    def compute(self, state: None, payload: Run) -> dict[str, Rows]:
        delta = payload.open()
        entries = sum(int((delta[name].dense().abs() > self.settings.above).sum()) for name in delta)
        return {"moved": [{"run": payload.name, "entries": entries}]}


class Stuck(Moved):
    """Fails in an actor."""

    name = "stuck"
    tables: ClassVar = {"stuck": schema("Nothing.", "run: text")}

    def compute(self, state: None, payload: Run) -> dict[str, Rows]:
        raise ValueError("the count of somebody's own analysis")


@section("Weights that moved, by somebody", "Counted entry by entry.")
def counts(view: View) -> Sheet:
    """One row a run."""
    return Sheet(["run", "entries"], [(row["run"], str(row["entries"])) for row in view.rows("moved")])


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How many, of each run."""
    return ((row["run"], "moved_entries", row["entries"]) for row in view.rows("moved"))


MOVED = Analysis(
    name="moved",
    order=1600,
    question="How many weights did each run move?",
    settings=MovedSettings,
    workloads=(Moved,),
    arguments=lambda of: (of.runs,),
    report=Parts(
        sections=(counts,), metrics=(metrics,), declared=(Metric("moved_entries", "itself", "min", role=None),)
    ),
)
AFTER = Analysis(
    name="after-moved",
    order=1605,
    question="What follows from how many weights moved?",
    settings=MovedSettings,
    workloads=(),
    arguments=lambda of: (of.runs,),
    after=("moved",),
)
STUCK = Analysis(
    name="stuck",
    order=1610,
    question="What does a failure look like?",
    settings=MovedSettings,
    workloads=(Stuck,),
    arguments=lambda of: (of.runs,),
)
