"""Whether each run moves along one direction at an even pace."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.rank_one import report
from raygeo.analyses.rank_one.cost import cost
from raygeo.analyses.rank_one.workload import RankOneSettings, RankOneTrajectories
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="rank_one",
    order=162,
    question="Does each weight move along one direction, so that its first steps foretell its last?",
    settings=RankOneSettings,
    workloads=(RankOneTrajectories,),
    arguments=lambda of: (of.runs, of.base, of.steps),
    report=Parts(
        sections=(report.lines,),
        caveats=(report.few_points,),
        metrics=(report.metrics,),
        declared=(
            Metric("rank_one_share"),
            Metric("rank_one_r2"),
            Metric("rank_one_r2_log"),
            Metric("extrapolation_error", better="min"),
            Metric("stretched_error", better="min", role=None),
        ),
    ),
    cost=cost,
)
