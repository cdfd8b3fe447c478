"""What analyses declare of their metrics, held against what they make of the tiny study of the golden numbers."""

from dataclasses import replace

import pytest
from golden_numbers import SMALL, compute, inputs

from raygeo.analyses.registry import analyses, view
from raygeo.cluster.execution import run_workload
from raygeo.pipeline.objectives import computed, numbers

pytestmark = pytest.mark.cluster

UNMADE = {"curves", "loss_classifier"}
"""The tiny study has no barrier to train a curve round, and too few runs to classify: their metrics are held by the
made-up study of the page."""
MADE = [name for name, analysis in analyses().items() if analysis.report.metrics and name not in UNMADE]


def settings(analysis):
    return analysis.settings(**{name: v for name, v in SMALL.items() if name in analysis.settings.model_fields})


@pytest.mark.parametrize("name", MADE)
def test_an_analysis_declares_exactly_the_metrics_that_it_makes(name):
    analysis = analyses()[name]
    made = set()
    for run in inputs().records:
        made |= numbers(analysis.report, compute(analysis), run).keys()
        made |= {metric for of, metric, _ in _rows(analysis) if of == run}
    declared = analysis.report.declared
    assert {metric for metric in made if not any(one.covers(metric) for one in declared)} == set()
    assert [one.name for one in declared if not any(one.covers(metric) for metric in made)] == []
    for one in declared:
        if (known := one.known(settings(analysis))) is not None:
            assert {metric for metric in made if one.covers(metric)} <= set(known), one.name
            assert known[0] in made


def _rows(analysis):
    seen = view(compute(analysis), inputs().reference)
    return [row for hook in analysis.report.metrics for row in hook(seen)]


@pytest.mark.parametrize(
    "name", [name for name in MADE if any(one.among != "study" for one in analyses()[name].report.declared)]
)
def test_a_run_measured_alone_has_the_numbers_and_the_units_of_the_study(name):
    analysis, given = analyses()[name], inputs()
    compute(analysis)
    whole = {(run, metric): value for run, metric, value in _rows(analysis)}
    store = given.training.store
    [base, *trained] = given.runs
    for metric in analysis.report.declared:
        for run in trained if metric.among != "study" else ():
            runs = [base, run] if metric.among == "base" else [run]
            alone = replace(given, runs=runs, reference=run.name, records={run.name: given.records[run.name]})
            [full, *_] = metric.known(settings(analysis))
            arguments = analysis.arguments(alone)
            kinds = metric.made_by or analysis.workloads
            workloads = [kind(metric.only(settings(analysis), full), *arguments) for kind in kinds]
            results = [run_workload(workload, store) for workload in workloads]
            assert sum(result.reused for result in results) > 0
            assert sum(result.made for result in results) == 0
            tables = computed(workloads, store, lambda workload: run_workload(workload, store))
            assert numbers(analysis.report, tables, run.name)[full] == pytest.approx(whole[run.name, full], rel=1e-6)
