"""How far hidden states moved."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.drift import report
from raygeo.analyses.drift.cost import cost
from raygeo.analyses.drift.workload import Drift, DriftSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="drift",
    order=420,
    question="How far did hidden states move from the base's, layer by layer?",
    settings=DriftSettings,
    workloads=(Drift,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"]),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.drift,),
        caveats=(report.uncorrected,),
        metrics=(report.metrics,),
        declared=(Metric("last_drift_cosine", "itself"), Metric("last_drift_change", "itself")),
    ),
    cost=cost,
)
