"""What is declared of a number of each run that the tracker shows, so that it can be an objective or an outcome."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from raygeo.report.view import View
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


def _always(view: View) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """A number of each run, by its name in the tracker.

    Args:
        name: its name; ``*`` in it stands for what settings or data decide, as in ``eval/*/accuracy``.
        among: what it is made of. All but those among the "study" can judge one run by itself.
        better: which way is better; None where neither is, so that an objective must say.
        role: what it is in the pre-screen, None where it takes no part.
        names: of the analysis's settings, or of the benchmarks that are answered, what may stand for ``*``, a part for
            each; the chief one first; None where only data tell.
        lacking: what a study needs that has none of its names.
        made_by: the workloads that make it, where they are not all of the analysis.
        only: of the analysis's settings and a name, the settings with which those workloads make little else.
        over_changed: of the analysis's settings, whether it is taken over the weights that any run changed, so that it
            depends on the other runs where these adapt other modules.
        takes_part: of what was found, whether it has its ``role`` in this study.
    """

    name: str
    among: Among = "study"
    better: Literal["max", "min"] | None = None
    role: Role | None = "predictor"
    names: Callable[[Any], Iterable[str | tuple[str, ...]]] | None = None
    lacking: str = ""
    made_by: tuple[type[Workload], ...] = ()
    only: Callable[[Any, str], Settings] = _as_they_are
    over_changed: Callable[[Any], bool] = _never
    takes_part: Callable[[View], bool] = _always

    def covers(self, name: str) -> bool:
        """Whether this declares the metric called ``name``."""
        return fnmatchcase(name, self.name)

    @property
    def short(self) -> str:
        """Its name without what settings or data decide, which stands for the chief one of its kind."""
        return self.name.replace("/*", "")

    def known(self, settings: Any) -> list[str] | None:
        """Its names under the analysis's ``settings``; None where only data tell."""
        if "*" not in self.name:
            return [self.name]
        return None if self.names is None else [self._filled(parts) for parts in self.names(settings)]

    def _filled(self, parts: str | tuple[str, ...]) -> str:
        found = self.name
        for part in (parts,) if isinstance(parts, str) else parts:
            found = found.replace("*", part, 1)
        return found
