"""Curves trained between runs."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.curves import report
from raygeo.analyses.curves.cost import cost
from raygeo.analyses.curves.workload import Curves, CurvesSettings
from raygeo.analyses.inputs import AnalysisInputs
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts


def _barriers(of: AnalysisInputs) -> dict[tuple[str, str], float]:
    """Lower ends of the intervals of the solutions' straight-line barriers, by pair; none if paths are not measured."""
    rows = of.table("barriers").to_pylist()
    return {(row["run_a"], row["run_b"]): row["chord_low"] for row in rows if row["probe"] == "solutions"}


ANALYSIS = Analysis(
    name="curves",
    order=220,
    question="Does a curve of low NLL join two runs where the straight line between them rises?",
    settings=CurvesSettings,
    workloads=(Curves,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], _barriers(of)),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.curves,),
        sections=(report.barriers,),
        caveats=(report.effort,),
        metrics=(report.metrics,),
        declared=(Metric("curve_barrier_to_reference/*", better="min", names=lambda settings: (settings.shape,)),),
    ),
    cost=cost,
)
