"""How much gradients of training examples agree."""

from typing import Any

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.coherence import report
from raygeo.analyses.coherence.at_base import CoherenceAtBase
from raygeo.analyses.coherence.cost import cost
from raygeo.analyses.coherence.workload import Coherence, CoherenceSettings
from raygeo.analyses.inputs import AnalysisInputs
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts


def _arguments(of: AnalysisInputs) -> tuple[Any, ...]:
    training = of.training
    assert training is not None
    given = training.losses, training.store, training.rollouts, training.tokens
    return of.runs, of.base, *given, training.teacher, training.teacher_key


ANALYSIS = Analysis(
    name="coherence",
    order=440,
    question="How much do gradients of training examples agree, within each run's loss and between losses?",
    settings=CoherenceSettings,
    workloads=(CoherenceAtBase, Coherence),
    arguments=_arguments,
    needs=frozenset({"training"}),
    report=Parts(
        figures=(report.coherence, report.cosine_matrix),
        sections=(report.estimates, report.cosine_pairs),
        caveats=(report.few_prompts, report.projections),
        metrics=(report.metrics,),
        declared=(
            Metric("coherence_at_base"),
            Metric("coherence_at_run"),
            Metric("gradient_cosine_to_reference"),
        ),
    ),
    cost=cost,
)
