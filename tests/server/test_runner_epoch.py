"""A broker that was wiped is noticed, once, and what it lost is sent again; no other ever is."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Depth, Exchange, Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_core.message import Control, Envelope, open_control
from dane_core.routing import epoch_queue
from dane_core.states import TaskState
from dane_server.runner.epoch import Marker
from dane_server.storage.sweeps import Epoch, Sweeps
from tests.server.clock import clock_put
from tests.server.crash import Crash, Crashing
from tests.server.ledger import Ledger, parallel, started

MINUTE = timedelta(minutes=1)
DISPATCHING, QUEUED, READY, RUNNING = (
    TaskState.DISPATCHING,
    TaskState.QUEUED,
    TaskState.READY,
    TaskState.RUNNING,
)


@pytest.fixture
def ledger(placed_ledger: Ledger) -> Ledger:
    return placed_ledger


@pytest.fixture
def exchange(placed_exchange: Exchange) -> Exchange:
    return placed_exchange


def marker(ledger: Ledger, exchange: Exchange, sweeps: Sweeps | None = None) -> Marker:
    return Marker(sweeps=sweeps or ledger.sweeps, exchange=exchange, claimed=MINUTE, given=MINUTE)


async def epoch_of(ledger: Ledger) -> Epoch | None:
    return (await ledger.sweeps.look()).epoch


async def look(ledger: Ledger, one: Marker) -> bool:
    return await one.look(await epoch_of(ledger))


async def lose_mark(ledger: Ledger, exchange: Exchange) -> Epoch:
    """What a wiped broker looks like: its marker is gone, with everything else."""
    epoch = await epoch_of(ledger)
    assert epoch is not None
    await exchange.delete_queue(epoch_queue(epoch.name))
    return epoch


async def in_every_state(ledger: Ledger) -> JobId:
    """A job whose tasks are queued, being sent, running on a message and on a lease."""
    job = await ledger.submit(parallel(*({"Task": {"task_key": key}} for key in "QRLD")))
    claims = {claim.key: claim for claim in await ledger.claim()}
    await ledger.mark(queued=[claims["Q"], claims["R"], claims["L"]])
    await ledger.writer.note_reports([started(claims["R"]), started(claims["L"])], [], [])
    await ledger.sweeps.watch_key("L", 10 * MINUTE)
    return job


async def test_a_new_store_marks_its_broker_and_sends_nothing_again(
    ledger: Ledger, exchange: Exchange
) -> None:
    job = await in_every_state(ledger)
    before = await ledger.states(job)

    sent = [await look(ledger, marker(ledger, exchange)) for _ in range(2)]

    assert sent == [False, False]
    assert await ledger.states(job) == before
    epoch = await epoch_of(ledger)
    assert epoch is not None
    assert epoch.began is None
    assert await exchange.depth(epoch_queue(epoch.name)) == Depth(waiting=1, consumers=0)


async def test_what_a_wiped_broker_lost_is_sent_again_and_what_runs_goes_on(
    ledger: Ledger, exchange: Exchange
) -> None:
    one = marker(ledger, exchange)
    await look(ledger, one)
    job = await in_every_state(ledger)
    old = await lose_mark(ledger, exchange)

    sent = await look(ledger, one)
    again = await look(ledger, one)

    assert (sent, again) == (True, False)
    assert await ledger.states(job) == {"Q": READY, "D": READY, "R": RUNNING, "L": RUNNING}
    assert {found.attempt for found in await ledger.tasks(job)} == {1}
    leases = {one.task_id: one.left for one in (await ledger.sweeps.look()).running}
    on_message, on_lease = await ledger.task(job, "R"), await ledger.task(job, "L")
    assert 30 < leases[on_message.id] <= 60
    assert leases[on_lease.id] > 300
    new = await epoch_of(ledger)
    assert new is not None
    assert new.name != old.name
    assert await exchange.depth(epoch_queue(old.name)) is None


async def test_what_went_to_the_new_broker_before_it_was_looked_at_is_asked_about(
    ledger: Ledger, exchange: Exchange
) -> None:
    """It is sent once more, so its first copy would be run twice, unasked."""
    one = marker(ledger, exchange)
    await look(ledger, one)
    await in_every_state(ledger)
    await lose_mark(ledger, exchange)

    async with exchange.listen("inbox") as inbox:
        await look(ledger, one)
        async with asyncio.timeout(5):
            said = [open_control(said.envelope) for _ in "QD" for said in await inbox.take(1)]

    assert said == [Control(act="recall", key="D"), Control(act="recall", key="Q")]


@pytest.mark.parametrize("messages", [0, 2])
async def test_a_marker_that_is_wrong_is_replaced(
    ledger: Ledger, exchange: Exchange, messages: int
) -> None:
    """Definitions bring back queues without their messages."""
    one = marker(ledger, exchange)
    await look(ledger, one)
    old = await lose_mark(ledger, exchange)
    await exchange.declare_queue(epoch_queue(old.name))
    await exchange.send(epoch_queue(old.name), [Envelope(type="epoch", body=b"{}")] * messages)

    await look(ledger, one)

    new = await epoch_of(ledger)
    assert new is not None
    assert new.name != old.name
    assert await exchange.depth(epoch_queue(old.name)) is None


async def test_of_several_servers_one_decides_and_all_see_to_it(
    ledger: Ledger, exchange: Exchange
) -> None:
    servers = [marker(ledger, exchange) for _ in range(4)]
    first = await asyncio.gather(*(look(ledger, one) for one in servers))
    job = await in_every_state(ledger)
    epoch = await lose_mark(ledger, exchange)

    await asyncio.gather(*(one.look(epoch) for one in servers))
    await asyncio.gather(*(look(ledger, one) for one in servers))

    assert not any(first)
    assert (await ledger.task(job, "Q")).dispatch == 2
    assert (await ledger.task(job, "D")).dispatch == 2
    new = await epoch_of(ledger)
    assert new is not None
    assert new.began is None
    kept = {name for one in servers for name in one._mine}
    assert kept <= {new.name}


async def test_a_repair_cut_short_is_finished_by_another_and_repeats_nothing(
    ledger: Ledger, exchange: Exchange
) -> None:
    """Whoever has agreed that the broker is new may die before anything is sent again."""
    await look(ledger, marker(ledger, exchange))
    job = await ledger.submit(parallel("A", "B"))
    await ledger.send(limit=1)
    await lose_mark(ledger, exchange)
    dying = Sweeps(Crashing(ledger.store, after=1))

    with pytest.raises(Crash):
        await look(ledger, marker(ledger, exchange, dying))
    with clock_put(ledger.store, 2):
        [sent_since] = await ledger.send(limit=1)
        finished = await look(ledger, marker(ledger, exchange))

    assert finished
    states = await ledger.states(job)
    assert states[sent_since.key] is QUEUED
    assert sorted(states.values()) == sorted([READY, QUEUED])


async def test_a_runner_that_starts_on_an_embedded_store_finds_nothing_to_repair(
    ledger: Ledger, exchange: Exchange
) -> None:
    """What was in an exchange that died with its process is sent again before it starts."""
    await look(ledger, marker(ledger, exchange))
    job = await in_every_state(ledger)
    await lose_mark(ledger, exchange)

    await ledger.sweeps.recover_from_lost_exchange()
    await ledger.send()
    sent = await look(ledger, marker(ledger, exchange))

    assert not sent
    assert set((await ledger.states(job)).values()) == {QUEUED}
    assert {found.attempt for found in await ledger.tasks(job)} == {2}
    assert [one for one in (await ledger.sweeps.look()).running if one.leased] == []


class Deaf(MemoryExchange):
    """A broker that does not answer, or takes no messages."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = True
        self.takes = True

    async def depth(self, queue: str) -> Depth | None:
        if not self.answers:
            raise ExchangeUnreachable("no answer")
        return await super().depth(queue)

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        if not self.takes:
            return [Fate.UNKNOWN] * len(envelopes)
        return await super().send(queue, envelopes)


async def test_a_broker_that_does_not_answer_is_no_evidence(sqlite_store: object) -> None:
    ledger, exchange = Ledger.of(sqlite_store), Deaf()  # type: ignore[arg-type]
    one = marker(ledger, exchange)
    await look(ledger, one)
    before = await epoch_of(ledger)
    exchange.answers = False

    with pytest.raises(ExchangeUnreachable):
        await look(ledger, one)

    assert await epoch_of(ledger) == before


async def test_a_mark_that_was_not_confirmed_is_tried_again_with_one_name(
    sqlite_store: object,
) -> None:
    """Otherwise each look at a broker in trouble would leave a queue behind."""
    ledger, exchange = Ledger.of(sqlite_store), Deaf()  # type: ignore[arg-type]
    one = marker(ledger, exchange)
    exchange.takes = False
    for _ in range(3):
        with pytest.raises(ExchangeUnreachable):
            await look(ledger, one)
    exchange.takes = True

    await look(ledger, one)

    epoch = await epoch_of(ledger)
    assert epoch is not None
    assert [*exchange._queues] == [epoch_queue(epoch.name)]
