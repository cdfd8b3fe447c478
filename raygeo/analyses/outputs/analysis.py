"""How far predictions moved, and how good they are."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.outputs import report
from raygeo.analyses.outputs.cost import cost
from raygeo.analyses.outputs.workload import Outputs, OutputSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="outputs",
    order=430,
    question="How far did next-token predictions move, and how sure and how often right are they?",
    settings=OutputSettings,
    workloads=(Outputs,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.reference),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.divergence,),
        sections=(report.predictions,),
        caveats=(report.teacher_forced, report.unmatched),
        metrics=(report.metrics,),
        declared=(
            Metric("kl_to_base", "base"),
            Metric("kl_from_base", "base"),
            Metric("agreement_with_base", "base"),
            Metric("agreement_with_reference"),
            Metric("predictions/entropy", "itself"),
            Metric("predictions/max_probability", "itself"),
            Metric("predictions/top1_accuracy", "itself", "max"),
            Metric("predictions/ece", "itself", "min"),
        ),
    ),
    cost=cost,
)
