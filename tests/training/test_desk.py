"""The desk's bookkeeping, without Ray: jobs, attempts, lost workers, lack of memory, cancellation."""

import asyncio

import pytest

from raygeo.training.desk import Desk

JOB = {"key": "k", "restarts": 2, "micro_batch": 5}


def desk_test(scenario):
    """Run an async scenario on a fresh desk, and never longer than ten seconds."""

    def test():
        asyncio.run(asyncio.wait_for(scenario(Desk()), 10))

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


async def messages(desk):
    found = []
    while not desk.messages.empty():
        found.append(await desk.message())
    return found


@desk_test
async def test_all_ranks_get_the_same_job_and_rank_0_ends_it(desk):
    waiting = [asyncio.ensure_future(desk.take("g", 0)) for _ in range(2)]
    await asyncio.sleep(0)
    await desk.submit(JOB)
    assert await asyncio.gather(*waiting) == [JOB | {"attempt": 1}] * 2
    early = asyncio.ensure_future(desk.take("g", 1))  # rank 1 is quicker than rank 0
    await asyncio.sleep(0.01)
    assert not early.done()
    await desk.report(3, {"nll": 1.0})
    await desk.done({"steps": 9})
    await desk.submit(JOB | {"key": "next"})
    assert (await early)["key"] == (await desk.take("g", 1))["key"] == "next"


@desk_test
async def test_messages_come_in_order(desk):
    await desk.submit(JOB)
    await desk.take("g", 0)
    await desk.report(3, {"nll": 1.0})
    await desk.done({"steps": 9})
    assert await messages(desk) == [
        {"kind": "report", "step": 3, "curves": {"nll": 1.0}},
        {"kind": "done", "summary": {"steps": 9}},
    ]


@desk_test
async def test_a_new_group_takes_the_job_of_a_lost_one_until_its_restarts_are_used_up(desk):
    await desk.submit(JOB)
    for attempt in (1, 2, 3):
        assert (await desk.take(f"group {attempt}", 0))["attempt"] == attempt
        if attempt == 2:
            await desk.hit(2, "RuntimeError: connection reset", out_of_memory=False, final=False)
    last = asyncio.ensure_future(desk.take("group 4", 0))
    await asyncio.sleep(0.01)
    assert not last.done()  # it waits for the next job
    told = await messages(desk)
    assert [m["kind"] for m in told] == ["note", "note", "failed"]
    assert "a worker was lost" in told[0]["text"]
    assert "connection reset" in told[1]["text"]
    assert "(3 times)" in told[2]["reason"]
    await desk.submit(JOB | {"key": "next"})
    assert (await last)["key"] == "next"


@desk_test
async def test_lack_of_memory_halves_the_micro_batch_once_an_attempt_and_uses_no_restart(desk):
    await desk.submit(JOB | {"restarts": 0})
    sizes = []
    for number in range(4):
        job = await desk.take(f"group {number}", 0)
        sizes.append(job["micro_batch"])
        for _rank in range(2):
            await desk.hit(job["attempt"], "OutOfMemoryError", out_of_memory=True, final=False)
    assert sizes == [5, 3, 2, 1]
    told = await messages(desk)
    assert [m["kind"] for m in told] == ["note"] * 3 + ["failed"]
    assert told[-1]["reason"] == "OutOfMemoryError"


@desk_test
async def test_a_final_trouble_ends_the_job_and_a_late_one_is_ignored(desk):
    await desk.submit(JOB)
    job = await desk.take("g", 0)
    await desk.hit(job["attempt"], "DataError: no rows", out_of_memory=False, final=True)
    assert await messages(desk) == [{"kind": "failed", "reason": "DataError: no rows"}]
    await desk.submit(JOB | {"key": "next"})
    await desk.take("h", 0)
    await desk.hit(7, "of another attempt", out_of_memory=True, final=True)
    assert await messages(desk) == []


@desk_test
async def test_the_next_job_waits_for_a_cancelled_one(desk):
    await desk.submit(JOB)
    await desk.take("g", 0)
    cancelled = asyncio.ensure_future(desk.until_cancelled())
    await desk.cancel()
    await cancelled
    following = asyncio.ensure_future(desk.submit(JOB | {"key": "next"}))
    await asyncio.sleep(0.01)
    assert not following.done()
    await desk.done({"status": "stopped"})
    await following
    assert (await desk.take("g", 1))["key"] == "next"


@desk_test
async def test_workers_go_when_the_desk_closes(desk):
    waiting = asyncio.ensure_future(desk.take("g", 0))
    await asyncio.sleep(0)
    await desk.close()
    assert await waiting is None


@desk_test
async def test_losing_all_workers_ends_the_job(desk):
    await desk.submit(JOB)
    await desk.abort("Ray Train gave up")
    assert await messages(desk) == [{"kind": "failed", "reason": "Ray Train gave up"}]


def test_the_helper_can_fail():
    @desk_test
    async def wrong(desk):
        assert await desk.take("g", 0)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(Desk().take("g", 0), 0.05))
    assert wrong.__name__ == "wrong"
