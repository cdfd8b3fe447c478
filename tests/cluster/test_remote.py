import os
import signal
import sys
from io import StringIO

import pytest
from ray import cloudpickle
from rich.console import Console

from raygeo.cluster import remote
from raygeo.cluster.remote import call
from raygeo.errors import DataError, WorkloadError
from raygeo.progress import Progress

pytestmark = pytest.mark.cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules


@pytest.fixture
def progress(ray_session):
    return Progress(Console(file=StringIO(), width=200))


def dying(folder, times):
    """Work whose process is killed so often."""

    def work(tick):
        died = len(os.listdir(folder))
        if died < times:
            open(os.path.join(folder, str(died)), "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        tick(1, 1, "")

    return work


def test_work_whose_process_is_lost_begins_again(progress, tmp_path):
    call(dying(str(tmp_path), 1), "the student", progress, cpus=1, gpus=0)
    assert progress.console.file.getvalue() == "  the student: its process was lost; begins again\n"


def test_work_whose_process_is_lost_every_time_is_given_up(progress, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_LOSSES", 1)
    with pytest.raises(WorkloadError, match="the student: its process was lost 2 times"):
        call(dying(str(tmp_path), 9), "the student", progress, cpus=1, gpus=0)


def test_errors_for_the_user_come_as_they_are(progress):
    def work(tick):
        raise DataError("the texts are empty")

    with pytest.raises(DataError, match="the texts are empty"):
        call(work, "the student", progress, cpus=1, gpus=0)
