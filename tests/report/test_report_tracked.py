"""What colleagues see of a study in MLflow: names and values as they have always been.

``tracked.json`` was written for the made-up study when one function made all metrics of all analyses. A name that is
missing here has gone from dashboards; change the file only with an entry in the change log.
"""

import json
import re
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from raygeo.analyses import registry
from raygeo.naming import training_metric

TRACKED = json.loads(Path(__file__).with_name("tracked.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics(view):
    found = defaultdict(dict)
    for make in registry.parts().metrics:
        for run, name, value in make(view):
            if value is not None:
                found[run][name] = value
    return found


@pytest.fixture(scope="module")
def histories(view):
    found = defaultdict(lambda: defaultdict(list))
    for make in registry.parts().histories:
        for run, name, step, value in make(view):
            if value is not None:
                found[run][name].append([step, value])
    return found


def test_runs_and_names_of_metrics_are_the_same(metrics):
    assert {run: set(values) for run, values in metrics.items()} == {
        run: set(values) for run, values in TRACKED["metrics"].items()
    }


@pytest.mark.parametrize("run", TRACKED["metrics"])
def test_metrics_of_a_run_have_the_same_values(metrics, run):
    assert metrics[run] == pytest.approx(TRACKED["metrics"][run], rel=1e-12)


@pytest.mark.parametrize("run", TRACKED["histories"])
def test_curves_of_a_run_are_the_same(histories, run):
    assert set(histories) == set(TRACKED["histories"])
    assert set(histories[run]) == set(TRACKED["histories"][run])
    for name, points in TRACKED["histories"][run].items():
        steps, values = zip(*sorted(histories[run][name]), strict=True)
        known_steps, known_values = zip(*points, strict=True)
        assert steps == known_steps
        assert values == pytest.approx(known_values, rel=1e-12), name


def test_no_metric_is_given_twice_with_other_values(view):
    seen = {}
    for make in registry.parts().metrics:
        for run, name, value in make(view):
            assert seen.setdefault((run, name), (make, value)) == (make, value)


def test_the_page_on_mlflow_names_what_is_not_of_an_analysis(metrics, histories):
    page = Path(__file__).parents[2].joinpath("docs", "mlflow.md").read_text(encoding="utf-8")
    table = page.partition("\n## Names\n")[2].partition("\n## ")[0]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(.*?)`", row)}
    declared = {known.metric.name for known in registry.metrics().values() if known.analysis is None}
    reported = {training_metric(name) for name in ("objective", "nll", "heldout_nll", "grad_norm", "lr")}
    reported |= {training_metric("rewards/accuracies"), "train/*"}
    assert listed == declared | reported | {"eval/*/monitor", "geometry/*"}
    made = {name for found in (metrics, histories) for values in found.values() for name in values}
    assert {name for name in made if not any(fnmatchcase(name, pattern) for pattern in listed)} == set()


def test_every_metric_is_declared(metrics):
    declared = [known.metric for known in registry.metrics().values()]
    names = {name for values in metrics.values() for name in values}
    assert {name for name in names if not any(metric.covers(name) for metric in declared)} == set()
    assert {"geometry/curve_barrier_to_reference/bezier", "geometry/loss_recognised/spectra"} <= names
