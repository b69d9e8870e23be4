"""Rows 53 and 55: results that are too large, and results out of order."""

from dataclasses import dataclass
from typing import Any, Final

import pytest

from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import (
    RESPONSE_LIMIT,
    Answer,
    Progress,
    Report,
    Started,
    TaskMessage,
    Ticket,
    open_task,
)
from dane_core.routing import RESPONSE_QUEUE, work_queue
from dane_core.worker.worker import Worker
from tests.faults.history import Ended
from tests.faults.labor import CREW, Toil
from tests.faults.plugin import quick, row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 30.0
MIB: Final = 1024 * 1024
#: What the answer of a test worker has in it but its padding, in bytes of JSON.
_FRAME: Final = len('{"value":"","pad":""}') + 32


@row(53)
@pytest.mark.parametrize("kind", CREW)
async def test_a_result_that_is_too_large_fails_and_says_what_to_do(
    rig: Rig, kind: type[Worker]
) -> None:
    """Results of the limit, a byte more, and 20 MiB.

    The first is recorded. The others are FAILED by their worker, which says how large they
    are and what to do instead, and goes on.
    """
    await rig.server()
    worker = await rig.worker(kind, slots=1)
    sizes = [RESPONSE_LIMIT, RESPONSE_LIMIT + 1, 20 * MIB]
    tasks = [toil(kind.key, size=size - _FRAME) for size in sizes]
    job_id = await rig.post(job("large", {"taskParallel": tasks}))
    rig.healed()
    await rig.recovered(SOON, job_id)

    fits, over, huge = await rig.tasks_of(job_id)
    rig.expects_failure(over, huge)
    assert await rig.is_(fits, "succeeded")
    for task, size in ((over, sizes[1]), (huge, sizes[2])):
        assert (await rig.row(task)).outcome == 500
        message = await rig.last_words(task)
        assert message.startswith(f"the response is {size:,} bytes and the limit is ")
        assert "write it to a file" in message
    await rig.recovered(SOON, await rig.post(job("next", toil(kind.key))))
    assert worker.alive
    rig.outcome = f"{sizes[0]:,} bytes recorded; {sizes[1]:,} and {sizes[2]:,} failed with why"


@row(53)
@pytest.mark.parametrize("kind", CREW)
async def test_a_result_of_200_mib_ends_nobody(rig: Rig, kind: type[Worker]) -> None:
    """A result of 200 MiB, which no broker would take.

    FAILED by its worker, which says why; worker, server and their connections go on.
    """
    await rig.server()
    worker = await rig.worker(kind, slots=1)
    job_id = await rig.post(job("huge", toil(kind.key, size=200 * MIB)))
    rig.healed()
    await rig.recovered(SOON, job_id)

    [task] = await rig.tasks_of(job_id)
    rig.expects_failure(task)
    assert (await rig.row(task)).outcome == 500
    assert "write it to a file" in await rig.last_words(task)
    await rig.recovered(SOON, await rig.post(job("next", toil(kind.key))))
    assert worker.alive
    rig.outcome = "failed with why; the next task was done"


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """A worker that the test itself plays: it says what it likes, in the order it likes."""

    rig: Rig
    exchange: Exchange

    async def takes(self, number: int) -> list[TaskMessage]:
        """Take so many tasks from the queue of OTHER."""
        taken: list[TaskMessage] = []
        async with self.exchange.consume(work_queue("OTHER"), prefetch=number) as queue:
            while len(taken) < number:
                for delivery in await queue.take(number):
                    taken.append(open_task(delivery.envelope))
                    await queue.ack(delivery)
        return sorted(taken, key=lambda message: message.ticket.task_id)

    async def says(self, *reports: Report) -> None:
        envelopes = [report.seal() for report in reports]
        assert set(await self.exchange.send(RESPONSE_QUEUE, envelopes)) == {Fate.ROUTED}

    def good(self, ticket: Ticket, **more: Any) -> Answer:
        """A success, whose value is in the history as if it had been worked for."""
        return _answer(ticket, 200, {"value": self._note(ticket, 200), **more})

    def bad(self, ticket: Ticket, state: int = 500) -> Answer:
        self._note(ticket, state)
        return _answer(ticket, state, {})

    def _note(self, ticket: Ticket, outcome: int) -> str:
        value = f"by hand, {ticket.task_id}/{ticket.attempt}"
        this = {"task_id": ticket.task_id, "attempt": ticket.attempt, "job_id": 0, "pid": 0}
        self.rig.history.note(Ended(**this, key="OTHER", value=value, outcome=outcome))
        return value


def _answer(ticket: Ticket, state: int, response: dict[str, Any]) -> Answer:
    return Answer(ticket=ticket, state=state, message="said", response=response, worker="by hand")


def started(ticket: Ticket) -> Started:
    return Started(ticket=ticket, worker="by hand", runtime=1.0)


def progress(ticket: Ticket) -> Progress:
    return Progress(ticket=ticket, fraction=0.5, message="half")


@quick
@row(55)
async def test_the_first_result_counts_in_whatever_order_they_come(rig: Rig) -> None:
    """A result before its start; a failure after a success; a success after a failure; all at once.

    The first that ends a task counts, the others are counted as settled.
    """
    await rig.server()
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.declare_queue(work_queue("OTHER"), ["#.OTHER"])
        hand = ByHand(rig=rig, exchange=exchange)
        job_id = await rig.post(job("disorder", {"taskParallel": [toil("OTHER")] * 4}))
        early, lucky, unlucky, torn = [one.ticket for one in await hand.takes(4)]

        await hand.says(hand.good(early))
        await rig.until(lambda: rig.is_(early.task_id, "succeeded"), SOON)
        await hand.says(started(early), progress(early))
        await hand.says(hand.good(lucky), hand.bad(lucky), started(lucky))
        await hand.says(started(unlucky), hand.bad(unlucky), hand.good(unlucky), progress(unlucky))
        await hand.says(progress(torn), hand.bad(torn), started(torn), hand.good(torn))
        rig.healed()
        await rig.recovered(SOON, job_id)
        for ticket in (lucky, unlucky, torn):
            task = ticket.task_id
            await rig.until(lambda task=task: rig.counts(task, "settled", 1), SOON)

    states = [(await rig.row(one.task_id)).state for one in (early, lucky, unlucky, torn)]
    assert states == ["succeeded", "succeeded", "failed", "failed"]
    rig.outcome = "the first result of each counted, the second was refused as settled"


@row(55)
async def test_a_success_of_an_attempt_that_has_failed_changes_nothing(rig: Rig) -> None:
    """An attempt fails for now, and then its success comes, with the next attempt on its way.

    Refused; the next attempt decides.
    """
    await rig.server()
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.declare_queue(work_queue("OTHER"), ["#.OTHER"])
        hand = ByHand(rig=rig, exchange=exchange)
        spec = toil("OTHER")
        spec["Task"]["retry"] = {"limit": 1, "delay": 0.1}
        job_id = await rig.post(job("second thoughts", spec))
        [first] = [one.ticket for one in await hand.takes(1)]
        await hand.says(hand.bad(first, 503), hand.good(first))
        [second] = [one.ticket for one in await hand.takes(1)]
        assert (second.task_id, second.attempt) == (first.task_id, 2)
        await hand.says(hand.good(first), started(first), hand.good(second), hand.bad(first))
        rig.healed()
        await rig.recovered(SOON, job_id)
        await rig.until(lambda: rig.was_rejected(first.task_id, "stale"), SOON)

    row_now = await rig.row(first.task_id)
    assert (row_now.state, row_now.attempt) == ("succeeded", 2)
    rig.outcome = "refused; attempt 2 was recorded"


@row(53)
async def test_a_large_result_of_a_foreign_worker_fails_and_stops_nobody(rig: Rig) -> None:
    """A worker that is not ours answers with 20 MiB, more than one of ours may.

    FAILED by the server, which says why; what comes with it and after it is recorded.
    """
    server = await rig.server()
    async with connect(rig.ground.amqp_url) as exchange:
        await exchange.declare_queue(work_queue("OTHER"), ["#.OTHER"])
        hand = ByHand(rig=rig, exchange=exchange)
        job_id = await rig.post(job("foreign", {"taskParallel": [toil("OTHER")] * 2}))
        large, small = [one.ticket for one in await hand.takes(2)]
        rig.expects_failure(large.task_id)
        await hand.says(hand.good(large, pad="x" * 20 * MIB), hand.good(small))
        rig.healed()
        await rig.recovered(SOON, job_id)

    assert await rig.is_(small.task_id, "succeeded")
    assert (await rig.row(large.task_id)).outcome == 500
    assert "bytes and the limit is" in await rig.last_words(large.task_id)
    assert server.alive
    await rig.worker(Toil)
    await rig.recovered(SOON, await rig.post(job("next")))
    rig.outcome = "failed with why; the other results were recorded"
