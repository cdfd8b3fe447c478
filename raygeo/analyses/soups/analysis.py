"""Averages of runs."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.soups import report
from raygeo.analyses.soups.cost import cost
from raygeo.analyses.soups.workload import Soups, SoupSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="soups",
    order=240,
    question="Is the average of the weights of several runs as good as its members?",
    settings=SoupSettings,
    workloads=(Soups,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.exam, of.seed_groups),
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        sections=(report.averages,),
        caveats=(report.halves,),
        metrics=(report.metrics,),
        declared=(Metric("token_confidence", "itself"), Metric("token_ece", "itself", "min")),
    ),
    cost=cost,
)
