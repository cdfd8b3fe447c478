"""What cosines are to be judged by."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.cosine_baselines import report
from raygeo.analyses.cosine_baselines.cost import cost
from raygeo.analyses.cosine_baselines.workload import CosineBaselines, CosineBaselineSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="cosine_baselines",
    order=130,
    question="Is a cosine between two runs large, beside chance, other seeds, and what all runs have in common?",
    settings=CosineBaselineSettings,
    workloads=(CosineBaselines,),
    arguments=lambda of: (of.runs, of.table("moments"), of.conditions, of.reference),
    after=("similarity",),
    report=Parts(
        verdicts=(report.losses_or_seeds,),
        figures=(report.run_map,),
        sections=(report.permutation_tests, report.baselines, report.noise_floors, report.span_residuals),
        caveats=(report.judged_by, report.flat_map),
        metrics=(report.metrics,),
        declared=(
            Metric("cosine_z_to_reference"),
            Metric("centred_cosine_to_reference"),
            Metric("matched_distance_to_reference"),
        ),
    ),
    cost=cost,
)
