"""Rows 25 to 37: the broker restarts, dies, is wiped, falls silent."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from dane_core.exchange.amqp import connect
from dane_core.routing import RESPONSE_QUEUE, work_queue
from tests.faults.labor import Toil
from tests.faults.plugin import row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil
from tests.services.proxy import Proxy
from tests.services.rabbitmq import Broker

pytestmark = pytest.mark.services

LEASED: Final[dict[str, Any]] = {"HAND_OFF": 0.5, "BEAT": 0.5}


def killed_and_started(broker: Broker) -> None:
    broker.kill()
    broker.start()


async def until_consumed(rig: Rig, queue: str, within: float) -> float:
    """Wait until a queue has a consumer again; the seconds it took."""
    began = time.monotonic()
    async with connect(rig.ground.amqp_url) as exchange:

        async def consumed() -> bool:
            depth = await exchange.depth(queue)
            return depth is not None and depth.consumers > 0

        await rig.until(consumed, within)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "befalls",
    [
        pytest.param(Broker.restart, id="restarted", marks=row(25)),
        pytest.param(killed_and_started, id="killed", marks=row(26)),
        pytest.param(Broker.wipe, id="wiped", marks=row(27)),
    ],
)
async def test_a_broker_that_was_away_has_lost_nothing(
    rig: Rig, befalls: Callable[[Broker], None]
) -> None:
    """The broker is restarted, killed, or wiped, under load and with a long task running.

    Consumers are back within 10 s; nothing is lost; the long task is not run again.
    """
    await rig.server()
    await rig.worker()
    holder = await rig.worker(Toil, WORKER=LEASED)
    long = await rig.post(job("long", toil(hold="go")))
    [task] = await rig.tasks_of(long)
    await rig.begun(task_id=task)
    if rig.history.began(task_id=task)[0].pid == holder.pid:
        await rig.until(lambda: rig.is_leased(task))
    await rig.until(lambda: rig.is_running(task))  # DANE knows who has it
    loading = asyncio.create_task(rig.load(30))
    await rig.begun(10)
    await asyncio.to_thread(befalls, rig.broker)
    rig.healed()

    back = await until_consumed(rig, work_queue("TOIL"), 10)
    ids = await loading
    await rig.recovered(60, *ids)
    rig.history.say("go")
    took = rig.seconds
    await rig.recovered(20, long)
    assert len(rig.history.began(task_id=task)) == 1
    rig.seconds = took
    rig.outcome = f"consumers back after {back:.1f} s, nothing lost, the long task ran once"


@row(27)
async def test_what_was_queued_in_a_broker_that_was_wiped_is_sent_again(rig: Rig) -> None:
    """The broker is wiped while tasks lie in its queues and no worker is there.

    Their loss is seen by the epoch; all are sent again and done.
    """
    await rig.server()
    worker = await rig.worker(Toil)
    await worker.stop()
    job_id = await rig.post(job("queued", {"taskParallel": ["TOIL"] * 50}))
    await rig.until(lambda: rig.all_are(job_id, "queued"))
    await asyncio.to_thread(rig.broker.wipe)
    rig.healed()
    await rig.worker(Toil)

    await rig.recovered(60, job_id)
    assert len(rig.history.began()) == 50
    rig.outcome = "50 tasks sent again, executed once each"


@row(28)
@pytest.mark.parametrize("queue", [work_queue("TOIL"), RESPONSE_QUEUE])
async def test_a_queue_that_is_deleted_is_made_again(rig: Rig, queue: str) -> None:
    """A work queue, or the response queue, is deleted under load.

    Consumed again; what was in it is sent again; all is done.
    """
    await rig.server(RUNNER={"LOST_AFTER": 2})
    await rig.worker(Toil)
    holding = await rig.post(job("held", {"taskParallel": [toil(hold="go")] * 4}))
    waiting = await rig.post(job("waiting", {"taskParallel": ["TOIL"] * 20}))
    await rig.begun(4)
    await rig.until(lambda: rig.all_are(waiting, "queued"))
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.delete_queue(queue)
    rig.healed()
    rig.history.say("go")

    await rig.recovered(75, holding, waiting)
    rig.outcome = "made and consumed again, nothing lost"


@row(29)
@pytest.mark.parametrize("falls", [Proxy.refuse, Proxy.silence], ids=["reset", "silent"])
async def test_a_broker_that_cannot_be_reached_holds_up_no_client(
    rig: Rig, falls: Callable[[Proxy], None]
) -> None:
    """The broker cannot be reached: connections are reset, or nothing comes through.

    Jobs are accepted all the while; all is done within 40 s of the end of it.
    """
    wires = [await rig.proxy_to_broker(), await rig.proxy_to_broker()]
    server = await rig.server(broker=wires[0])
    await rig.worker(broker=wires[1])
    ids = await rig.load(5)
    for wire in wires:
        falls(wire)
    meanwhile = []
    for number in range(20):  # a second and a half between two of them: half a minute in all
        sent = await rig.try_post(job(f"meanwhile-{number}"), key=f"m-{number}", server=server)
        meanwhile.append(sent.status)
        await asyncio.sleep(1.5)
        assert sent.took < 10
    for wire in wires:
        wire.mend()
    rig.healed()

    assert set(meanwhile) == {201}
    await rig.recovered(40, *ids)
    await rig.recovered(40)
    rig.outcome = "20 of 20 jobs accepted meanwhile; all done"
