"""Whether the loss of a run can be told from its delta."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.objective_classifier import report
from raygeo.analyses.objective_classifier.cost import cost
from raygeo.analyses.objective_classifier.workload import ObjectiveClassifier, ObjectiveClassifierSettings
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="objective_classifier",
    order=158,
    question="Can the loss of a run be told from the norms and ranks of its delta?",
    settings=ObjectiveClassifierSettings,
    workloads=(ObjectiveClassifier,),
    arguments=lambda of: (of.runs, of.table("deltas"), of.records),
    after=("norms",),
    report=Parts(
        sections=(report.accuracies, report.confusion), caveats=(report.confounded,), metrics=(report.metrics,)
    ),
    cost=cost,
)
