"""How a study ends, in MLflow and for whoever called it."""

import io
import logging
import os
import signal
import time

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from raygeo.cluster.execution import in_process
from raygeo.errors import StoreError, TrainingError
from raygeo.interrupts import deferred, handled
from raygeo.logs import detail
from raygeo.pipeline import study as driver
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.progress import Progress
from raygeo.tracking import Tracking

pytestmark = pytest.mark.cluster


@pytest.fixture
def run(store, monkeypatch):
    """Runs a study of which nothing is left but how its stages end: ``stages`` is given its tracker and context."""
    study = parse_study(
        {"name": "ends", "store": store.location, "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]}
    )
    console = Console(file=io.StringIO())

    def run(stages, **options):
        def run_stages(study, store, tracking, *others):
            context = StudyContext(store, in_process, Progress(console), study=study)
            tracking.child("key", "sft", {})
            tracking.begin("key")
            stages(tracking, context)
            return context

        monkeypatch.setattr(driver, "_run_stages", run_stages)
        return driver.run_study(study, progress=Progress(console), **options)

    return run


def states(store):
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    found = client.search_runs([client.get_experiment_by_name("ends").experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def raises(error):
    def stages(tracking, context):
        raise error

    return stages


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (StoreError("full"), "FAILED")])
def test_whatever_ends_a_study_ends_its_runs(store, run, error, status):
    with pytest.raises(type(error)):
        run(raises(error))
    assert states(store) == {"ends": status, "sft": status}


def test_what_failed_is_raised_at_the_end_unless_that_is_allowed(store, run):
    def stages(tracking, context):
        tracking.end("key", "FAILED")
        context.leave_out("run sft", TrainingError("the loss at http://user:secret@host fell over"))

    with pytest.raises(TrainingError, match="- run sft: the loss at http://host fell over"):
        run(stages)
    assert run(stages, allow_failures=True).location == store.location
    assert states(store) == {"ends": "FAILED", "sft": "FAILED"}


def test_the_log_has_what_the_console_showed_and_more(store, run):
    def stages(tracking, context):
        context.progress.say("[bold]train[/bold] at s3://user:secret@bucket/x")
        detail.debug("step by step")
        logging.getLogger("raygeo.models.fitting").warning("no memory for a batch of %d", 8)
        try:
            raise ValueError("what an analysis did")
        except ValueError as error:
            context.leave_out("geometry.norms", error)

    before = list(detail.handlers)
    run(stages, allow_failures=True)
    run(stages, allow_failures=True)
    text = store.read_bytes("logs/ends.log").decode()
    assert "secret" not in text
    for said in ("INFO train at s3://bucket/x", "DEBUG step by step", "WARNING no memory for a batch of 8", "\nstages"):
        assert text.count(said) == 2, said
    assert text.count('raise ValueError("what an analysis did")') >= 2
    assert "versions: raygeo " in text
    assert detail.handlers == before


def test_the_log_has_what_ended_a_study(store, run):
    with pytest.raises(TrainingError):
        run(raises(TrainingError("the end")))
    text = store.read_bytes("logs/ends.log").decode()
    assert "ERROR ended by\nTraceback" in text
    assert text.endswith("raygeo.errors.TrainingError: the end\n")


def test_a_quiet_console_shows_nothing_and_the_log_all(store, run, capsys):
    console = Console(file=(file := io.StringIO()), quiet=True)
    Progress(console).say("said")
    assert file.getvalue() == ""
    run(lambda tracking, context: Progress(console).say("said quietly"))
    assert "INFO said quietly" in store.read_bytes("logs/ends.log").decode()


def test_runs_are_killed_as_soon_as_the_process_is_asked_to_stop(store):
    tracking = Tracking(store, "ends", {})
    for name in ("first", "second"):
        tracking.child(name, name, {})
        tracking.begin(name)

    @handled()
    @deferred()
    def train():
        tracking.flush()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while set(states(store).values()) != {"KILLED"}:  # and training goes on to its checkpoint
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tracking.end("first", "FINISHED")
        tracking.begin("second")
        tracking.close("KILLED")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert states(store) == {"ends": "KILLED", "first": "FINISHED", "second": "KILLED"}
