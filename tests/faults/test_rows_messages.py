"""Rows 49 to 60: messages that come twice, late, wrong, or to nobody."""

import time
from typing import Any, Final

import pytest

from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Fate
from dane_core.job import TaskId
from dane_core.message import Answer, Envelope, Report, Ticket, open_task
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, work_queue
from dane_server.runner.ticket import SIGNING_KEY, Signer
from tests.faults import evidence
from tests.faults.history import Ended
from tests.faults.labor import Other, Toil
from tests.faults.plugin import quick, row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 30.0
NOBODY: Final = TaskId(999_999_999)


async def answer_to(rig: Rig, task: int, attempt: int = 1, **change: Any) -> Answer:
    """A success with a genuine ticket, whose value is in the history as if it had been worked."""
    signer = Signer(await evidence.secret(rig.engine, SIGNING_KEY))
    ticket = signer.ticket(TaskId(task), attempt, 1)
    value = f"said by the test, {task}/{attempt}"
    rig.history.note(Ended(task_id=task, attempt=attempt, job_id=0, key="TOIL", pid=0, value=value))
    facts = {"state": 200, "message": "Success", "response": {"value": value}, "worker": "test"}
    return Answer(ticket=ticket, **{**facts, **change})


async def say(rig: Rig, *reports: Report, to: str = RESPONSE_QUEUE) -> None:
    await put(rig, *(report.seal() for report in reports), to=to)


async def put(rig: Rig, *envelopes: Envelope, to: str = RESPONSE_QUEUE) -> None:
    async with connect(rig.ground.amqp_url) as exchange:
        assert set(await exchange.send(to, envelopes)) == {Fate.ROUTED}


async def running_task(rig: Rig, name: str) -> tuple[int, int]:
    """A job with one task that is running and holds for the word; both ids."""
    job_id = await rig.post(job(name, toil(hold="go")))
    [task] = await rig.tasks_of(job_id)
    await rig.begun(task_id=task)
    return job_id, task


@quick
@row(49)
async def test_a_result_that_comes_a_hundred_times_is_recorded_once(rig: Rig) -> None:
    """The same result is published a hundred times.

    One is recorded, 99 are counted.
    """
    await rig.server()
    await rig.worker(Toil)
    job_id, task = await running_task(rig, "hundredfold")

    await say(rig, *[await answer_to(rig, task)] * 100)
    rig.healed()

    await rig.recovered(SOON, job_id)
    await rig.until(lambda: rig.counts(task, "settled", 99), SOON)
    rig.history.say("go")  # and the one of its worker, which was too late
    await rig.until(lambda: rig.counts(task, "settled", 100), SOON)
    rig.outcome = "one recorded, 99 counted as settled already"


@row(50)
async def test_the_late_result_of_an_old_attempt_is_refused(rig: Rig) -> None:
    """A result comes for an attempt that is not the current one any more.

    Refused as stale; the current attempt goes on.
    """
    await rig.server()
    await rig.worker(Toil)
    job_id, task = await running_task(rig, "superseded")
    await rig.act_on_task("forceretry", task)
    await rig.begun(task_id=task, attempt=2)

    await say(rig, await answer_to(rig, task, attempt=1))
    rig.healed()
    await rig.until(lambda: rig.was_rejected(task, "stale"), SOON)
    assert (await rig.row(task)).state != "succeeded"
    rig.history.say("go")

    await rig.recovered(SOON, job_id)
    assert (await rig.row(task)).attempt == 2
    rig.outcome = "refused as stale, counted; attempt 2 was recorded"


@row(51)
async def test_results_for_what_is_gone_are_counted_and_change_nothing(rig: Rig) -> None:
    """Results come for a cancelled task, one of a deleted job, and one that never was.

    Acknowledged and counted; no row is made.
    """
    await rig.server()
    await rig.worker(Toil)
    cancelled_job, cancelled = await running_task(rig, "cancelled")
    await rig.act("cancel", cancelled_job)
    deleted_job, deleted = await running_task(rig, "deleted")
    await rig.act("delete", deleted_job)
    rig.healed()

    await say(rig, *[await answer_to(rig, task) for task in (cancelled, deleted, NOBODY)])
    await rig.until(lambda: rig.was_rejected(cancelled, "settled"), SOON)
    await rig.until(lambda: rig.counts(0, "gone", 2), SOON)

    assert (await rig.row(cancelled)).state == "cancelled"
    assert await rig.recovered(SOON) >= 0
    rig.outcome = "all three counted, no row made or changed"


@row(52)
async def test_a_message_that_nobody_can_read_is_put_aside(rig: Rig) -> None:
    """Not JSON, wrong types, missing fields, UTF-16, NaN: on the response queue and a work queue.

    All of it is in `dane.dead`, and whoever read it goes on.
    """
    bodies = [
        b"no json at all",
        b'{"v": 1}',
        b'{"v": 1, "state": "two hundred"}',
        '{"v": 1}'.encode("utf-16"),
        b'{"v": 1, "runtime": NaN}',
        b"",
    ]
    await rig.server()
    await rig.worker(Toil)
    for kind, queue in (("answer", RESPONSE_QUEUE), ("task", work_queue("TOIL"))):
        await put(rig, *(Envelope(type=kind, body=body) for body in bodies), to=queue)
    rig.healed()

    await rig.recovered(SOON, await rig.post(job("after")))
    async with connect(rig.ground.amqp_url) as exchange:

        async def all_there() -> bool:
            depth = await exchange.depth(DEAD_QUEUE)
            return depth is not None and depth.waiting == 2 * len(bodies)

        await rig.until(all_there, SOON)
        await exchange.delete_queue(DEAD_QUEUE)
        await exchange.declare_queue(DEAD_QUEUE)
    rig.outcome = "12 of 12 put aside; the next job was done"


@row(54)
async def test_a_forged_result_is_refused(rig: Rig) -> None:
    """A result comes with a token that the server has not signed.

    Refused and counted; the task goes on.
    """
    await rig.server()
    await rig.worker(Toil)
    job_id, task = await running_task(rig, "forged")
    genuine = await answer_to(rig, task)
    forged = Ticket(task_id=TaskId(task), attempt=1, dispatch=1, token="0" * 32)

    await say(
        rig, Answer(ticket=forged, state=200, message="", response=genuine.response, worker="x")
    )
    rig.healed()
    await rig.until(lambda: rig.was_rejected(task, "forged"), SOON)
    assert (await rig.row(task)).state != "succeeded"
    rig.history.say("go")

    await rig.recovered(SOON, job_id)
    rig.outcome = "refused and counted; the result of the worker was recorded"


@row(56)
async def test_a_task_that_no_worker_takes_waits_and_says_so(rig: Rig) -> None:
    """No worker is bound to the key of a task.

    It waits, naming the key, and nothing is lost; it is sent once a worker has said hello.
    """
    await rig.server()
    job_id = await rig.post(job("unroutable", toil("OTHER")))
    [task] = await rig.tasks_of(job_id)
    await rig.until(lambda: rig.is_(task, "unroutable"))
    shown = await rig.get(f"task/{task}")
    assert "OTHER" in str(shown)
    rig.healed()
    await rig.worker(Other)

    await rig.recovered(SOON, job_id)
    rig.outcome = "waited as unroutable, done once a worker was there"


@row(57)
async def test_a_worker_that_comes_later_is_given_what_has_waited(rig: Rig) -> None:
    """The worker of a key comes when its tasks have waited for some time.

    They are sent within 1 s of its hello.
    """
    await rig.server()
    job_id = await rig.post(job("later", {"taskParallel": [toil("OTHER")] * 20}))
    await rig.until(lambda: rig.all_are(job_id, "unroutable"))
    await rig.worker(Other, slots=20)
    rig.healed()

    took = await rig.recovered(SOON, job_id)
    assert took < 1.5  # of which the tasks and the looking take some
    rig.outcome = "all 20 sent and done"


@row(58)
async def test_a_key_with_two_queues_is_executed_twice_and_recorded_once(rig: Rig) -> None:
    """Somebody binds a second queue to a key, and works there too.

    Executed twice, recorded once, and the log warns.
    """
    server = await rig.server()
    await rig.worker(Toil)
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.declare_queue("dane.second", ["#.TOIL"])
        try:
            job_id, task = await running_task(rig, "twice")
            async with exchange.consume("dane.second", prefetch=1) as second:
                [delivery] = await second.take(1)
                ticket = open_task(delivery.envelope).ticket
                await say(rig, await answer_to(rig, ticket.task_id))
                await second.ack(delivery)
            await rig.recovered(SOON, job_id)
            rig.history.say("go")
            rig.healed()
            await rig.until(lambda: rig.was_rejected(task, "settled"), SOON)
        finally:
            await exchange.delete_queue("dane.second")

    assert "dane.second" in server.log or "two queues" in server.log
    rig.outcome = "recorded once, the second counted, and the log warns"


@row(59)
async def test_a_slow_worker_leaves_the_queue_short_and_is_told_at_once(rig: Rig) -> None:
    """One slow worker, and far more tasks than its window.

    The broker holds no more than the window; a cancellation takes effect within 1 s.
    """
    window, number = 10, 2000
    await rig.server(RUNNER={"WINDOW": window})
    await rig.worker(Toil, slots=1)
    deepest = 0
    job_id = await rig.post(job("slow", {"taskParallel": [toil(seconds=0.05)] * number}))
    async with connect(rig.ground.amqp_url) as exchange:
        while len(rig.history.began()) < 40:
            depth = await exchange.depth(work_queue("TOIL"))
            deepest = max(deepest, depth.waiting if depth else 0)
    before = time.monotonic()
    await rig.act("cancel", job_id)
    rig.healed()
    await rig.until(lambda: rig.all_settled(job_id), SOON)

    began_after = [begin for begin in rig.history.began() if begin.at > before + 1]
    assert deepest <= window
    assert began_after == []
    await rig.recovered(SOON, job_id)
    rig.outcome = f"{deepest} messages at most (window {window}); nothing began after 1 s"


@row(60)
async def test_every_publication_has_its_own_outcome(rig: Rig) -> None:
    """Returns and confirms are mixed, 200 at once.

    Those without a worker wait as unroutable, the others are done.
    """
    await rig.server()
    await rig.worker(Toil, slots=20)
    mixed = [toil(), toil("OTHER")] * 100
    job_id = await rig.post(job("mixed", {"taskParallel": mixed}))
    rig.healed()

    async def each_has_its_own() -> bool:
        found = [state for _, state in sorted((await rig.states(job_id)).items())]
        return found == ["succeeded", "unroutable"] * 100

    await rig.until(each_has_its_own, SOON)
    await rig.worker(Other, slots=20)
    await rig.recovered(SOON, job_id)
    rig.outcome = "100 done, 100 unroutable, none taken for the other"
