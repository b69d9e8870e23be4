"""Long tasks: they go on without their message, and are kept alive by heartbeats."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from dane_core.exchange.base import Depth, Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import (
    Answer,
    Ask,
    Envelope,
    Goodbye,
    Heartbeat,
    Hello,
    Leased,
    Released,
    Started,
)
from dane_core.routing import work_queue
from dane_core.worker import counter
from dane_core.worker.attempt import Pace
from dane_core.worker.isolation import PATIENCE
from tests.core.desk import LONG, MOMENT, Deaf, Desk, Echo, Gate, message, served

#: Everything is long here.
HASTY = Pace(started=MOMENT, progress=LONG, courtesy=LONG, hand_off=MOMENT)
#: A task that runs for this long is worth a word; its message stays.
HELD = Pace(started=MOMENT, progress=LONG, courtesy=LONG, hand_off=LONG)


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Gate.entered, Gate.gate = asyncio.Queue(), asyncio.Event()
    return Gate.gate


async def depth_is(desk: Desk, expected: Depth) -> None:
    """Wait until GATE's queue looks like this: a lane leaves it after Leased was confirmed."""
    async with asyncio.timeout(30):
        while await desk.exchange.depth(work_queue("GATE")) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0)


# --- the hand-off -----------------------------------------------------------------------------


async def test_a_long_task_goes_on_without_its_message() -> None:
    async with served(Gate, pace=HASTY, beat=timedelta(seconds=3)) as (desk, _):
        await desk.send(message(Gate))
        leased = await desk.hear(Leased)
        await depth_is(desk, Depth(waiting=0, consumers=0))
        Gate.gate.set()
        answer = await desk.hear(Answer)

        assert (leased.worker, leased.lease) == ("w1", 12.0)
        assert leased.ticket == answer.ticket == message(Gate).ticket
        assert answer.runtime is not None
        assert 0 < leased.runtime <= answer.runtime  # the hand-off counts from the delivery
        assert answer.state == 200
    assert await desk.waiting(Gate) == 0


async def test_a_worker_with_a_long_task_holds_no_other_and_takes_one_later() -> None:
    """It would be stuck behind an hour of work while other workers are idle."""
    async with served(Gate, pace=HASTY) as (desk, _):
        await desk.send(message(Gate, 1), message(Gate, 2))
        await desk.hear(Leased)
        await depth_is(desk, Depth(waiting=1, consumers=0))
        Gate.gate.set()
        answers = [await desk.hear(Answer), await desk.hear(Answer)]

        assert [answer.ticket.task_id for answer in answers] == [1, 2]
        assert not any(isinstance(report, Ask) for report in desk.heard)  # it was in nobody's hands


async def test_a_long_task_keeps_its_slot() -> None:
    async with served(Gate, Echo, pace=HASTY) as (desk, _):
        await desk.send(message(Gate, 1))
        await desk.hear(Leased)
        await desk.send(message(Echo, 2))
        await desk.tell("roll")
        await desk.hear(Hello)
        assert not any(isinstance(report, Answer) for report in desk.heard)
        Gate.gate.set()

        assert (await desk.hear(Answer)).ticket.task_id == 1


async def test_a_short_task_is_never_handed_off() -> None:
    async with served(Echo, pace=HELD) as (desk, _):
        await desk.send(message(Echo))
        await desk.hear(Answer)

        assert [type(report) for report in desk.heard] == [Hello, Answer]


class Doubtful(MemoryExchange):
    """Confirms a Leased only when it is said for the third time."""

    def __init__(self) -> None:
        super().__init__()
        self.said = 0

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        if any(envelope.type == "leased" for envelope in envelopes):
            self.said += 1
            if self.said < 3:
                depth = await self.depth(work_queue("GATE"))
                assert depth is not None
                assert depth.consumers == 1  # the message is still ours
                return [Fate.UNKNOWN] * len(envelopes)
        return await super().send(queue, envelopes)


async def test_a_message_is_kept_until_its_lease_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should the worker die before, the broker still knows of the task."""
    monkeypatch.setattr("dane_core.worker.outbox._FIRST_PAUSE", 0.001)
    exchange = Doubtful()
    alone = replace(HASTY, started=LONG)  # otherwise it may come in a bundle with that
    async with served(Gate, pace=alone, exchange=exchange) as (desk, _):
        await desk.send(message(Gate))
        await desk.hear(Leased)

        assert exchange.said == 3


async def test_a_worker_that_ends_after_the_hand_off_leaves_nothing_in_the_queue() -> None:
    async with served(Gate, pace=HASTY) as (desk, serving):
        await desk.send(message(Gate))
        await desk.hear(Leased)
        await depth_is(desk, Depth(waiting=0, consumers=0))
        serving.cancel()
        await asyncio.wait({serving})

    assert await desk.waiting(Gate) == 0  # the lease in the store speaks for it


# --- messages that come again ------------------------------------------------------------------


async def test_after_a_lost_connection_what_runs_is_handed_off_at_once() -> None:
    """Its message is in the queue again, and another worker may soon ask for it."""
    async with served(Gate, pace=HELD) as (desk, _):
        await desk.send(message(Gate))
        await desk.hear(Started)
        await desk.exchange.delete_queue(work_queue("GATE"))  # the exchange makes it again

        assert (await desk.hear(Leased)).ticket.task_id == 1
        Gate.gate.set()
        assert (await desk.hear(Answer)).state == 200


async def test_a_second_copy_of_what_runs_is_settled_and_never_run() -> None:
    async with served(Gate, slots=2, pace=HELD) as (desk, _):
        await desk.send(message(Gate), message(Gate))

        assert (await desk.hear(Leased)).ticket.task_id == 1
        await depth_is(desk, Depth(waiting=0, consumers=1))
        Gate.gate.set()
        await desk.hear(Answer)
        assert Gate.entered.qsize() == 1
    assert await desk.waiting(Gate) == 0


async def test_whoever_asks_says_whether_the_message_came_again() -> None:
    """A worker may have died with it: the server counts that."""
    exchange = MemoryExchange()
    async with served(Gate, exchange=exchange, worker_id="w0") as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
    async with served(Gate, exchange=exchange) as (desk, _):
        again = await desk.hear(Ask)
        await desk.judge(again, run=False)
        await desk.tell("recall", key="GATE")
        await desk.tell("roll")
        await desk.hear(Hello)
        await desk.send(message(Gate, 2))

        assert again.redelivered
        assert not (await desk.hear(Ask)).redelivered


async def test_a_verdict_that_comes_too_late_hands_the_task_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server counts it as running here, and would wait for a lease to end."""
    monkeypatch.setattr(counter, "_PAUSE", 3600)
    exchange = MemoryExchange()
    async with served(Gate, exchange=exchange, worker_id="w0") as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
    async with served(Gate, exchange=exchange, ask_patience=MOMENT) as (desk, _):
        ask = await desk.hear(Ask)
        await desk.tell("pause", key="GATE")
        await depth_is(desk, Depth(waiting=1, consumers=0))  # it has given up
        await desk.judge(ask, run=True)

        released = await desk.hear(Released)
        assert (released.ticket, released.worker, released.delay) == (ask.ticket, "w1", 0.0)


# --- heartbeats ---------------------------------------------------------------------------------


async def test_one_heartbeat_names_everything_that_runs_for_longer_than_a_moment() -> None:
    async with served(Gate, slots=3, pace=HELD, beat=MOMENT) as (desk, _):
        await desk.send(*(message(Gate, number) for number in range(1, 4)))
        while len((beat := await desk.hear(Heartbeat)).running) < 3:
            pass

        assert {ticket.task_id for ticket in beat.running} == {1, 2, 3}
        assert beat.worker == "w1"


async def test_heartbeats_say_what_has_no_message_any_more() -> None:
    """The server may never have heard of the hand-off."""
    async with served(Gate, pace=HASTY, beat=MOMENT) as (desk, _):
        await desk.send(message(Gate))
        await desk.hear(Leased)
        while not (beat := await desk.hear(Heartbeat)).leased:
            pass

        assert beat.leased == set(beat.running)


async def test_a_worker_with_nothing_to_keep_alive_sends_no_heartbeats() -> None:
    pace = Pace(started=LONG)
    async with served(Gate, pace=pace, beat=MOMENT, hello_every=MOMENT) as (desk, _):
        await desk.send(message(Gate))
        for _ in range(5):
            await desk.hear(Hello)

        assert not any(isinstance(report, Heartbeat) for report in desk.heard)


async def test_heartbeats_go_on_until_the_answer_is_confirmed() -> None:
    """The work is done, but the server does not know: it must not give the task away."""
    exchange = Unheard()
    async with served(Gate, pace=HASTY, beat=MOMENT, exchange=exchange) as (desk, _):
        await desk.send(message(Gate))
        await desk.hear(Leased)
        Gate.gate.set()
        await exchange.refused.wait()
        await desk.hear(Heartbeat)
        await desk.hear(Heartbeat)

        assert not any(isinstance(report, Answer) for report in desk.heard)


class Unheard(MemoryExchange):
    """Takes everything but answers."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = asyncio.Event()

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        if any(envelope.type == "answer" for envelope in envelopes):
            self.refused.set()
            return [Fate.UNKNOWN] * len(envelopes)
        return await super().send(queue, envelopes)


# --- cancel, drain --------------------------------------------------------------------------------


async def test_a_cancellation_says_how_long_work_may_take_to_end() -> None:
    """At its grace the last of it is killed, so what is killed is asked before that."""
    async with served(Deaf) as (desk, _):
        await desk.send(message(Deaf))
        await Gate.entered.get()
        await desk.tell("cancel", task_id=1, attempt=1, grace=PATIENCE + 0.02)

        answer = await desk.hear(Answer)
        assert answer.state == 499
        assert answer.runtime is not None
        assert answer.runtime >= 0.02


async def test_an_attempt_that_was_superseded_is_stopped_by_its_number() -> None:
    async with served(Deaf, pace=HASTY) as (desk, _):
        await desk.send(message(Deaf))
        await desk.hear(Leased)
        await desk.tell("cancel", task_id=1, attempt=1, grace=0.0)

        assert (await desk.hear(Answer)).state == 499  # which nobody waits for


async def test_a_drain_lets_a_long_task_end_within_the_grace() -> None:
    draining = asyncio.Event()
    async with served(Gate, pace=HASTY, draining=draining) as (desk, serving):
        await desk.send(message(Gate, 1), message(Gate, 2))
        await desk.hear(Leased)
        draining.set()
        Gate.gate.set()

        assert (await desk.hear(Answer)).ticket.task_id == 1
        await desk.hear(Goodbye)
        await serving
    assert await desk.waiting(Gate) == 1


async def test_a_drain_hands_a_long_task_back_after_the_grace() -> None:
    draining = asyncio.Event()
    async with served(Deaf, pace=HASTY, grace=MOMENT, draining=draining) as (desk, serving):
        await desk.send(message(Deaf))
        await desk.hear(Leased)
        draining.set()

        assert (await desk.hear(Released)).ticket.task_id == 1
        await desk.hear(Goodbye)
        await serving
