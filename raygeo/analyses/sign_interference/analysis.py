"""Whether two runs pull the same entries in opposite directions."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.pairs import left_out
from raygeo.analyses.sign_interference import report
from raygeo.analyses.sign_interference.cost import cost
from raygeo.analyses.sign_interference.workload import SignInterference, SignInterferenceSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="sign_interference",
    order=156,
    question="Do two runs pull the same weights in opposite directions?",
    settings=SignInterferenceSettings,
    workloads=(SignInterference,),
    arguments=lambda of: (of.runs, of.base, of.pairs),
    report=Parts(
        sections=(report.opposite_signs,),
        caveats=(report.half, left_out("sign_interference", "sign_interference")),
        metrics=(report.metrics,),
        declared=(
            Metric("sign_interference_to_reference"),
            Metric("weighted_sign_interference_to_reference"),
            Metric("shuffled_sign_interference_to_reference", role=None),
        ),
    ),
    cost=cost,
)
