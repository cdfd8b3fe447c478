"""The table of results, McNemar tests, and what went into a study."""

import pytest
from report_study import DIVERGED, REFERENCE, RUNS
from view_cases import axes_of, row_of, sheet_of, titles, view_of

from raygeo.analyses import registry
from raygeo.report import made
from raygeo.report.results import accuracies, drop_metrics, drops, mcnemar, results
from raygeo.report.training import accuracy
from raygeo.tables import to_arrow


def results_of(view):
    return results(view, registry.parts().columns)


def test_results_hold_the_right_numbers_with_the_base_first(view):
    sheet = results_of(view)
    assert [cells[0] for cells in sheet.rows] == ["base", *RUNS, DIVERGED]
    assert row_of(sheet, "rft-lr5e-05-s0") == {
        "run": "rft-lr5e-05-s0",
        "loss": "rft",
        "lr": "5e-05",
        "seed": "0",
        "status": "finished",
        "accuracy": ("91.7 %", "[88.0, 94.3]"),
        "points vs base": "+49.7",
        "p (Holm) vs base": "< 0.001",
        "‖Δ‖": "3.70",
        "‖Δ‖/‖W‖": "4.4 %",
        "cosine to ref.": "0.68",
        "barrier to ref.": ("0.000", "[0.000, 0.001]"),
        "top eigenvalue": "13.4",
        "trace": ("425", "[397, 453]"),
    }
    base = row_of(sheet, "base")
    assert base["accuracy"] == ("42.0 %", "[36.6, 47.7]")
    assert base["status"] == "untrained"
    assert base["cosine to ref."] == base["points vs base"] == "–"
    diverged = row_of(sheet, DIVERGED)
    assert diverged["status"] == "diverged"
    assert {diverged[c] for c in ("accuracy", "‖Δ‖", "cosine to ref.", "trace", "barrier to ref.")} == {"–"}


def test_a_run_known_only_from_its_geometry_is_not_called_untrained(tables):
    known = registry.view({name: tables[name] for name in ("deltas", "similarity")}, REFERENCE)
    rft = row_of(results_of(known), "rft-lr5e-05-s0")
    assert (rft["status"], rft["‖Δ‖"], rft["‖Δ‖/‖W‖"], rft["cosine to ref."]) == ("–", "3.70", "4.4 %", "0.68")


def test_a_reference_run_that_failed_has_no_cosine(tables):
    sheet = results_of(registry.view(tables, DIVERGED))
    assert "‖Δ‖" in sheet.columns
    assert "cosine to ref." not in sheet.columns


def test_what_was_not_measured_of_any_run_has_no_column(tables):
    without = results_of(registry.view({name: t for name, t in tables.items() if name != "curvature"}, REFERENCE))
    assert [*without.columns, "top eigenvalue", "trace"] == results_of(registry.view(tables, REFERENCE)).columns


def test_several_benchmarks_have_their_own_columns(tables):
    more = [row | {"benchmark": "gsm8k"} for row in tables["accuracy"].to_pylist()]
    both = to_arrow("accuracy", tables["accuracy"].to_pylist() + more)
    columns = results_of(registry.view(tables | {"accuracy": both}, REFERENCE)).columns
    assert "word-problems accuracy" in columns
    assert "gsm8k accuracy" in columns


def test_without_runs_there_are_no_results():
    assert results_of(view_of()).rows == []


def test_mcnemar_reads_from_both_sides(view):
    sheet = sheet_of(mcnemar, view)
    assert row_of(sheet, "base")[REFERENCE] == ("< 0.001", "12 : 136")
    assert row_of(sheet, REFERENCE)["base"] == ("< 0.001", "136 : 12")
    assert row_of(sheet, "base")["base"] == ""


def shifted_view():
    accuracy = [
        {"run": run, "benchmark": name, "n": 100, "correct": correct, "accuracy": correct / 100}
        | {"low": correct / 100 - 0.1, "high": correct / 100 + 0.1}
        for run, counts in {"base": (50, 20, 90), "sft": (80, 30, 70)}.items()
        for name, correct in zip(("heldout", "harder", "before"), counts, strict=True)
    ]
    shifts = {"heldout": "none", "harder": "ood", "before": "retention"}
    return view_of(
        accuracy=accuracy,
        benchmarks=[{"benchmark": name, "shift": shift, "problems": 100} for name, shift in shifts.items()],
        drops=[
            {
                "run": run,
                "benchmark": "harder",
                "within": "heldout",
                "drop": drop,
                "low": drop - 0.1,
                "high": drop + 0.1,
            }
            for run, drop in {"base": 0.3, "sft": 0.5}.items()
        ],
    )


def test_accuracy_out_of_distribution_stands_beside_that_within():
    sheet = sheet_of(drops, shifted_view())
    assert sheet.columns == ["run", "heldout accuracy", "harder accuracy", "harder drop"]
    assert row_of(sheet, "sft") == {
        "run": "sft",
        "heldout accuracy": ("80.0 %", "[70.0, 90.0]"),
        "harder accuracy": ("30.0 %", "[20.0, 40.0]"),
        "harder drop": ("+50.0", "[+40.0, +60.0]"),
    }
    assert drops.sheets(view_of()) == []


def test_shifts_are_said_where_benchmarks_are_named():
    view = shifted_view()
    columns = results_of(view).columns
    for name in ("heldout accuracy", "harder (out of distribution) accuracy", "before (retention) accuracy"):
        assert name in columns
    shown = titles(axes_of(accuracy, view))
    assert [title.partition(",")[0] for title in shown] == [
        "heldout", "harder (out of distribution)", "before (retention)",
    ]  # fmt: skip


def test_drops_are_tracked_with_their_interval():
    assert [(run, name, round(value, 3)) for run, name, value in drop_metrics(shifted_view())] == [
        ("base", "harder/drop", 0.3), ("base", "harder/drop_low", 0.2), ("base", "harder/drop_high", 0.4),
        ("sft", "harder/drop", 0.5), ("sft", "harder/drop_low", 0.4), ("sft", "harder/drop_high", 0.6),
    ]  # fmt: skip


def test_accuracy_is_tracked_with_its_interval():
    row = {"run": "sft", "benchmark": "gsm8k", "n": 4, "accuracy": 0.5, "low": 0.25, "high": 0.75}
    assert {name: value for _, name, value in accuracies(view_of(accuracy=[row]))} == {
        "gsm8k/accuracy": 0.5,
        "gsm8k/accuracy_low": 0.25,
        "gsm8k/accuracy_high": 0.75,
    }


@pytest.mark.parametrize("chief", ["gsm8k", "math500"])
def test_accuracy_without_a_benchmark_is_that_of_the_first_or_of_none(chief):
    row = {"run": "sft", "benchmark": "gsm8k", "n": 4, "accuracy": 0.5, "low": 0.25, "high": 0.75}
    asked = [
        {"benchmark": chief, "shift": "none", "problems": 4},
        {"benchmark": "gsm8k", "shift": "ood", "problems": 4},
    ]
    found = {name: value for _, name, value in accuracies(view_of(accuracy=[row], benchmarks=asked))}
    assert found.get("accuracy") == (0.5 if chief == "gsm8k" else None)


def test_facts_count_what_was_learned_from(view):
    assert {fact.label: fact.value for fact in made.facts(view)} == {
        "prompts": "40",
        "graded rollouts": "320",
        "of rollouts correct": "46.9 %",
        "of prompts mixed: right and wrong": "77.5 %",
        "rollouts truncated": "1",
        "input rows set aside": "1",
        "runs finished": "8 of 9",
    }


def test_what_was_set_aside_is_counted_by_reason():
    rows = [{"source": source, "line": 1, "reason": reason} for source, reason in (("a", "x"), ("b", "y"), ("b", "y"))]
    assert made.set_aside(view_of(set_aside=rows)).rows == [("y", "b", "2"), ("x", "a", "1")]


def test_a_count_of_how_rollouts_were_graded_says_what_it_counts():
    names = {"rows": 12, "graded by exact: answers stand after ####": 0}
    rows = [{"stage": "rollouts", "name": name, "value": value} for name, value in names.items()]
    assert made.counts(view_of(counts=rows)).rows == [
        ("rollouts", "rows", "12"),
        ("rollouts", "had no verdict before, graded by exact: answers stand after ####", "0"),
    ]


def test_tables_without_rows_are_not_listed():
    view = view_of(runs=[{"run": "sft", "key": "k", "status": "finished"}])
    assert [row[:2] for row in made.files(view).rows] == [("tables/runs.parquet", "1")]
