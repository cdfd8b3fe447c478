"""Straight paths between deltas of equal norm."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.matched_paths import report
from raygeo.analyses.matched_paths.cost import cost
from raygeo.analyses.matched_paths.workload import MatchedPaths, MatchedPathsSettings
from raygeo.analyses.pairs import left_out
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="matched_paths",
    order=210,
    question="Does the NLL rise on the straight line between two deltas of equal length?",
    settings=MatchedPathsSettings,
    workloads=(MatchedPaths,),
    arguments=lambda of: (of.runs, of.base, of.likelihood_probes, of.exam, of.pairs),
    default=False,
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        figures=(report.matched_paths,),
        sections=(report.matched_barriers,),
        caveats=(left_out("matched_paths", "matched_barriers"),),
        metrics=(report.metrics,),
        declared=(
            Metric(
                "matched_barrier_to_reference/*",
                better="min",
                names=lambda settings: ("solutions", "answer", "problems"),
            ),
        ),
    ),
    cost=cost,
)
