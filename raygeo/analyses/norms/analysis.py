"""Norms and ranks of the deltas."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.norms import report
from raygeo.analyses.norms.cost import cost
from raygeo.analyses.norms.workload import Norms, NormSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Column, Parts

ANALYSIS = Analysis(
    name="norms",
    order=100,
    question="How far did each run move each weight matrix, and in how many directions?",
    settings=NormSettings,
    workloads=(Norms,),
    arguments=lambda of: (of.runs, of.base),
    of_weights=True,
    report=Parts(
        columns=(
            Column("‖Δ‖", "‖Δ‖ is the Frobenius norm of the weight delta.", report.norm_cells),
            Column("‖Δ‖/‖W‖", "‖Δ‖/‖W‖ is its share of the same base weights.", report.share_cells),
        ),
        figures=(report.norms, report.norm_rates),
        caveats=(report.unrelated, report.rounded, report.unmatched),
        metrics=(report.metrics,),
        declared=(
            Metric("delta_norm", "itself"),
            Metric("delta_relative_norm", "itself"),
            Metric("delta_effective_rank", "itself"),
            Metric("delta_stable_rank", "itself"),
        ),
    ),
    cost=cost,
)
