"""Trajectories in MLflow."""

import pytest

from raygeo.analyses.registry import parts, schemas, view
from raygeo.pipeline.published import curves
from raygeo.pipeline.report import log_histories
from raygeo.report.missing import Failures
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.tracking import Tracking

pytestmark = pytest.mark.cluster

STEPS = (1, 3, 9)


def seen(cosine):
    rows = [
        {"run": run, "step": step, "norm": 0.5 * step, "cosine_final": step / 9, "path_length": 7.0}
        | {"cosine_reference": cosine if run == "dpo" and step > 1 else None}
        for run in ("sft", "dpo")
        for step in STEPS
    ]
    fits = [
        {"run": "dpo", "law": "log", "n": 4, "a": -0.5, "b": 1.5, "rss": 0.25, "aic": 3.0},
        {"run": "dpo", "law": "power", "n": 4},
    ]
    made = {"trajectories": rows, "trajectory_fits": fits}
    shown = view({name: to_arrow(name, made[name], schemas()[name]) for name in made}, "sft")
    return curves(shown, parts(), Failures())


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return Tracking(Store(tmp_path_factory.mktemp("store")), "study", {})


@pytest.fixture
def children(tracking, request):
    return {run: tracking.child(f"{run} of {request.node.name}", run, {}) for run in ("sft", "dpo")}


def history(tracking, key, name):
    tracking.flush()
    return [(m.step, m.value) for m in tracking.remote.client.get_metric_history(tracking.run_id(key), name)]


def test_curves_go_by_step_and_laws_are_plain_metrics(tracking, children):
    log_histories(tracking, children, seen(cosine=0.25))
    for child in children.values():
        assert history(tracking, child, "geometry/trajectory/norm") == [(1, 0.5), (3, 1.5), (9, 4.5)]
        assert history(tracking, child, "geometry/trajectory/cosine_final") == [(1, 1 / 9), (3, 1 / 3), (9, 1.0)]
    assert history(tracking, children["dpo"], "geometry/trajectory/cosine_reference") == [(3, 0.25), (9, 0.25)]
    assert history(tracking, children["sft"], "geometry/trajectory/cosine_reference") == []
    metrics = tracking.remote.client.get_run(tracking.run_id(children["dpo"])).data.metrics
    laws = {name.removeprefix("geometry/trajectory/"): value for name, value in metrics.items()}
    assert {n: v for n, v in laws.items() if n.startswith(("log", "power"))} == {
        "log_a": -0.5, "log_b": 1.5, "log_rss": 0.25, "log_aic": 3.0,
    }  # fmt: skip


def test_logging_again_adds_only_what_changed(tracking, children):
    for cosine in (0.25, 0.25, 0.5):
        log_histories(tracking, children, seen(cosine))
    assert history(tracking, children["dpo"], "geometry/trajectory/norm") == [(1, 0.5), (3, 1.5), (9, 4.5)]
    assert history(tracking, children["dpo"], "geometry/trajectory/log_b") == [(0, 1.5)]
    again = history(tracking, children["dpo"], "geometry/trajectory/cosine_reference")
    assert sorted(again) == [(3, 0.25), (3, 0.5), (9, 0.25), (9, 0.5)]
