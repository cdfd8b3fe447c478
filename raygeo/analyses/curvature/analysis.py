"""The curvature of the NLL around runs and between them."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.curvature import figures, report, sections
from raygeo.analyses.curvature.cost import cost
from raygeo.analyses.curvature.density import SpectralDensity
from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.paths import MeasuredPaths
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.curvature.span import SpanCurvature
from raygeo.analyses.pairs import left_out
from raygeo.report.metric import Metric
from raygeo.report.parts import Column, Parts

ANALYSIS = Analysis(
    name="curvature",
    order=300,
    question="How sharply does the NLL of held-out solutions bend at each run, along the deltas, and towards others?",
    settings=CurvatureSettings,
    workloads=(ExtremeEigenvalues, SpectralDensity, SpanCurvature, MeasuredPaths),
    arguments=lambda of: (of.runs, of.base, of.probes["curvature"], of.journals, of.gather, of.pairs),
    needs=frozenset({"solutions"}),
    report=Parts(
        verdicts=(report.flattened,),
        columns=(
            Column(
                "top eigenvalue",
                "The top eigenvalue is the largest of the curvature of the probe's NLL, for the first operator and "
                "space that were measured.",
                report.eigenvalue_cells,
            ),
            Column(
                "trace",
                "The trace is the sum of all eigenvalues of the same, estimated from random vectors, with a 95 % "
                "interval between them.",
                report.trace_cells,
            ),
        ),
        figures=(figures.spectra, figures.top_eigenvalues, figures.directional, figures.blocks, figures.expansions),
        singles=(figures.run_spectrum,),
        sections=(sections.curvature, sections.overlaps, sections.predictions),
        caveats=(report.scalar, report.span, left_out("curvature", "expansions")),
        metrics=(report.metrics,),
        declared=(
            Metric(
                "top_eigenvalue/*",
                "itself",
                "min",
                names=report.operators,
                made_by=(ExtremeEigenvalues,),
                only=report.first_place,
                over_changed=report.over_changed,
            ),
            Metric(
                "trace/*",
                "itself",
                "min",
                names=report.operators,
                made_by=(ExtremeEigenvalues,),
                only=report.first_place,
                over_changed=report.over_changed,
            ),
        ),
    ),
    cost=cost,
)
