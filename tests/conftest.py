"""What all tests share: one Ray for the whole session, stores in temporary folders, and the choice of fast tests."""

import gc
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import pytest

from raygeo.store import Store

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in processes of pytest-xdist, and so in their children
    signal.signal(signal.SIGINT, signal.default_int_handler)

HEAVY = ("ray", "deepspeed")


def pytest_addoption(parser):
    told = "fast: what is marked neither cluster nor slow; cluster: what is, and not long; long: what is marked long"
    parser.addoption("--tier", choices=("fast", "cluster", "long"), help=told)


def pytest_configure(config):
    if config.option.tier == "fast":
        sys.modules |= dict.fromkeys(HEAVY)  # as if they were not installed: importing them fails


def pytest_ignore_collect(collection_path, config):
    """Modules without a test of the session's tier are not even imported."""
    tier = config.option.tier
    if tier is None or collection_path.suffix != ".py":
        return None
    cluster, slow, long = (_marked(collection_path, name) for name in ("cluster", "slow", "long"))
    return {"fast": cluster, "cluster": long or not (cluster or slow), "long": not long}[tier] or None


def _marked(module: Path, name: str) -> bool:
    """Whether a module gives a mark, or the folder's ``conftest.py`` does."""
    places = (place for place in (module, module.with_name("conftest.py")) if place.exists())
    return any(f"mark.{name}" in place.read_text() for place in places)


def pytest_collection_modifyitems(config, items):
    """Keep the tests of the session's tier; slow ones begin with their modules, so that short ones fill the end."""
    whole = {path: {"cluster"} if _marked(path, "cluster") else set() for path in {item.path for item in items}}
    marks = {item: {mark.name for mark in item.iter_markers()} | whole[item.path] for item in items}
    other = {
        None: lambda found: False,
        "fast": lambda found: found & {"cluster", "slow"},
        "cluster": lambda found: "long" in found or not found & {"cluster", "slow"},
        "long": lambda found: "long" not in found,
    }[config.option.tier]
    left = [item for item in items if other(marks[item])]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]
    modules = {item.path for item in items if "slow" in marks[item]}
    items.sort(key=lambda item: item.path not in modules)


def pytest_collection_finish():
    """Spare every later collection of garbage the walk over all that has been imported."""
    gc.freeze()


@pytest.fixture(scope="session")
def ray_session():
    """An embedded Ray with two CPUs."""
    _start_ray()
    import ray

    yield ray
    ray.shutdown()


def _start_ray():
    from raygeo.cluster.session import connect
    from raygeo.errors import ClusterError

    try:
        connect(cpus=2)
    except ClusterError:  # Ray gives its node 30 seconds to start, which are few on a machine that is busy
        connect(cpus=2)


@pytest.fixture(scope="module", autouse=True)
def no_cpu_taken():
    """Modules find all CPUs free: what an earlier one has left running ends, so that none waits for it without end."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        until = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources().get("CPU", 0):
            if time.monotonic() > until:
                print("\nCPUs are held by what an earlier module has left: Ray is restarted", file=sys.stderr)
                ray.shutdown()
                _start_ray()
                break
            time.sleep(0.2)


@pytest.fixture(scope="session", autouse=True)
def migrated_once(tmp_path_factory):
    """Tracking in this process begins with copies of one new database, which MLflow needs a second to migrate."""
    tracking = sys.modules.get("raygeo.tracking.tracking")
    if tracking is None:
        yield
        return
    new, uri_of = tmp_path_factory.mktemp("mlflow") / "new.db", tracking.tracking_uri

    def copied(store: Store) -> str:
        uri = uri_of(store)
        file = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite") and not file.exists():
            if not new.exists():
                sys.modules["mlflow"].MlflowClient(f"sqlite:///{new}").search_experiments()
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(new)) as database:
                database.execute("VACUUM INTO ?", (str(file),))
        return uri

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "tracking_uri", copied)
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """Pages without figures, where a test is about the rest: drawing them takes most of a page's time."""
    monkeypatch.setattr("raygeo.pipeline.report.draw_figures", lambda view, parts, failures: {})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")
