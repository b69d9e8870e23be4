"""Row 20: a task that hangs in C or loops for ever, wherever its worker does it."""

from typing import Any, Final

import pytest

from dane_core.worker.worker import Worker
from tests.faults.labor import ChildToil, ThreadToil, Toil
from tests.faults.plugin import row
from tests.faults.rig import Json, Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 30.0
TIMEOUT: Final = 2.0
#: Servers that end what its worker cannot end soon after its timeout.
IMPATIENT: Final[dict[str, Any]] = {"SWEEP": 0.5, "LEASE": 3, "OVERTIME": 3}
LEASED: Final[dict[str, Any]] = {"HAND_OFF": 0.5, "BEAT": 0.5, "GRACE": 5}


def hanging(worker: type[Worker], how: str) -> Json:
    task = toil(worker.key, does=how)
    task["Task"] |= {"timeout": TIMEOUT, "retry": {"limit": 0}}
    return task


async def timed_out(rig: Rig, task: int, within: float = SOON) -> None:
    """Wait until a task has failed, for the time it took and with a sentence that says so."""
    await rig.until(lambda: rig.is_(task, "failed"), within)
    row = await rig.row(task)
    assert row.outcome == 504
    assert f"ran longer than its timeout of {TIMEOUT:g} s" in await rig.last_words(task)


@row(20)
@pytest.mark.parametrize("how", ["hang", "loop"])
async def test_a_child_that_hangs_is_killed_at_its_deadline(rig: Rig, how: str) -> None:
    """The child process of a task hangs in C with the interpreter held, or loops for ever.

    It is killed at the deadline: FAILED with 504 and why; its worker does the next task.
    """
    await rig.server()
    worker = await rig.worker(ChildToil, slots=1)
    before = worker.offspring
    job_id = await rig.post(job("hanging", hanging(ChildToil, how)))
    [task] = await rig.tasks_of(job_id)
    await rig.begun(task_id=task)
    rig.healed()

    took = await rig.recovered(SOON, job_id)

    await timed_out(rig, task)
    assert took < TIMEOUT + 10
    await rig.until(lambda: worker.offspring <= before, SOON)
    await rig.recovered(SOON, await rig.post(job("next", toil("CHILDTOIL"))))
    rig.seconds = took
    rig.outcome = "child killed, failed with 504; the same worker did the next task"


@row(20)
async def test_a_thread_that_loops_is_left_alone_at_its_deadline(rig: Rig) -> None:
    """A task that is done in a thread loops for ever.

    FAILED with 504 by its worker. The thread cannot be ended: it keeps its slot of this
    process, which does other tasks in what is left, and no more once all are kept.
    """
    await rig.server()
    worker = await rig.worker(ThreadToil, slots=2)
    first = await rig.post(job("hanging", hanging(ThreadToil, "loop")))
    [task] = await rig.tasks_of(first)
    await rig.begun(task_id=task)
    rig.healed()
    took = await rig.recovered(SOON, first)
    await timed_out(rig, task)

    await rig.recovered(SOON, await rig.post(job("beside", toil("THREADTOIL"))))
    second = await rig.post(job("hanging too", hanging(ThreadToil, "loop")))
    await rig.recovered(SOON, second)
    last = await rig.post(job("nowhere", toil("THREADTOIL")))
    [waiting] = await rig.tasks_of(last)
    await worker.says("earlier work that does not stop holds every slot", SOON)
    await rig.until(lambda: rig.is_(waiting, "ready"), SOON)
    other = await rig.worker(ThreadToil)
    worker.kill()
    await worker.ended()

    await rig.recovered(60, last)  # it was handed back for 30 s
    assert [begin.pid for begin in rig.history.began(task_id=waiting)] == [other.pid]
    rig.seconds = took
    rig.outcome = "failed with 504; its thread kept one slot of two until the worker ended"


@row(20)
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(Toil, "loop", id="on the loop, in Python"),
        pytest.param(Toil, "hang", id="on the loop, in C"),
        pytest.param(ThreadToil, "hang", id="in a thread, in C"),
    ],
)
async def test_what_its_worker_cannot_end_is_ended_by_the_server(
    rig: Rig, kind: type[Worker], how: str
) -> None:
    """A task holds all of its worker for ever: its loop, or the interpreter.

    The worker can do nothing; the server settles it as 504, RUNNER.OVERTIME after its timeout.
    What else that worker has waits as long as its process is there, and begins again elsewhere
    once somebody ends it; what comes meanwhile is done by others.
    """
    await rig.server(RUNNER=IMPATIENT)
    worker = await rig.worker(kind, slots=2, WORKER=LEASED)
    beside = await rig.post(job("beside", toil(kind.key, hold="go-2")))
    [innocent] = await rig.tasks_of(beside)
    await rig.until(lambda: rig.is_leased(innocent))
    hung = await rig.post(job("hanging", hanging(kind, how)))
    [task] = await rig.tasks_of(hung)
    await rig.begun(task_id=task)
    rig.healed()

    took = await rig.recovered(SOON, hung)
    await timed_out(rig, task)
    await rig.worker(kind, slots=2, WORKER=LEASED)
    await rig.recovered(SOON, await rig.post(job("meanwhile", toil(kind.key))))
    assert await rig.is_leased(innocent)
    assert (await rig.row(innocent)).attempt == 1
    worker.kill()
    await rig.begun(task_id=innocent, attempt=2)
    rig.history.say("go-2")

    await rig.recovered(SOON, beside)
    assert took < TIMEOUT + 15
    rig.seconds = took
    rig.outcome = "settled as 504 by the server; its neighbour went on elsewhere as attempt 2"
