"""Whether the loss of a run can be told from its delta."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.loss_classifier import report
from raygeo.analyses.loss_classifier.cost import cost
from raygeo.analyses.loss_classifier.workload import LossClassifier, LossClassifierSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="loss_classifier",
    order=158,
    question="Can the loss of a run be told from the norms and ranks of its delta?",
    settings=LossClassifierSettings,
    workloads=(LossClassifier,),
    arguments=lambda of: (of.runs, of.table("deltas"), of.records),
    after=("norms",),
    report=Parts(
        sections=(report.accuracies, report.confusion),
        caveats=(report.confounded,),
        metrics=(report.metrics,),
        declared=(Metric("loss_recognised/*", role=None, names=lambda settings: ("spectra", "both")),),
    ),
    cost=cost,
)
