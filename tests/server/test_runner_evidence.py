"""Queues that lost messages are found by evidence, and slow workers are left in peace."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from dane_core.exchange.base import Depth, Exchange, Subscription
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId, Task
from dane_core.message import Hello, Started, open_control
from dane_core.routing import binding_keys, routing_key, work_queue
from dane_core.states import TaskState
from dane_server.runner.evidence import Backlog, Evidence, Look, Suspicions
from dane_server.storage.view import Claim
from tests.server.clock import clock_put
from tests.server.ledger import Ledger, answer, hello, parallel, ticket_of

NOON = datetime(2026, 5, 4, 12, 0)  # noqa: DTZ001 - as the database tells it
HOUR = timedelta(hours=1)
QUEUED, READY, RUNNING = TaskState.QUEUED, TaskState.READY, TaskState.RUNNING


# --- what follows from what is seen -----------------------------------------------------------


def seen(
    at: float, waiting: int, consumers: int = 1, *, idle: bool = False, caught_up: bool = True
) -> Look:
    return Look(
        at=at,
        time=NOON + timedelta(seconds=at),
        depth=Depth(waiting=waiting, consumers=consumers),
        idle=idle,
        caught_up=caught_up,
    )


def behind(at: float, waiting: int) -> Look:
    """A look while reports wait that nobody has read."""
    return seen(at, waiting, caught_up=False)


@pytest.mark.parametrize(
    ("looks", "lost"),
    [
        # each look: (it, tasks queued by the books, those that were at the first look)
        ([(seen(0, 9), 10, 0), (seen(30, 9), 10, 10)], False),  # one is in a consumer's hands
        ([(seen(0, 8), 10, 0), (seen(30, 8), 10, 10)], True),
        ([(seen(0, 8), 10, 0), (seen(29, 8), 10, 10)], False),  # too soon to tell
        ([(seen(30, 8), 10, 10)], False),  # one look is none
        ([(seen(0, 8), 10, 0), (seen(30, 8), 10, 9)], False),  # they move: answers were on the way
        ([(seen(0, 8), 10, 0), (seen(15, 9), 10, 10), (seen(30, 8), 10, 10)], False),
        ([(seen(0, 0, 0), 1, 0), (seen(30, 0, 0), 1, 1)], True),
        ([(seen(0, 0, 2), 2, 0), (seen(30, 0, 2), 2, 2)], False),
        ([(seen(0, 0, 2, idle=True), 1, 0), (seen(89, 0, 2, idle=True), 1, 1)], False),
        ([(seen(0, 0, 2, idle=True), 1, 0), (seen(90, 0, 2, idle=True), 1, 1)], True),
        ([(seen(0, 0, 2, idle=True), 1, 0), (seen(90, 0, 2), 1, 1)], False),
        ([(seen(0, 2000), 1000, 0), (seen(30, 2000), 1000, 1000)], False),  # stale copies wait too
        # under steady load only the two looks that decide must find the books up to date
        ([(seen(0, 8), 10, 0), (behind(15, 8), 10, 10), (seen(30, 8), 10, 10)], True),
        ([(seen(0, 8), 10, 0), (behind(15, 10), 10, 10), (seen(30, 8), 10, 10)], True),
        ([(seen(0, 8), 10, 0), (behind(30, 8), 10, 10)], False),
        ([(behind(0, 8), 10, 0), (seen(30, 8), 10, 10)], False),
        ([(behind(0, 8), 10, 0), (behind(30, 8), 10, 10), (seen(60, 8), 10, 10)], False),
    ],
)
def test_tasks_are_lost_when_two_looks_leave_no_place_for_them(
    looks: list[tuple[Look, int, int]],
    lost: bool,  # noqa: FBT001
) -> None:
    suspicions = Suspicions(30)

    found = [
        suspicions.is_lost("A", look, queued=queued, unmoved=unmoved)
        for look, queued, unmoved in looks
    ]

    assert found[-1] is lost
    assert not any(found[:-1])


def test_what_was_seen_before_a_doubt_proves_nothing() -> None:
    suspicions = Suspicions(30)
    suspicions.is_lost("A", seen(0, 0), queued=10, unmoved=0)

    suspicions.forget()

    assert not suspicions.is_lost("A", seen(30, 0), queued=10, unmoved=10)
    assert suspicions.is_lost("A", seen(60, 0), queued=10, unmoved=10)


def test_a_repair_that_does_not_help_is_tried_again_later_and_later() -> None:
    """A queue of another name may be taking the tasks: they must not pour into it."""
    suspicions = Suspicions(30)
    pauses = []
    now = 0.0
    for _ in range(9):
        suspicions.rest("A", now)
        pause = next(s for s in range(10, 10_000, 10) if not suspicions.rests("A", now + s))
        pauses.append(pause)
        now += pause

    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    suspicions.is_lost("A", seen(now, 10), queued=10, unmoved=10)
    suspicions.rest("A", now)
    assert not suspicions.rests("A", now + 30)


@pytest.mark.parametrize(
    ("looks", "excused"),
    [
        # each look: (at, whether the books are up to date)
        ([(0, True)], False),
        ([(0, False)], True),  # answers may wait: a server was away for hours
        ([(0, False), (3599, False)], True),
        ([(0, False), (3600, False)], False),  # a backlog for ever is no excuse for ever
        ([(0, False), (1800, True), (3600, False)], True),
    ],
)
def test_a_backlog_puts_the_horizon_off_and_not_for_ever(
    looks: list[tuple[float, bool]],
    excused: bool,  # noqa: FBT001
) -> None:
    backlog = Backlog(3600)

    found = [backlog.excuses(at, caught_up=caught_up) for at, caught_up in looks]

    assert found[-1] is excused


# --- on both exchanges ------------------------------------------------------------------------


class Yard:
    """Queued tasks of one key, and looks at its queue a minute apart."""

    def __init__(self, ledger: Ledger, exchange: Exchange) -> None:
        self.ledger = ledger
        self.exchange = exchange
        self.key = f"K{uuid4().hex[:12].upper()}"
        self.evidence = Evidence(
            sweeps=ledger.sweeps,
            acts=ledger.acts,
            exchange=exchange,
            apart=timedelta(seconds=30),
            horizon=HOUR,
            given=timedelta(minutes=1),
        )
        self._now = 0.0
        self._stack = AsyncExitStack()

    async def send(self, tasks: int, *, bind: bool = True) -> JobId:
        """Queue some tasks, in the store and in the exchange."""
        if bind:
            await self.bind()
        job = await self.ledger.submit(parallel(*[self.key] * tasks))
        await self.publish(await self.ledger.claim())
        return job

    async def publish(self, claims: list[Claim]) -> None:
        message = hello().seal()  # any message will do
        await self.exchange.publish([(routing_key(None, self.key), message) for _ in claims])
        await self.ledger.mark(queued=claims)

    async def bind(self) -> None:
        await self.exchange.declare_queue(work_queue(self.key), binding_keys(self.key))

    async def empty_queue(self) -> None:
        """Lose every message that waits, as an operator's mistake does."""
        await self.exchange.delete_queue(work_queue(self.key))
        await self.bind()

    async def consume(self) -> Subscription:
        consuming = self.exchange.consume(work_queue(self.key), prefetch=1)
        return await self._stack.enter_async_context(consuming)

    async def looks(self, times: int, *, caught_up: bool = True) -> list[bool]:
        """Look again and again, a minute apart each."""
        found = []
        for _ in range(times):
            self._now += 60
            time = (await self.ledger.sweeps.look()).time
            found.append(await self.evidence.look(self._now, time, caught_up=caught_up))
        return found

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def yard(placed_ledger: Ledger, placed_exchange: Exchange) -> AsyncIterator[Yard]:
    yard = Yard(placed_ledger, placed_exchange)
    yield yard
    await yard.close()


async def states(yard: Yard, job: JobId) -> list[TaskState]:
    return [one.state for one in await yard.ledger.tasks(job)]


async def one_task(yard: Yard, job: JobId) -> Task:
    return (await yard.ledger.tasks(job))[0]


def begun(task: Task) -> Started:
    return Started(ticket=ticket_of(task), worker="w1", runtime=1.0)


def busy(key: str, task: Task) -> Hello:
    return replace(hello(key), running=(ticket_of(task),))


async def dispatches(yard: Yard, job: JobId) -> set[int]:
    return {one.dispatch for one in await yard.ledger.tasks(job)}


async def test_nothing_is_sent_again_when_workers_are_merely_slow(yard: Yard) -> None:
    """One worker with one task in its hands, for hours, and many behind it."""
    job = await yard.send(30)
    subscription = await yard.consume()
    await subscription.take(1)
    await yard.ledger.writer.see_workers([busy(yard.key, await one_task(yard, job))])

    before_it_says_so = await yard.looks(5)
    await yard.ledger.writer.note_reports([begun(await one_task(yard, job))], [], [])
    found = await yard.looks(15)

    assert not any(before_it_says_so)
    assert not any(found)
    assert await dispatches(yard, job) == {1}
    assert set(await states(yard, job)) == {QUEUED, RUNNING}


async def test_nothing_is_sent_again_while_no_worker_is_there(yard: Yard) -> None:
    job = await yard.send(10)

    found = await yard.looks(5)

    assert not any(found)
    assert await dispatches(yard, job) == {1}


async def test_messages_that_vanished_from_a_queue_are_sent_again(yard: Yard) -> None:
    job = await yard.send(10)
    await yard.looks(1)
    await yard.empty_queue()

    found = await yard.looks(3)

    assert found == [False, True, False]
    assert set(await states(yard, job)) == {READY}
    assert {one.attempt for one in await yard.ledger.tasks(job)} == {1}
    assert {claim.dispatch for claim in await yard.ledger.claim()} == {3}


async def test_workers_are_told_that_old_copies_are_stale(yard: Yard) -> None:
    """A queue may come back, with all that was in it."""
    await yard.send(10)
    await yard.empty_queue()
    async with yard.exchange.listen(f"dane.worker.{uuid4().hex}") as inbox:
        await yard.looks(2)
        [word] = await inbox.take(10)

    control = open_control(word.envelope)
    assert (control.act, control.key) == ("recall", yard.key)


async def test_what_a_queue_held_that_does_not_exist_any_more_goes_back_at_once(
    yard: Yard,
) -> None:
    job = await yard.send(3)
    first, *_ = await yard.ledger.tasks(job)
    await yard.ledger.writer.note_reports([begun(first)], [], [])
    await yard.exchange.delete_queue(work_queue(yard.key))

    found = await yard.looks(1)

    assert found == [True]
    assert await states(yard, job) == [RUNNING, READY, READY]
    [running] = (await yard.ledger.sweeps.look()).running
    assert (running.task_id, running.leased) == (first.id, True)


async def test_tasks_do_not_pour_into_a_queue_of_another_name(yard: Yard) -> None:
    """Bound by hand to our exchange: its key has no queue that we know, and never will."""
    other = f"dane.other.{uuid4().hex}"
    await yard.exchange.declare_queue(other, binding_keys(yard.key))
    job = await yard.send(1, bind=False)

    repaired = 0
    for _ in range(10):
        [found] = await yard.looks(1)
        repaired += found
        await yard.publish(await yard.ledger.claim())

    assert repaired == 5  # after 1, 2, 3, 5 and 9 minutes
    depth = await yard.exchange.depth(other)
    assert depth is not None
    assert depth.waiting == 1 + repaired
    assert await states(yard, job) == [QUEUED]


async def test_one_lost_task_is_missed_once_the_workers_have_nothing_to_do(yard: Yard) -> None:
    """While a worker is busy the message may be in its hands."""
    job = await yard.send(1)
    await yard.empty_queue()
    await yard.consume()
    await yard.ledger.writer.see_workers([busy(yard.key, await one_task(yard, job))])

    while_busy = await yard.looks(3)
    await yard.ledger.writer.see_workers([hello(yard.key)])
    while_idle = await yard.looks(3)

    assert not any(while_busy)
    assert while_idle == [False, False, True]
    assert await states(yard, job) == [READY]


async def test_answers_on_their_way_are_no_loss(yard: Yard) -> None:
    """Its workers are quick, and the books lag behind: what is counted moves."""
    job = await yard.send(10)
    await yard.empty_queue()
    await yard.looks(1)
    for one in (await yard.ledger.tasks(job))[:9]:
        await yard.ledger.record(answer(ticket_of(one)))
    await yard.bind()
    await yard.consume()

    found = await yard.looks(2)

    assert not any(found)


async def test_what_is_beyond_the_horizon_goes_again_if_nothing_waits_with_it(
    yard: Yard,
) -> None:
    job = await yard.send(1)
    await yard.empty_queue()
    await yard.consume()  # who may hold it, for all we know

    early = await yard.looks(2)
    with clock_put(yard.ledger.store, 3700):
        late = await yard.looks(1)

    assert not any(early)
    assert late == [True]
    assert await states(yard, job) == [READY]


async def test_what_is_beyond_the_horizon_waits_on_in_a_queue_that_is_long(yard: Yard) -> None:
    """However long: nothing is sent again for its age."""
    job = await yard.send(5)
    found = []

    for hours in (1, 25, 24 * 30):
        with clock_put(yard.ledger.store, hours * 3600 + 100):
            found += await yard.looks(2)

    assert not any(found)
    assert set(await states(yard, job)) == {QUEUED}


async def test_what_was_overtaken_in_its_queue_is_not_in_it(yard: Yard) -> None:
    """A queue keeps its order, so a single loss shows in one that is never empty, too."""
    lost, behind = await yard.send(1), await yard.ledger.submit(parallel(*[yard.key] * 5))
    await yard.empty_queue()
    with clock_put(yard.ledger.store, 3600):
        await yard.publish(await yard.ledger.claim())
        one = (await yard.ledger.tasks(behind))[0]
        await yard.ledger.record(answer(ticket_of(one)))

    with clock_put(yard.ledger.store, 3700):
        found = await yard.looks(1)

    assert found == [True]
    assert await states(yard, lost) == [READY]
    assert (await states(yard, behind)).count(QUEUED) == 4


async def test_a_queue_that_is_gone_is_missed_under_any_load(yard: Yard) -> None:
    """Reports that wait say nothing of it."""
    job = await yard.send(1)
    await yard.exchange.delete_queue(work_queue(yard.key))

    found = await yard.looks(1, caught_up=False)

    assert found == [True]
    assert await states(yard, job) == [READY]


async def test_answers_that_wait_to_be_recorded_are_not_done_again_for_their_age(
    yard: Yard,
) -> None:
    """Servers were away for hours, and workers were not."""
    job = await yard.send(1)
    await yard.empty_queue()

    with clock_put(yard.ledger.store, 3700):
        found = await yard.looks(1, caught_up=False)

    assert found == [False]
    assert await states(yard, job) == [QUEUED]


async def test_few_queues_are_looked_at_in_one_sweep_and_all_in_turn(
    sqlite_store: object,
) -> None:
    class Counting(MemoryExchange):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        async def depth(self, queue: str) -> Depth | None:
            self.asked.append(queue)
            return await super().depth(queue)

    exchange = Counting()
    yard = Yard(Ledger.of(sqlite_store), exchange)  # type: ignore[arg-type]
    keys = [f"K{number:02}" for number in range(12)]
    for key in keys:
        await exchange.declare_queue(work_queue(key))
    await yard.ledger.submit(parallel(*keys))
    await yard.ledger.send()

    rounds = []
    for _ in range(3):
        exchange.asked.clear()
        await yard.looks(1)
        rounds.append(list(exchange.asked))

    assert [len(asked) for asked in rounds] == [5, 5, 5]
    assert {queue for asked in rounds for queue in asked} == {work_queue(key) for key in keys}
