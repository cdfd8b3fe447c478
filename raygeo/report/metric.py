"""What is declared of a number of each run that the tracker shows, so that it can be an objective or an outcome."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from raygeo.settings import Settings
from raygeo.workload import Workload

Among = Literal["training", "itself", "base", "study"]
"""What a run's number is made of: its training, which reports it at steps, the last of which counts; its own weights;
those and the base's; or all runs of the study."""
Role = Literal["predictor", "outcome"]
"""In the pre-screen: what is measured of weights, texts or gradients, or what one wants to know of a run."""


def _as_they_are(settings: Any, name: str) -> Any:
    return settings


def _never(settings: Any) -> bool:
    return False


@dataclass(frozen=True)
class Metric:
    """A number of each run, by its name in the tracker.

    Args:
        name: its name; ``*`` in it stands for what settings or data decide, as in ``accuracy.*``.
        among: what it is made of. All but those among the "study" can judge one run by itself.
        better: which way is better; None where neither is, so that an objective must say.
        role: what it is in the pre-screen, None where it takes no part.
        names: of the analysis's settings, what may stand for ``*``, the chief one first; None where only data tell.
        made_by: the workloads that make it, where they are not all of the analysis.
        only: of the analysis's settings and a name, the settings with which those workloads make little else.
        over_changed: of the analysis's settings, whether it is taken over the weights that any run changed, so that it
            depends on the other runs where these adapt other modules.
    """

    name: str
    among: Among = "study"
    better: Literal["max", "min"] | None = None
    role: Role | None = "predictor"
    names: Callable[[Any], Iterable[str]] | None = None
    made_by: tuple[type[Workload], ...] = ()
    only: Callable[[Any, str], Settings] = _as_they_are
    over_changed: Callable[[Any], bool] = _never

    def covers(self, name: str) -> bool:
        """Whether this declares the metric called ``name``."""
        return fnmatchcase(name, self.name)

    def known(self, settings: Any) -> list[str] | None:
        """Its names under the analysis's ``settings``; None where only data tell."""
        if "*" not in self.name:
            return [self.name]
        return None if self.names is None else [self.name.replace("*", part) for part in self.names(settings)]
