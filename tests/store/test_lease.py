"""Two processes on one store: the second is refused or waits, and whoever is gone holds nothing."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from s3_cases import s3_server

from raygeo.errors import BusyStoreError, StoreError
from raygeo.store import Store, lease
from raygeo.store.lease import Lease, find_lease, held
from raygeo.store.store import LEASE

HOLDS = """
import sys, time
from raygeo.interrupts import handled
from raygeo.store import Store
from raygeo.store.lease import held
with handled(), held(Store(sys.argv[1]), "the study first"):
    print("held", flush=True)
    time.sleep(60)
"""


def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(params=["local", "unlocked", pytest.param("s3", marks=pytest.mark.slow)])
def any_store(request, tmp_path, monkeypatch):
    """A store on a file system with locks, on one without, as NFS may be, and in a bucket."""
    if request.param != "local":
        monkeypatch.setattr(lease, "SETTLING", 0.3)
    if request.param != "s3":
        if request.param == "unlocked":
            monkeypatch.setattr(fcntl, "flock", no_locks)
        yield Store(tmp_path / "store")
        return
    with s3_server(monkeypatch) as s3:
        yield Store(s3.uri("study"))


@pytest.fixture
def owner(store):
    """Another process that holds the lease on the store."""
    environment = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "job-7"}})}
    command = [sys.executable, "-c", HOLDS, store.location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_is_first(store, owner):
    with pytest.raises(BusyStoreError) as refused, held(store, "the study second"):
        pass
    said = str(refused.value)
    for part in ("the study first", os.uname().nodename, f"process {owner.pid}", "Ray job job-7", " UTC", "--wait"):
        assert part in said
    assert find_lease(store).holder.pid == owner.pid


def test_a_killed_owner_holds_nothing(store, owner):
    owner.kill()
    owner.wait()
    with held(store, "the study again") as mine:
        assert find_lease(store).holder == mine.mine
    assert find_lease(store) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_owner_that_is_asked_to_stop_gives_the_lease_back(store, owner, number):
    owner.send_signal(number)
    owner.wait()
    assert find_lease(store) is None
    assert not Path(store.path(LEASE)).exists()


def test_who_waits_has_its_turn_when_the_first_has_ended(any_store):
    said, order = [], []

    def second():
        with held(Store(any_store.location), "second", wait=True, say=said.append):
            order.append("second")

    with held(any_store, "first"):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert len(said) == 1
    assert "waiting for the store" in said[0]


def test_a_store_that_cannot_be_written_is_named(store):
    Path(store.path("lease.lock")).mkdir()
    with pytest.raises(StoreError, match=r"lease\.lock cannot be written: .*Check permissions"), held(store, "a study"):
        pass


def test_an_error_gives_the_lease_back(any_store):
    with pytest.raises(ZeroDivisionError), held(any_store, "one"):
        raise ZeroDivisionError
    assert find_lease(any_store) is None


@pytest.fixture
def elsewhere(store):
    """A lease of a process on another machine."""
    theirs = replace(Lease(store, "the study").mine, machine="another", host="node7")
    store.write_bytes(LEASE, json.dumps(asdict(theirs)).encode())
    return theirs


def test_an_owner_elsewhere_that_is_not_heard_of_is_given_up_after_a_while(store, elsewhere, monkeypatch):
    monkeypatch.setattr(lease, "STALE_AFTER", 1.5)
    said = []
    with held(store, "again", say=said.append):
        assert find_lease(store).holder.what == "again"
    assert "on node7" in said[0]
    assert "this one goes on in" in said[0]


def test_an_owner_elsewhere_that_renews_is_at_work(store, elsewhere):
    renewed = threading.Timer(0.5, os.utime, [store.path(LEASE)])
    renewed.start()
    with pytest.raises(BusyStoreError, match="on node7"), held(store, "again"):
        pass
    renewed.join()


def test_age_is_told_by_the_clock_of_the_storage(store, elsewhere):
    os.utime(store.path(LEASE), (time.time() - 45, time.time() - 45))
    assert 44 < find_lease(store).age < 50


def test_a_lease_that_cannot_be_read_is_that_of_someone(store, monkeypatch):
    monkeypatch.setattr(lease, "STALE_AFTER", 0.5)
    store.write_bytes(LEASE, b"{")
    assert "unknown host" in str(find_lease(store).holder)
    with held(store, "again"):
        pass


def test_renewal_keeps_the_lease_young(any_store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLING", 0.1)
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    with held(any_store, "one"):
        first = find_lease(any_store).renewed
        while find_lease(any_store).renewed == first:
            time.sleep(0.2)


def test_whoever_was_thought_gone_ends_when_it_finds_another(store, elsewhere):
    script = HOLDS.replace("with handled", "from raygeo.store import lease; lease.SETTLING = 0.5\nwith handled")
    os.unlink(store.path(LEASE))
    command = [sys.executable, "-c", script, store.location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        store.write_bytes(LEASE, json.dumps(asdict(elsewhere)).encode())
        assert process.wait() == 1
        assert "BusyStoreError: the store" in (said := process.stderr.read())
        assert "was taken over: the study by" in said
    assert find_lease(store).holder == elsewhere


RACE = """
import sys, time
from pathlib import Path
from raygeo.errors import BusyStoreError
from raygeo.store import Store, lease
def no_locks(*args):
    raise OSError("no locks")
if sys.argv[3] != "local":
    lease.fcntl.flock, lease.SETTLING = no_locks, 1.5
store, count = Store(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[4])):
    try:
        with lease.held(store, "race"):
            with count.open("a") as file:
                file.write("in\\n")
            time.sleep(0.02)
            with count.open("a") as file:
                file.write("out\\n")
    except BusyStoreError:
        time.sleep(0.03)
"""


@pytest.mark.slow
def test_of_several_at_once_one_is_inside(any_store, tmp_path, request):
    where = request.node.callspec.params["any_store"]
    count, rounds = tmp_path / "count", 8 if where == "local" else 1
    command = [sys.executable, "-c", RACE, any_store.location, str(count), where, str(rounds)]
    racers = [subprocess.Popen(command) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    seen = count.read_text().split()
    assert seen
    assert seen == ["in", "out"] * (len(seen) // 2)


def test_a_store_in_the_working_directory_of_a_job_is_refused(tmp_path):
    place = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0f3a" / "store"
    with (
        pytest.raises(StoreError, match=r"deletes after the job: give .* --store"),
        held(Store(place), "x"),
    ):
        pass


def test_a_full_disk_does_not_end_a_lease(store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLING", 0.1)
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.1)
    with held(store, "one"):
        first = find_lease(store).renewed
        monkeypatch.setattr(Store, "_write", lambda *a: pytest.fail("it was written to"))
        while os.stat(store.path(LEASE)).st_mtime_ns == first:
            time.sleep(0.05)
