"""Parts moved from one run to another."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.layerwise import report
from raygeo.analyses.layerwise.cost import cost
from raygeo.analyses.layerwise.workload import Layerwise, LayerwiseSettings
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="layerwise",
    order=230,
    question="Which part of the network does the difference in NLL between two runs come from?",
    settings=LayerwiseSettings,
    workloads=(Layerwise,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.reference),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.layerwise,),
        sections=(report.parts,),
    ),
    cost=cost,
)
