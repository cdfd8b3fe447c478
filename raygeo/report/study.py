"""What is shown of every study, whatever is analysed: training, accuracy, and their limits."""

from raygeo.report import limits, monitor, passes, results, stages, training, verdict
from raygeo.report.parts import Parts

STUDY = Parts(
    verdicts=(verdict.against_base, verdict.between_runs),
    figures=(training.accuracy, training.nll_curves, training.objective_curves, monitor.curves),
    sections=(stages.trainings, monitor.partings, passes.passes, results.mcnemar),
    caveats=(
        limits.failures,
        limits.selection,
        limits.seeds,
        limits.problems,
        limits.no_gold,
        limits.tests,
        stages.legs,
    ),
    metrics=(results.accuracies, passes.metrics),
    histories=(monitor.histories,),
)

CLOSING = Parts(verdicts=(verdict.visible, verdict.next_runs))
"""What is said when all has been said: what cannot be told, and what would tell it."""
