"""Ctrl-C and SIGTERM as a terminal and a scheduler send them: to real processes, in the middle of real studies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from study_cases import save_parts, tiny_study

from checks.faults.processes import await_end
from raygeo.interrupts import asked, deferred, handled
from raygeo.models.delta import open_delta
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import run_study
from raygeo.store import Store
from raygeo.training.checkpoints import Checkpoints

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

STEPS, EVERY = 60, 10


def tell(number):
    """What a person sees who presses Ctrl-C, or a process that is told to end."""
    os.kill(os.getpid(), number)
    time.sleep(0)  # a signal is handled between two instructions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_handlers_come_back(number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), handled(), handled():
        tell(number)
    assert asked() is None
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_deferred_signal_waits_for_the_end():
    seen = []

    def work():
        with handled(), deferred():
            tell(signal.SIGTERM)
            seen.append(asked())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [signal.SIGTERM]


def test_a_signal_that_comes_in_a_destructor_is_not_lost(capsys):
    class Dying:
        def __del__(self):
            tell(signal.SIGINT)

    def work():
        with handled():
            Dying()
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not capsys.readouterr().err


def test_nothing_is_raised_without_a_signal():
    with handled(), deferred():
        pass
    assert asked() is None


@pytest.mark.parametrize(("pause", "code"), [(1.2, 143), (0.0, 0)])
def test_a_second_signal_ends_the_process_but_an_echo_of_the_first_does_not(pause, code):
    script = f"""
import os, signal, time
from raygeo.interrupts import deferred, handled
with handled():
    try:
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep({pause})
            os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == code


# -- studies ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return {
        **save_parts(tmp_path_factory.mktemp("interrupts")),
        "training": {
            "steps": STEPS,
            "batch_size": 8,
            "lr": 1e-3,
            "snapshots": 0,
            "cpus": 1.5,  # one run at a time, on one thread
            "log_every": 1,
        },
        "runs": [{"loss": {"type": "sft"}, "seed": [0, 1]}],
    }


def weights(folder):
    return {name: entry.dense() for name, entry in open_delta(folder).items()}


class Driver:
    """``raygeo run`` in a session of its own, as a terminal starts it."""

    def __init__(self, study, folder, *arguments):
        file, self.log = folder / "study.yaml", folder / "log"
        file.write_text(yaml.safe_dump(study))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raygeo", "run", str(file), *arguments],
                env=os.environ | {"RAY_ADDRESS": ""}, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
            )  # fmt: skip

    def wait_for(self, there, *given):
        deadline = time.monotonic() + 600
        while not there(*given):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number, *, group):
        """Send the signal and return the exit code, once nothing that the driver started is left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        (os.killpg if group else os.kill)(self.process.pid, number)
        code = self.process.wait(180)
        assert not await_end(family, 30)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.kill()

    def kill(self):
        """End the driver, and with it its cluster, as lack of power would."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        assert not await_end(family, 60)

    def says(self, text):
        return text in self.log.read_text()


def second_run_step(location):
    """The last checkpointed step of the run that is trained after the first is done; nothing before."""
    first = {path.stem for path in location.glob("units/runs/*.parquet")}
    begun = {path.parent.name.partition("-")[0] for path in location.glob("checkpoints/*/_COMPLETE")} - first
    return Checkpoints(Store(location), begun.pop()).last_step() if first and begun else None


def mlflow_states(store):
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return {run.info.run_name: run.info.status for run in found}


CHECKPOINTS = ("--until", "train", "--set", f"training.checkpoint_every={EVERY}")


def interrupt_the_second_run(study, folder, number, *, group):
    """Start the study, send the signal when its second run has a checkpoint, and return exit code, store and step."""
    first, second = (f"sft-lr0.001-s{seed}" for seed in study["runs"][0]["seed"])
    with Driver(study, folder, *CHECKPOINTS) as driver:
        driver.wait_for(lambda: second_run_step(folder / "store"))
        code, store = driver.stop(number, group=group), Store(study["store"])
    assert len(store.units("runs")) == 1, "the second run must be interrupted, and not be settled"
    [put_aside] = store.folders("checkpoints")
    step = Checkpoints(store, put_aside.rpartition("-")[0]).last_step()
    assert EVERY <= step < STEPS
    assert driver.says(f"1 of 2 runs are trained; {second} has a checkpoint after step {step}")
    assert driver.says("The same command resumes.")
    assert not driver.says("Traceback")
    states = mlflow_states(store)
    assert states.pop(first) == "FINISHED"
    assert set(states.values()) == {"KILLED"}
    return code, store, step


@pytest.fixture(scope="module")
def terminated(parts, tmp_path_factory):
    """Exit code and store of a study under a scheduler: the run of seed 1 ended, that of seed 0 got SIGTERM."""
    folder = tmp_path_factory.mktemp("terminated")
    runs, sweep = [{"loss": {"type": "sft"}, "seed": [1, 0]}], {"scheduler": {"type": "asha", "grace": STEPS}}
    study = tiny_study(store=str(folder / "store"), sweep=sweep, **(parts | {"runs": runs}))
    return interrupt_the_second_run(study, folder, signal.SIGTERM, group=False)[:2]


def test_sigterm_interrupts_a_run_under_a_scheduler(terminated):
    assert terminated[0] == 143


def test_a_run_that_is_interrupted_and_killed_ends_with_the_bits_of_one_that_is_not(
    ray_session, parts, terminated, tmp_path
):
    study = tiny_study(store=str(tmp_path / "store"), **parts)
    code, store, step = interrupt_the_second_run(study, tmp_path, signal.SIGINT, group=True)
    assert code == 130
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "units").rglob("*.parquet")}
    with Driver(study, tmp_path, *CHECKPOINTS) as again:
        again.wait_for(lambda: (second_run_step(tmp_path / "store") or 0) > step)
        again.kill()
    assert len(store.units("runs")) == 1
    run_study(parse_study(study), until="train")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not store.folders("checkpoints")
    assert set(mlflow_states(store).values()) == {"FINISHED"}
    first, second = store.table("runs").to_pylist()
    assert (first["status"], second["status"]) == ("finished", "finished")
    resumed = {row["step"] for row in store.table("training_curves").to_pylist() if row["run"] == second["run"]}
    assert resumed == set(range(1, STEPS + 1))
    [key] = terminated[1].units("runs")
    [undisturbed] = terminated[1].read_unit("runs", key).to_pylist()
    assert (undisturbed["run"], undisturbed["seed"]) == (second["run"], 1)
    found, expected = weights(second["delta"]), weights(undisturbed["delta"])
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert torch.equal(found[tensor], expected[tensor]), tensor


def test_ctrl_c_in_another_stage_ends_with_a_line_and_without_ray(tmp_path):
    with Driver(tiny_study(store=str(tmp_path / "store")), tmp_path) as driver:
        driver.wait_for(lambda: driver.says("\nrollouts\n"))
        assert driver.stop(signal.SIGINT, group=True) == 130
    assert driver.says("stopped by SIGINT in the stage rollouts: start, student done;")
    assert not driver.says("Traceback")
    assert set(mlflow_states(Store(tmp_path / "store")).values()) == {"KILLED"}


def test_ctrl_c_in_the_stages_after_training_costs_nothing_that_was_done(parts, tmp_path):
    training = {"steps": 4, "batch_size": 8, "lr": 1e-3}
    study = tiny_study(store=str(tmp_path / "store"), **(parts | {"training": training}))
    units, stamps = tmp_path / "store" / "units", {}

    def now():
        return {path: path.stat().st_mtime_ns for path in units.rglob("*.parquet")}

    def grown(before):
        return now() != before

    for stage in ("evaluate", "geometry", "report"):
        with Driver(study, tmp_path) as driver:
            driver.wait_for(driver.says, f"\n{stage}\n")
            if stage != "report":
                driver.wait_for(grown, now())
            assert driver.stop(signal.SIGINT, group=True) == 130
        assert driver.says(f"stopped by SIGINT in the stage {stage}: "), driver.log.read_text()
        assert not driver.says("Traceback")
        assert "RUNNING" not in mlflow_states(Store(tmp_path / "store")).values()
        assert stamps.items() <= now().items()
        stamps = now()
    with Driver(study, tmp_path) as driver:
        assert driver.process.wait(300) == 0
    assert stamps.items() <= now().items()
    assert set(mlflow_states(Store(tmp_path / "store")).values()) == {"FINISHED"}
    assert (tmp_path / "store" / "report.html").stat().st_size > 1e5
