"""Rows 1 to 12: the server is killed at the worst of moments."""

import asyncio
import signal

import pytest

from tests.faults.labor import Toil
from tests.faults.plugin import quick, row
from tests.faults.process import Process
from tests.faults.rig import Json, Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

#: Seconds within which everything is done again, on settings that look soon.
SOON = 30.0


async def after_the_crash(rig: Rig, armed: str, *posts: Json) -> list[int]:
    """Post to a server that dies at a point, and again to the next; the jobs, once they ended."""
    await rig.worker(Toil)
    doomed = await rig.server(crash=armed)
    posting = (rig.try_post(spec, key=key_of(spec), server=doomed) for spec in posts)
    assert {sent.status for sent in await asyncio.gather(*posting)} <= {0, 201, 503}
    await doomed.crashed()
    rig.healed()
    await rig.server()
    ids = [await rig.post(spec, key=key_of(spec)) for spec in posts]
    await rig.recovered(SOON, *ids)
    return ids


def key_of(spec: Json) -> str:
    return f"key-{spec['source_id']}"


@row(1)
async def test_a_job_that_was_not_committed_is_not_there_and_posted_again_it_is(rig: Rig) -> None:
    """Killed before the job is committed.

    The client sees a reset and there is no job; the same request again makes one.
    """
    await rig.worker(Toil)
    doomed = await rig.server(crash="job-before-commit:1")

    sent = await rig.try_post(job("early"), key="again", server=doomed)
    await doomed.crashed()

    assert sent.status == 0
    assert await rig.open_jobs() == 0
    rig.healed()
    await rig.server()
    await rig.recovered(SOON, await rig.post(job("early"), key="again"))
    rig.outcome = "reset, no job; posted again it is one"


@row(2)
async def test_a_job_whose_201_got_lost_is_the_same_when_posted_again(rig: Rig) -> None:
    """Killed after the job is committed, before the 201.

    The same request again is answered with that job, and makes no other.
    """
    await rig.worker(Toil)
    doomed = await rig.server(crash="job-committed:1")

    sent = await rig.try_post(job("late"), key="again", server=doomed)
    await doomed.crashed()

    assert sent.status == 0
    assert await rig.open_jobs() == 1
    rig.healed()
    await rig.server()
    await rig.recovered(SOON, await rig.post(job("late"), key="again"))
    rig.outcome = "reset; posted again it is the job that was stored"


@quick
@row(3)
async def test_what_was_claimed_and_not_published_is_published_by_another(rig: Rig) -> None:
    """Killed when a claim is committed, and nothing of it published.

    Sent again once the claim's lease is over, and executed once.
    """
    doomed = await rig.server(crash="claimed:1")
    await rig.try_post(job("claimed"), key="again", server=doomed)
    await doomed.crashed()
    rig.healed()
    await rig.worker(Toil)
    await rig.server()

    await rig.recovered(SOON, await rig.post(job("claimed"), key="again"))

    assert len(rig.history.began()) == 1
    rig.outcome = "sent again after the lease of the claim, executed once"


@quick
@row(3)
async def test_what_was_claimed_as_it_was_stored_is_published_by_another(rig: Rig) -> None:
    """Killed when a job and the claim of its first task are committed in one.

    Sent once the claim's lease is over, and executed once.
    """
    await rig.worker(Toil)
    doomed = await rig.server(crash="claimed-ahead:1")
    await rig.act_on_key("resume", "TOIL")  # so that it is known
    posted = await _posted_until_it_crashes(rig, doomed)
    rig.healed()
    await rig.server()

    await rig.recovered(SOON, *[await rig.post(job(name), key=name) for name in posted])

    assert len(rig.history.began()) == len(posted)
    rig.outcome = "sent after the lease of the claim, executed once"


async def _posted_until_it_crashes(rig: Rig, doomed: Process) -> list[str]:
    """Jobs by name and key. One is not claimed as it is stored while somebody holds its key."""
    posted: list[str] = []
    async with asyncio.timeout(60):
        while doomed.alive:
            posted.append(f"claimed-{len(posted)}")
            await rig.try_post(job(posted[-1]), key=posted[-1], server=doomed)
    await doomed.crashed()
    return posted


@row(3)
async def test_with_the_default_settings_a_claim_is_taken_up_again_in_time(rig: Rig) -> None:
    """Killed when a claim is committed, with all settings as they come.

    Sent again within 20 s, and executed once.
    """
    usual = {"SWEEP": 5, "LEASE": 15}
    await rig.worker(Toil)
    doomed = await rig.server(crash="claimed-ahead:1", RUNNER=usual)
    await rig.act_on_key("resume", "TOIL")  # so that it is known
    posted = await _posted_until_it_crashes(rig, doomed)
    rig.healed()
    await rig.server(RUNNER=usual)

    took = await rig.recovered(25, *[await rig.post(job(name), key=name) for name in posted])

    assert took < 22
    assert len(rig.history.began()) == len(posted)
    rig.outcome = "sent again after the lease of 15 s, executed once"


@row(4)
async def test_what_was_published_and_not_confirmed_has_one_result(rig: Rig) -> None:
    """Killed when tasks are published and nobody has been told of the confirms.

    Perhaps two deliveries; one result.
    """
    five = {"taskParallel": ["TOIL"] * 5}
    await after_the_crash(rig, "task-published:1", job("published", five))

    rig.outcome = f"{len(rig.history.began())} executions of 5 tasks, one result each"


@row(5)
async def test_what_was_confirmed_and_not_marked_has_one_result(rig: Rig) -> None:
    """Killed when tasks are confirmed, and not yet marked as queued.

    Perhaps two deliveries; one result.
    """
    five = {"taskParallel": ["TOIL"] * 5}
    await after_the_crash(rig, "task-confirmed:1", job("confirmed", five))

    rig.outcome = f"{len(rig.history.began())} executions of 5 tasks, one result each"


@row(6)
async def test_an_answer_that_was_only_received_is_recorded_by_the_next(rig: Rig) -> None:
    """Killed when an answer has arrived, before its transaction.

    Delivered again, and recorded once; the task is not run again.
    """
    await after_the_crash(rig, "answer-received:1", job("received"))

    assert len(rig.history.began()) == 1
    rig.outcome = "delivered again, recorded once, executed once"


@row(7)
async def test_an_answer_that_was_recorded_and_not_acknowledged_changes_nothing_again(
    rig: Rig,
) -> None:
    """Killed when an answer is committed, before it is acknowledged.

    It comes again, is counted as late, and changes nothing.
    """
    [job_id] = await after_the_crash(rig, "answers-committed:1", job("committed"))
    [task] = await rig.tasks_of(job_id)

    await rig.until(lambda: rig.was_rejected(task, "settled"), SOON)
    assert len(rig.history.began()) == 1
    rig.outcome = "came again, counted as late, changed nothing"


@row(8)
async def test_successors_that_were_not_published_are_published_by_another(rig: Rig) -> None:
    """Killed when an answer is acknowledged, and its successor not published.

    The successor begins within 20 s, once.
    """
    chain = job("acked", {"taskSequential": ["TOIL", "TOIL"]})
    [job_id] = await after_the_crash(rig, "answers-acked:1", chain)
    _, second = await rig.tasks_of(job_id)

    assert len(rig.history.began(task_id=second)) == 1
    assert rig.seconds is not None
    assert rig.seconds < 20
    rig.outcome = "the successor ran once"


@row(9)
async def test_of_a_hundred_answers_all_are_recorded_or_none(rig: Rig) -> None:
    """Killed in the middle of writing down a hundred answers.

    None of them is recorded; all are by the next server, and nothing is run again.
    """
    held = job("batch", {"taskParallel": [toil(hold="go")] * 100})
    await rig.worker(Toil, slots=100)
    first = await rig.server()
    job_id = await rig.post(held)
    await rig.begun(100)
    first.kill()
    await first.ended()
    rig.history.say("go")
    await rig.until(lambda: len(rig.history.ended()) == 100)
    doomed = await rig.server("runner", crash="answers-half-written:1")
    await doomed.crashed()

    assert "succeeded" not in (await rig.states(job_id)).values()

    rig.healed()
    await rig.server()
    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) == 100
    rig.outcome = "none recorded, then all; executed once each"


@row(10)
async def test_a_runner_that_dies_after_it_closed_an_attempt_leaves_it_closed(rig: Rig) -> None:
    """Killed when the attempt of a lost worker was closed, and the next one not yet sent.

    The old result is refused, the new attempt runs.
    """
    leased = {"HAND_OFF": 0.5, "BEAT": 0.5}
    doomed = await rig.server(crash="attempt-closed:1")
    zombie = await rig.worker(Toil, WORKER=leased)
    job_id = await rig.post(job("closed", toil(hold="go")))
    [task] = await rig.tasks_of(job_id)
    await rig.until(lambda: rig.is_leased(task))
    zombie.freeze()
    await doomed.crashed(within=75)
    rig.healed()
    await rig.server()
    await rig.worker(Toil)
    await rig.begun(task_id=task, attempt=2)
    rig.history.say("go")
    await rig.recovered(SOON, job_id)
    zombie.thaw()

    await rig.until(lambda: rig.was_rejected(task, "stale"), SOON)
    rig.outcome = "attempt 2 was recorded, the answer of attempt 1 refused as stale"


@row(12)
async def test_a_server_that_dies_in_its_drain_loses_nothing(rig: Rig) -> None:
    """Killed during the drain after a SIGTERM, under load.

    Leases cover what it had in hand.
    """
    await rig.worker()
    doomed = await rig.server(crash="server-draining:1")
    ids = await rig.load(10)
    doomed.terminate()
    await doomed.crashed()
    rig.healed()
    await rig.server()

    await rig.recovered(SOON, *ids)
    rig.outcome = "everything done by the next server"


@row(12)
async def test_a_second_signal_ends_a_server_at_once(rig: Rig) -> None:
    """A SIGTERM, and a second one while the first is being heeded.

    It exits at once; leases cover what it had in hand.
    """
    await rig.worker()
    server = await rig.server()
    ids = await rig.load(5)
    server.terminate()
    server.terminate()
    code = await server.ended(5)
    rig.healed()
    await rig.server()

    await rig.recovered(SOON, *ids)
    # Two signals that arrive as one are one, and it drains.
    assert code in (0, 128 + signal.SIGTERM)
    rig.outcome = "ended at once; everything done by the next server"


TWO = {"taskSequential": ["TOIL", "TOIL"]}
MANY = {"taskParallel": ["TOIL"] * 501}  # more than are claimed as they are stored


@pytest.mark.parametrize(
    ("armed", "tasks"),
    [
        pytest.param("job-before-commit:1", TWO, marks=[row(1), quick]),
        pytest.param("job-committed:1", TWO, marks=[row(2), quick]),
        pytest.param("claimed:1", MANY, marks=row(3)),
        pytest.param("claimed-ahead:1", TWO, marks=row(3)),
        pytest.param("answer-received:1", TWO, marks=row(6)),
        pytest.param("answers-half-written:1", TWO, marks=row(9)),
        pytest.param("answers-committed:1", TWO, marks=row(7)),
    ],
)
async def test_an_embedded_dane_goes_on_where_it_died(
    small_rig: Rig, armed: str, tasks: Json
) -> None:
    """In one process on SQLite: killed at that point, and started again.

    What was accepted is done; what was recorded stays; what ran runs again as a new attempt.
    """
    spec = job("embedded", tasks)
    doomed = await small_rig.dev(Toil, crash=armed)
    await small_rig.act_on_key("resume", "TOIL")  # so that it is known
    await small_rig.try_post(spec, key="again", server=doomed)
    await doomed.crashed()
    small_rig.healed()
    await small_rig.dev(Toil)

    await small_rig.recovered(SOON, await small_rig.post(spec, key="again"))
    small_rig.outcome = "went on where it was"
