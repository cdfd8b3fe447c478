"""Whether training keeps off the principal directions of the weights."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.off_principal import report
from raygeo.analyses.off_principal.cost import cost
from raygeo.analyses.off_principal.workload import OffPrincipal, OffPrincipalSettings
from raygeo.analyses.pairs import left_out
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="off_principal",
    order=150,
    question="Does training keep off the principal directions of the weights?",
    settings=OffPrincipalSettings,
    workloads=(OffPrincipal,),
    arguments=lambda of: (of.runs, of.base, of.pairs),
    report=Parts(
        figures=(report.off_principal,),
        sections=(report.before_and_after, report.sparsity_by_type, report.changed_pairs),
        caveats=(report.resolution, left_out("off_principal", "changed_pairs")),
        metrics=(report.metrics,),
        declared=(
            Metric("update_sparsity"),
            Metric("absolute_sparsity"),
            Metric("gaussian_sparsity", role=None),
            Metric("spectral_shift"),
            *(Metric(f"{mask.replace('-', '_')}_overlap") for mask in report.MEASURED),
        ),
    ),
    cost=cost,
)
