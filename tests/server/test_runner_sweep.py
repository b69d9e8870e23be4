"""The sweeper at work: nothing is left behind, and nobody is hurried who is merely slow."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_core.message import (
    Answer,
    Control,
    Goodbye,
    Leased,
    Nudge,
    Released,
    Started,
    TaskMessage,
    open_control,
)
from dane_core.routing import RESPONSE_QUEUE, binding_keys, epoch_queue, work_queue
from dane_core.states import SETTLED, TaskState
from dane_server.runner import sweep
from dane_server.runner.bell import LocalBell
from dane_server.runner.pace import Pace
from dane_server.runner.sweep import Sweeper
from tests.server.clock import clock_put
from tests.server.ledger import Ledger, answer, sequence, started, task, ticket_of
from tests.server.scripted import HASTY, PATIENT, at_work, done, failed, until

INSTANT = timedelta(seconds=0.02)
#: As impatient as can be: what is over is found over at once.
RASH = Pace(sweep=INSTANT, patience=INSTANT, overtime=INSTANT, lost_after=INSTANT, lease=INSTANT)


class Away(MemoryExchange):
    """A broker that can be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.here = True

    @property
    def connected(self) -> bool:
        return self.here


def sweeper_of(ledger: Ledger, exchange: MemoryExchange, pace: Pace = RASH) -> Sweeper:
    return Sweeper(
        sweeps=ledger.sweeps, acts=ledger.acts, exchange=exchange, bell=LocalBell(), pace=pace
    )


@pytest.fixture
async def exchange() -> AsyncIterator[Away]:
    """An exchange whose responses somebody reads: what is said is heard."""
    exchange = Away()
    await exchange.declare_queue(RESPONSE_QUEUE)
    async with exchange.consume(RESPONSE_QUEUE, prefetch=100):
        yield exchange


@pytest.fixture
def settled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has been running for a while: after its first sweep it rests."""
    monkeypatch.setattr(sweep, "_ANSWERS_FIRST", 0.0)


async def first_sweep(ledger: Ledger) -> None:
    async def is_over() -> bool:
        return (await ledger.sweeps.look()).epoch is not None

    await until(is_over)


# --- in time ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("settled_down")
async def test_a_retry_that_is_due_before_the_next_pass_does_not_wait_for_it(
    ledger: Ledger,
) -> None:
    """Sweeps are an hour apart here."""
    async with at_work(ledger, pace=PATIENT) as office:

        def script(message: TaskMessage) -> Answer:
            return failed(message, 503) if message.ticket.attempt == 1 else done(message)

        await first_sweep(ledger)
        await office.hire("A", script=script)
        job = await office.submit(task("A", retry={"delay": 0.1}))

        await office.ended(job)


@pytest.mark.usefixtures("settled_down")
async def test_a_task_that_was_refused_for_a_moment_is_sent_again_after_it(
    ledger: Ledger,
) -> None:
    async with at_work(ledger, pace=PATIENT) as office:
        refused: list[TaskMessage] = []

        def script(message: TaskMessage) -> Answer | None:
            if refused:
                return done(message)
            refused.append(message)
            return None

        await first_sweep(ledger)
        await office.hire("A", script=script)
        job = await office.submit("A")

        async def has_refused() -> bool:
            return bool(refused)

        await until(has_refused)
        back = Released(ticket=refused[0].ticket, worker="w1", delay=0.1)
        await office.exchange.send(RESPONSE_QUEUE, [back.seal()])

        await office.ended(job)


@pytest.mark.usefixtures("settled_down")
async def test_a_broker_that_comes_back_empty_is_noticed_at_once(ledger: Ledger) -> None:
    """Also when the next pass is an hour away."""
    async with at_work(ledger, pace=PATIENT) as office:
        await first_sweep(ledger)
        silent = await office.hire("A", script=lambda _: None)
        job = await office.submit("A")

        async def is_queued() -> bool:
            return bool(office.seen) and await ledger.states(job) == {"A": TaskState.QUEUED}

        await until(is_queued)
        epoch = (await ledger.sweeps.look()).epoch
        assert epoch is not None

        silent.cancel()
        await office.hire("A")
        await office.exchange.delete_queue(epoch_queue(epoch.name))
        await office.exchange.delete_queue(work_queue("A"))  # consumed: told as a restoration

        await office.ended(job)
        assert (await ledger.task(job, "A")).attempt == 1


# --- what is over -----------------------------------------------------------------------------


async def test_a_task_whose_worker_fell_silent_is_done_by_another(ledger: Ledger) -> None:
    pace = replace(HASTY, patience=timedelta(seconds=0.3))
    async with at_work(ledger, pace=pace) as office:
        begun: list[TaskMessage] = []

        def script(message: TaskMessage) -> Answer | None:
            if begun:
                return done(message)
            begun.append(message)
            return None

        await office.hire("A", script=script)
        job = await office.submit("A")

        async def has_begun() -> bool:
            return bool(begun)

        await until(has_begun)
        leased = Leased(ticket=begun[0].ticket, worker="w1", runtime=1.0, lease=1.0)
        await office.exchange.send(RESPONSE_QUEUE, [leased.seal()])

        await office.ended(job)
        view = await ledger.reader.task(begun[0].ticket.task_id)
        assert [(one.number, one.outcome) for one in view.attempts] == [(1, 500), (2, 200)]


async def test_a_task_that_outlives_its_timeout_is_ended_and_its_worker_told(
    ledger: Ledger,
) -> None:
    pace = replace(HASTY, overtime=timedelta(seconds=0.2))
    async with at_work(ledger, pace=pace) as office:
        await office.hire("A", script=lambda _: None)
        job = await office.submit(task("A", timeout=0.1, retry={"limit": 0}))

        async with office.exchange.listen("inbox") as inbox:

            async def is_sent() -> bool:
                return bool(office.seen)

            await until(is_sent)
            ticket = office.seen[0].ticket
            begun = Started(ticket=ticket, worker="w1", runtime=1.0)
            await office.exchange.send(RESPONSE_QUEUE, [begun.seal()])
            async with asyncio.timeout(10):
                word: Control | None = None
                while word is None or word.act != "cancel":
                    [delivery] = await inbox.take(1)
                    word = open_control(delivery.envelope)

        assert (word.task_id, word.attempt) == (ticket.task_id, 1)
        one = await ledger.task(job, "A")
        assert (one.state, one.outcome) == (TaskState.FAILED, 504)


@pytest.mark.usefixtures("settled_down")
async def test_what_is_overtaken_in_its_queue_is_sent_again_as_more_urgent(
    ledger: Ledger,
) -> None:
    """Workers are told that its first message may be stale: they ask before they begin it."""
    pace = replace(HASTY, ageing=timedelta(seconds=0.2))
    async with at_work(ledger, pace=pace) as office, office.exchange.listen("inbox") as inbox:
        await office.exchange.declare_queue(RESPONSE_QUEUE)
        await office.exchange.declare_queue(work_queue("A"), binding_keys("A"))
        patient = await office.submit("A", priority=0)
        urgent = await office.submit("A", priority=1)
        overtaken = await ledger.task(patient, "A")
        async with asyncio.timeout(10):
            word: Control | None = None
            while word is None or word.task_id is None:
                [delivery] = await inbox.take(1)
                word = open_control(delivery.envelope)

        async def is_sent_again() -> bool:
            one = await ledger.task(patient, "A")
            return one.state is TaskState.QUEUED and one.dispatch > overtaken.dispatch

        await until(is_sent_again)
        await office.hire("A", script=lambda _: None)

        async def has_all() -> bool:
            return len(office.seen) == 3

        await until(has_all)

    assert (word.act, word.task_id) == ("recall", overtaken.id)
    assert [(one.job_id, one.ticket.dispatch) for one in office.seen] == [
        (urgent, 1),
        (patient, 3),
        (patient, 1),
    ]


async def test_nothing_is_over_while_the_broker_is_away(ledger: Ledger, exchange: Away) -> None:
    """Its heartbeats and its answer cannot arrive; its worker may be very well."""
    await ledger.submit(task("A", timeout=1))
    [claim] = await ledger.send()
    sweeper = sweeper_of(ledger, exchange)
    await ledger.writer.note_reports([started(claim)], [], [])
    await ledger.sweeps.watch_key("A", timedelta(seconds=1))
    exchange.here = False

    with clock_put(ledger.store, 2):
        for _ in range(5):
            await sweeper.sweep()
            await asyncio.sleep(0.02)

    one = (await ledger.reader.task(claim.task_id)).task
    assert (one.state, one.attempt) == (TaskState.RUNNING, 1)


async def being_sent(ledger: Ledger) -> tuple[JobId, Sweeper]:
    """A job whose task was being sent, its lease over; and a sweeper, with a report unread."""
    job = await ledger.submit("A")
    await ledger.claim(lease=timedelta(0))
    exchange = MemoryExchange()
    await exchange.declare_queue(RESPONSE_QUEUE)
    await exchange.send(RESPONSE_QUEUE, [Goodbye(worker="w1").seal()])
    return job, sweeper_of(ledger, exchange)


async def test_what_waited_while_no_server_ran_is_recorded_before_anything_is_sent_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that was being sent as the server died may have been done since."""
    job, sweeper = await being_sent(ledger)

    again = [await sweeper.sweep() for _ in range(3)]
    before = await ledger.states(job)
    monkeypatch.setattr(sweep, "_ANSWERS_FIRST", 0.0)
    await sweeper.sweep()

    assert all(pause is not None and pause <= 1 for pause in again)
    assert before == {"A": TaskState.DISPATCHING}
    assert await ledger.states(job) == {"A": TaskState.READY}


async def test_one_that_stood_still_records_what_waited_first_too(ledger: Ledger) -> None:
    """What it was sending then may have been done; it has not heard so."""
    job, sweeper = await being_sent(ledger)

    sweeper._began -= 3600
    sweeper._last_pass -= 60
    await sweeper.sweep()

    assert await ledger.states(job) == {"A": TaskState.DISPATCHING}


# --- clocks -----------------------------------------------------------------------------------


async def test_a_clock_that_is_put_back_holds_nothing_up(ledger: Ledger, exchange: Away) -> None:
    job = await ledger.submit(task("A", retry={"delay": 60}))
    sweeper = sweeper_of(ledger, exchange, PATIENT)
    with clock_put(ledger.store, 3600):
        await sweeper.sweep()
        await ledger.answer_all(503)

    await sweeper.sweep()  # sees the step
    await sweeper.sweep()

    assert await ledger.states(job) == {"A": TaskState.READY}


async def test_a_clock_that_is_put_forward_ends_no_lease(ledger: Ledger, exchange: Away) -> None:
    job = await ledger.submit(task("A", timeout=60))
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim)], [], [])
    await ledger.sweeps.watch_key("A", timedelta(seconds=60))
    sweeper = sweeper_of(ledger, exchange, replace(PATIENT, overtime=INSTANT, patience=INSTANT))
    await sweeper.sweep()

    with clock_put(ledger.store, 3600):
        await sweeper.sweep()

    one = await ledger.task(job, "A")
    assert (one.state, one.attempt) == (TaskState.RUNNING, 1)


# --- nothing in limbo -------------------------------------------------------------------------


async def _get_ready(ledger: Ledger) -> None:
    """Just submitted: the dispatcher looks."""


async def _get_dispatching(ledger: Ledger) -> None:
    await ledger.claim()


async def _get_queued(ledger: Ledger) -> None:
    await ledger.send()


async def _get_unroutable(ledger: Ledger) -> None:
    await ledger.mark(unroutable=await ledger.claim())


async def _get_backoff(ledger: Ledger) -> None:
    await ledger.answer_all(503)


async def _get_running(ledger: Ledger) -> None:
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim)], [], [])


async def _get_leased(ledger: Ledger) -> None:
    await _get_running(ledger)
    await ledger.sweeps.watch_key("A", timedelta(seconds=60))


#: Who looks at a task again, though every message about it was lost and nobody says a word.
LOOKED_AT_BY_SWEEPS = {
    "ready": _get_ready,
    "dispatching": _get_dispatching,
    "queued": _get_queued,
    "unroutable": _get_unroutable,
    "backoff": _get_backoff,
    "running on a message": _get_running,
    "running on a lease": _get_leased,
}
#: What waits for an event in the store itself, that cannot get lost.
LOOKED_AT_BY_EVENTS = {TaskState.BLOCKED, TaskState.HELD}


def test_every_state_that_is_not_settled_has_somebody_who_looks_again() -> None:
    by_sweeps = {TaskState(name.split(maxsplit=1)[0]) for name in LOOKED_AT_BY_SWEEPS}

    assert by_sweeps | LOOKED_AT_BY_EVENTS | SETTLED == set(TaskState)


@pytest.mark.parametrize("queue", ["empty", "gone"])
@pytest.mark.parametrize("state", LOOKED_AT_BY_SWEEPS)
async def test_a_task_of_which_nobody_speaks_is_sent_again(
    sqlite_store: object, exchange: Away, state: str, queue: str
) -> None:
    ledger = Ledger.of(sqlite_store)  # type: ignore[arg-type]
    job = await ledger.submit("A")
    await LOOKED_AT_BY_SWEEPS[state](ledger)
    before = await ledger.task(job, "A")
    if queue == "empty":
        await exchange.declare_queue(work_queue("A"), binding_keys("A"))
    sweeper = sweeper_of(ledger, exchange)

    async def is_sent_again() -> bool:
        await sweeper.sweep()
        return bool(await ledger.claim())

    with clock_put(ledger.store, 3 * 3600):
        await until(is_sent_again)

    assert before.state == state.split(maxsplit=1)[0]
    [claimed] = [one for one in await ledger.tasks(job) if one.key == "A"]
    assert claimed.state is TaskState.DISPATCHING


async def test_what_waits_for_others_goes_when_they_are_done(ledger: Ledger) -> None:
    """Or when a person says so: what was reset waits for nobody else."""
    job = await ledger.submit(sequence("A", "B", "C"))
    await ledger.answer_all()
    await ledger.acts.reset_task((await ledger.task(job, "B")).id)
    before = await ledger.states(job)

    await ledger.acts.retry_task((await ledger.task(job, "B")).id)
    await ledger.send()
    await ledger.record(answer(ticket_of(await ledger.task(job, "B"))))

    assert (before["B"], before["C"]) == (TaskState.HELD, TaskState.BLOCKED)
    assert (await ledger.states(job))["C"] is TaskState.READY


@pytest.mark.usefixtures("settled_down")
async def test_lost_messages_are_missed_under_steady_load(ledger: Ledger) -> None:
    """Some reports always wait then, although the recorder keeps up."""
    exchange = MemoryExchange()
    await exchange.declare_queue(RESPONSE_QUEUE)
    await exchange.declare_queue(work_queue("A"), binding_keys("A"))
    job = await ledger.submit("A")
    await ledger.send()  # by the books
    sweeper = sweeper_of(ledger, exchange)

    async with exchange.consume(RESPONSE_QUEUE, prefetch=1):
        await exchange.send(RESPONSE_QUEUE, [Nudge().seal()] * 10)

        async def is_found() -> bool:
            await sweeper.sweep()
            return await ledger.states(job) == {"A": TaskState.READY}

        await until(is_found)
