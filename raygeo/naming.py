"""What the metrics of a run are called in settings, on the page and in MLflow: a group, then a name, with slashes.

``train/`` is what a run reports of its own batches, ``eval/`` what its answers and held-out solutions say,
``geometry/`` what the analyses find. A loss that takes a group of its own, as preference losses take ``rewards/``,
keeps it.
"""

from typing import Literal

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


def reported_as(metric: str) -> str:
    """The name in the table ``training_curves`` of a metric of training."""
    return _STORED.get(metric, metric.removeprefix("train/"))
