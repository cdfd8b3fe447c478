"""The power law of each layer's spectrum before and after."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.layer_alpha import report
from raygeo.analyses.layer_alpha.cost import cost
from raygeo.analyses.layer_alpha.workload import LayerAlpha, LayerAlphaSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="layer_alpha",
    order=154,
    question="Does training change how heavy the tails of the layers' spectra are?",
    settings=LayerAlphaSettings,
    workloads=(LayerAlpha,),
    arguments=lambda of: (of.runs, of.base),
    default=False,
    report=Parts(
        figures=(report.alphas,),
        sections=(report.means,),
        caveats=(report.laws,),
        metrics=(report.metrics,),
        declared=(Metric("layer_alpha"), Metric("layer_alpha_change"), Metric("random_layer_alpha_change", role=None)),
    ),
    cost=cost,
)
