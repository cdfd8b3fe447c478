"""Which layer of a run is like which layer of another."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.layer_cka import report
from raygeo.analyses.layer_cka.cost import cost
from raygeo.analyses.layer_cka.workload import LayerCKA, LayerCKASettings
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="layer_cka",
    order=410,
    question="Which layer of a run represents the same texts as which layer of the base?",
    settings=LayerCKASettings,
    workloads=(LayerCKA,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.reference),
    needs=frozenset({"solutions"}),
    report=Parts(figures=(report.layer_cka,)),
    cost=cost,
)
