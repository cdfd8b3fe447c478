"""What runs forgot of what the base could do before, and whether how far predictions moved foretells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygeo.analyses.between import LikelihoodSettings
from raygeo.data.passages import passage_tokens, read_passages
from raygeo.data.probes import Probe
from raygeo.errors import DataError, DeltaError
from raygeo.evaluation.laws import FEWEST_GROUPS, FEWEST_RUNS, Law, fit_laws
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means, token_means
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import AnyPlace
from raygeo.store import AnyPath
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task, Workload

TEXTS, POOLED = "texts", "all benchmarks"
ACCURACY, NLL = "accuracy", "nll"
KL = "KL(base ‖ run)"


class ForgettingSettings(LikelihoodSettings):
    """What may have been forgotten, besides the benchmarks whose ``shift`` is retention."""

    texts: AnyPlace | None = None
    """Plain text, UTF-8, with blank lines between passages, whose likelihood the base had before: code, prose, other
    tasks."""
    passages: int = Field(256, ge=2)
    """How many of its passages (the first ones)."""
    passage_tokens: int = Field(512, ge=2)
    """Tokens of a passage that are read."""


@dataclass(frozen=True)
class Known:
    """What is known of runs before the analysis.

    ``right`` holds, by retention benchmark and run, the share of right answers to each problem, [N] in one order for
    all runs. ``predictors`` are numbers of each run that may foretell what it forgot, by name, the first of them the
    one that others are compared with; ``configurations`` says how each was trained, without its seeds.
    """

    right: Mapping[str, Mapping[str, Array]]
    predictors: Mapping[str, Mapping[str, float]]
    configurations: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    student: ResidentStudent
    measured: ProbeNLL


class Forgetting(Workload):
    """The drop of every run on what the base could do before, and the laws that may foretell it.

    On retention benchmarks it is the base's accuracy less the run's, on ``texts`` the run's NLL less the base's (nats a
    token): a task a run where there are texts, nothing to compute otherwise. Laws are drop = a x + b x^2 over runs
    (``evaluation.laws``), with x the divergence on new-task prompts or what competes with it.

    Args:
        settings: texts and sizes.
        runs: the runs, the base among them.
        base: folder of the base student.
        known: answers and predictors.

    Raises:
        DataError: there is nothing that could have been forgotten, or the texts cannot be read.
    """

    name = "forgetting"
    tables: ClassVar = {
        "retained": schema(
            "Summed NLL of each passage of the retention texts, nats, and its predicted tokens.",
            "run: text; sums, text_tokens: doubles",
        ),
        "forgetting": schema(
            """What a run forgot. `source` is a retention benchmark, "all benchmarks", their problems together, or
            "texts"; `measure` is accuracy (`drop` is the base's less the run's) or nll (the run's less the base's, nats
            a token): positive is worse than the base. 95 % intervals are over problems or passages (paired). `kl` is
            KL(base || run) on held-out solutions, nats a token.""",
            "run, source, measure: text; base, value, drop, low, high, kl: float; n: int",
        ),
        "forgetting_laws": schema(
            """drop = a x + b x^2 over runs, by predictor x and source. `r2` is about the mean, `held_out_r2` that of
            each configuration predicted from the others; `behind` is that of KL less this predictor's, its interval
            adjusted for how many are compared. 95 % intervals are over configurations; `reason` says why numbers are
            missing.""",
            "source, predictor: text; a, a_low, a_high, b, b_low, b_high, r2, r2_low, r2_high, held_out_r2, "
            "held_out_r2_low, held_out_r2_high, behind, behind_low, behind_high: float; runs, configurations: int; "
            "reason: text",
        ),
    }
    batch_settings: ClassVar = ("batch_size",)

    def __init__(self, settings: ForgettingSettings, runs: Sequence[Run], base: AnyPath, known: Known):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.known = known
        self.passages = [] if settings.texts is None else read_passages(settings.texts, settings.passages)
        if not self.passages and not known.right:
            raise DataError(
                "there is nothing that runs could have forgotten: give a benchmark with shift: retention "
                "(evaluation.benchmarks), or a text file (geometry.forgetting.texts)."
            )

    def tasks(self) -> list[Task]:
        """One task a run where there are texts."""
        if not self.passages:
            return []
        inputs = self.passages, self.settings.passage_tokens
        return [Task(self.key(*inputs, run.name, run.key), 1.0, run, f"retention of {run.name}") for run in self.runs]

    def setup(self) -> _State:
        """Load the base student once and tokenise the passages."""
        student = ResidentStudent.load(self.base, self.runs)
        probe = Probe(TEXTS, passage_tokens(student.tokenizer, self.passages, self.settings.passage_tokens))
        return _State(student, ProbeNLL(probe, self.settings.batch_size, student.pad_id))

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Measure one run.

        Raises:
            DeltaError: its NLL is not finite.
        """
        with state.student.weights.mixed(payload.mixture()):
            sums = state.measured.sums(state.student.model)
        if not np.isfinite(sums).all():
            raise DeltaError(f"the NLL of {payload.name} is not finite; it has diverged, leave it out.")
        tokens = state.measured.counts
        return {"retained": [{"run": payload.name, "sums": sums.tolist(), "text_tokens": tokens.tolist()}]}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Drops, and laws over runs."""
        drops = [*self._accuracies(), *self._likelihoods(tables["retained"].to_pylist())]
        sources = dict.fromkeys(row["source"] for row in drops)
        laws = [row for source in sources for row in self._laws([r for r in drops if r["source"] == source])]
        return {"forgetting": drops, "forgetting_laws": laws}

    def _accuracies(self) -> Rows:
        sources = dict(self.known.right)
        if len(sources) > 1:
            every = [run for run in next(iter(sources.values())) if all(run in right for right in sources.values())]
            pooled = {run: np.concatenate([right[run] for right in sources.values()]) for run in every}
            sources |= {POOLED: pooled}
        rows: Rows = []
        for source, right in sources.items():
            if BASE in right:
                wrong = {run: 1 - shares for run, shares in right.items()}
                ones = np.ones(len(right[BASE]))
                rows += [
                    row | {"base": 1 - row["base"], "value": 1 - row["value"]}
                    for row in self._drops(source, ACCURACY, wrong, ones)
                ]
        return rows

    def _likelihoods(self, retained: Rows) -> Rows:
        sums = {row["run"]: np.asarray(row["sums"]) for row in retained}
        return list(self._drops(TEXTS, NLL, sums, np.asarray(retained[0]["text_tokens"]))) if BASE in sums else []

    def _drops(self, source: str, measure: str, losses: Mapping[str, Array], counts: Array) -> Rows:
        """Rows of a loss [N] of every run, summed over what ``counts`` [N] counts, against the base's."""
        names = [name for name in losses if name != BASE]
        rises = np.stack([losses[name] - losses[BASE] for name in names] or [np.zeros_like(counts)], -1)
        resampled = resampled_means(rises, counts, resamples=self.settings.bootstrap, seed=self.settings.seed)
        intervals = percentile_intervals(resampled, len(counts))
        kl = next(iter(self.known.predictors.values()), {})
        rows: Rows = []
        for name, drop, ends in zip(names, token_means(rises, counts).tolist(), intervals, strict=False):
            row = {"run": name, "source": source, "measure": measure, "drop": drop, "low": ends.low, "high": ends.high}
            means = {"base": losses[BASE].sum() / counts.sum(), "value": losses[name].sum() / counts.sum()}
            rows.append(row | {k: float(v) for k, v in means.items()} | {"kl": kl.get(name), "n": len(counts)})
        return rows

    def _laws(self, drops: Rows) -> Rows:
        """A row a predictor, of one source."""
        names = [row["run"] for row in drops]
        first = next(iter(self.known.predictors.values()), {})
        names = [name for name in names if name in first]
        known = {x: of for x, of in self.known.predictors.items() if all(name in of for name in names)}
        configurations = [self.known.configurations.get(name, name) for name in names]
        groups = [configurations.index(each) for each in configurations]
        labels = {"source": drops[0]["source"], "runs": len(names), "configurations": len(set(groups))}
        y = [row["drop"] for row in drops if row["run"] in first]
        laws: dict[str, Law] = {}
        if len(names) >= FEWEST_RUNS:
            columns = {x: [of[name] for name in names] for x, of in known.items()}
            options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
            laws = fit_laws(columns, y, groups, **options)
        rows: Rows = []
        for predictor, of in self.known.predictors.items():
            row: dict[str, Any] = labels | {"predictor": predictor, "reason": ""}
            if predictor in laws:
                for name, value in laws[predictor]._asdict().items():
                    if value is not None:
                        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            if len(names) < FEWEST_RUNS:
                row["reason"] = f"fewer than {FEWEST_RUNS} runs"
            elif predictor not in laws:
                row["reason"] = "not known of every run"
            elif len({of[name] for name in names}) == 1:
                row["reason"] = "the same for all runs"
            elif len(set(groups)) < FEWEST_GROUPS:
                row["reason"] = f"fewer than {FEWEST_GROUPS} configurations, no intervals"
            rows.append(row)
        return rows
