"""When a run settles on the directions of its last delta."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.subspace_locking import report
from raygeo.analyses.subspace_locking.cost import cost
from raygeo.analyses.subspace_locking.workload import SubspaceLocking, SubspaceLockingSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="subspace_locking",
    order=160,
    question="When does a run settle on the directions of its last delta?",
    settings=SubspaceLockingSettings,
    workloads=(SubspaceLocking,),
    arguments=lambda of: (of.runs, of.base, of.steps),
    report=Parts(
        figures=(report.locking,),
        sections=(report.settled,),
        caveats=(report.confined,),
        metrics=(report.metrics,),
        declared=(
            Metric("subspace_locking/*", names=lambda settings: ("left", "right")),
            Metric("subspace_locked_at/*", names=lambda settings: ("left", "right")),
        ),
        histories=(report.histories,),
    ),
    cost=cost,
)
