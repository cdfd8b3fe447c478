"""Which metrics a study measures, and what to say where it is asked for another."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.registry import Known, metrics
from raygeo.evaluation.answered import Answered
from raygeo.report.metric import Metric


class Measured(NamedTuple):
    """A metric of a study by its full name, how it is declared, and its analysis; None for the study's own."""

    name: str
    metric: Metric
    analysis: Analysis | None


class Measures:
    """The metrics of a study.

    Args:
        asked: settings of the analyses that are asked for, by name.
        answered: the benchmarks that are answered, the chief one first, and how often.
        own: the analyses of its own, as ``module:name``.
    """

    def __init__(self, asked: Mapping[str, Any], answered: Answered, own: tuple[str, ...] = ()):
        self.asked, self.answered, self.declared = asked, answered, metrics(own)

    def find(self, name: str) -> Measured:
        """The metric called ``name``; ``eval/accuracy`` stands for the chief one of ``eval/*/accuracy``.

        Raises:
            ValueError: the study does not measure it; what it measures instead.
        """
        short = {
            known.metric.short: known for known in self.declared.values() if known.metric.short != known.metric.name
        }
        fitting = (known for known in self.declared.values() if known.metric.covers(name))
        known = short.get(name) or self.declared.get(name) or next(fitting, None)
        if known is None:
            raise ValueError(f"{name!r} is no metric; {self._near(name)}")
        metric, analysis = known
        if analysis is not None and analysis.name not in self.asked:
            raise ValueError(f"{name} is measured by geometry.{analysis.name}, which is not asked for; ask for it too")
        names = self._names(known)
        if metric.covers(name) and (names is None or name in names):
            return Measured(name, metric, analysis)
        if analysis is None and not names:
            raise ValueError(f"{name} needs {metric.lacking}")
        if analysis is not None and not names:
            raise ValueError(f"{name} is not measured of single runs with these settings of geometry.{analysis.name}")
        assert names
        if metric.covers(name):
            raise ValueError(f"{name} is not measured; of its kind are {', '.join(names)}")
        return Measured(names[0], metric, analysis)

    def names(self, *, alone: bool = False) -> list[str]:
        """All metrics of the study; those that judge a run as soon as it is trained, if they are to do so ``alone``."""
        return [
            name for known in self._known() if not alone or known.metric.among != "study" for name in self._shown(known)
        ]

    def _known(self) -> Iterator[Known]:
        yield from (k for k in self.declared.values() if k.analysis is None or k.analysis.name in self.asked)

    def _names(self, known: Known) -> list[str] | None:
        """The full names of a metric; None where only data tell."""
        return known.metric.known(self.answered if known.analysis is None else self.asked[known.analysis.name])

    def _shown(self, known: Known) -> list[str]:
        names = self._names(known)
        return [known.metric.name] if names is None else names

    def _near(self, name: str) -> str:
        every = [*dict.fromkeys([*(known.metric.short for known in self._known()), *self.names()])]
        anywhere = [*every, *(known.metric.short for known in self.declared.values())]
        meant = [full for full in anywhere if _words(full) == {full.partition("/")[0], *_words(name)}]
        bare = {full.partition("/")[2]: full for full in every}
        near = meant or difflib.get_close_matches(name, every, 1)
        near = near or [bare[found] for found in difflib.get_close_matches(name, bare, 1)]
        return f"did you mean {near[0]!r}?" if near else f"this study has {', '.join(every)}"


def _words(name: str) -> set[str]:
    """The words of a metric's name, whatever stands between them and in whatever order."""
    return set(re.split("[/._]", name))
