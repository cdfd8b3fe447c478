"""What an analysis is: one declaration, from its settings to what the page says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from raygeo.analyses.inputs import AnalysisInputs
from raygeo.footprint import need as footprint
from raygeo.report.parts import Parts
from raygeo.settings import Settings
from raygeo.workload import Workload

Need = Literal["solutions", "problems", "training"]
"""What there must be besides trained weights: correct held-out solutions; held-out problems with gold answers; what
runs were trained with and on."""


@dataclass(frozen=True)
class Analysis:
    """An analysis of trained weights.

    Everything raygeo does with it follows from this: the key ``name`` under ``geometry`` in a study file, the tables,
    figures, sections and caveats of the page, the metrics in MLflow, the entry in ``docs/analyses.md``.

    Args:
        name: its key in a study file.
        order: where it stands, in the study and on the page; weights are 100 to 199, connectivity 200 to 299, curvature
            300 to 399, representations and predictions 400 to 449, outcomes 450 to 499, and analyses from outside come
            last by custom.
        question: what it answers, in a sentence.
        settings: its options; every one must have a default.
        workloads: what is computed, in order; each is made as ``kind(settings, *arguments(inputs))``.
        arguments: what workloads are made of besides settings.
        default: whether it runs in a study that says nothing.
        needs: what there must be; a study or comparison that lacks it is refused before anything starts, except that an
            analysis that can use ``problems`` does without if there are none.
        after: analyses whose tables it reads; they must be asked for with it, and come first in ``order``.
        of_weights: whether it compares weights alone, and so takes too what single stages of runs changed
            (``Run.leg``).
        report: what the page and MLflow show of its tables.
        cost: what its workloads need, of its settings and the size of a study, for ``raygeo plan``; where it is left
            out the plan says that it is not known.
    """

    name: str
    order: int
    question: str
    settings: type[Settings]
    workloads: tuple[type[Workload], ...]
    arguments: Callable[[AnalysisInputs], tuple[Any, ...]]
    default: bool = True
    needs: frozenset[Need] = frozenset()
    after: tuple[str, ...] = ()
    of_weights: bool = False
    report: Parts = field(default_factory=Parts)
    cost: Callable[[Any, footprint.Scale], list[footprint.Need]] | None = None

    @property
    def tables(self) -> Mapping[str, pa.Schema]:
        """The schemas of its tables."""
        return {name: columns for workload in self.workloads for name, columns in workload.tables.items()}

    def make(self, settings: Settings, inputs: AnalysisInputs) -> list[Workload]:
        """Its workloads, ready to run."""
        given = self.arguments(inputs if self.of_weights else inputs.models)
        return [kind(settings, *given) for kind in self.workloads]  # type: ignore[call-arg]
