"""How alike runs represent the same texts."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.cka import report
from raygeo.analyses.cka.cost import cost
from raygeo.analyses.cka.workload import CKA, CKASettings
from raygeo.analyses.pairs import left_out
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="cka",
    order=400,
    question="How alike do runs represent the same texts, layer by layer?",
    settings=CKASettings,
    workloads=(CKA,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.pairs),
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.cka,),
        sections=(report.with_reference, report.treatments),
        caveats=(report.fixed_texts, left_out("cka", "cka")),
        metrics=(report.metrics,),
        declared=(Metric("last_cka_to_base", "base"), Metric("last_cka_to_reference")),
    ),
    cost=cost,
)
