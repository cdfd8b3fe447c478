"""What is shown of every study, whatever is analysed: training, accuracy, and their limits."""

from raygeo.report import limits, passes, results, training
from raygeo.report.parts import Parts

STUDY = Parts(
    figures=(training.accuracy, training.nll_curves, training.objective_curves),
    sections=(results.drops, passes.passes, results.mcnemar),
    caveats=(limits.failures, limits.selection, limits.seeds, limits.problems, limits.no_gold, limits.tests),
    metrics=(results.accuracies, results.drop_metrics, passes.metrics),
)
