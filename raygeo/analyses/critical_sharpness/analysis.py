"""How far the NLL stays below its start along the gradient and along each run's delta."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.critical_sharpness import report
from raygeo.analyses.critical_sharpness.cost import cost
from raygeo.analyses.critical_sharpness.workload import CriticalSettings, CriticalSharpness
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="critical_sharpness",
    order=320,
    question="How sharp is the loss along its gradient, and along each run's delta from the base?",
    settings=CriticalSettings,
    workloads=(CriticalSharpness,),
    arguments=lambda of: (of.runs, of.base, of.probes["curvature"]),
    default=False,
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.critical,),
        sections=(report.steps,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(
            *(
                Metric(f"critical_sharpness/{way}{of}")
                for way in ("gradient", "delta")
                for of in ("", "_distance", "_curvature")
            ),
            *(
                Metric(f"critical_sharpness/{way}{of}_random", role=None)
                for way in ("gradient", "delta")
                for of in ("", "_curvature")
            ),
        ),
    ),
    cost=cost,
)
