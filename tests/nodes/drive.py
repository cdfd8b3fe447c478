"""Fan tasks that say where they ran out over the cluster: ``drive.py STORE TASKS``."""

import socket
import sys
import time
from typing import ClassVar

from raygeo.cluster import waiting
from raygeo.cluster.execution import run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.session import connect
from raygeo.store import Store
from raygeo.tables import schema
from raygeo.workload import Task, Workload

TABLE = schema("Where tasks ran.", "task: int; host: text")


class Hosts(Workload):
    """Tasks of half a second."""

    name = "hosts"
    tables: ClassVar = {"hosts": TABLE}

    def __init__(self, count):
        self.count = count

    def tasks(self):
        return [Task(self.key(number), 1.0, number, f"task {number}") for number in range(self.count)]

    def setup(self):
        return None

    def compute(self, state, payload):
        time.sleep(0.5)
        return {"hosts": [{"task": payload, "host": socket.gethostname()}]}


if __name__ == "__main__":
    waiting.FIRST_SECONDS = 3.0
    connect()
    with ActorPool(say=print) as pool:
        run_workload(Hosts(int(sys.argv[2])), Store(sys.argv[1]), pool)
