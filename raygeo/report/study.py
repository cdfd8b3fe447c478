"""What is shown of every study, whatever is analysed: training, accuracy, and their limits."""

from raygeo.report import limits, monitor, passes, results, stages, training, trials, verdict
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

STUDY = Parts(
    verdicts=(verdict.against_base, verdict.between_runs),
    figures=(trials.front, training.accuracy, training.nll_curves, training.objective_curves, monitor.curves),
    sections=(stages.trainings, monitor.partings, results.drops, passes.passes, results.mcnemar),
    caveats=(
        limits.failures,
        limits.selection,
        limits.seeds,
        limits.problems,
        limits.no_gold,
        limits.tests,
        stages.legs,
    ),
    metrics=(results.accuracies, results.drop_metrics, passes.metrics),
    declared=(
        Metric("accuracy.*", "itself", "max", role="outcome"),
        Metric("accuracy_low.*", "itself", "max", role=None),
        Metric("accuracy_high.*", "itself", "max", role=None),
        *(Metric(f"drop{end}.*", "itself", "min", role=None) for end in ("", "_low", "_high")),
        Metric("pass_at_*.*", "itself", "max", role=None),
        Metric("heldout_nll", "training", "min", role=None),
        Metric("nll", "training", "min", role=None),
    ),
    histories=(monitor.histories,),
)

CLOSING = Parts(verdicts=(verdict.visible, verdict.next_runs))
"""What is said when all has been said: what cannot be told, and what would tell it."""
