"""Rows 30 to 37: the broker refuses, blocks, times out, or is slow; and is away for long."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiormq
import httpx
import pytest

from dane_core.exchange.amqp import connect
from dane_core.routing import RESPONSE_QUEUE, work_queue
from tests.faults.labor import Other, Toil
from tests.faults.plugin import row
from tests.faults.process import Process
from tests.faults.rig import Rig
from tests.faults.specs import job, toil
from tests.faults.test_rows_broker import until_consumed

pytestmark = pytest.mark.services

SOON: Final = 40.0
HOST: Final = "dane-test"  # the virtual host of a private broker
USER: Final = "dane"
#: How a program ends that cannot start as it was told.
WRONG_SETTINGS: Final = 78

Json = dict[str, Any]


async def readiness(server: Process) -> tuple[int, str]:
    """What `/DANE/ready` answers with, and what it says of the broker."""
    async with httpx.AsyncClient(timeout=10) as client:
        answer = await client.get(f"{server.url}/DANE/ready")
    return answer.status_code, answer.json()["messagequeue"]


async def until_ready(rig: Rig, server: Process, status: int, word: str) -> None:
    async def says_so() -> bool:
        found, said = await readiness(server)
        return found == status and said.startswith(word)

    await rig.until(says_so, SOON)


async def control(rig: Rig, *arguments: str) -> None:
    """Run `rabbitmqctl`."""
    await asyncio.to_thread(rig.broker.control, *arguments)


# --- 30: away for long -------------------------------------------------------------------------


class Deepest:
    """How many messages a queue was seen to hold at most."""

    def __init__(self) -> None:
        self.messages = 0

    @asynccontextmanager
    async def of(self, rig: Rig, queue: str) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch(rig, queue))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, rig: Rig, queue: str) -> None:
        async with connect(rig.ground.amqp_url) as exchange:
            while True:
                depth = await exchange.depth(queue)
                self.messages = max(self.messages, depth.waiting if depth else 0)
                await asyncio.sleep(0.02)


@row(30)
async def test_a_broker_that_is_away_for_long_costs_no_memory_and_gets_no_flood(rig: Rig) -> None:
    """The broker cannot be reached for long, with 50,000 open tasks.

    Memory of server and worker stays flat; when it is back, its queue never holds more than
    the window. The hour is 12 vain tries to connect, with sweeps of 0.2 s in place of 5 s.
    """
    window, number, tries = 500, 50_000, 12
    wires = [await rig.proxy_to_broker(), await rig.proxy_to_broker()]
    brisk = {"SWEEP": 0.2, "LEASE": 1, "CHECK": 2, "WINDOW": window}
    server = await rig.server(broker=wires[0], RUNNER=brisk)
    worker = await rig.worker(Toil, slots=20, broker=wires[1])
    await until_consumed(rig, work_queue("TOIL"), SOON)
    for wire in wires:
        wire.refuse()
    jobs = [
        await rig.post(job(f"patient-{part}", {"taskParallel": ["TOIL"] * (number // 10)}))
        for part in range(10)
    ]
    before = {process: process.memory("VmRSS") for process in (server, worker)}
    for process in before:
        process.forget_peak()
    turned_away = [wire.turned_away for wire in wires]

    def tried_often() -> bool:
        new = [wire.turned_away - old for wire, old in zip(wires, turned_away, strict=True)]
        return min(new) >= tries // 2 and sum(new) >= tries

    await rig.until(tried_often, 75)
    deepest = Deepest()
    async with deepest.of(rig, work_queue("TOIL")):
        for wire in wires:
            wire.mend()
        rig.healed()
        await rig.begun(1, SOON)
        await rig.begun(2 * window, SOON)
    grown = [process.memory() - old for process, old in before.items()]

    for job_id in jobs:
        await rig.act("delete", job_id)
    await rig.recovered(SOON)
    assert 0 < deepest.messages <= window
    assert max(grown) < 32 * 1024 * 1024
    rig.outcome = (
        f"server grew by {grown[0] >> 20} MiB and worker by {grown[1] >> 20} MiB at their peak; "
        f"{deepest.messages} messages in the queue at most (window {window})"
    )


# --- 31: an alarm ------------------------------------------------------------------------------


@row(31)
@pytest.mark.parametrize(
    ("alarm", "calm"),
    [
        pytest.param(
            ("set_vm_memory_high_watermark", "absolute", "1MB"),
            ("set_vm_memory_high_watermark", "0.4"),
            id="memory",
        ),
        pytest.param(("set_disk_free_limit", "1000GB"), ("set_disk_free_limit", "10MB"), id="disk"),
    ],
)
async def test_an_alarm_of_the_broker_holds_up_no_client_and_doubles_nothing(
    rig: Rig, alarm: Sequence[str], calm: Sequence[str]
) -> None:
    """The broker has an alarm and takes no messages, with tasks running and jobs coming.

    Jobs are accepted; `/DANE/ready` says that it is blocked, and why; when the alarm is over
    results flow again. What was on the wire when it began may be begun twice, and is recorded
    once.
    """
    server = await rig.server(RUNNER={"LEASE": 12})
    worker = await rig.worker(Toil)
    held = await rig.post(job("held", {"taskParallel": [toil(hold="go")] * 4}))
    await rig.begun(4)
    await control(rig, *alarm)
    try:
        on_the_wire = await rig.post(job("on-the-wire"))
        await until_ready(rig, server, 503, "blocked: ")
        reason = (await readiness(server))[1]
        rig.history.say("go")
        await worker.says("Answer is unknown")
        meanwhile = [await rig.try_post(job(f"m-{n}"), key=f"m-{n}") for n in range(20)]
        assert await rig.open_jobs() == 22
    finally:
        await control(rig, *calm)
    rig.healed()

    await until_ready(rig, server, 200, "200")
    await rig.recovered(SOON, held, on_the_wire)
    await rig.recovered(SOON)
    assert {sent.status for sent in meanwhile} == {201}
    twice = len(rig.history.began()) - 25
    assert twice <= len(rig.history.began(job_id=on_the_wire)) - 1
    rig.outcome = (
        f"20 of 20 jobs accepted; `/DANE/ready` said {reason!r}; {twice} of 25 begun twice"
    )


# --- 32: a consumer timeout --------------------------------------------------------------------

#: Of the task, in seconds; and when its message is acknowledged, of 60 s by default.
LONG: Final = 150
HAND_OFF: Final = 20


@asynccontextmanager
async def cut_for_its_delay(rig: Rig) -> AsyncIterator["asyncio.Future[Any]"]:
    """A consumer that acknowledges nothing; done when the broker has closed its channel."""
    connection = await aiormq.connect(rig.ground.amqp_url)
    try:
        channel = await connection.channel()
        declared = await channel.queue_declare("", exclusive=True)
        assert declared.queue

        async def keep(_: object) -> None:
            """Acknowledges nothing."""

        await channel.basic_consume(declared.queue, keep)
        await channel.basic_publish(b"", routing_key=declared.queue)
        yield channel.closing
    finally:
        await connection.close()


@row(32)
async def test_a_task_may_take_longer_than_the_broker_waits_for_an_acknowledgement(
    rig: Rig,
) -> None:
    """The broker waits 60 s for an acknowledgement (`consumer_timeout`); a task takes 150 s.

    Executed once, one result, no connection lost. The task takes 150 s and not 300, as the
    broker looks once a minute: who holds a message is found out after 120 s at the latest. A
    consumer that holds one shows it.
    """
    await asyncio.to_thread(rig.broker.restart, "consumer_timeout = 60000")
    try:
        server = await rig.server()
        worker = await rig.worker(Toil, WORKER={"HAND_OFF": HAND_OFF})
        async with cut_for_its_delay(rig) as cut:
            job_id = await rig.post(job("long", toil(seconds=LONG)))
            [task] = await rig.tasks_of(job_id)
            await rig.begun(task_id=task)
            await rig.until(lambda: rig.is_leased(task), 60)
            await asyncio.wait([cut], timeout=150)
            assert "timed out" in str(cut.exception() if cut.done() else "it was not cut")
        rig.healed()

        await rig.recovered(LONG, job_id)
        await rig.post(job("after"))
        await rig.recovered(SOON)
        assert len(rig.history.began(task_id=task)) == 1
        assert "no connection" not in server.log + worker.log
        rig.outcome = "executed once, one result; the consumer that held a message was cut"
    finally:
        await asyncio.to_thread(rig.broker.restart)


# --- 33: other arguments -----------------------------------------------------------------------


async def declare_otherwise(rig: Rig, queue: str) -> None:
    """Make a queue as nobody of DANE would."""
    connection = await aiormq.connect(rig.ground.amqp_url)
    try:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 3})
    finally:
        await connection.close()


async def delete(rig: Rig, queue: str) -> None:
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.delete_queue(queue)


@row(33)
async def test_a_queue_with_other_arguments_is_named_and_stops_no_other_key(rig: Rig) -> None:
    """The queue of a key exists with other arguments.

    The worker names the queue, what it has and what it should have; its other keys are
    served. Once the queue is deleted and the worker starts again, that key is served too.
    """
    queue = work_queue("OTHER")
    await declare_otherwise(rig, queue)
    try:
        await rig.server()
        worker = await rig.worker(Toil, Other, broker=await rig.proxy_to_broker())
        await worker.says(f"queue {queue!r} exists with other arguments")
        job_id = await rig.post(job("both", {"taskParallel": [toil(), toil("OTHER")]}))
        good, waiting = await rig.tasks_of(job_id)
        await rig.until(lambda: rig.is_(good, "succeeded"))
        await rig.until(lambda: rig.is_(waiting, "unroutable"))
        [said] = [line for line in worker.log.splitlines() if "other arguments" in line]
    finally:
        await delete(rig, queue)
    rig.healed()
    await worker.stop()
    await rig.worker(Toil, Other)

    await rig.recovered(SOON, job_id)
    assert "x-max-priority" in said
    assert "'3'" in said  # what it has
    assert "'10'" in said  # what it should have
    rig.outcome = "named with what it has and should have; the other key was served"


@row(33)
@pytest.mark.parametrize("queue", [work_queue("TOIL"), RESPONSE_QUEUE])
async def test_who_cannot_work_for_a_queue_with_other_arguments_says_so_and_ends(
    rig: Rig, queue: str
) -> None:
    """The only queue of a worker, or the response queue, exists with other arguments.

    The worker, and of the response queue the server too, names it and does not start.
    """
    await declare_otherwise(rig, queue)
    try:
        worker = await rig.worker(Toil, broker=await rig.proxy_to_broker())
        worker.may_end = True
        assert await worker.ended() == WRONG_SETTINGS
        if queue == RESPONSE_QUEUE:
            with pytest.raises(AssertionError, match=f"ended with {WRONG_SETTINGS}"):
                await rig.server()
        for process in rig.processes:
            assert f"queue {queue!r} exists with other arguments" in process.log
            assert "Traceback" not in process.log
    finally:
        await delete(rig, queue)
    rig.outcome = "named, and not started"


# --- 34: a slow wire ---------------------------------------------------------------------------


@row(34)
async def test_a_slow_wire_that_breaks_now_and_then_is_slow_and_loses_nothing(rig: Rig) -> None:
    """10 kB/s, 2 s from a word to its answer, and a reset of all connections in the midst.

    Slow, and complete. There are 12 tasks, and the wire is slow once everybody is there: to
    connect and declare takes a minute on it.
    """
    number = 12
    wires = [await rig.proxy_to_broker(), await rig.proxy_to_broker()]
    await rig.server(broker=wires[0], RUNNER={"LEASE": 15})
    worker = await rig.worker(Toil, slots=2, broker=wires[1])
    await until_consumed(rig, work_queue("TOIL"), SOON)
    for wire in wires:
        wire.rate, wire.delay = 10_000, 1.0  # each way
    job_id = await rig.post(job("slow", {"taskParallel": [toil(size=500)] * number}))
    rig.healed()
    await rig.begun(number // 2)
    for wire in wires:
        wire.cut()
    await worker.says("connected to RabbitMQ again")

    took = await rig.recovered(150, job_id)
    began = len(rig.history.began())
    for wire in wires:
        wire.mend()
    rig.outcome = f"complete after {took:.0f} s; {began} executions of {number} tasks"


# --- 35: revoked credentials -------------------------------------------------------------------


async def revoke_password(rig: Rig) -> None:
    await control(rig, "change_password", USER, "not-what-it-was")


async def restore_password(rig: Rig) -> None:
    await control(
        rig, "change_password", USER, unquote(urlsplit(rig.ground.amqp_url).password or "")
    )


async def revoke_rights(rig: Rig) -> None:
    await control(rig, "clear_permissions", "-p", HOST, USER)


async def restore_rights(rig: Rig) -> None:
    await control(rig, "set_permissions", "-p", HOST, USER, ".*", ".*", ".*")


@row(35)
@pytest.mark.parametrize(
    ("revoke", "restore", "closing", "reason"),
    [
        pytest.param(revoke_password, restore_password, True, "ACCESS_REFUSED", id="password"),
        pytest.param(revoke_rights, restore_rights, True, "refused for user", id="rights"),
        pytest.param(revoke_rights, restore_rights, False, "refused for user", id="rights only"),
    ],
)
async def test_revoked_credentials_are_told_and_work_goes_on_once_they_are_back(
    rig: Rig, *, revoke: Any, restore: Any, closing: bool, reason: str
) -> None:
    """The credentials are revoked while tasks run; connections are closed, or left open.

    The logs say why there is no connection, and `/DANE/ready` that there is none; jobs are
    accepted; once they are restored everything goes on by itself.
    """
    server = await rig.server()
    worker = await rig.worker(Toil)
    held = await rig.post(job("held", {"taskParallel": [toil(hold="go")] * 4}))
    await rig.begun(4)
    await revoke(rig)
    try:
        if closing:
            await control(rig, "close_all_connections", "--global", "credentials were revoked")
        await until_ready(rig, server, 503, "502" if closing else "blocked: ACCESS_REFUSED")
        for process in (server, worker):
            await process.says(reason)
        meanwhile = [await rig.try_post(job(f"m-{n}"), key=f"m-{n}") for n in range(10)]
        rig.history.say("go")
        await rig.until(lambda: len(rig.history.ended()) == 4, SOON)
    finally:
        await restore(rig)
    rig.healed()

    await until_ready(rig, server, 200, "200")
    await rig.recovered(SOON, held)
    await rig.recovered(SOON)
    assert {sent.status for sent in meanwhile} == {201}
    assert len(rig.history.began()) == 14
    rig.outcome = f"both logs say {reason}; 10 of 10 jobs accepted; all begun once, and done"


# --- 37: a full queue --------------------------------------------------------------------------


async def refused_are_ready_again(rig: Rig, job_id: int) -> bool:
    """Whether some are in the queue, and others wait in the store for their next try."""
    found = Counter((await rig.states(job_id)).values())
    return found["ready"] > 0 and found["queued"] == 5


@row(37)
async def test_what_a_full_queue_refuses_is_sent_again_later(rig: Rig) -> None:
    """A queue takes 5 messages and refuses more (max-length, reject-publish); 60 tasks come.

    The log names the key once; what was refused is sent again later; all is done once.
    """
    number = 60
    server = await rig.server(RUNNER={"LEASE": 1})
    await rig.worker(Toil, slots=1)
    name = work_queue("TOIL").replace(".", "[.]")
    limit = '{"max-length": 5, "overflow": "reject-publish"}'
    await control(rig, "set_policy", "-p", HOST, "full", f"^{name}$", limit, "--apply-to", "queues")
    try:
        first, *others = [toil(hold="go"), *[toil()] * (number - 1)]
        job_id = await rig.post(job("full", {"taskParallel": [first, *others]}))
        await server.says("the queue of TOIL takes no more")
        await rig.until(lambda: refused_are_ready_again(rig, job_id), SOON)
        rig.history.say("go")
        await rig.begun(number // 2, SOON)
    finally:
        await control(rig, "clear_policy", "-p", HOST, "full")
    rig.healed()

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) == number
    assert server.log.count("takes no more") <= 2
    rig.outcome = f"{number} of {number} done once, sent again for as long as they were refused"
