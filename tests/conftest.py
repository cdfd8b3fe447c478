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
    parser.addoption("--fast", action="store_true", help="leave out modules marked cluster and tests marked slow")


def pytest_configure(config):
    if config.option.fast:
        sys.modules |= dict.fromkeys(HEAVY)  # as if they were not installed: importing them fails


def pytest_ignore_collect(collection_path, config):
    """Modules marked cluster are not even imported by a fast session."""
    if config.option.fast and collection_path.suffix == ".py" and "mark.cluster" in collection_path.read_text():
        return True
    return None


def pytest_collection_modifyitems(config, items):
    """Leave slow tests out of a fast session; others begin with their modules, so that short ones fill the end."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    if config.option.fast:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    long = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in long)


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
    """Modules find all CPUs free: what an earlier one has left running ends, so that none waits for it for ever."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        until = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources().get("CPU", 0):
            if time.monotonic() > until:
                print("\nCPUs are held by what an earlier module has left: Ray is started anew", file=sys.stderr)
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
