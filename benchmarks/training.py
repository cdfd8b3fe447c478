"""Training throughput: raygeo against a plain torch loop and TRL, on the same weights, rows and batches."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.cases import Case, Prepared, prepare
from benchmarks.competitors import raygeo_loop, torch_loop, trl_loop
from benchmarks.race import Competitor, Result, race

OURS, PLAIN = "raygeo", "plain torch"
SWEEP = 6
"""Runs over which a reference pass is shared."""
AGREE = {"loss_first": 1e-4, "loss_next": 5e-3}
"""Greatest relative difference of competitors' losses, at the first step and over the next ones.

Rebalanced micro-batches have unlike sizes, and TRL's DPO takes a mean of their means: much the same, not quite.
"""
_REBALANCED = {"train_sampling_strategy": "batch_rebalance"}
_PRECOMPUTED = {"precompute_ref_log_probs": True}
TRL: dict[str, dict[str, dict[str, Any]]] = {
    "pointwise": {"TRL": {}, "TRL, rebalanced": _REBALANCED},
    "pair": {"TRL": {}, "TRL, precomputed, rebalanced": _PRECOMPUTED | _REBALANCED},
}


def compare(case: Case, loss: str, rounds: int, steps: int, threads: int, *, together: bool) -> list[dict[str, Any]]:
    """Race all competitors over ``rounds`` turns of ``steps`` steps and give a row for each.

    ``ratio`` is raygeo's median rate of completion tokens over the competitor's, in wall and in CPU time, with the
    least and greatest of the rounds. Where ``dpo`` reads reference log-probabilities computed beforehand, that pass is
    shared by the runs of a sweep, for TRL too (it keeps them beside a dataset on disk, under a hash of the dataset and
    of the weights), and a step is charged its share; a second row charges TRL with one pass a run, as datasets in
    memory cost it.

    Raises:
        RuntimeError: the competitors' losses differ, so they do not compute the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(case, (rounds + 1) * steps, threads, Path(folder))
        entries: dict[str, tuple[Competitor, tuple[Any, ...]]] = {
            OURS: (raygeo_loop, (prepared, loss)),
            PLAIN: (torch_loop, (prepared, loss)),
        }
        for name, options in TRL["pair" if loss == "dpo" else "pointwise"].items():
            entries[name] = (trl_loop, (prepared, loss, options))
        results = race(entries, rounds + 1, steps, threads, together=together)
    for place, tolerance in AGREE.items():
        losses = {result.name: result.reported[place] for result in results if result.reported[place] is not None}
        if losses and max(losses.values()) - min(losses.values()) > tolerance * max(losses.values()):
            raise RuntimeError(f"{case.name}, {loss}: competitors do not train alike, {place} is {losses}")
    charged = [entry for result in results for entry in _charge(result, loss, prepared)]
    return [_row(case, loss, entry, charged[0]) for entry in charged]


@dataclass(frozen=True)
class _Charged:
    """A result, and the wall and CPU seconds that each of its steps owes to a reference pass, charged as ``how``."""

    name: str
    result: Result
    how: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def _charge(result: Result, loss: str, prepared: Prepared) -> list[_Charged]:
    if loss != "dpo":
        return [_Charged(result.name, result, "none")]
    whole = result.reported.get("precompute_seconds", (prepared.reference_seconds, prepared.reference_cpu_seconds))
    if not any(whole):
        return [_Charged(result.name, result, "at every step")]
    a_run = [seconds / prepared.steps for seconds in whole]
    shared = _Charged(result.name, result, f"one pass for {SWEEP} runs", *(seconds / SWEEP for seconds in a_run))
    if result.name in (OURS, PLAIN):
        return [shared]
    return [shared, _Charged(f"{result.name} for each run", result, "one pass for each run", *a_run)]


def _row(case: Case, loss: str, entry: _Charged, ours: _Charged) -> dict[str, Any]:
    result = entry.result
    row: dict[str, Any] = {
        "case": case.name, "batch": str(case), "loss": loss, "competitor": entry.name, "rounds": len(result.turns)
    }  # fmt: skip
    for clock in ("seconds", "cpu_seconds"):
        mine, theirs = _rates(ours, clock), _rates(entry, clock)
        each = [a / b for a, b in zip(mine, theirs, strict=True)]
        row[clock] = {
            "completion_tokens_per_second": median(theirs),
            "tokens_per_second": median(_rates(entry, clock, "tokens")),
            "ratio": median(mine) / median(theirs),
            "ratio_least": min(each),
            "ratio_greatest": max(each),
        }
    row |= {"reference": entry.how, "reference_seconds_per_step": entry.seconds}
    return row | {"tokens": sum(turn.completion_tokens for turn in result.turns)} | result.reported


def _rates(entry: _Charged, clock: str, tokens: str = "completion_tokens") -> list[float]:
    extra = getattr(entry, clock)
    return [getattr(turn, tokens) / (getattr(turn, clock) + extra * turn.steps) for turn in entry.result.turns]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for people."""
    batches = "\n".join(dict.fromkeys(row["batch"] for row in rows))
    shown = Table(title="training, completion tokens per second", caption=batches)
    for name in ("case", "loss", "competitor", "tokens/s", "wall: raygeo is", "CPU: raygeo is", "loss, step 1", "MB"):
        shown.add_column(name, justify="left" if name in ("case", "loss", "competitor") else "right")
    for row in rows:
        wall, cpu = row["seconds"], row["cpu_seconds"]
        ratios = [f"{c['ratio']:.2f}x [{c['ratio_least']:.2f}, {c['ratio_greatest']:.2f}]" for c in (wall, cpu)]
        shown.add_row(
            row["case"], row["loss"], row["competitor"], f"{wall['completion_tokens_per_second']:,.0f}", *ratios,
            f"{row['loss_first']:.5f}", f"{row['peak_memory_mb']:,.0f}",
        )  # fmt: skip
    return shown
