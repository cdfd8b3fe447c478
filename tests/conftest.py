"""Shared fixtures: one Ray for the whole session, tiny models, stores in temporary folders."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import pytest

from raygeo.store import Store


@pytest.fixture(scope="session")
def ray_session():
    """An embedded Ray with two CPUs, started at most once."""
    import ray

    from raygeo.cluster.session import connect

    connect(cpus=2)
    yield ray
    ray.shutdown()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")
