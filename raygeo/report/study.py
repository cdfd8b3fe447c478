"""What is shown of every study, whatever is analysed: training, accuracy, and their limits."""

from raygeo.report import limits, passes, results, training, verdict
from raygeo.report.parts import Parts

STUDY = Parts(
    verdicts=(verdict.against_base, verdict.between_runs),
    figures=(training.accuracy, training.nll_curves, training.objective_curves),
    sections=(passes.passes, results.mcnemar),
    caveats=(limits.failures, limits.selection, limits.seeds, limits.problems, limits.no_gold, limits.tests),
    metrics=(results.accuracies, passes.metrics),
)

CLOSING = Parts(verdicts=(verdict.visible, verdict.next_runs))
"""What is said when all has been said: what cannot be told, and what would tell it."""
