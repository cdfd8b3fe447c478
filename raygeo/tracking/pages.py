"""Where MLflow's pages show a study, and how: a saved view of its runs, which everybody has under *Views*."""

import json

from raygeo.store import Store
from raygeo.tracking.outbox import Outbox
from raygeo.tracking.server import open_client

CONFIGURATION_TAG = "raygeo.configuration"
_VIEW = "raygeo"
_COLUMNS = (
    "params.`loss`",
    "params.`lr`",
    "params.`seed`",
    "metrics.`eval/accuracy`",
    "metrics.`geometry/delta_norm`",
    "metrics.`geometry/cosine_to_reference`",
)
_STATE = {
    "orderByKey": "attributes.start_time",
    "orderByAsc": True,
    "selectedColumns": _COLUMNS,
    "groupBy": {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": CONFIGURATION_TAG}],
    },
}
ABOUT = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{_VIEW}": json.dumps({"name": _VIEW, "createdAt": 0, "state": json.dumps(_STATE)}),
}
"""Tags of an experiment: that it is of models in training, not of traces, and the view."""


def pages_of(store: Store, uri: str, address: str) -> str:
    """The page of a store's study on the MLflow that is at ``uri`` and answers browsers at ``address``; that of all
    experiments where the study is not known there, or nobody answers.
    """
    name = Outbox(store).noted().get("study")
    try:
        found = None if name is None else open_client(uri).get_experiment_by_name(name)
    except Exception:  # whoever opens the page sees what is wrong
        found = None
    if found is None:
        return address
    return f"{address}/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"
