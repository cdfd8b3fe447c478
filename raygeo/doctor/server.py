"""Whether MLflow answers a driver."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from raygeo.errors import ConfigError
from raygeo.store import Store
from raygeo.tracking import tracking_uri

_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def examine_tracking(store: Store | None = None) -> tuple[str, str]:
    """Where a driver here logs a study in ``store``, and what is wrong with that, "" if nothing is."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        try:
            return "a sqlite file in the store" if store is None else tracking_uri(store), ""
        except ConfigError as error:
            return "nowhere", str(error).rstrip(".")
    try:
        with _impatient():
            MlflowClient(named).search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        return _plain(named), (
            f"MLFLOW_TRACKING_URI={_plain(named)} does not answer this process: {_plain(error)}. See that the server "
            "runs, and that it takes this name for itself (--allowed-hosts)"
        )
    return _plain(named), ""


def _plain(text: object) -> str:
    """A text that names a server, without user and password."""
    return re.sub(r"//[^/@\s]*@", "//", str(text)).strip().rstrip(".")


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow's client tries for minutes otherwise."""
    before = {name: os.environ.get(name) for name in _QUICK}
    os.environ.update(_QUICK)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
