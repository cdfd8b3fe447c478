"""Runs at equal distance from the base."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.matched import report
from raygeo.analyses.matched.cost import cost
from raygeo.analyses.matched.workload import KL, NORM, Matched, MatchedSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="matched",
    order=255,
    question="What do runs do at equal distance from the base: at one norm of the delta, at one divergence?",
    settings=MatchedSettings,
    workloads=(Matched,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.exam, of.reference),
    default=False,
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        verdicts=(report.apart,),
        figures=(report.matched,),
        sections=(report.points, report.tests),
        caveats=(report.scaled,),
        metrics=(report.metrics,),
        declared=(
            Metric(
                "matched_*_accuracy",
                better="max",
                role="outcome",
                names=lambda settings: (NORM, KL) if settings.accuracy_problems else (),
            ),
            Metric("matched_*_nll", better="min", role=None, names=lambda settings: (NORM, KL)),
        ),
    ),
    cost=cost,
)
