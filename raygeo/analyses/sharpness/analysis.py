"""How much the NLL rises near runs."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.sharpness import report
from raygeo.analyses.sharpness.cost import cost
from raygeo.analyses.sharpness.workload import Sharpness, SharpnessSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="sharpness",
    order=310,
    question="How much does the NLL of held-out solutions rise near each run, at worst and on average?",
    settings=SharpnessSettings,
    workloads=(Sharpness,),
    arguments=lambda of: (of.runs, of.base, of.probes["curvature"]),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.sharpness,),
        sections=(report.rises,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(Metric("sharpness/*", "itself", "min", names=report.parts, over_changed=report.over_changed),),
    ),
    cost=cost,
)
