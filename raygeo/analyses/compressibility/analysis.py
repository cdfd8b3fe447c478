"""How well runs stand compression."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.compressibility import report
from raygeo.analyses.compressibility.cost import cost
from raygeo.analyses.compressibility.workload import Compressibility, CompressibilitySettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="compressibility",
    order=460,
    question="How much does the NLL rise when weights, or what was learned, are pruned or rounded to few bits?",
    settings=CompressibilitySettings,
    workloads=(Compressibility,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.exam),
    default=False,
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        figures=(report.compressibility,),
        sections=(report.points,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(
            Metric("compressibility", better="max", role="outcome"),
            Metric("delta_compressibility", better="max", role=None),
            Metric("compressibility_over_base", better="max", role=None),
        ),
    ),
    cost=cost,
)
