"""What Ray's dashboard calls the actors and calls of a study, and what their logs say."""

import logging
import sys
from io import StringIO
from typing import ClassVar

import pytest
import ray
from ray import cloudpickle

from raygeo.cluster.execution import run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.settings import ActorSettings
from raygeo.tables import schema
from raygeo.workload import Task, Workload

pytestmark = pytest.mark.cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules


class Names(Workload):
    """What each task is called, and a line that it logs."""

    name = "names"
    tables: ClassVar = {"names": schema("Names.", "actor: text; call: text; line: text")}

    def tasks(self):
        return [Task(self.key(run), 1.0, run, f"names of {run}") for run in ("sft", "dpo")]

    def setup(self):
        """Keep what the process writes to its log."""
        [handler] = logging.getLogger("raygeo").handlers
        handler.setStream(StringIO())
        return handler.stream

    def compute(self, state, payload):
        logging.getLogger("raygeo.losses").warning("odd")
        context = ray.get_runtime_context()
        line = state.getvalue().splitlines()[-1].partition(" ")[2]
        return {"names": [{"actor": context.get_actor_name(), "call": context.get_task_name(), "line": line}]}


def test_actors_calls_and_lines_name_the_study_and_the_task(ray_session, store):
    with ActorPool(ActorSettings(max_actors=1), study="mine") as pool:
        keys = run_workload(Names(), store, pool).keys
    rows = [store.read_unit("names", key, Names.tables["names"]).to_pylist()[0] for key in keys]
    for run, row in zip(("sft", "dpo"), rows, strict=True):
        assert row["actor"].startswith("mine: actor ")
        assert row["call"] == f"mine: names: names of {run}"
        assert row["line"] == f"WARNING mine: names: names of {run}: odd"
