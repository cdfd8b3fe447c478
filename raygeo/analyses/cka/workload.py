"""CKA of every two runs, layer by layer, with and without what dominates it."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from raygeo.analyses.cka.representations import FeatureSettings, Representations, comparable
from raygeo.analyses.pairs import Pairs, PairSettings, paired
from raygeo.geometry.representation.cka import align
from raygeo.geometry.representation.features import TREATMENTS, Treatment
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload


class ComparisonSettings(FeatureSettings):
    """What is compared, over which minibatches, and what is taken out of the features first."""

    treatments: tuple[Treatment, ...] = Field(TREATMENTS, min_length=1)
    """Rows are made for each: ``plain`` features; ``rms_normed``, every token's state divided by its root mean square;
    ``without_outliers``, without the dimensions of massive activations; ``without_1_pc`` and ``without_3_pcs``, without
    the leading principal components of each model's own features. Few dimensions dominate plain CKA of language
    models."""


class CKASettings(PairSettings, ComparisonSettings):
    """Which runs are compared, and how."""


class CKA(Workload):
    """CKA of pairs of runs at every layer, on one probe's teacher-forced texts; one task a pair.

    An actor computes the features of a run once and keeps only its kernels (see ``Representations``); where it cannot
    keep those of all runs, tasks of one run stand together.

    Args:
        settings: pooling, minibatches and treatments.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
        chosen: the pairs that are compared unless all are asked for; None where these are all.

    Raises:
        DataError: the probe has fewer than 4 sequences.
    """

    name = "cka"
    tables: ClassVar = {
        "cka": schema(
            """`treatment` says what was taken out of the features first, "plain" nothing; `cka` is the unbiased
            estimate, between `low` and `high`, and `cka_biased` the plain one; `n` counts vectors.""",
            "run_a, run_b: text; layer: int; treatment: text; cka, cka_biased, low, high: float; n: int",
        )
    }
    batch_settings: ClassVar = ("forward_batch_size",)

    def __init__(
        self,
        settings: CKASettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        chosen: Pairs | None = None,
    ):
        self.settings = settings
        self.runs = sorted(runs, key=lambda run: run.delta is not None)
        self.base = base
        self.probe = probe
        self.chosen = None if settings.pairs == "all" else chosen

    def tasks(self) -> list[Task]:
        """One task a pair; all cost the same."""
        recipe, probe = ComparisonSettings.of(self.settings), comparable(self.probe).key
        pairs = paired(self.runs, self.chosen, lambda run: run.name)
        if self.chosen is not None:
            place = {run: i for i, run in enumerate(self.runs)}
            pairs.sort(key=lambda pair: place[pair[1]])
        return [
            Task(
                self.key(recipe, probe, [[run.name, run.key] for run in (a, b)]),
                1.0,
                (a, b),
                f"CKA of {a.name} and {b.name}",
            )
            for a, b in pairs
        ]

    def setup(self) -> Representations:
        """Load the base student and the probe once."""
        return Representations.open(self.settings, self.runs, self.base, self.probe)

    def compute(self, state: Representations, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Align one pair at every layer under every treatment."""
        first, second = (state.kernels(run) for run in payload)
        batches = state.batches
        rows: Rows = []
        for treatment in self.settings.treatments:
            kernels = first.treated(treatment), second.treated(treatment)
            for layer, found in enumerate(align(*kernels, batches)):
                rows.append(
                    {
                        "run_a": payload[0].name,
                        "run_b": payload[1].name,
                        "layer": layer,
                        "treatment": treatment,
                        "cka": found.cka,
                        "cka_biased": found.biased,
                        "low": found.low,
                        "high": found.high,
                        "n": kernels[0].shape[-1],
                    }
                )
        return {"cka": rows}
