"""Rows 28 and 32 where the answer itself is at stake: its queue, or its channel, is gone."""

import asyncio
from typing import Final

import pytest

from dane_core.exchange.amqp import connect
from dane_core.routing import RESPONSE_QUEUE
from tests.faults.labor import Toil
from tests.faults.plugin import row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 40.0
#: A lost answer is found out after two minutes on a message and one on a lease; and some sweeps.
FOUND_OUT: Final = 210.0
#: Of a task, in seconds: longer than the broker waits, by the minute between two of its looks.
LONG: Final = 150


@row(28)
async def test_answers_that_are_deleted_with_their_queue_are_produced_again(rig: Rig) -> None:
    """Answers lie in the response queue while no server is there, and it is deleted.

    Their tasks are not left as running at a worker that has nothing to do: all are done again
    and recorded, as attempt 1 or later, once a server is there.
    """
    number = 4
    server = await rig.server()
    await rig.worker(Toil, slots=number)
    job_id = await rig.post(job("answered", {"taskParallel": [toil(hold="go")] * number}))
    await rig.begun(number)
    await rig.until(lambda: rig.all_are(job_id, "running"))
    server.kill()
    await server.ended()
    rig.history.say("go")
    async with connect(rig.ground.amqp_url) as exchange:

        async def answered() -> bool:
            depth = await exchange.depth(RESPONSE_QUEUE)
            return depth is not None and depth.waiting >= number

        await rig.until(answered)
        await exchange.delete_queue(RESPONSE_QUEUE)
    await rig.server()
    rig.healed()

    await rig.recovered(FOUND_OUT, job_id)
    assert await rig.all_are(job_id, "succeeded")
    rig.outcome = f"all {number} done again and recorded"


@row(32)
async def test_a_task_whose_channel_is_cut_before_its_hand_off_stays_with_its_worker(
    rig: Rig,
) -> None:
    """The broker waits 60 s for an acknowledgement, as long as the hand-off takes by default.

    The broker may take the message back before the hand-off, and give it to another worker:
    one that lives keeps its task. Executed once, one result. (The broker looks once a minute.)
    """
    await asyncio.to_thread(rig.broker.restart, "consumer_timeout = 60000")
    try:
        await rig.server()
        await rig.worker(Toil)
        await rig.worker(Toil)
        job_id = await rig.post(job("long", toil(seconds=LONG)))
        [task] = await rig.tasks_of(job_id)
        await rig.begun(task_id=task)
        rig.healed()

        await rig.recovered(LONG + SOON, job_id)
        await rig.recovered(SOON, await rig.post(job("after")))
        assert len(rig.history.began(task_id=task)) == 1
        cut = sum("timeout on channel" in worker.log for worker in rig.processes)
        rig.outcome = f"executed once, one result; {cut} of 2 workers had their channel cut"
    finally:
        await asyncio.to_thread(rig.broker.restart)
