"""How well runs can be tuned further."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.tunability import report
from raygeo.analyses.tunability.cost import cost
from raygeo.analyses.tunability.workload import Tunability, TunabilitySettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="tunability",
    order=470,
    question="How low does the NLL of new texts fall under one fixed fine-tune from each run's weights?",
    settings=TunabilitySettings,
    workloads=(Tunability,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"], of.renderer),
    default=False,
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.tunability,),
        sections=(report.tuned,),
        caveats=(report.recipe,),
        metrics=(report.metrics,),
        declared=(
            Metric("tunability", better="max", role="outcome", takes_part=report.on_new_data),
            Metric("tunability_gain", better="max", role=None),
        ),
    ),
    cost=cost,
)
