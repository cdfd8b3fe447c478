"""How diverse answers are."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.diversity import report
from raygeo.analyses.diversity.cost import cost
from raygeo.analyses.diversity.workload import Diversity, DiversitySettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="diversity",
    order=480,
    question="How different are the answers that a run gives to one problem, and to different ones?",
    settings=DiversitySettings,
    workloads=(Diversity,),
    arguments=lambda of: (of.runs, of.base, of.exam, of.table("answers")),
    default=False,
    needs=frozenset({"problems"}),
    report=Parts(
        figures=(report.diversity,),
        sections=(report.values,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(
            Metric("diversity_per_input", role="outcome"),
            *(Metric(f"diversity_{of}", role=None) for of in ("across_input", "answers", "equations", "entropy")),
        ),
    ),
    cost=cost,
)
