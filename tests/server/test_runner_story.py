"""Jobs go in, tasks go out, answers come back; and whatever breaks in between, none is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Delivery, Depth, Exchange, Fate, Subscription
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import TaskId
from dane_core.message import (
    Answer,
    Ask,
    Control,
    Envelope,
    Goodbye,
    Hello,
    Offer,
    Progress,
    Released,
    Started,
    TaskMessage,
    open_control,
    open_verdict,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, inbox_queue, routing_key, work_queue
from dane_core.states import JobStatus, TaskState
from dane_server.runner.pace import Pace
from tests.server.audit import audit
from tests.server.ledger import Ledger, parallel, sequence, task
from tests.server.scripted import (
    HASTY,
    PATIENT,
    Office,
    at_work,
    done,
    failed,
    new_runner,
    until,
)


@pytest.fixture
async def office(ledger: Ledger) -> AsyncIterator[Office]:
    """A runner that does nothing by the clock, and an exchange in this process."""
    async with at_work(ledger) as office:
        yield office


async def send(office: Office, *reports: Any) -> None:
    envelopes = [one if isinstance(one, Envelope) else one.seal() for one in reports]
    await office.exchange.declare_queue(RESPONSE_QUEUE)
    await office.exchange.send(RESPONSE_QUEUE, envelopes)


async def waiting_in(office: Office, queue: str) -> int:
    depth = await office.exchange.depth(queue)
    return depth.waiting if depth else 0


_NUMBERS = count(1)


async def all_read(office: Office) -> None:
    """Wait until the runner has taken and settled every report."""
    marker = f"MARKER{next(_NUMBERS)}"
    await send(
        office,
        Hello(
            worker=marker,
            host="h",
            pid=1,
            slots=1,
            inbox="i",
            offers=(Offer(key=marker),),
            fresh=True,
        ),
    )

    async def holds() -> bool:
        return any(state.key == marker for state in await office.ledger.reader.keys())

    await until(holds)
    await send(office, Goodbye(worker=marker))


# --- the ordinary course --------------------------------------------------------------------------


async def test_a_job_is_done_in_the_order_of_its_graph(office: Office) -> None:
    await office.hire("A", "B", "C")

    job = await office.submit(sequence("A", parallel("B", "B", "C"), parallel("A", "C"), "B"))
    await office.ended(job)

    keys = office.seen_keys()
    assert keys[0] == "A"
    assert sorted(keys[1:4]) == ["B", "B", "C"]
    assert sorted(keys[4:6]) == ["A", "C"]
    assert keys[6:] == ["B"]
    assert await audit(office.ledger.store, job) == []


async def test_a_task_message_carries_all_that_its_worker_needs(office: Office) -> None:
    await office.hire("A", "B", script=lambda task: done(task, key=task.key))

    job = await office.submit(
        sequence("A", task("B", name="second", args={"x": 1}, timeout=9, priority=8)),
        source_id="FILM1",
        metadata={"m": 1},
    )
    await office.ended(job)

    message = office.seen[1]
    assert (message.job_id, message.key, message.name, message.args) == (
        job,
        "B",
        "second",
        {"x": 1},
    )
    assert (message.timeout, message.priority, message.metadata) == (9.0, 8, {"m": 1})
    assert message.response["A"] == {"key": "A"}
    assert message.response["SHARED"]["TEMP_FOLDER"] == "/srv/TEMP/FI/LM/1/FILM1"
    assert (message.ticket.attempt, message.ticket.dispatch) == (1, 1)
    assert message.sent_at > 1_700_000_000


async def test_the_type_that_download_found_routes_what_comes_after(office: Office) -> None:
    await office.hire("DOWNLOAD", script=lambda task: done(task, file_type="video"))
    await office.hire("SHOTS", types=("video",))

    job = await office.submit(sequence("DOWNLOAD", "SHOTS"))
    await office.ended(job)

    assert [message.routing_key for message in office.seen] == ["unknown.DOWNLOAD", "video.SHOTS"]


async def test_many_tasks_go_out_and_come_back_in_batches(ledger: Ledger) -> None:
    pace = replace(PATIENT, window=40, batch=30)
    async with at_work(ledger, pace=pace) as office:
        await office.hire("A", "B")
        job = await office.submit(parallel(*["A"] * 150, *["B"] * 50))
        await office.ended(job)

    assert Counter(office.seen_keys()) == {"A": 150, "B": 50}
    assert len({message.ticket.task_id for message in office.seen}) == 200
    assert await audit(ledger.store, job) == []


async def test_no_more_messages_lie_in_a_queue_than_the_window_lets(ledger: Ledger) -> None:
    """The store keeps the rest, where priorities can change and cancelling costs nothing."""
    async with at_work(ledger, pace=replace(PATIENT, window=10, batch=4)) as office:
        await office.exchange.declare_queue(work_queue("A"), ["#.A"])
        job = await office.submit(parallel(*["A"] * 25))
        # The last two places are for jobs of which nothing was sent; the others may be anybody's.
        others = [await office.submit("A") for _ in range(10)]

        async def full() -> bool:
            return await waiting_in(office, work_queue("A")) >= 10

        await until(full)
        await all_read(office)

        assert await waiting_in(office, work_queue("A")) == 10
        await office.hire("A")
        for one in (job, *others):
            await office.ended(one)


async def test_failures_are_recorded_and_the_job_waits_for_a_person(office: Office) -> None:
    await office.hire("A", script=lambda task: failed(task, 404))

    job = await office.submit(sequence("A", "B"))
    await office.ended(job, JobStatus.FAILED)
    await office.runner.retry_job(job)
    await until(lambda: _attempts(office, 2))
    await office.ended(job, JobStatus.FAILED)

    assert (await office.ledger.reader.job(job)).state == 404


async def _attempts(office: Office, number: int) -> bool:
    return bool(office.seen) and office.seen[-1].ticket.attempt == number


async def test_a_task_that_failed_for_now_is_sent_again_by_itself(ledger: Ledger) -> None:
    async with at_work(ledger, pace=HASTY) as office:
        await office.hire(
            "A", script=lambda task: failed(task, 503) if task.ticket.attempt < 3 else done(task)
        )
        job = await office.submit(task("A", retry={"limit": 3, "delay": 0.01}))
        await office.ended(job)

    assert [message.ticket.attempt for message in office.seen] == [1, 2, 3]


async def test_two_runners_share_the_work_and_do_none_twice(ledger: Ledger) -> None:
    async with at_work(ledger) as office:
        await office.open(new_runner(ledger, office.exchange))
        await office.hire("A", "B")
        jobs = [
            await office.submit(sequence(parallel(*["A"] * 20), "B"), source_id=f"S{n}")
            for n in range(4)
        ]
        for job in jobs:
            await office.ended(job)

    assert Counter(office.seen_keys()) == {"A": 80, "B": 4}
    for job in jobs:
        assert await audit(ledger.store, job) == []


async def test_what_another_process_accepts_is_sent_at_its_word(office: Office) -> None:
    """An API process has no loops; it nudges the runners."""
    remote = new_runner(office.ledger, office.exchange, remote=True)
    await office.hire("A")

    assert await remote.loops() == {}
    office.runner = remote
    job = await office.submit("A")
    await office.ended(job)

    await office.runner.force_task(office.seen[0].ticket.task_id)
    await until(lambda: _attempts(office, 2))


# --- workers that come, ask and go ----------------------------------------------------------------


async def test_tasks_without_a_worker_go_as_soon_as_one_says_hello(office: Office) -> None:
    job = await office.submit(parallel("A", "A"))

    async def unroutable() -> bool:
        return set((await office.ledger.states(job)).values()) == {TaskState.UNROUTABLE}

    await until(unroutable)
    await office.hire("A")

    await office.ended(job)


async def test_tasks_of_a_type_no_worker_takes_wait_for_one_that_does(office: Office) -> None:
    await office.hire("A", types=("image",))
    job = await office.submit("A", type="video")

    async def unroutable() -> bool:
        return await office.ledger.states(job) == {"A": TaskState.UNROUTABLE}

    await until(unroutable)
    await office.hire("A", types=("video",), name="w2")

    await office.ended(job)


async def test_a_worker_that_comes_while_a_key_is_paused_is_told(office: Office) -> None:
    await office.runner.pause_key("A")
    async with office.exchange.listen(inbox_queue("w1")) as inbox:
        await office.hire("A", "B")
        [delivery] = await asyncio.wait_for(inbox.take(10), 5)

    assert open_control(delivery.envelope) == Control(act="pause", key="A")


async def test_workers_are_asked_to_say_hello_when_a_runner_starts(ledger: Ledger) -> None:
    exchange = MemoryExchange()
    async with (
        exchange.listen(inbox_queue("w1")) as inbox,
        at_work(ledger, exchange=exchange),
    ):
        [delivery] = await asyncio.wait_for(inbox.take(10), 5)

    assert open_control(delivery.envelope) == Control(act="roll")


async def test_a_worker_that_asks_gets_a_verdict(office: Office) -> None:
    await office.hire("A", script=lambda _: None)
    job = await office.submit("A")

    async def seen() -> bool:
        return bool(office.seen)

    await until(seen)
    ticket = office.seen[0].ticket
    verdicts: list[Delivery] = []
    async with office.exchange.listen("inbox") as inbox:
        await send(office, Ask(ticket=ticket, worker="w1", reply_to="inbox"))
        verdicts += await asyncio.wait_for(inbox.take(1), 5)
        await office.runner.cancel_job(job)
        await send(office, Ask(ticket=ticket, worker="w1", reply_to="inbox"))
        async with asyncio.timeout(5):
            while len(verdicts) < 2:  # between them are words to cancel
                verdicts += [one for one in await inbox.take(1) if one.envelope.type == "verdict"]

    first, second = (open_verdict(one.envelope) for one in verdicts)
    assert (first.run, first.reason, first.ticket) == (True, "", ticket)
    assert (second.run, second.reason) == (False, "the task is cancelled")


async def test_a_task_handed_back_is_sent_again_without_a_new_attempt(office: Office) -> None:
    def drain(task: TaskMessage) -> Answer | None:
        return done(task) if len(office.seen) > 1 else None

    await office.hire("A", script=drain)
    job = await office.submit("A")

    async def seen() -> bool:
        return bool(office.seen)

    await until(seen)
    await send(office, Released(ticket=office.seen[0].ticket, worker="w1"))
    await office.ended(job)

    assert [message.ticket.attempt for message in office.seen] == [1, 1]
    assert office.seen[1].ticket.dispatch == 2


# --- what cannot be believed or read ------------------------------------------------------------


async def test_answers_with_forged_tokens_are_dropped(office: Office) -> None:
    await office.hire("A", script=lambda _: None)
    job = await office.submit(sequence("A", "B"))

    async def sent() -> bool:
        states = await office.ledger.states(job)
        return bool(office.seen) and states["A"] is TaskState.QUEUED

    await until(sent)
    genuine = office.seen[0].ticket
    forged = [
        replace(genuine, token="0" * 32),
        replace(genuine, token=""),
        replace(genuine, token=genuine.token.upper()),
        replace(genuine, token="ü" * 32),
        replace(genuine, attempt=2),
        replace(genuine, task_id=TaskId(genuine.task_id + 1)),  # B, whose turn it is not
    ]
    for ticket in forged:
        await send(
            office,
            Started(ticket=ticket, worker="x", runtime=1.0),
            Progress(ticket=ticket, fraction=0.5),
            Released(ticket=ticket, worker="x"),
            Answer(ticket=ticket, state=200, message="", response={}),
            Ask(ticket=ticket, worker="x", reply_to=RESPONSE_QUEUE),
        )
    await all_read(office)
    before = await office.ledger.states(job)
    await send(office, done(office.seen[0]))

    assert before == {"A": TaskState.QUEUED, "B": TaskState.BLOCKED}

    async def taken() -> bool:
        return (await office.ledger.states(job))["A"] is TaskState.SUCCEEDED

    await until(taken)
    assert await waiting_in(office, DEAD_QUEUE) == 0


async def test_what_cannot_be_read_is_parked_and_the_rest_recorded(office: Office) -> None:
    await office.hire("A", script=lambda _: None)
    job = await office.submit("A")

    async def seen() -> bool:
        return bool(office.seen)

    await until(seen)
    noise = [
        Envelope(type="answer", body=b"{"),
        Envelope(type="nonsense", body=b"{}"),
        Envelope(type="hello", body=b'{"v": 2}'),
        replace(done(office.seen[0]).seal(), correlation_id="x"),
    ]
    await send(office, *noise[:2], done(office.seen[0]), *noise[2:])
    await office.ended(job)
    await all_read(office)

    assert await waiting_in(office, DEAD_QUEUE) == 4
    assert await waiting_in(office, RESPONSE_QUEUE) == 0
    async with office.exchange.consume(DEAD_QUEUE, prefetch=10) as dead:
        parked = await dead.take(10)
    assert [delivery.envelope.body for delivery in parked] == [one.body for one in noise]
    for delivery in parked:
        headers = delivery.envelope.headers
        assert str(headers["fault"]).startswith("BadMessage: ")
        assert headers["from"] == RESPONSE_QUEUE


HOSTILE = [
    Hello(worker="w" * 5000, host="h" * 5000, pid=1, slots=1, inbox="i", offers=(), fresh=True),
    Hello(worker="\0", host="é", pid=2**31 - 1, slots=0, inbox="", offers=(Offer(key="Z"),)),
    Hello(
        worker="w",
        host="h",
        pid=1,
        slots=1,
        inbox="i" * 255,
        fresh=True,
        offers=(
            Offer(
                key="Y" * 100,
                types=("x" * 999,),
                version="v" * 999,
                description="d" * 9999,
                args_schema={"type": 7, "$ref": "http://127.0.0.1:1/"},
            ),
        ),
    ),
    Goodbye(worker="nobody"),
]


async def test_no_report_stops_the_recording_of_others(office: Office) -> None:
    """Whatever passes the wire must pass the store: what breaks there comes back for ever."""
    await office.hire("A", script=lambda _: None)
    job = await office.submit(parallel("A", "A", "A"))

    async def seen() -> bool:
        return len(office.seen) == 3

    await until(seen)
    tickets = {message.ticket.task_id: message.ticket for message in office.seen}
    first, second, third = (ticket for _, ticket in sorted(tickets.items()))
    await send(
        office,
        *HOSTILE,
        Started(ticket=first, worker="w" * 5000, runtime=1e300),
        Progress(ticket=first, fraction=0.999999999999, message="\0" * 9000),
        Released(ticket=replace(second, dispatch=2**31 - 1), worker="w", delay=1e300),
        Answer(
            ticket=first, state=2**62, message="\0é" * 9000, response={"\0": "\0" * 100},
            worker="w" * 5000, runtime=1e300, started_at="x" * 999,
        ),
        Answer(ticket=second, state=-(2**62), message="", response={"n": 2**63 - 1, "f": 1e308}),
        Answer(ticket=third, state=200, message="fine", response={}),
    )  # fmt: skip

    async def recorded() -> bool:
        return (await office.ledger.reader.job(job)).counts.active == 0

    await until(recorded)
    assert [one.number for one in await office.ledger.tasks(job)] == [500, 500, 200]
    await office.runner.submit_many([])
    assert await waiting_in(office, DEAD_QUEUE) == 0


# --- what breaks --------------------------------------------------------------------------------


class Brittle:
    """A memory exchange that breaks where a test says, as often as it says."""

    def __init__(self) -> None:
        self._inner = MemoryExchange()
        self.connected = True
        self.blocked = ""
        self.lost_acks = 0
        self.lost_publishes = 0
        self.unknown_fates = 0
        self.full: set[str] = set()  # routing keys whose queue takes no more
        self.failed_broadcasts = 0

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        if self.lost_publishes:
            self.lost_publishes -= 1
            raise ExchangeUnreachable("the connection was lost")
        fates = [await self._put(key, envelope) for key, envelope in messages]
        if self.unknown_fates:
            self.unknown_fates -= 1
            fates[-1] = Fate.UNKNOWN
        return fates

    async def _put(self, key: str, envelope: Envelope) -> Fate:
        if key in self.full:
            return Fate.REFUSED
        [fate] = await self._inner.publish([(key, envelope)])
        return fate

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        return await self._inner.send(queue, envelopes)

    async def send_each(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        return await self._inner.send_each(messages)

    async def broadcast(self, envelope: Envelope) -> None:
        if self.failed_broadcasts:
            self.failed_broadcasts -= 1
            raise ExchangeUnreachable("the connection was lost")
        await self._inner.broadcast(envelope)

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        await self._inner.declare_queue(queue, bindings)

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        consuming = self._inner.consume(queue, prefetch=prefetch)
        return _Losing(self, consuming) if queue == RESPONSE_QUEUE else consuming

    def listen(self, inbox: str) -> AbstractAsyncContextManager[Subscription]:
        return self._inner.listen(inbox)

    async def depth(self, queue: str) -> Depth | None:
        return await self._inner.depth(queue)

    async def delete_queue(self, queue: str) -> None:
        await self._inner.delete_queue(queue)

    def reconnections(self) -> AsyncIterator[None]:
        return self._inner.reconnections()


class _Losing:
    """A subscription that is lost just before an ack."""

    def __init__(
        self, exchange: Brittle, consuming: AbstractAsyncContextManager[Subscription]
    ) -> None:
        self._exchange = exchange
        self._consuming = consuming

    async def __aenter__(self) -> Subscription:
        self._inner = await self._consuming.__aenter__()
        return self

    async def __aexit__(self, *reason: Any) -> bool | None:  # noqa: PYI036 - passed on
        return await self._consuming.__aexit__(*reason)

    async def take(self, limit: int) -> Sequence[Delivery]:
        return await self._inner.take(limit)

    async def ack(self, delivery: Delivery) -> None:
        await self._inner.ack(delivery)

    async def ack_through(self, delivery: Delivery) -> None:
        if self._exchange.lost_acks:
            self._exchange.lost_acks -= 1
            raise ExchangeUnreachable("the connection was lost")
        await self._inner.ack_through(delivery)

    async def ack_last(self, delivery: Delivery) -> None:
        await self._inner.ack_last(delivery)

    async def nack(self, delivery: Delivery) -> None:
        await self._inner.nack(delivery)


async def _has(something: Sequence[object]) -> bool:
    return bool(something)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "low on" in record.getMessage()]


def brittle(**faults: Any) -> Brittle:
    exchange = Brittle()
    for name, value in faults.items():
        setattr(exchange, name, value)
    return exchange


def as_exchange(exchange: Brittle) -> Exchange:
    return exchange


async def test_a_recorder_that_dies_before_it_acks_doubles_nothing(ledger: Ledger) -> None:
    exchange = brittle()
    async with at_work(ledger, exchange=as_exchange(exchange)) as office:
        await office.hire("A", "B", "C")
        exchange.lost_acks = 3
        job = await office.submit(sequence("A", parallel("B", "C"), parallel("B", "C"), "A"))
        await office.ended(job)
        await all_read(office)

    assert exchange.lost_acks == 0
    assert sorted(office.seen_keys()) == sorted("ABCBCA")
    assert await audit(ledger.store, job) == []
    counts = (await ledger.reader.job(job)).counts
    assert (counts.total, counts.succeeded) == (6, 6)


async def test_a_claim_that_was_never_published_is_sent_when_its_lease_ends(
    ledger: Ledger,
) -> None:
    async with at_work(ledger, pace=HASTY, exchange=brittle(lost_publishes=2)) as office:
        await office.hire("A", "B")
        job = await office.submit(sequence("A", "B"))
        await office.ended(job)

    assert office.seen_keys() == ["A", "B"]
    assert {message.ticket.attempt for message in office.seen} == {1}
    assert office.seen[0].ticket.dispatch > 1


async def test_a_message_whose_fate_is_unknown_is_sent_again_and_recorded_once(
    ledger: Ledger,
) -> None:
    """It had arrived: the worker gets it twice, and only its first answer counts."""
    async with at_work(ledger, pace=HASTY, exchange=brittle(unknown_fates=1)) as office:
        held: list[TaskMessage] = []

        def script(task: TaskMessage) -> Answer | None:
            held.append(task)
            return done(task) if len(held) > 1 else None

        await office.hire("A", script=script)
        job = await office.submit("A")
        await office.ended(job)
        await send(office, done(held[0]))
        await all_read(office)

    first, second = [message.ticket.dispatch for message in held]
    assert second > first
    view = await ledger.reader.task(held[0].ticket.task_id)
    assert [attempt.number for attempt in view.attempts] == [1]


async def test_nothing_is_claimed_while_the_exchange_is_away(ledger: Ledger) -> None:
    """What is claimed then waits for a lease to end; what is not goes at once."""
    exchange = brittle(connected=False)
    async with at_work(ledger, exchange=as_exchange(exchange)) as office:
        await office.hire("A")
        job = await office.submit("A")
        await all_read(office)
        [found] = await ledger.tasks(job)
        exchange.connected = True
        await office.ended(job)

    assert (found.state, found.dispatch) == (TaskState.READY, 0)


async def test_nothing_is_claimed_while_the_broker_takes_nothing(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs are still taken and answers recorded; only what would be sent waits, and says why."""
    exchange = brittle()
    async with at_work(ledger, exchange=as_exchange(exchange)) as office:
        held: list[TaskMessage] = []

        def script(task: TaskMessage) -> Answer | None:
            held.append(task)
            return done(task) if task.key == "B" else None

        await office.hire("A", "B", script=script)
        first = await office.submit(sequence("A", "B"))
        await until(lambda: _has(held))
        exchange.blocked = "low on memory"
        await all_read(office)  # its hello has rung the bell
        await until(lambda: _has(_said(caplog)))
        second = await office.submit(parallel("B", "B"))
        await send(office, done(held[0]))
        await all_read(office)
        await all_read(office)  # its hello has rung the bell once more
        said = _said(caplog)
        blocked = await ledger.states(first)
        untouched = {(one.state, one.dispatch) for one in await ledger.tasks(second)}
        exchange.blocked = ""
        await office.ended(second)

    assert blocked["A"] is TaskState.SUCCEEDED
    assert untouched == {(TaskState.READY, 0)}
    assert said == ["the broker takes no messages (low on memory): no tasks are sent until it does"]


async def test_a_full_queue_is_tried_again_later_and_holds_up_no_other(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a policy of max-length and reject-publish. The pause is that of a lost message."""
    exchange = brittle(full={routing_key(None, "A")})
    async with at_work(ledger, pace=HASTY, exchange=as_exchange(exchange)) as office:
        await office.hire("A", "B")
        full = await office.submit(parallel("A", "A"))
        await office.ended(await office.submit("B"))
        assert office.seen_keys() == ["B"]

        async def is_refused() -> bool:
            return "the queue of A takes no more" in caplog.text

        await until(is_refused)
        refused = max(one.dispatch for one in await ledger.tasks(full))

        async def tried_again() -> bool:
            return all(one.dispatch > refused for one in await ledger.tasks(full))

        await until(tried_again)
        exchange.full.clear()
        await office.ended(full)

    assert {message.ticket.attempt for message in office.seen} == {1}
    assert caplog.text.count("the queue of A takes no more") == 1


async def test_successors_claimed_along_the_way_are_not_lost_with_the_exchange(
    ledger: Ledger,
) -> None:
    exchange = brittle()
    async with at_work(ledger, pace=HASTY, exchange=as_exchange(exchange)) as office:

        def script(task: TaskMessage) -> Answer:
            exchange.connected = task.key != "A"
            return done(task)

        await office.hire("A", "B", script=script)
        job = await office.submit(sequence("A", "B"))

        async def dispatching() -> bool:
            return (await ledger.states(job))["A"] is TaskState.SUCCEEDED

        await until(dispatching)
        exchange.connected = True
        await office.ended(job)

    assert office.seen_keys() == ["A", "B"]


async def test_acts_are_true_even_if_no_worker_can_be_told(ledger: Ledger) -> None:
    exchange = brittle()
    async with at_work(ledger, exchange=as_exchange(exchange)) as office:
        job = await office.submit(parallel("A", "B"))
        await all_read(office)
        exchange.failed_broadcasts = 100

        await office.runner.pause_job(job)
        paused = await ledger.status(job)
        await office.runner.resume_job(job)
        await office.runner.pause_key("A")
        await office.runner.resume_key("A")
        await office.runner.reset_task((await ledger.task(job, "A")).id)
        await office.runner.cancel_job(job)

    assert paused is JobStatus.PAUSED
    assert await ledger.status(job) is JobStatus.CANCELLED


# --- what workers are told ------------------------------------------------------------------------


async def test_workers_are_told_what_operators_did(office: Office) -> None:
    await office.hire("A", script=lambda _: None)
    job = await office.submit("A")

    async def queued() -> bool:
        return await office.ledger.states(job) == {"A": TaskState.QUEUED}

    await until(queued)
    [found] = await office.ledger.tasks(job)
    runner = office.runner
    async with office.exchange.listen("inbox") as inbox:
        await runner.pause_job(job)
        await runner.resume_job(job)
        await runner.force_task(found.id)
        await runner.reset_task(found.id)
        await runner.retry_task(found.id)
        await runner.pause_key("A")
        await runner.resume_key("A")
        await runner.cancel_job(job)
        await runner.delete_job(job)
        said = [open_control(one.envelope) for one in await inbox.take(100)]

    # Before tasks are gone through, and once more behind the last of them.
    assert said == [
        *[Control(act="recall", job_id=job)] * 2,
        Control(act="cancel", task_id=found.id, attempt=1, grace=10.0),
        Control(act="cancel", task_id=found.id, attempt=2, grace=10.0),
        Control(act="pause", key="A"),
        *[Control(act="recall", key="A")] * 2,
        Control(act="resume", key="A"),
        *[Control(act="cancel", job_id=job, grace=10.0)] * 4,
    ]


@pytest.mark.parametrize("act", ["pause_job", "retry_job", "cancel_job", "delete_job"])
async def test_an_act_comes_into_force_while_tasks_are_under_way(office: Office, act: str) -> None:
    await office.hire("A", "B")
    job = await office.submit(sequence(*["A", "B"] * 8))

    await getattr(office.runner, act)(job)
    await all_read(office)

    if act == "retry_job":
        await office.ended(job)
    if act == "pause_job":
        await office.runner.resume_job(job)
        await office.ended(job)
    if act == "delete_job":
        assert await office.ledger.reader.unfinished() == []
    else:
        assert await audit(office.ledger.store, job) == []


def test_the_pace_of_tests_is_a_pace() -> None:
    assert isinstance(PATIENT, Pace)
    assert HASTY.lease < PATIENT.lease
