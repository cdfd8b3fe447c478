"""Training throughput: raygeo against a plain torch loop and TRL, on the same weights, rows and batches."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.cases import Case, prepare
from benchmarks.competitors import raygeo_loop, torch_loop, trl_loop
from benchmarks.race import Competitor, Result, race

OURS = "raygeo"
SWEEP = 6
"""Runs over which a reference pass is shared."""
AGREE = 1e-4
_REBALANCED = {"train_sampling_strategy": "batch_rebalance"}
_PRECOMPUTED = {"precompute_ref_log_probs": True}
TRL: dict[str, dict[str, dict[str, Any]]] = {
    "pointwise": {"TRL": {}, "TRL, rebalanced": _REBALANCED},
    "pair": {
        "TRL": {},
        "TRL, precomputed": _PRECOMPUTED,
        "TRL, precomputed, rebalanced": _PRECOMPUTED | _REBALANCED,
    },
}


def compare(case: Case, loss: str, rounds: int, steps: int, threads: int, *, together: bool) -> list[dict[str, Any]]:
    """Race all competitors over ``rounds`` turns of ``steps`` steps and give a row for each.

    ``ratio`` is raygeo's median rate of completion tokens over the competitor's, in wall and in CPU time, with the
    least and greatest of the rounds. For ``dpo`` the reference's share of a step is added: a sixth of one pass for
    raygeo, one pass a run for TRL where it computes it beforehand.

    Raises:
        RuntimeError: the competitors' losses of the first step differ, so they do not compute the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(case, (rounds + 1) * steps, threads, Path(folder))
        entries: dict[str, tuple[Competitor, tuple[Any, ...]]] = {
            OURS: (raygeo_loop, (prepared, loss)),
            "plain torch": (torch_loop, (prepared, loss)),
        }
        for name, options in TRL["pair" if loss == "dpo" else "pointwise"].items():
            entries[name] = (trl_loop, (prepared, loss, options))
        results = race(entries, rounds + 1, steps, threads, together=together)
    first = [result.told["loss_first"] for result in results]
    if max(first) - min(first) > AGREE:
        raise RuntimeError(f"{case.name}, {loss}: losses of the first step differ: {first}")
    shared = (prepared.reference_seconds / SWEEP, prepared.reference_cpu_seconds / SWEEP)
    extras = {
        result.name: shared if loss == "dpo" and result.name in (OURS, "plain torch") else _precomputed(result)
        for result in results
    }
    return [_row(case, loss, result, results[0], extras, prepared.steps) for result in results]


def _precomputed(result: Result) -> tuple[float, float]:
    found = result.told.get("precompute", {"seconds": 0.0, "cpu_seconds": 0.0})
    return found["seconds"], found["cpu_seconds"]


def _row(
    case: Case, loss: str, result: Result, ours: Result, extras: dict[str, tuple[float, float]], epoch: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.name, "loss": loss, "competitor": result.name, "rounds": len(result.turns)}
    for place, clock in enumerate(("seconds", "cpu_seconds")):
        mine, theirs = (_rates(r, clock, extras[r.name][place] / epoch) for r in (ours, result))
        each = [a / b for a, b in zip(mine, theirs, strict=True)]
        row[clock] = {
            "completion_tokens_per_second": median(theirs),
            "tokens_per_second": median(_rates(result, clock, extras[result.name][place] / epoch, "tokens")),
            "ratio": median(mine) / median(theirs),
            "ratio_least": min(each),
            "ratio_greatest": max(each),
        }
    row["reference_seconds_per_step"] = extras[result.name][0] / epoch
    return row | {"tokens": sum(turn.completion_tokens for turn in result.turns)} | result.told


def _rates(result: Result, clock: str, extra: float, tokens: str = "completion_tokens") -> list[float]:
    return [getattr(turn, tokens) / (getattr(turn, clock) + extra * turn.steps) for turn in result.turns]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for people."""
    shown = Table(title="training, completion tokens per second")
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
