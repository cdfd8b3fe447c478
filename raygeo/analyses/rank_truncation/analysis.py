"""How many singular directions of each run's delta carry what it learned."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.rank_truncation import report
from raygeo.analyses.rank_truncation.cost import cost
from raygeo.analyses.rank_truncation.workload import RankTruncation, RankTruncationSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="rank_truncation",
    order=270,
    question="How many singular directions of each run's delta carry what it learned?",
    settings=RankTruncationSettings,
    workloads=(RankTruncation,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.exam),
    default=False,
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        figures=(report.truncation,),
        sections=(report.least,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(
            Metric("rank_truncation/gain"),
            Metric("rank_truncation/least_rank"),
            Metric("rank_truncation/truncated/*"),
            Metric("rank_truncation/energy/*"),
            Metric("rank_truncation/random/*", role=None),
            Metric("rank_truncation/scaled/*", role=None),
        ),
    ),
    cost=cost,
)
