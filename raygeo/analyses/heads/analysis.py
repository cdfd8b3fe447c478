"""What training did to each attention head."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.heads import report
from raygeo.analyses.heads.cost import cost
from raygeo.analyses.heads.workload import Heads, HeadSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="heads",
    order=280,
    question="Which attention heads did training change, and what does the NLL owe to them?",
    settings=HeadSettings,
    workloads=(Heads,),
    arguments=lambda of: (of.runs, of.base, of.probes["solutions"]),
    default=False,
    needs=frozenset({"solutions"}),
    report=Parts(
        figures=(report.heads, report.effects),
        sections=(report.switched,),
        caveats=(report.limits,),
        metrics=(report.metrics,),
        declared=(
            Metric("heads/evenness/*"),
            Metric("heads/evenness_random/*", role=None),
            *(Metric(f"heads/{effect}/largest") for effect in ("removed", "added")),
            *(
                Metric(f"heads/{effect}/{null}", role=None)
                for effect in ("removed", "added")
                for null in ("random", "control")
            ),
        ),
    ),
    cost=cost,
)
