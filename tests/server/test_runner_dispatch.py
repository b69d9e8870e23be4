"""What the dispatcher sends, what it leaves to the leases, and how it ends."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import StoreUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import Envelope
from dane_core.routing import work_queue
from dane_core.states import TaskState
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher, Moment
from dane_server.runner.pace import Pace
from dane_server.runner.ticket import Signer, new_secret
from dane_server.storage.claiming import Claiming
from dane_server.storage.quotas import Quotas
from dane_server.storage.tables import task_keys
from dane_server.storage.view import Claim, Submitted
from dane_server.supervise import Stopping, keep_running
from tests.server.ledger import Ledger, new_job, parallel
from tests.server.scripted import PATIENT, until

LATE = Moment(monotonic=time.monotonic() - 0.6 * PATIENT.lease.total_seconds())


class Slow(MemoryExchange):
    """Confirms nothing before the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.sending = asyncio.Event()
        self.confirm = asyncio.Event()
        self.sent = 0

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        self.sent += len(messages)
        fates = await super().publish(messages)
        self.sending.set()
        await self.confirm.wait()
        return fates


def new_dispatcher(
    ledger: Ledger,
    exchange: Exchange,
    stopping: Stopping,
    pace: Pace = PATIENT,
    bell: LocalBell | None = None,
) -> Dispatcher:
    return Dispatcher(
        writer=ledger.writer,
        reader=ledger.reader,
        exchange=exchange,
        bell=bell or LocalBell(),
        signer=Signer(new_secret()),
        pace=pace,
        stopping=stopping,
    )


async def runs_until(
    holds: Callable[[], Awaitable[bool]], dispatcher: Dispatcher, stopping: Stopping
) -> None:
    """Have a dispatcher at work until something holds."""
    running = asyncio.create_task(keep_running("dispatcher", dispatcher.run, stopping=stopping))
    await until(holds)
    stopping.tell()
    await running


async def with_queue(exchange: Exchange) -> None:
    await exchange.declare_queue(work_queue("A"), ["#.A"])


async def test_what_is_handed_over_at_a_stop_leaves_the_batch_under_way_alone(
    ledger: Ledger,
) -> None:
    """Both are marked as sent: what is not would be sent again after its lease."""
    job = await ledger.submit(parallel("A", "A"))
    handed_over = await ledger.claim(limit=1)
    exchange, stopping = Slow(), Stopping()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping)
    running = asyncio.create_task(keep_running("dispatcher", dispatcher.run, stopping=stopping))
    await exchange.sending.wait()

    stopping.tell()
    exchange.sending.clear()
    dispatcher.hand_over(handed_over, Moment())
    handing_over = asyncio.create_task(dispatcher.see_off())
    await exchange.sending.wait()
    exchange.confirm.set()
    await asyncio.gather(handing_over, running)

    assert [one.state for one in await ledger.tasks(job)] == [TaskState.QUEUED] * 2


async def test_one_told_to_stop_ends_its_batch_and_claims_no_other(ledger: Ledger) -> None:
    """What was sent is marked: nothing waits for a lease, and nothing is sent again."""
    job = await ledger.submit(parallel("A", "A", "A"))
    exchange, stopping = Slow(), Stopping()
    await with_queue(exchange)
    pace = Pace(lease=PATIENT.lease, batch=2)
    dispatcher = new_dispatcher(ledger, exchange, stopping, pace)

    running = asyncio.create_task(keep_running("dispatcher", dispatcher.run, stopping=stopping))
    await exchange.sending.wait()
    stopping.tell()
    exchange.confirm.set()
    await asyncio.wait_for(running, 10)

    states = sorted(task.state for task in await ledger.tasks(job))
    assert states == sorted([TaskState.QUEUED, TaskState.QUEUED, TaskState.READY])
    assert exchange.sent == 2
    assert dispatcher.window == 0


async def test_one_that_waits_for_a_rate_sends_when_its_time_has_come(ledger: Ledger) -> None:
    """Nobody rings then."""
    job = await ledger.submit(parallel("A", "A", "A"))
    await ledger.store.write(_limit_rate)
    exchange, stopping = MemoryExchange(), Stopping()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping)

    running = asyncio.create_task(keep_running("dispatcher", dispatcher.run, stopping=stopping))
    await until(lambda: _is(ledger, job, TaskState.QUEUED))

    stopping.tell()
    await asyncio.wait_for(running, 10)


async def _limit_rate(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(task_keys).values(rate=50.0, burst=1))


async def test_one_that_waits_ends_at_the_word(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    stopping = Stopping()
    dispatcher = new_dispatcher(ledger, MemoryExchange(), stopping)
    running = asyncio.create_task(keep_running("dispatcher", dispatcher.run, stopping=stopping))
    await until(lambda: _is(ledger, job, TaskState.UNROUTABLE))

    stopping.tell()

    await asyncio.wait_for(running, 10)


async def _is(ledger: Ledger, job: object, state: TaskState) -> bool:
    return {task.state for task in await ledger.tasks(job)} == {state}  # type: ignore[arg-type]


async def test_what_is_handed_over_while_everything_stops_is_sent(ledger: Ledger) -> None:
    """The recorder had claimed it a moment before; the dispatcher's loop has ended already."""
    job = await ledger.submit("A")
    exchange, stopping = MemoryExchange(), Stopping()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping)
    now = Moment()
    claims = await ledger.claim()

    stopping.tell()
    dispatcher.hand_over(claims, now)
    await dispatcher.see_off()

    assert await ledger.states(job) == {"A": TaskState.QUEUED}


async def test_claims_whose_lease_is_half_over_are_left_to_it(ledger: Ledger) -> None:
    """Sent now, they might be confirmed after it, and be sent twice."""
    job = await ledger.submit("A")
    exchange = MemoryExchange()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, Stopping())
    claims = await ledger.claim()

    dispatcher.hand_over(claims, LATE)

    assert not await dispatcher.send_some()
    assert await ledger.states(job) == {"A": TaskState.DISPATCHING}


async def test_claims_of_a_slow_database_are_left_to_their_lease(ledger: Ledger) -> None:
    """From the claim on: reading what goes with it may take long."""
    job = await ledger.submit("A")
    exchange = MemoryExchange()
    await with_queue(exchange)
    short = Pace(lease=timedelta(seconds=0))
    dispatcher = new_dispatcher(ledger, exchange, Stopping(), short)

    await dispatcher.send_some()

    assert await ledger.states(job) == {"A": TaskState.DISPATCHING}
    depth = await exchange.depth(work_queue("A"))
    assert depth is not None
    assert depth.waiting == 0


async def test_a_rate_is_kept_however_often_the_bell_rings_meanwhile(ledger: Ledger) -> None:
    """Each ring is for another task, and must not put off when the next of this key may go."""
    job = await ledger.submit(parallel("A", "A", "A"))
    await Quotas(ledger.store).limit_key("A", {"rate": 10.0, "burst": 1})
    exchange, stopping, bell = MemoryExchange(), Stopping(), LocalBell()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping, bell=bell)

    async def all_sent() -> bool:
        bell.call()
        return {one.state for one in await ledger.tasks(job)} == {TaskState.QUEUED}

    await runs_until(all_sent, dispatcher, stopping)


async def test_what_could_not_be_marked_as_sent_is_marked_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its lease would end, and it would be sent again."""
    job = await ledger.submit("A")
    exchange, stopping, mark = MemoryExchange(), Stopping(), ledger.writer.mark_sent
    faults = iter([StoreUnreachable("away for a moment")])

    async def mark_sent(*args: Any, **kwargs: Any) -> None:
        for fault in faults:
            raise fault
        await mark(*args, **kwargs)

    monkeypatch.setattr(ledger.writer, "mark_sent", mark_sent)
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping)

    async def marked() -> bool:
        return await ledger.states(job) == {"A": TaskState.QUEUED}

    await runs_until(marked, dispatcher, stopping)
    assert [one.dispatch for one in await ledger.tasks(job)] == [1]


async def test_what_finds_no_queue_leaves_its_place_to_the_next_at_once(ledger: Ledger) -> None:
    """Nobody rings for that: with a limit of one, each would cost the time to the next sweep."""
    strange = [await ledger.submit("A", type="strange") for _ in range(3)]
    known = await ledger.submit("A", type="video")
    await Quotas(ledger.store).limit_key("A", {"concurrency": 1})
    exchange, stopping = MemoryExchange(), Stopping()
    await exchange.declare_queue(work_queue("A"), ["video.A"])
    dispatcher = new_dispatcher(ledger, exchange, stopping)

    async def sent() -> bool:
        return await ledger.states(known) == {"A": TaskState.QUEUED}

    await runs_until(sent, dispatcher, stopping)
    found = {(await ledger.states(job))["A"] for job in strange}
    assert found == {TaskState.UNROUTABLE}


class Tapped(MemoryExchange):
    """Notes the routing keys of what is published, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[list[str]] = []

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        self.published.append([routing_key for routing_key, _ in messages])
        return await super().publish(messages)


async def test_where_no_queue_is_bound_one_task_finds_that_out_for_all(ledger: Ledger) -> None:
    """Each would come back: a hundred thousand messages, to learn the same."""
    job = await ledger.submit(parallel(*["A"] * 9), type="video")
    exchange, stopping = Tapped(), Stopping()
    dispatcher = new_dispatcher(ledger, exchange, stopping, Pace(lease=PATIENT.lease, batch=3))

    await runs_until(lambda: _is(ledger, job, TaskState.UNROUTABLE), dispatcher, stopping)

    assert exchange.published == [["video.A"] * 3, ["video.A"], ["video.A"]]


async def _unrouted(ledger: Ledger, asked: Claiming) -> Submitted:
    """Three tasks, of which two are taken to find no queue."""
    await ledger.acts.resume_key("A")  # it is known
    job = new_job(parallel(*["A"] * 3), type="video")
    [stored] = await ledger.writer.store_jobs([job], asked)
    assert isinstance(stored, Submitted)
    assert stored.unrouted == {"video.A"}
    return stored


async def test_the_one_that_finds_a_queue_lets_go_what_was_taken_to_find_none(
    ledger: Ledger,
) -> None:
    """The others were written down as unroutable as they were stored."""
    exchange, stopping = Tapped(), Stopping()
    dispatcher = new_dispatcher(ledger, exchange, stopping)
    dispatcher.hand_over(await _claimed(ledger, "video"), Moment())
    await dispatcher.send_some()
    stored = await _unrouted(ledger, dispatcher.claiming())
    await exchange.declare_queue(work_queue("A"), ["#.A"])
    exchange.published.clear()

    dispatcher.hand_over(stored.claims, Moment())
    routing = asyncio.create_task(keep_running("router", dispatcher.router.run, stopping=stopping))
    await runs_until(lambda: _is(ledger, stored.job_id, TaskState.QUEUED), dispatcher, stopping)
    await routing

    assert exchange.published[0] == ["video.A"]


async def test_a_queue_found_just_before_others_are_stored_as_unroutable_lets_them_go(
    ledger: Ledger,
) -> None:
    """Their own probe finds nothing new then."""
    exchange = Tapped()
    dispatcher = new_dispatcher(ledger, exchange, Stopping())
    dispatcher.hand_over(await _claimed(ledger, "video"), Moment())
    await dispatcher.send_some()
    asked = dispatcher.claiming()
    await exchange.declare_queue(work_queue("A"), ["#.A"])
    dispatcher.hand_over(await _claimed(ledger, "video"), Moment())
    await dispatcher.send_some()
    await dispatcher.router._step()  # which comes too early
    await ledger.claim()  # or others would be ready
    stored = await _unrouted(ledger, asked)

    dispatcher.note_unrouted(stored.unrouted)
    await dispatcher.router._step()

    states = Counter(task.state for task in await ledger.tasks(stored.job_id))
    assert states == {TaskState.DISPATCHING: 1, TaskState.READY: 2}


async def test_one_that_finds_a_queue_brings_the_others_with_it(ledger: Ledger) -> None:
    exchange = Tapped()
    dispatcher = new_dispatcher(ledger, exchange, Stopping())
    dispatcher.hand_over(await _claimed(ledger, "video"), Moment())
    await dispatcher.send_some()
    await exchange.declare_queue(work_queue("A"), ["video.A"])
    exchange.published.clear()
    video, audio = await _claimed(ledger, "video", 3), await _claimed(ledger, "audio", 2)

    dispatcher.hand_over([*video, *audio], Moment())
    await dispatcher.send_some()

    assert exchange.published == [["video.A", "audio.A", "audio.A"], ["video.A", "video.A"]]
    assert await _states_of(ledger, audio) == {TaskState.UNROUTABLE}
    assert await _states_of(ledger, video) == {TaskState.DISPATCHING}  # marked a moment later
    dispatcher.hand_over(await _claimed(ledger, "video", 2), Moment())
    await dispatcher.send_some()
    assert exchange.published[2:] == [["video.A", "video.A"]]


async def _claimed(ledger: Ledger, media_type: str, number: int = 1) -> list[Claim]:
    await ledger.submit(parallel(*["A"] * number), type=media_type)
    return await ledger.claim()


async def _states_of(ledger: Ledger, claims: Sequence[Claim]) -> set[TaskState]:
    [job_id] = {claim.job_id for claim in claims}
    return {task.state for task in await ledger.tasks(job_id)}


async def test_nothing_is_claimed_along_while_the_exchange_takes_nothing(ledger: Ledger) -> None:
    """It would wait for its lease, and not for the end of the alarm."""
    exchange = Blockable()
    dispatcher = new_dispatcher(ledger, exchange, Stopping())

    before = dispatcher.window
    exchange.alarm = "disk"

    assert before == PATIENT.window
    assert dispatcher.window == 0
    assert dispatcher.claiming().window == 0


class Blockable(MemoryExchange):
    """One that a test can raise an alarm on."""

    alarm = ""

    @property
    def blocked(self) -> str:
        return self.alarm


async def test_what_is_ready_in_the_store_does_not_wait_for_an_end_of_what_is_handed_over(
    ledger: Ledger,
) -> None:
    """Small jobs that follow each other closely would keep a server from all else."""
    waiting = await ledger.submit("A")
    await ledger.acts.resume_key("B")
    stopping = Stopping()

    async def hand_over_more() -> None:
        began = Moment()
        [stored] = await ledger.writer.store_jobs([new_job("B")], dispatcher.claiming())
        assert isinstance(stored, Submitted)
        assert stored.claims
        dispatcher.hand_over(stored.claims, began)

    class Busy(MemoryExchange):
        """Has something handed over whenever something is published, until the test is over."""

        async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
            if not stopping.told:
                await hand_over_more()
            return await super().publish(messages)

    exchange = Busy()
    await with_queue(exchange)
    await exchange.declare_queue(work_queue("B"), ["#.B"])
    dispatcher = new_dispatcher(ledger, exchange, stopping)
    await hand_over_more()

    await runs_until(lambda: _is(ledger, waiting, TaskState.QUEUED), dispatcher, stopping)


async def test_what_is_handed_over_just_before_a_stop_is_sent(ledger: Ledger) -> None:
    """The dispatcher had nothing to do, and was marking what was sent before."""
    job = await ledger.submit("A")
    claims = await ledger.claim()
    exchange, stopping = MemoryExchange(), Stopping()
    await with_queue(exchange)
    dispatcher = new_dispatcher(ledger, exchange, stopping)
    marking = dispatcher._mark_unanswered

    async def stopped_meanwhile(patience: float) -> None:
        if patience and not stopping.told:  # not the one with which it begins
            dispatcher.hand_over(claims, Moment())
            stopping.tell()
        await marking(patience)

    dispatcher._mark_unanswered = stopped_meanwhile  # type: ignore[method-assign]

    await keep_running("dispatcher", dispatcher.run, stopping=stopping)

    assert await ledger.states(job) == {"A": TaskState.QUEUED}


async def test_what_was_sent_before_a_fault_is_marked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe has found a queue; what the others of its key carry cannot be read just then."""
    exchange = MemoryExchange()
    dispatcher = new_dispatcher(ledger, exchange, Stopping())
    dispatcher.hand_over(await _claimed(ledger, "video"), Moment())
    await dispatcher.send_some()
    await with_queue(exchange)
    await ledger.submit(parallel("A", "A", "A"), type="video")
    claims = await ledger.claim()
    plain = [replace(claim, earlier=None) for claim in claims[1:]]

    async def away(_: object) -> None:
        raise StoreUnreachable("away")

    monkeypatch.setattr(ledger.reader, "responses", away)
    dispatcher.hand_over([claims[0], *plain], Moment())
    with pytest.raises(StoreUnreachable):
        await dispatcher.send_some()

    assert set(dispatcher._unmarked) == {claims[0].task_id}
