"""An analysis from outside raygeo, as another package would bring it: how many parameters each run moved."""

from typing import ClassVar

from matplotlib.figure import Figure
from pydantic import Field

from raygeo.analyses.analysis import Analysis
from raygeo.report.metric import Metric
from raygeo.report.parts import Column, Parts
from raygeo.report.plots import figure, make_panels
from raygeo.report.sheets import Sheet, section
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Task, Workload


class MovedSettings(Settings):
    """What counts as moved."""

    above: float = Field(0.0, ge=0)
    """Entries whose change is larger than this, in absolute value."""


class Moved(Workload):
    """One task a run."""

    name = "moved"
    tables: ClassVar = {"moved": schema("Entries that changed.", "run: text; entries: int")}
    revision = 3

    def __init__(self, settings, runs):
        self.settings, self.runs = settings, [run for run in runs if run.delta is not None]

    def tasks(self):
        return [Task(self.key(self.settings, run.name, run.key), 1.0, run, run.name) for run in self.runs]

    def setup(self):
        return None

    def compute(self, state, run):
        delta = run.open()
        entries = sum(int((delta[name].dense().abs() > self.settings.above).sum()) for name in delta)
        return {"moved": [{"run": run.name, "entries": entries}]}


@figure("moved", "How many weights moved?", "Entries that changed, by run.")
def moved(view):
    frame = view.frame("moved")
    if frame.empty:
        return None
    fig, [ax] = make_panels(1, 1, 3.0)
    ax.bar(frame.run, frame.entries)
    assert isinstance(fig, Figure)
    return fig


@section("Weights that moved", "Counted entry by entry.")
def listed(view):
    return Sheet(["run", "entries"], [(row["run"], str(row["entries"])) for row in view.rows("moved")])


def limit(view):
    """A caveat."""
    return ["A count of moved weights says nothing of how far they moved."] if view.rows("moved") else []


def metrics(view):
    """The count."""
    for row in view.rows("moved"):
        yield row["run"], "moved_entries", row["entries"]


ANALYSIS = Analysis(
    name="moved",
    order=900,
    question="How many weights did each run move?",
    settings=MovedSettings,
    workloads=(Moved,),
    arguments=lambda of: (of.runs,),
    report=Parts(
        columns=(
            Column("moved", "Moved counts entries.", lambda v: {r["run"]: str(r["entries"]) for r in v.rows("moved")}),
        ),
        figures=(moved,),
        sections=(listed,),
        caveats=(limit,),
        metrics=(metrics,),
        declared=(Metric("moved_entries", "itself"),),
    ),
)
