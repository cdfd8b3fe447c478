"""What was forgotten."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.forgetting import report
from raygeo.analyses.forgetting.cost import cost
from raygeo.analyses.forgetting.known import known
from raygeo.analyses.forgetting.workload import Forgetting, ForgettingSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="forgetting",
    order=450,
    question="What did runs forget of what the base could do, and does the divergence on the new task foretell it?",
    settings=ForgettingSettings,
    workloads=(Forgetting,),
    arguments=lambda of: (of.runs, of.base, known(of)),
    default=False,
    after=("norms", "off_principal", "outputs"),
    report=Parts(
        figures=(report.forgetting,),
        sections=(report.drops, report.laws),
        caveats=(report.claim, report.limits),
        metrics=(report.metrics,),
        declared=(
            Metric("forgetting", better="min", role="outcome"),
            Metric("forgetting_accuracy", better="min", role=None),
            Metric("forgetting_nll", better="min", role=None),
        ),
    ),
    cost=cost,
)
