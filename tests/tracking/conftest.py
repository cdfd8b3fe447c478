"""What MLflow is told in one test is not known in the next."""

import pytest


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch):
    """What MLflow's client is given from an address does not last beyond the test."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
