"""Which metric tells of outcomes beforehand."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.prescreen import report
from raygeo.analyses.prescreen.cost import cost
from raygeo.analyses.prescreen.workload import Prescreen, PrescreenSettings, read_runs
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="prescreen",
    order=900,
    question="Which metric of a run tells beforehand how it does elsewhere, shrunk, or trained further?",
    settings=PrescreenSettings,
    workloads=(Prescreen,),
    arguments=lambda of: (read_runs(of),),
    after=("norms",),
    report=Parts(
        verdicts=(report.prescreened,),
        figures=(report.heatmap,),
        sections=(report.verdicts, report.correlations),
        caveats=(report.limits,),
    ),
    cost=cost,
)
