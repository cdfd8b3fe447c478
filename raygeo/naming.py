"""What the metrics of a run are called in settings, on the page and in MLflow: a group, then a name, with slashes.

``train/`` is what a run reports of its own batches, ``eval/`` what its answers and held-out solutions say,
``geometry/`` what the analyses find. A loss that takes a group of its own, as preference losses take ``rewards/``,
keeps it.
"""

from collections.abc import Iterable
from typing import Literal

from raygeo.errors import ConfigError

Group = Literal["train", "eval", "geometry"]

HELDOUT_NLL, TRAIN_NLL = "eval/heldout/nll", "train/nll"
_REPORTED = {"objective": "train/loss", "heldout_nll": HELDOUT_NLL}
_STORED = {name: reported for reported, name in _REPORTED.items()}

SCHEME = "groups"
"""What MLflow is told of these names, so that runs that were logged under others are known."""


def full_name(group: Group, name: str) -> str:
    """A metric's name in its group."""
    return f"{group}/{name}"


def benchmark_of(metric: str) -> str:
    """The benchmark of a metric of answers: that of ``eval/gsm8k/accuracy`` is ``gsm8k``."""
    return metric.removeprefix("eval/").rpartition("/")[0]


def training_metric(reported: str) -> str:
    """The name of what a run reports while it trains, by its name in the table ``training_curves``."""
    return _REPORTED.get(reported, reported if "/" in reported else full_name("train", reported))


def refuse_one_name_for_two(reported: Iterable[str]) -> None:
    """Raise ``ConfigError`` where two of what a run reports would have one name, as a loss's own ``loss`` and its
    objective.
    """
    names: dict[str, str] = {}
    for each in reported:
        other = names.setdefault(training_metric(each), each)
        if other != each:
            raise ConfigError(
                f"the loss reports {each!r} beside {other!r}, and both are called {training_metric(each)!r}: give that "
                "metric of the loss another name."
            )


def reported_as(metric: str) -> str:
    """The name in the table ``training_curves`` of a metric of training."""
    return _STORED.get(metric, metric.removeprefix("train/"))
