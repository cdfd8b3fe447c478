"""Cosines and orthogonal fractions of the deltas."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.similarity import report
from raygeo.analyses.similarity.cost import cost
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Column, Parts

ANALYSIS = Analysis(
    name="similarity",
    order=120,
    question="Do two runs move the weights in the same direction?",
    settings=SimilaritySettings,
    workloads=(Similarity,),
    arguments=lambda of: (of.runs, of.base, of.pairs),
    of_weights=True,
    report=Parts(
        columns=(
            Column(
                "cosine to ref.",
                "The cosine is that between the weight deltas of the run and of the reference run.",
                report.cosine_cells,
            ),
        ),
        figures=(report.cosine_heatmap,),
        sections=(report.noise_floor, report.reference_pairs, report.pairs),
        metrics=(report.metrics,),
        declared=(Metric("cosine_to_reference"), Metric("orthogonal_to_reference")),
    ),
    cost=cost,
)
