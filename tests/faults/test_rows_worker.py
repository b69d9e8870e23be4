"""Rows 13 to 24: the worker is killed, frozen, or hangs."""

import asyncio
from typing import Any, Final

import pytest

from tests.faults.labor import Toil
from tests.faults.plugin import quick, row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 30.0
#: A lease of the server ends within this, in seconds.
LEASE_ENDS: Final = 75.0
#: Tasks that live on a lease soon, and leases that end soon: 4 beats.
LEASED: Final[dict[str, Any]] = {"HAND_OFF": 0.5, "BEAT": 0.5}


@row(13)
async def test_what_was_just_delivered_goes_to_another(rig: Rig) -> None:
    """A worker is killed right after a delivery.

    Another one asks, and begins it within 2 s.
    """
    await rig.server()
    await rig.worker(Toil)
    doomed = await rig.worker(Toil, crash="task-delivered:1")
    job_id = await rig.post(job("delivered", {"taskParallel": ["TOIL"] * 8}))
    await doomed.crashed()
    rig.healed()

    took = await rig.recovered(SOON, job_id)

    assert took < 2
    assert len(rig.history.began()) == 8
    rig.outcome = "begun by the other, executed once"


@row(14)
async def test_what_a_killed_worker_was_doing_is_done_by_another(rig: Rig) -> None:
    """A worker is killed in the middle of a task.

    Another one asks, and begins it within 2 s; one result, and one attempt.
    """
    await rig.server()
    doomed = await rig.worker(Toil, crash="mid-task:1")
    job_id = await rig.post(job("killed", toil(seconds=0.5)))
    await doomed.crashed()
    other = await rig.worker(Toil)
    rig.healed()

    took = await rig.recovered(SOON, job_id)

    assert took < 2.5
    assert [begin.pid for begin in rig.history.began()] == [doomed.pid, other.pid]
    assert {begin.attempt for begin in rig.history.began()} == {1}
    rig.outcome = "begun twice, one attempt, one result"


@row(15)
async def test_a_leased_task_whose_worker_is_killed_is_sent_again_at_once(rig: Rig) -> None:
    """A worker is killed in the middle of a task, after the hand-off.

    Its watchman says so: attempt 2 begins within seconds, one result.
    """
    await rig.server()
    doomed = await rig.worker(Toil, WORKER=LEASED)
    job_id = await rig.post(job("leased", toil(hold="go")))
    [task] = await rig.tasks_of(job_id)
    await rig.until(lambda: rig.is_leased(task))
    doomed.kill()
    await doomed.ended()
    rig.healed()
    await rig.worker(Toil)
    await rig.begun(task_id=task, attempt=2)
    rig.history.say("go")

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) == 2
    rig.outcome = "said to be gone by its watchman; attempt 2, one result"


@row(15)
async def test_a_leased_task_whose_machine_is_gone_is_sent_again_when_the_lease_ends(
    rig: Rig,
) -> None:
    """A worker and all it has started are killed after the hand-off: nobody says so.

    The lease expires, attempt 2 begins, one result.
    """
    await rig.server()
    doomed = await rig.worker(Toil, WORKER=LEASED)
    job_id = await rig.post(job("leased", toil(hold="go-2")))
    [task] = await rig.tasks_of(job_id)
    await rig.until(lambda: rig.is_leased(task))
    doomed.kill_family()
    await doomed.ended()
    rig.healed()
    await rig.worker(Toil)
    await rig.begun(task_id=task, attempt=2, within=LEASE_ENDS)
    rig.history.say("go-2")

    assert await rig.recovered(SOON, job_id) < LEASE_ENDS
    rig.outcome = "its lease ran out; attempt 2, one result"


@pytest.mark.parametrize(
    ("armed", "most"),
    [
        pytest.param("answer-computed:1", 2, marks=row(16)),
        pytest.param("answer-published:1", 1, marks=row(17)),
        pytest.param("answer-confirmed:1", 1, marks=[row(18), quick]),
    ],
)
async def test_an_answer_is_recorded_once_wherever_its_worker_dies(
    rig: Rig, armed: str, most: int
) -> None:
    """A worker is killed with the answer computed, published, or confirmed.

    The spool says it again, or the server knows it: one result; executed again only where
    the answer had not left the process.
    """
    await rig.server()
    doomed = await rig.worker(Toil, crash=armed)
    job_id = await rig.post(job("answered"))
    await doomed.crashed()
    rig.healed()
    await rig.worker(Toil)

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) <= most
    rig.outcome = f"executed {len(rig.history.began())} times, one result"


@row(19)
async def test_a_frozen_worker_loses_its_task_and_is_told_when_it_thaws(rig: Rig) -> None:
    """A worker is stopped (SIGSTOP) for longer than its lease, then goes on (SIGCONT).

    Attempt 2 wins; the zombie is told to stop, and its result is refused as stale.
    """
    await rig.server()
    zombie = await rig.worker(Toil, WORKER=LEASED)
    job_id = await rig.post(job("frozen", toil(hold="go")))
    [task] = await rig.tasks_of(job_id)
    await rig.until(lambda: rig.is_leased(task))
    zombie.freeze()
    await rig.worker(Toil, WORKER=LEASED)
    await rig.begun(task_id=task, attempt=2, within=LEASE_ENDS)
    rig.history.say("go-2")
    await rig.recovered(SOON, job_id)
    rig.healed()

    zombie.thaw()

    await rig.until(lambda: bool(rig.history.ended(task_id=task, attempt=1, outcome=499)), SOON)
    await rig.until(lambda: rig.was_rejected(task, "stale"), SOON)
    await rig.recovered(SOON, job_id)
    rig.outcome = "attempt 2 was recorded; the zombie was stopped and its answer refused as stale"


@row(24)
async def test_workers_that_are_restarted_in_turn_fail_no_task(rig: Rig) -> None:
    """All workers are restarted in turn, under load.

    No task fails for it, and none counts as having ended its worker.
    """
    await rig.server()
    crew = [await rig.worker() for _ in range(2)]
    loading = asyncio.create_task(rig.load(20))
    for worker in crew:
        worker.terminate()
        await rig.worker()
        assert await worker.ended() == 0
    rig.healed()

    await rig.recovered(60, *await loading)
    assert await rig.starts() == 0
    rig.outcome = "every task has its own outcome, none was counted against a worker"
