"""Straight paths between runs."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.pairs import left_out
from raygeo.analyses.paths import report
from raygeo.analyses.paths.cost import cost
from raygeo.analyses.paths.workload import Paths, PathsSettings
from raygeo.report.metric import Metric
from raygeo.report.parts import Column, Parts

ANALYSIS = Analysis(
    name="paths",
    order=200,
    question="Does the NLL rise on the straight line between the weights of two runs?",
    settings=PathsSettings,
    workloads=(Paths,),
    arguments=lambda of: (of.runs, of.base, of.likelihood_probes, of.exam, of.pairs),
    needs=frozenset({"solutions", "problems"}),
    report=Parts(
        verdicts=(report.barriers_found,),
        columns=(
            Column(
                "barrier to ref.",
                "The barrier is the highest excess of the NLL over the straight line between the ends, on the first "
                "probe, with a paired-bootstrap interval.",
                report.barrier_cells,
            ),
        ),
        figures=(report.paths, report.base_paths),
        sections=(report.barriers,),
        caveats=(report.sampled, left_out("paths", "barriers")),
        metrics=(report.metrics,),
        declared=(
            Metric("nll/*", "base", "min", names=lambda settings: ("solutions", "answer")),
            Metric("barrier_to_reference/*", better="min", names=lambda settings: ("solutions", "answer", "problems")),
        ),
    ),
    cost=cost,
)
