"""Where MLflow is, whether an error means that it is away, and what a user can do about it."""

import logging
import os
import re
import socket
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.tracking import MlflowClient

from raygeo.errors import ConfigError
from raygeo.paths import without_credentials
from raygeo.store import Store

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""By itself, MLflow's client tries for four minutes to reach a server that is gone; whoever sends tries again later."""
_NOT_NOW = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
}
_REASON = re.compile(r"\[Errno -?\d+\] ([\w ]+)|Read timed out|Connection aborted")
NO_ENDPOINT = ErrorCode.Name(ENDPOINT_NOT_FOUND)  # what answers is a proxy, or no MLflow at all


def tracking_uri(store: Store) -> str:
    """The tracking URI: ``MLFLOW_TRACKING_URI`` if set, else a sqlite file in a local store.

    Raises:
        ConfigError: the store is remote and no tracking server is named.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if not store.is_local:
        raise ConfigError(
            f"the store {store.location} is remote, and sqlite cannot live there; "
            "set MLFLOW_TRACKING_URI to an MLflow server."
        )
    return f"sqlite:///{store.path('mlflow.db')}"


def open_client(uri: str) -> MlflowClient:
    """A client that gives up soon, unless the environment says how long it is to try.

    User and password of the address go where MLflow's own are, so that no message of a library holds them.
    """
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the stack of what it raises
    settings, parts = dict(_SETTINGS), urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.username and parts.password:
        settings["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        settings["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def check_free(port: int) -> None:
    """See that a server can be started at this port of 127.0.0.1.

    Raises:
        ConfigError: it cannot.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used: {error.strerror}; give another with --port.") from error


def is_away(error: BaseException) -> bool:
    """Whether the same request may be taken later: MLflow cannot be reached, is out of order, or lets nobody in."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _NOT_NOW or error.error_code == NO_ENDPOINT
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _NOT_NOW
    return isinstance(error, requests.RequestException)


def plain(error: object) -> str:
    """An error as it may be shown: the reason alone where there was no connection; no user, password or full stop."""
    text = without_credentials(str(error)).strip().rstrip(".")
    reason = _REASON.search(text)
    return text if reason is None else reason[1] or reason[0]


def remedy(uri: str, error: Exception) -> str:
    """What to do about an MLflow that cannot be used."""
    if uri.startswith("sqlite"):
        return (
            "If another process holds the file, end it; if the file is damaged, move it away: everything is then "
            "logged anew."
        )
    if "Invalid Host header" in str(error):
        return "Start the server with the host of this address, and its port, among its --allowed-hosts."
    status = error.get_http_status_code() if isinstance(error, MlflowException) else None
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)."
    if is_away(error):
        return (
            "Start the server, correct MLFLOW_TRACKING_URI, or unset it to log to a file in the store (which must then "
            "be a local one)."
        )
    return "Correct what it says, or set MLFLOW_TRACKING_URI to another server."
