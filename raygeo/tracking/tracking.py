"""What the stages of a study tell MLflow."""

import base64
import io
import json
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import requests
from mlflow.store.db.db_types import DATABASE_ENGINES
from rich.markup import escape

from raygeo.errors import ConfigError, TrackingError
from raygeo.interrupts import asked
from raygeo.naming import SCHEME
from raygeo.paths import without_credentials
from raygeo.store import Store
from raygeo.store.lease import find_lease
from raygeo.tracking.outbox import FOLDER, Outbox
from raygeo.tracking.remote import Point, Remote
from raygeo.tracking.sender import Sender
from raygeo.tracking.server import is_away, open_client, plain, remedy, tracking_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]
Context = Literal["training", "evaluation"]
"""What data were to a run."""
FLUSH_SECONDS, CLOSE_SECONDS = 60.0, 300.0
"""How long a study waits for an MLflow that answers, but slowly: between stages, and at its end."""
STOPPED_SECONDS = {signal.SIGINT: 10.0, signal.SIGTERM: 1.5}
"""The same once it was asked to stop: at a terminal one may press twice; ``ray job stop`` kills 3 s after SIGTERM."""

_MARKED = "The study was killed: its runs that were still running are marked so."
_OUTDATED = "{} entries for MLflow have names of an earlier version; run the study again to log it under the new ones."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Data that a run was trained on or asked: their name, a content key of what is in them, the store that keeps them,
    and counts of them by what is counted.
    """

    name: str
    digest: str
    store: str
    counts: Mapping[str, int]

    def plain(self) -> dict[str, str]:
        """They as MLflow's dataset."""
        source = json.dumps({"uri": without_credentials(self.store)})
        profile = json.dumps(dict(self.counts))
        return {"name": self.name, "digest": self.digest, "source_type": "raygeo", "source": source, "profile": profile}


class Tracking:
    """The study's experiment and its runs, which are named by content keys.

    ``study`` names the experiment and the study's own run; ``params`` are shown on that, ``tags`` on every run, and
    ``note`` describes both. What is
    told is queued and sent by a thread; ``say`` is called once with what is wrong where MLflow stops to answer, and
    once when it answers again. ``trouble`` is what MLflow refused, None if it took everything.

    Raises:
        ConfigError: MLflow does not answer, and never has for this store, or cannot be used as things stand.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        say: Callable[[str], None] = log.warning,
        note: str = "",
    ):
        for library in ("alembic", "mlflow"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.uri = tracking_uri(store)
        self.shared = dict(tags or {})
        outbox, address = Outbox(store), without_credentials(self.uri)
        noted, away = outbox.noted(), None
        identity = noted.get("identity") or uuid.uuid4().hex[:8]
        try:
            self.remote = Remote(self.uri, store, study, identity, say, without_credentials(note))
            self.remote.ping()
        except Exception as error:
            if not is_away(error) or noted.get("server") != address:
                raise _unusable(self.uri, error) from error
            away = plain(error)
            say(
                f"  MLflow at {escape(address)} does not answer ({escape(away)}); the study goes on, and what MLflow "
                f"is to be told is kept in {escape(without_credentials(store.location))}/{FOLDER} until it does"
            )
        if (noted.get("study"), noted.get("names")) != (study, SCHEME):
            outbox.clear()  # the study is logged under its new name, or with new names of metrics
        outbox.note(study=study, server=address, identity=identity, names=SCHEME)
        self.sender = Sender(self.remote, outbox, lambda text: say(escape(text)), away)
        self._open(self.parent, study, params, None)
        self._queue("begin", key=self.parent)

    @property
    def parent(self) -> str:
        """The key of the study's own run."""
        return self.remote.parent

    @property
    def trouble(self) -> TrackingError | None:
        """What MLflow refused."""
        refused = dict.fromkeys(self.sender.refused)
        if not refused:
            return None
        return TrackingError(
            f"{'; '.join(refused)}. What it lacks is in the store; the same study, run again, logs it."
        )

    def _queue(self, call: str, **arguments: Any) -> None:
        self.sender.put({"call": call, **arguments})

    def flush(self) -> None:
        """Wait until MLflow has all that it was told, unless it is away or slow."""
        self.sender.flush(FLUSH_SECONDS)

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run, None if it has not been told of it yet."""
        run = self.remote.runs.get(key)
        return None if run is None else run.id

    def mark(self, tags: Mapping[str, str]) -> None:
        """Set tags on the study's own run, and on all that it is told of from now on."""
        self.shared |= tags
        self.tags(self.parent, tags)

    def child(self, key: str, name: str, params: Mapping[str, Any], started: str | None = None) -> str:
        """Have a run with this content key, created if there is none yet; returns the key. It began now unless it is
        known when it ``started``, in ISO 8601.
        """
        self._open(key, name, params, started)
        return key

    def _open(self, key: str, name: str, params: Mapping[str, Any], started: str | None) -> None:
        self._queue("open", key=key, name=name, params=_texts(params), tags=dict(self.shared), time=_ms(started))

    def begin(self, key: str) -> None:
        """Mark a run as running, unless the process was asked to stop."""
        if asked() is None:
            self._queue("begin", key=key)

    def step(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Log what a run reports of its training."""
        if values:
            self._queue("steps", key=key, points=[(step, _now(), {name: float(v) for name, v in values.items()})])

    def curves(self, key: str) -> None:
        """Complete the training curves of a run from the store."""
        self._queue("curves", key=key)

    def metrics(self, key: str, values: Mapping[str, float | None]) -> None:
        """Log finite-or-not numbers; None is left out."""
        given = {name: float(value) for name, value in values.items() if value is not None}
        if given:
            self._queue("metrics", key=key, values=given, time=_now())

    def histories(self, key: str, points: Iterable[Point]) -> None:
        """Log points of curves as (metric, step, value); one that MLflow has already is not written again."""
        given = list(points)
        if given:
            self._queue("histories", key=key, points=given, time=_now())

    def tags(self, key: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._queue("tags", key=key, values=dict(values))

    def text(self, name: str, content: str) -> None:
        """Attach a text file to the study's run."""
        self._file(name, content.encode())

    def figure(self, name: str, figure: Any, key: str | None = None) -> None:
        """Attach a matplotlib figure as ``figures/<name>.png`` to a run, the study's unless the ``key`` of another is
        given.
        """
        drawn = io.BytesIO()
        try:
            figure.savefig(drawn, format="png")
        except Exception as error:
            self.sender.refused.append(f"the figure {name} cannot be drawn: {error}")
            return
        self._file(f"figures/{name}.png", drawn.getvalue(), key)

    def _file(self, name: str, content: bytes, key: str | None = None) -> None:
        self._queue("file", name=name, content=base64.b64encode(content).decode(), key=key)

    def inputs(self, key: str, context: Context, data: Iterable[Data]) -> None:
        """Say what a run was trained on, or asked."""
        plain = [each.plain() for each in data]
        if plain:
            self._queue("inputs", key=key, context=context, data=plain)

    def model(self, key: str, weights: str) -> None:
        """Name the weights of a run, a folder that stays where it is, as a model that numbers to come are of."""
        self._queue("model", key=key, weights=without_credentials(weights))

    def end(self, key: str, status: Status, ended: str | None = None) -> None:
        """Mark a run as ended: now, unless it is known when it ``ended``."""
        self._queue("end", key=key, status=status, time=_ms(ended), known=ended is not None)

    def close(self, status: Status) -> int:
        """Mark every run that is still running, and send what is queued; returns how much of it has to wait.

        A process that was asked to stop does not wait long.
        """
        self._queue("close", status=status, time=_now())
        stopped = asked()
        return self.sender.close(CLOSE_SECONDS if stopped is None else STOPPED_SECONDS[stopped])


def check_tracking(store: Store, study: str, seconds: float = 5.0) -> None:
    """See whether a study could be told to MLflow, of which nothing is asked but whether a server answers, within so
    many ``seconds``. Databases are left alone, which are made where they are opened.

    Raises:
        ConfigError: as ``Tracking``.
    """
    uri, failed = tracking_uri(store), list[Exception]()
    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        return

    def ask() -> None:
        try:
            client.get_experiment_by_name(study)
        except Exception as error:
            failed.append(error)

    try:
        client = open_client(uri)
    except Exception as error:
        raise _unusable(uri, error) from error
    asking = threading.Thread(target=ask, name="mlflow", daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        failed.append(requests.Timeout(f"no answer in {seconds:g} seconds"))
    if failed and not (is_away(failed[0]) and Outbox(store).noted().get("server") == without_credentials(uri)):
        raise _unusable(uri, failed[0]) from failed[0]


def _unusable(uri: str, error: Exception) -> ConfigError:
    return ConfigError(f"MLflow at {without_credentials(uri)} cannot be used: {plain(error)}. {remedy(uri, error)}")


def send_queued(store: Store) -> str | None:
    """Send what earlier commands could not, and mark the runs that a killed one has left running; says in a line how
    that went, None if there was nothing. A study that is at work sends by itself.
    """
    outbox, lease = Outbox(store), find_lease(store)
    noted, killed = outbox.noted(), lease is not None
    if not {"study", "identity"} <= noted.keys() or (lease is not None and not lease.gone):
        return None
    waiting = len(outbox)
    if not waiting and not killed:
        return None
    what = f"{waiting} entries" if waiting else "that the study was killed"
    renamed = noted.get("names") != SCHEME
    if renamed and not killed:
        return _OUTDATED.format(waiting)
    uri = tracking_uri(store)
    address = without_credentials(uri)
    if noted.get("server") != address:
        return f"MLflow at {noted.get('server')} has yet to be told {what}; set MLFLOW_TRACKING_URI to it."
    said: list[str] = []
    remote = Remote(uri, store, noted["study"], noted["identity"], said.append)
    try:
        remote.ping()
        if renamed:
            remote.close("KILLED", _now())
    except Exception as error:
        return f"MLflow at {address} does not answer ({plain(error)}) and has yet to be told {what}."
    if renamed:
        return " ".join([_MARKED, *([_OUTDATED.format(waiting)] if waiting else [])])
    sender = Sender(remote, outbox, said.append)
    if killed:
        sender.put({"call": "close", "status": "KILLED", "time": _now()})
    sender.flush()
    left = sender.close()
    told = [f"{max(waiting - left, 0)} entries that waited for MLflow were sent to {address}."] if waiting else []
    if sender.refused:
        told.append(f"It refused some: {'; '.join(dict.fromkeys(sender.refused))}.")
    if killed and not left:
        told.append(_MARKED)
    if left:
        told.append(f"{left} wait still.")
    return " ".join(told)


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_credentials(str(value)) for name, value in params.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _ms(moment: str | None) -> int:
    """A moment in ISO 8601 in ms; now if it is not known."""
    return _now() if moment is None else int(datetime.fromisoformat(moment).timestamp() * 1000)
