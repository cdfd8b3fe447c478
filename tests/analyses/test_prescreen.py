from types import SimpleNamespace

import numpy as np
import pytest
from view_cases import axes_of, sheet_of, view_of

from raygeo.analyses.prescreen.report import correlations, heatmap, limits, verdicts
from raygeo.analyses.prescreen.workload import NORM, Prescreen, PrescreenSettings, Runs, read_runs
from raygeo.analyses.registry import schemas
from raygeo.records import Condition
from raygeo.tables import BASE, to_arrow

pytestmark = pytest.mark.slow

FAST = PrescreenSettings(bootstrap=100, permutations=1999)


def runs(configurations=24, seeds=2, missing=()):
    """The delta's norm drives forgetting; `echo` follows the norm, `own` tells of forgetting beside it."""
    rng = np.random.default_rng(0)
    names = [f"c{i}-s{s}" for s in range(seeds) for i in range(configurations)]
    groups = [i for _ in range(seeds) for i in range(configurations)]
    rates = [1e-6 * 2 ** (i % 4) for i in groups]
    norm = np.array(rates) * np.exp(0.3 * rng.standard_normal(configurations)[groups])
    own = rng.standard_normal(configurations)[groups] + 0.1 * rng.standard_normal(len(groups))
    metrics = {
        "geometry/delta_norm": norm,
        "echo": norm * np.exp(0.1 * rng.standard_normal(len(groups))),
        "own": own,
        **{f"noise{i}": rng.standard_normal(len(groups)) for i in range(5)},
    }
    forgetting = np.log(norm * 1e6) + own + 0.1 * rng.standard_normal(len(groups))
    return Runs(
        tuple(names),
        tuple(groups),
        dict(zip(names, rates, strict=True)),
        {m: {n: float(v) for n, v in zip(names, x, strict=True) if (m, n) not in missing} for m, x in metrics.items()},
        {"forgetting": dict(zip(names, forgetting.tolist(), strict=True)), "constant": dict.fromkeys(names, 1.0)},
    )  # fmt: skip


def rows(given, settings=FAST):
    workload = Prescreen(settings, given)
    [task] = workload.tasks()
    return workload.compute(None, task.payload)["prescreen"]


def view(given, settings=FAST):
    return view_of(prescreen=rows(given, settings))


def test_what_only_follows_the_norm_is_gone_once_the_norm_is_partialled_out():
    found = {row["metric"]: row for row in rows(runs()) if row["outcome"] == "forgetting"}
    held = {name for name, row in found.items() if row["p_holm"] <= 0.05}
    assert held == {"geometry/delta_norm", "echo", "own"}
    assert {name for name, row in found.items() if (row.get("partial_p_holm") or 1) <= 0.05} == {"own"}
    assert found["geometry/delta_norm"]["partial_rho"] is None
    assert found["own"]["controls"] == "geometry/delta_norm, log lr"
    assert (found["own"]["runs"], found["own"]["configurations"]) == (48, 24)
    assert found["own"]["low"] < found["own"]["rho"] < found["own"]["high"]


def test_an_outcome_that_never_varies_is_not_tested():
    constant = [row for row in rows(runs()) if row["outcome"] == "constant"]
    assert {row["rho"] for row in constant} == {row["p"] for row in constant} == {None}
    assert "p_holm" not in constant[0]


def test_a_metric_counts_the_runs_of_which_it_is_known_and_shifts_no_other():
    missing = {("own", "c0-s0"), ("own", "c0-s1"), ("own", "c1-s0")}
    whole, part = (
        {row["metric"]: row for row in rows(given) if row["outcome"] == "forgetting"}
        for given in (runs(), runs(missing=missing))
    )
    assert (part["own"]["runs"], part["own"]["configurations"]) == (45, 23)
    assert {n: part["echo"][n] for n in ("runs", "rho", "p")} == {n: whole["echo"][n] for n in ("runs", "rho", "p")}


def test_patterns_make_the_family_smaller():
    few = PrescreenSettings(bootstrap=100, permutations=1999, predictors=("*own", "geometry/delta_*"))
    found = [row for row in rows(runs(), few) if row["outcome"] == "forgetting"]
    assert [row["metric"] for row in found] == ["geometry/delta_norm", "own"]
    assert found[0]["needed"] < rows(runs())[0]["needed"]


def test_without_varying_controls_nothing_is_partialled_out():
    given = runs()
    plain = Runs(
        given.names, given.groups, dict.fromkeys(given.names, 1e-5), {"own": given.predictors["own"]}, given.outcomes
    )
    [row] = [row for row in rows(plain) if row["outcome"] == "forgetting"]
    assert (row["controls"], row["partial_rho"]) == (None, None)
    assert "Nothing was partialled out" in sheet_of(verdicts, view(plain)).rows[0][1]


def test_the_sentence_names_what_holds_and_what_is_left_of_it():
    said = dict(sheet_of(verdicts, view(runs())).rows)
    assert "own (ρ " in said["forgetting"]
    assert (
        " do. With geometry/delta_norm, log lr partialled out, own is left; geometry/delta_norm is itself one of these."
        " 8 metrics were" in said["forgetting"]
    )
    assert said["constant"] == "Nothing can be told: it, or every metric, is the same for all runs."


def test_the_sentence_counts_what_holds_and_what_is_left_beyond_five():
    given = runs()
    many = {f"own{i}": given.predictors["own"] for i in range(7)} | {NORM: given.predictors[NORM]}
    said = dict(sheet_of(verdicts, view(Runs(given.names, given.groups, given.lr, many, given.outcomes))).rows)
    held, left = said["forgetting"].split(". ")[:2]
    assert (held.count("(ρ"), held.endswith(" and 3 more do")) == (5, True)
    assert "own0, own1, own2, own3, own4 and 2 more are left;" in left


def test_the_sentence_says_that_none_does_and_what_it_would_take():
    given = runs()
    noise = {name: values for name, values in given.predictors.items() if name.startswith("noise")}
    none = Runs(given.names, given.groups, given.lr, noise, given.outcomes)
    [(_, said), _] = sheet_of(verdicts, view(none)).rows
    assert said.startswith("None is shown to, at this number of runs. 5 metrics were tested over 24 configurations")
    assert said.endswith("one of 0.5 takes 45.")


def test_the_norm_alone_is_named_as_what_is_partialled_out_and_not_as_gone():
    given = runs()
    norm = given.predictors["geometry/delta_norm"]
    relative = {name: value / 7 for name, value in norm.items()}
    few = Runs(given.names, given.groups, given.lr, {"geometry/delta_norm": norm, "relative": relative}, given.outcomes)
    said = dict(sheet_of(verdicts, view(few)).rows)["forgetting"]
    assert "geometry/delta_norm is itself one of these; 1 metric varies with these alone and cannot be tested." in said
    assert "left" not in said
    echo = Runs(given.names, given.groups, given.lr, given.predictors | {"own": norm}, given.outcomes)
    assert (
        "none is shown to be left; geometry/delta_norm is itself"
        in dict(sheet_of(verdicts, view(echo)).rows)["forgetting"]
    )


def test_too_few_permutations_are_blamed_and_not_the_runs():
    few = PrescreenSettings(bootstrap=100, permutations=99)
    said = dict(sheet_of(verdicts, view(runs(), few)).rows)["forgetting"]
    assert said.startswith("None can: of 99 permutations the least p is 0.080 once it is corrected over 8 metrics")
    assert "geometry.prescreen.permutations to 159 or more" in said
    enough = PrescreenSettings(bootstrap=100, permutations=159)
    assert "own (ρ" in dict(sheet_of(verdicts, view(runs(), enough)).rows)["forgetting"]


def test_of_few_configurations_nothing_is_tested_and_nothing_told():
    few = runs(configurations=9, seeds=4)
    assert all("p" not in row for row in rows(few))
    seen = view(few)
    said = dict(sheet_of(verdicts, seen).rows)["forgetting"]
    assert said.startswith("Nothing can be told: it is known of 9 configurations, and at least 10 are needed")
    assert heatmap.draw(seen) is None
    assert correlations.sheets(seen) == []
    assert list(limits(seen)) == []


def test_the_figure_marks_what_holds():
    seen = view(runs())
    ax = axes_of(heatmap, seen)[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["forgetting"]
    stars = [text for text in ax.texts if text.get_text() == "★"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert {names[int(star.get_position()[1])] for star in stars} == {"geometry/delta_norm", "echo", "own"}
    assert list(limits(seen))


def test_the_tables_have_the_smallest_p_first():
    [(title, _, sheet)] = correlations.sheets(view(runs()))
    assert title == "Metrics against outcomes, forgetting"
    assert {row[0] for row in sheet.rows[:3]} == {"geometry/delta_norm", "echo", "own"}


def inputs(**tables):
    """Three runs, two of one configuration, and some tables."""
    known = {name: to_arrow(name, rows, schemas()[name]) for name, rows in tables.items()}
    conditions = {n: Condition(n[:3], "settings", int(n[-1]), None) for n in ("sft-s1", "sft-s0", "dpo-s0")}
    return SimpleNamespace(
        runs=[SimpleNamespace(name=BASE, delta=None), *(SimpleNamespace(name=n, delta="d") for n in conditions)],
        conditions=conditions | {BASE: Condition("", "", 0, None)},
        records={name: SimpleNamespace(lr=1e-5) for name in list(conditions)[:2]},
        reference="sft-s0",
        table=lambda name: known.get(name, schemas()[name].empty_table()),
    )


def answered(run, benchmark, n, correct):
    return {"run": run, "benchmark": benchmark, "n": n, "correct": correct, "accuracy": correct / n}


def test_benchmarks_of_a_shift_are_one_outcome_over_all_their_answers():
    accuracy = [
        answered("sft-s0", "heldout", 10, 5),
        answered("sft-s0", "hard", 10, 1),
        answered("sft-s0", "long", 30, 9),
        answered("dpo-s0", "hard", 10, 4),
        answered(BASE, "hard", 10, 2),
    ]
    shifts = [
        {"benchmark": "heldout", "shift": "none"},
        {"benchmark": "hard", "shift": "ood"},
        {"benchmark": "long", "shift": "ood"},
    ]
    found = read_runs(inputs(accuracy=accuracy, benchmarks=shifts)).outcomes
    assert found == {"in-distribution accuracy": {"sft-s0": 0.5}, "OOD accuracy": {"sft-s0": 0.25}}


def test_accuracy_on_retention_is_an_outcome_where_forgetting_is_not_its_mirror_image():
    tables = {
        "accuracy": [answered(name, "old", 10, 5) for name in ("sft-s0", "dpo-s0", BASE)],
        "benchmarks": [{"benchmark": "old", "shift": "retention"}],
    }

    def forgot(measure, source):
        return [{"run": "sft-s0", "source": source, "measure": measure, "base": 0.5, "value": 0.5, "drop": 0.0}]

    assert read_runs(inputs(**tables)).outcomes == {"accuracy on retention": {"sft-s0": 0.5, "dpo-s0": 0.5}}
    assert read_runs(inputs(**tables, forgetting=forgot("accuracy", "old"))).outcomes == {
        "geometry/forgetting": {"sft-s0": 0.0}
    }
    assert set(read_runs(inputs(**tables, forgetting=forgot("nll", "texts"))).outcomes) == {
        "accuracy on retention", "geometry/forgetting"
    }  # fmt: skip


def test_as_many_answers_are_not_all_benchmarks():
    accuracy = [answered("sft-s0", "a", 10, 5), answered("sft-s0", "b", 10, 5), answered("dpo-s0", "a", 20, 9)]
    shifts = [{"benchmark": name, "shift": "ood"} for name in "ab"]
    assert read_runs(inputs(accuracy=accuracy, benchmarks=shifts)).outcomes == {"OOD accuracy": {"sft-s0": 0.5}}


def test_tunability_is_an_outcome_on_new_data_alone():
    def tuned(texts):
        return read_runs(inputs(tunability=[{"run": "sft-s0", "texts": texts, "over_base": 0.2, "gain": 0.1}])).outcomes

    assert tuned("pairs") == {"geometry/tunability": {"sft-s0": 0.2}}
    assert tuned("solutions") == {}


def test_runs_in_stages_are_sorted_among_the_others():
    given = inputs()
    given.conditions["dpo-s0"] = Condition("sft+dpo", "settings", (0, 3), (None, 1))
    assert read_runs(given).names == ("sft-s0", "dpo-s0", "sft-s1")


def test_numbers_of_analyses_are_read_with_their_roles_and_runs_grouped():
    norms = [{"run": name, "scope": "global", "norm": 2.0, "effective_rank": float("nan")} for name in ("sft-s0", BASE)]
    found = read_runs(inputs(deltas=norms))
    assert found.predictors == {"geometry/delta_norm": {"sft-s0": 2.0}}
    assert found.names == ("dpo-s0", "sft-s0", "sft-s1")
    assert found.groups == (0, 1, 1)
    assert found.lr == {"sft-s0": 1e-5, "sft-s1": 1e-5}


def test_the_key_holds_the_numbers():
    given = runs()
    other = Runs(given.names, given.groups, given.lr, given.predictors, {"forgetting": dict.fromkeys(given.names, 1.0)})
    keys = {Prescreen(FAST, one).tasks()[0].key for one in (given, runs(), other)}
    assert len(keys) == 2
    assert Prescreen(FAST, Runs(given.names, given.groups, given.lr, given.predictors, {})).tasks() == []
