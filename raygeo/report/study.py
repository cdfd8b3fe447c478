"""What is shown of every study, whatever is analysed: training, accuracy, and their limits."""

from operator import attrgetter

from raygeo.report import limits, monitor, passes, rates, results, stages, training, trials, verdict
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts

_benchmarks, _shifted, _passes = attrgetter("names"), attrgetter("shifted"), attrgetter("passes")
_NO_PROBLEMS = (
    "problems: hold prompts out (rollouts.heldout) and let them be answered (evaluation.heldout), or give "
    "evaluation.benchmarks"
)
_NO_SHIFT = "a benchmark with shift: ood, and one without a shift or held-out prompts that are answered"
_ONE_ANSWER = "several answers a problem; give evaluation.answers.samples"

_SWEEP = Parts(
    name="sweep",
    question="Which settings did best?",
    figures=(trials.front, rates.curves),
    sections=(trials.trials, rates.best),
)
_ACCURACY = Parts(
    name="accuracy",
    question="How many problems does each run solve, and which runs differ?",
    verdicts=(verdict.not_measured, verdict.against_base, verdict.between_runs),
    figures=(training.accuracy, monitor.curves),
    sections=(results.mcnemar, results.drops, passes.passes, monitor.partings),
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
        Metric("accuracy", "itself", "max", role=None),
        *(
            Metric(f"*/accuracy{end}", "itself", "max", None if end else "outcome", _benchmarks, lacking=_NO_PROBLEMS)
            for end in ("", "_low", "_high")
        ),
        *(Metric(f"*/drop{end}", "study", "min", None, _shifted, lacking=_NO_SHIFT) for end in ("", "_low", "_high")),
        Metric("*/pass_at_*", "itself", "max", None, _passes, lacking=_ONE_ANSWER),
        Metric("heldout/nll", "training", "min", role=None),
    ),
    histories=(monitor.histories,),
    singles=(monitor.curves,),
).under("eval")
_TRAINING = Parts(
    name="training",
    question="How did training go?",
    figures=(training.nll_curves, training.objective_curves),
    sections=(stages.trainings,),
    declared=(Metric("nll", "training", "min", role=None),),
    singles=(training.run_curves,),
).under("train")
STUDY = Parts.joined([_SWEEP, _ACCURACY, _TRAINING])

CLOSING = Parts(verdicts=(verdict.visible, verdict.next_runs))
"""What is said when all has been said: what cannot be told, and what would tell it."""
