"""What the analysis takes from tables made before it."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygeo.analyses.forgetting.workload import KL, Known
from raygeo.analyses.inputs import AnalysisInputs
from raygeo.geometry.bootstrap import Array
from raygeo.tables import BASE


def known(of: AnalysisInputs) -> Known:
    """Answers to retention benchmarks, and the predictors of what was forgotten."""
    configurations = {run: condition.configuration for run, condition in of.conditions.items()}
    return Known(_right(of), dict(_predictors(of)), configurations)


def _right(of: AnalysisInputs) -> dict[str, dict[str, Array]]:
    """By retention benchmark and run, the share of right answers to each problem, of runs that answered as many."""
    names = [row["benchmark"] for row in of.table("benchmarks").to_pylist() if row["shift"] == "retention"]
    answers = of.table("answers").select(["run", "benchmark", "problem_id", "correct"])
    answers = answers.filter(pc.is_in(answers["benchmark"], pa.array(names, answers["benchmark"].type)))
    frame = answers.to_pandas()
    found: dict[str, dict[str, Array]] = {}
    for name in names:
        mine = frame[frame.benchmark == name]
        shares = mine.astype({"correct": float}).pivot_table("correct", "problem_id", "run", sort=True)
        if BASE in shares:
            whole = shares.columns[shares.notna().all()]
            found[name] = {str(run): shares[run].to_numpy(np.float64) for run in whole if BASE in whole}
    return {name: right for name, right in found.items() if right}


def _predictors(of: AnalysisInputs) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Numbers of runs by name of the predictor: the divergence, then what competes with it."""

    def column(table: str, name: str, run: str = "run", **equal: str) -> dict[str, float]:
        rows = of.table(table)
        for key, value in equal.items():
            rows = rows.filter(pc.equal(rows[key], value))
        pairs = zip(rows[run].to_pylist(), rows[name].to_pylist(), strict=True)
        return {key: value for key, value in pairs if value is not None}

    yield KL, column("divergences", "value", "run_b", run_a=BASE, quantity="kl_ab")
    yield "norm of the delta", column("deltas", "norm", scope="global")
    sparsity = column("off_principal", "update_sparsity", scope="global")
    yield "share of weights changed", {run: 1 - value for run, value in sparsity.items()}
    yield "effective rank", column("deltas", "effective_rank", scope="global")
    yield "learning rate", {run: lr for run, record in of.records.items() if (lr := record.lr) is not None}
