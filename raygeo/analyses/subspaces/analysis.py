"""Principal angles between the leading directions of the deltas."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.pairs import left_out
from raygeo.analyses.subspaces import report
from raygeo.analyses.subspaces.cost import cost
from raygeo.analyses.subspaces.workload import Subspaces, SubspaceSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="subspaces",
    order=140,
    question="Do the leading directions of two runs' deltas span the same subspaces?",
    settings=SubspaceSettings,
    workloads=(Subspaces,),
    arguments=lambda of: (of.runs, of.base, of.pairs),
    of_weights=True,
    report=Parts(
        figures=(report.angle_profile,),
        sections=(report.reference_angles,),
        caveats=(report.chance, left_out("subspaces", "subspaces")),
        metrics=(report.metrics,),
        declared=(Metric("first_left_angle_to_reference"),),
    ),
    cost=cost,
)
