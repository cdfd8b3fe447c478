"""Planes through three runs."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.planes import report
from raygeo.analyses.planes.cost import cost
from raygeo.analyses.planes.workload import Planes, PlanesSettings
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="planes",
    order=260,
    question="What does the NLL look like on the plane through three runs?",
    settings=PlanesSettings,
    workloads=(Planes,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.reference),
    default=False,
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.planes,),
        sections=(report.runs,),
        caveats=(report.flat,),
    ),
    cost=cost,
)
