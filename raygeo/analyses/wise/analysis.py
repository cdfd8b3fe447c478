"""Lines from the base through each run."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.wise import report
from raygeo.analyses.wise.cost import cost
from raygeo.analyses.wise.workload import Wise, WiseSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="wise",
    order=250,
    question="How do likelihood, accuracy and calibration change from the base to each run, and beyond it?",
    settings=WiseSettings,
    workloads=(Wise,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.exam),
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        figures=(report.wise,),
        sections=(report.best,),
        metrics=(report.metrics,),
        declared=(Metric("wise_best_alpha", "itself"),),
    ),
    cost=cost,
)
