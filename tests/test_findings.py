"""The tables and the picture of docs/findings.md, from tables of a few runs whose numbers are known."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from checks.findings import BENCHMARKS, Findings, answers, comparisons, directions, written_into
from checks.pictures import by_rate, numbers, rows_of
from raygeo.tables import BASE

PAGE = (Path(__file__).parents[1] / "docs" / "findings.md").read_text()
PROBLEMS = 50


@pytest.fixture
def runs() -> Findings:
    """SFT, which solves nothing, and RFT, which solves 5 of the held-out problems and nothing else."""
    answers = [
        {
            "run": run,
            "benchmark": benchmark,
            "problem_id": i,
            "correct": (run, benchmark) == ("rft", "heldout") and i < 5,
        }
        for run in (BASE, "sft", "rft")
        for benchmark in BENCHMARKS
        for i in range(PROBLEMS)
    ]
    trained = [
        {"run": run, "loss": run, "lr": 1e-3, "seed": 0, "init_seed": 0, "status": "finished",
         "params": json.dumps({"loss": {"type": run}})}
        for run in ("sft", "rft")
    ]  # fmt: skip
    curves = [{"run": run, "metric": "heldout_nll", "step": 1, "value": 1.0} for run in ("sft", "rft")]
    tables = {"answers": answers, "runs": trained, "training_curves": curves}
    return Findings("nowhere", {name: pd.DataFrame(rows) for name, rows in tables.items()})


def test_a_comparison_that_stands_in_two_rows_is_one_test(runs):
    """5 of 50: p = 2 * 0.9 ** 50 = 0.010, below 5 % after Holm over three tests, and not over six."""
    both, best = (row for row in rows_of(f"<!-- x -->\n{comparisons(runs)}\n<!-- end -->", "x"))
    assert (both["rates"], best["rates"]) == ("both 1e-3", "best for each: 1e-3, SFT 1e-3")
    assert both["heldout, points"] == best["heldout, points"]
    assert re.fullmatch(r"\*\*\+10\.0 \[.*\]\*\*", both["heldout, points"])
    assert 0.05 / 6 < runs.difference(["rft"], ["sft"], "heldout").p < 0.05 / 3


def test_a_control_compares_each_loss_with_sft_whatever_its_rate(runs):
    pair = {"run_a": "sft", "run_b": "rft", "cosine": 0.5, "null_sd": 0.01}
    wrong = {"sft": [1] * 50, "rft": [0] * 5 + [1] * 45}
    tables = {
        "runs": [row | {"lr": 3e-4 if row["run"] == "rft" else 1e-3} for row in runs.read["runs"].to_dict("records")],
        "deltas": [{"run": run, "scope": "global", "norm": 2.0} for run in ("sft", "rft")],
        "divergences": [{"run_a": BASE, "run_b": run, "quantity": "kl_ab", "value": 0.003} for run in ("sft", "rft")],
        "cosine_baselines": [pair],
        "matched_examples": [{"run": run, "quantity": "kl", "wrong": each} for run, each in wrong.items()],
    }
    given = Findings("nowhere", runs.read | {name: pd.DataFrame(rows) for name, rows in tables.items()})
    sft, rft = rows_of(f"<!-- x -->\n{directions(given)}\n<!-- end -->", "x")
    assert (rft["lr"], rft["norm"], rft["KL(base ‖ run)"]) == ("3e-4", "2.00", "0.0030")
    assert (rft["cosine to SFT, same order"], sft["cosine to SFT, same order"]) == ("0.50", "–")
    base, sft, rft = rows_of(f"<!-- x -->\n{answers(given)}\n<!-- end -->", "x")
    assert (base["heldout"], base["heldout, less SFT"], base["retained"]) == ("0.0 %", "", "0.0 %")
    assert (rft["heldout"], sft["heldout, less SFT"], rft["heldout, equal norm"]) == ("10.0 %", "–", "–")
    assert numbers(rft["heldout, less SFT"])[0] == numbers(rft["heldout, equal KL"])[0] == 10.0


def test_a_block_is_written_and_the_others_stay():
    written = written_into(PAGE, "dpo", "new")
    assert "<!-- dpo -->\nnew\n<!-- end -->" in written
    assert re.sub("<!-- dpo -->.*?<!-- end -->", "", written, flags=re.DOTALL) == re.sub(
        "<!-- dpo -->.*?<!-- end -->", "", PAGE, flags=re.DOTALL
    )
    with pytest.raises(ValueError, match="no block 'none'"):
        written_into(PAGE, "none", "new")


def test_numbers_are_read_as_they_are_written():
    assert numbers("**−3.8 [−5.4, +2.1]**") == [-3.8, -5.4, 2.1]
    assert numbers("0.80 (0.80 to 0.81)") == [0.80, 0.80, 0.81]
    assert numbers("–") == []


def test_the_picture_shows_the_numbers_of_the_tables():
    cosine, steps, divergence = by_rate(PAGE).axes
    for axes, name, column in (
        (cosine, "cosines", "cosine to SFT, same order"),
        (steps, "comparisons", "heldout, points"),
        (divergence, "matched", "less SFT, equal KL"),
    ):
        rows = [row for row in rows_of(PAGE, name) if row["loss"] == "dpo" and "SFT" not in row.get("rates", "")]
        drawn = [[*line.get_ydata()] for line in axes.lines]
        assert [numbers(row[column])[0] for row in rows] in drawn
