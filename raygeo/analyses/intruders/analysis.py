"""Intruder dimensions: leading directions that the base's weights do not have."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.intruders import report
from raygeo.analyses.intruders.cost import cost
from raygeo.analyses.intruders.workload import Intruders, IntruderSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="intruders",
    order=152,
    question="Does training add leading directions that the weights did not have?",
    settings=IntruderSettings,
    workloads=(Intruders,),
    arguments=lambda of: (of.runs, of.base),
    default=False,
    report=Parts(
        sections=(report.intruders,),
        caveats=(report.thresholds,),
        metrics=(report.metrics,),
        declared=(
            Metric("intruder_share"),
            Metric("intruder_energy_share"),
            Metric("random_intruder_share", role=None),
            Metric("random_intruder_energy_share", role=None),
        ),
    ),
    cost=cost,
)
