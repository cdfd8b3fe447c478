"""Whether MLflow answers a driver."""

import os

from raygeo.errors import ConfigError
from raygeo.paths import without_credentials
from raygeo.store import Store
from raygeo.tracking.server import open_client, plain, remedy, tracking_uri


def examine_tracking(store: Store | None = None) -> tuple[str, str]:
    """Where a driver here logs a study in ``store``, and what is wrong with that, "" if nothing is."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        try:
            return "a sqlite file in the store" if store is None else tracking_uri(store), ""
        except ConfigError as error:
            return "nowhere", str(error).rstrip(".")
    shown = without_credentials(named)
    try:
        open_client(named).search_experiments(max_results=1)
    except Exception as error:
        wrong = f"MLFLOW_TRACKING_URI={shown} does not answer this process: {plain(error)}. {remedy(named, error)}"
        return shown, wrong.rstrip(".")
    return shown, ""
