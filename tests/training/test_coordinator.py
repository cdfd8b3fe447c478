"""The coordinator's bookkeeping, without Ray: jobs, attempts, lost workers, lack of memory, cancellation."""

import asyncio

import pytest

from raygeo.training.coordinator import Coordinator, Failure

JOB = {"key": "k", "restarts": 2, "micro_batch_size": 5}


def coordinator_test(scenario):
    """Run an async scenario on a fresh coordinator, and never longer than ten seconds."""

    def test():
        asyncio.run(asyncio.wait_for(scenario(Coordinator()), 10))

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


async def messages(coordinator):
    found = []
    while not coordinator.messages.empty():
        found.append(await coordinator.message())
    return found


@coordinator_test
async def test_all_ranks_get_the_same_job_and_rank_0_ends_it(coordinator):
    waiting = [asyncio.ensure_future(coordinator.take("g", 0)) for _ in range(2)]
    await asyncio.sleep(0)
    await coordinator.submit(JOB)
    assert await asyncio.gather(*waiting) == [JOB | {"attempt": 1}] * 2
    early = asyncio.ensure_future(coordinator.take("g", 1))  # rank 1 is quicker than rank 0
    await asyncio.sleep(0.01)
    assert not early.done()
    await coordinator.report(3, {"nll": 1.0})
    await coordinator.done({"steps": 9})
    await coordinator.submit(JOB | {"key": "next"})
    assert (await early)["key"] == (await coordinator.take("g", 1))["key"] == "next"


@coordinator_test
async def test_messages_come_in_order(coordinator):
    await coordinator.submit(JOB)
    await coordinator.take("g", 0)
    await coordinator.report(3, {"nll": 1.0})
    await coordinator.done({"steps": 9})
    assert await messages(coordinator) == [
        {"kind": "report", "step": 3, "metrics": {"nll": 1.0}},
        {"kind": "done", "steps": 9},
    ]


@coordinator_test
async def test_a_new_group_takes_the_job_of_a_lost_one_until_its_restarts_are_used_up(coordinator):
    await coordinator.submit(JOB)
    for attempt in (1, 2, 3):
        assert (await coordinator.take(f"group {attempt}", 0))["attempt"] == attempt
        if attempt == 2:
            await coordinator.failed("k", 2, Failure("RuntimeError: connection reset"))
    last = asyncio.ensure_future(coordinator.take("group 4", 0))
    await asyncio.sleep(0.01)
    assert not last.done()  # it waits for the next job
    told = await messages(coordinator)
    assert [m["kind"] for m in told] == ["note", "note", "failed"]
    assert "a worker was lost" in told[0]["text"]
    assert "connection reset" in told[1]["text"]
    assert "(3 times)" in told[2]["reason"]
    await coordinator.submit(JOB | {"key": "next"})
    assert (await last)["key"] == "next"


@coordinator_test
async def test_lack_of_memory_halves_the_micro_batch_once_an_attempt_and_uses_no_restart(coordinator):
    await coordinator.submit(JOB | {"restarts": 0})
    sizes = []
    for number in range(4):
        job = await coordinator.take(f"group {number}", 0)
        sizes.append(job["micro_batch_size"])
        for _rank in range(2):
            await coordinator.failed("k", job["attempt"], Failure("OutOfMemoryError", out_of_memory=True))
    assert sizes == [5, 3, 2, 1]
    told = await messages(coordinator)
    assert [m["kind"] for m in told] == ["note"] * 3 + ["failed"]
    assert told[-1]["reason"] == "OutOfMemoryError"


@coordinator_test
async def test_a_final_failure_ends_the_job_and_a_late_one_is_ignored(coordinator):
    await coordinator.submit(JOB)
    job = await coordinator.take("g", 0)
    await coordinator.failed("k", job["attempt"], Failure("DataError: no rows", final=True))
    assert await messages(coordinator) == [{"kind": "failed", "reason": "DataError: no rows", "full": False}]
    await coordinator.submit(JOB | {"key": "next"})
    assert (await coordinator.take("h", 0))["attempt"] == job["attempt"]
    await coordinator.failed("k", job["attempt"], Failure("of another rank", out_of_memory=True, final=True))
    await coordinator.failed("next", 7, Failure("of another attempt", out_of_memory=True, final=True))
    assert await messages(coordinator) == []


@coordinator_test
async def test_a_group_that_finds_no_room_is_no_loss_and_one_that_cannot_be_started_is(coordinator):
    await coordinator.submit(JOB | {"restarts": 0})
    assert await coordinator.unstarted()
    assert await messages(coordinator) == []
    assert not await coordinator.unstarted("workers could not be started: why")
    assert [m["reason"] for m in await messages(coordinator)] == ["workers could not be started: why (1 times)"]


@coordinator_test
async def test_a_coordinator_that_follows_a_lost_one_has_work_for_the_group_there_is(coordinator):
    await coordinator.done({"steps": 9})  # of the run that the lost one knew, and that is submitted again
    waiting = [asyncio.ensure_future(coordinator.take("g", 3)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(each.done() for each in waiting)
    await coordinator.submit(JOB)
    assert await asyncio.gather(*waiting) == [JOB | {"attempt": 1}] * 2


@coordinator_test
async def test_a_rank_of_a_lost_group_that_waits_takes_no_job_from_the_next(coordinator):
    await coordinator.submit(JOB | {"restarts": 1})
    await coordinator.take("lost", 0)
    waiting = asyncio.ensure_future(coordinator.take("lost", 1))  # rank 1 was done when rank 0 was lost
    await asyncio.sleep(0.01)
    await coordinator.take("new", 0)
    await coordinator.done({"steps": 9})
    await messages(coordinator)
    await coordinator.submit(JOB | {"key": "next", "restarts": 0})
    assert await coordinator.take("new", 1) == JOB | {"key": "next", "restarts": 0, "attempt": 1}
    assert await waiting is None
    assert await messages(coordinator) == []


@coordinator_test
async def test_the_next_job_waits_for_a_stopped_one(coordinator):
    await coordinator.submit(JOB)
    await coordinator.take("g", 0)
    command = asyncio.ensure_future(coordinator.wait_for_command())
    await coordinator.stop("another run")
    await asyncio.sleep(0.01)
    assert not command.done()
    await coordinator.stop("k")
    await coordinator.interrupt()  # too late
    assert await command == "stop"
    following = asyncio.ensure_future(coordinator.submit(JOB | {"key": "next"}))
    await asyncio.sleep(0.01)
    assert not following.done()
    await coordinator.done({"status": "stopped"})
    await following
    assert (await coordinator.take("g", 1))["key"] == "next"


@coordinator_test
async def test_a_job_is_interrupted_by_the_workers_that_have_begun_it(coordinator):
    await coordinator.submit(JOB)
    await coordinator.take("g", 0)
    command = asyncio.ensure_future(coordinator.wait_for_command())
    await coordinator.interrupt()
    assert await command == "interrupt"
    assert await messages(coordinator) == []
    await coordinator.done({"status": "interrupted", "steps": 3})
    assert [m["steps"] for m in await messages(coordinator)] == [3]


@coordinator_test
async def test_a_job_that_nobody_works_on_is_interrupted_at_once(coordinator):
    await coordinator.submit(JOB)
    await coordinator.interrupt()
    assert [m["status"] for m in await messages(coordinator)] == ["interrupted"]
    await coordinator.submit(JOB)
    await coordinator.take("lost", 0)
    await coordinator.interrupt()
    new = asyncio.ensure_future(coordinator.take("new", 0))
    await asyncio.sleep(0.01)
    assert not new.done()
    assert [m["status"] for m in await messages(coordinator)] == ["interrupted"]


@coordinator_test
async def test_the_end_of_a_traceback_is_told(coordinator):
    await coordinator.submit(JOB)
    job = await coordinator.take("g", 0)
    await coordinator.failed("k", job["attempt"], Failure("KeyError: 'a'", "Traceback ...", final=True))
    [message] = await messages(coordinator)
    assert (message["reason"], message["text"]) == ("KeyError: 'a'", "Traceback ...")


@coordinator_test
async def test_workers_go_when_the_coordinator_closes(coordinator):
    waiting = asyncio.ensure_future(coordinator.take("g", 0))
    await asyncio.sleep(0)
    await coordinator.close()
    assert await waiting is None


@coordinator_test
async def test_groups_that_cannot_be_started_are_tried_again_as_often_as_lost_ones(coordinator):
    await coordinator.submit(JOB | {"restarts": 2})
    assert [await coordinator.unstarted("no process group") for _ in range(3)] == [True, True, False]
    again = {"kind": "note", "text": "no process group; tries again"}
    assert await messages(coordinator) == [again, again, {"kind": "failed", "reason": "no process group (3 times)"}]


@coordinator_test
async def test_a_job_waits_until_a_group_takes_it_and_once_that_is_lost(coordinator):
    assert not await coordinator.waits()
    await coordinator.submit(JOB)
    assert await coordinator.waits()
    await coordinator.take("a", 0)
    assert not await coordinator.waits()
    await coordinator.lost()
    assert await coordinator.waits()
    await coordinator.take("b", 0)
    assert not await coordinator.waits()


def test_the_helper_can_fail():
    @coordinator_test
    async def wrong(coordinator):
        assert await coordinator.take("g", 0)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(Coordinator().take("g", 0), 0.05))
    assert wrong.__name__ == "wrong"
