"""Rows 21 to 23: a task that kills its worker or its child, raises, or floods stderr."""

from typing import Any, Final

import pytest

from dane_core.exchange.amqp import connect
from dane_core.message import TEXT_LIMIT
from dane_core.routing import RESPONSE_QUEUE
from dane_core.worker.worker import Worker
from tests.faults.labor import ChildToil, ThreadToil, Toil
from tests.faults.plugin import row
from tests.faults.process import Process
from tests.faults.rig import Rig
from tests.faults.specs import job, toil
from tests.faults.trouble import FLOOD, HOARD

pytestmark = pytest.mark.services

SOON: Final = 30.0
MIB: Final = 1024 * 1024
#: A task may be begun again this often when it may have ended its worker (RUNNER.STARTS).
STARTS: Final = 3
#: More workers than any task may end.
MANY: Final = 8
LEASED: Final[dict[str, Any]] = {"HAND_OFF": 0.5, "BEAT": 0.5, "GRACE": 5}


async def workers_until_settled(rig: Rig, task: int, **sections: Any) -> list[Process]:
    """Start a worker each time the last one has died, until the task is settled; all of them."""
    crew: list[Process] = []
    for _ in range(MANY):
        worker = await rig.worker(Toil, **sections)
        worker.may_end = True
        crew.append(worker)

        async def ended(worker: Process = worker) -> bool:
            return not worker.alive or await rig.is_(task, "failed")

        await rig.until(ended)
        if worker.alive:
            return crew
    raise AssertionError(f"{MANY} workers have died, and the task is not settled")


async def failed(rig: Rig, task: int) -> str:
    """The message of a task that has failed with 500."""
    row = await rig.row(task)
    assert (row.state, row.outcome) == ("failed", 500)
    return await rig.last_words(task)


@row(21)
@pytest.mark.parametrize(
    ("seconds", "sections", "begun"),
    [
        pytest.param(0.0, {}, STARTS + 1, id="at once"),
        pytest.param(3.0, {"WORKER": LEASED}, STARTS, id="on a lease"),
    ],
)
async def test_a_task_that_kills_each_of_its_workers_fails_and_names_them(
    rig: Rig, seconds: float, sections: dict[str, Any], begun: int
) -> None:
    """A task kills its worker every time, at once or when it is on a lease.

    FAILED after it was begun 4 times (3 on leases), naming the workers; its message is gone,
    and other tasks are not touched by it.
    """
    await rig.server()
    others = await rig.worker(ThreadToil, ChildToil)
    many = {"taskParallel": [toil("THREADTOIL", seconds=0.2), toil("CHILDTOIL")] * 10}
    unaffected = await rig.post(job("others", many))
    poison = await rig.post(job("poison", toil(does="die", seconds=seconds)))
    [task] = await rig.tasks_of(poison)

    crew = await workers_until_settled(rig, task, **sections)
    rig.healed()
    await rig.recovered(SOON, poison, unaffected)

    message = await failed(rig, task)
    names = {worker.pid: worker for worker in crew}
    assert [names[begin.pid] for begin in rig.history.began(task_id=task)] == crew[:begun]
    for worker in crew[:begun][-STARTS:]:
        assert str(worker.pid) in message, message
    assert others.alive
    await rig.recovered(SOON, await rig.post(job("next")))
    rig.outcome = f"begun {begun} times, then failed: {message[:200]}"


@row(21)
async def test_a_task_that_kills_its_worker_waits_while_no_server_is_there(rig: Rig) -> None:
    """A task kills its worker while there is no server to ask.

    The next worker asks and waits: it neither begins the task, nor asks again and again.
    """
    server = await rig.server()
    first = await rig.worker(Toil)
    poison = await rig.post(job("poison", toil(hold="go", does="die")))
    [task] = await rig.tasks_of(poison)
    await rig.begun(task_id=task)
    server.kill()
    await server.ended()
    rig.history.say("go")
    first.may_end = True
    await first.ended()

    second = await rig.worker(Toil)
    second.may_end = True
    waits = f"task {task} waits: no server says if it may run"
    await second.until(lambda: second.log.count(waits) >= 2)  # asked each 10 s
    async with connect(rig.ground.amqp_url) as exchange:
        responses = await exchange.depth(RESPONSE_QUEUE)
    assert responses is not None
    assert responses.waiting < 10
    assert len(rig.history.began(task_id=task)) == 1
    rig.healed()
    await rig.server()
    await second.ended()
    await workers_until_settled(rig, task)

    await rig.recovered(SOON, poison)
    assert len(rig.history.began(task_id=task)) == STARTS + 1
    rig.outcome = f"{responses.waiting} messages to the server meanwhile; failed once it was there"


@row(22)
@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("die", "was ended by SIGKILL (exit code 137): out of memory, or killed by somebody"),
        ("die of memory", "at its peak"),
        ("run into its memory limit", "MemoryError"),
        ("crash", "was ended by SIGSEGV (exit code 139): a crash in a native library"),
    ],
)
async def test_a_child_that_dies_costs_an_attempt_and_not_its_worker(
    rig: Rig, does: str, says: str
) -> None:
    """The child process of a task is killed, dies with its hands full, or may have no more memory.

    FAILED with how it ended and what it had used; its worker lives and does the next task.
    (A kill by the kernel itself would need a cgroup of our own, and with it root.)
    """
    await rig.server()
    worker = await rig.worker(ChildToil, slots=1)
    job_id = await rig.post(job("deadly", toil("CHILDTOIL", does=does)))
    rig.healed()
    await rig.recovered(SOON, job_id)

    [task] = await rig.tasks_of(job_id)
    message = await failed(rig, task)
    assert says in message
    if does == "die of memory":
        assert "exit code 137" in message
        used = float(message.partition("it had used ")[2].partition(" MiB")[0])
        assert HOARD / MIB <= used <= 2 * HOARD / MIB
    assert len(rig.history.began(task_id=task)) == 1
    await rig.recovered(SOON, await rig.post(job("next", toil("CHILDTOIL"))))
    assert worker.alive
    rig.outcome = f"the worker lives: {message[:160]}"


@row(23)
@pytest.mark.parametrize(
    ("kind", "does", "says"),
    [
        (Toil, "raise", "ValueError: no such colour: \N{SNOWMAN}"),
        (Toil, "sys.exit", "SystemExit: enough"),
        (Toil, "shout", "ValueError: much ado"),
        (ThreadToil, "raise", "ValueError: no such colour: \N{SNOWMAN}"),
        (ThreadToil, "sys.exit", "SystemExit: enough"),
        (ThreadToil, "shout", "ValueError: much ado"),
        (ChildToil, "raise", "ValueError: no such colour: \N{SNOWMAN}"),
        (ChildToil, "sys.exit", "SystemExit: enough"),
        (ChildToil, "shout", "ValueError: much ado"),
        (ChildToil, "leave", "ended in the midst of it, with exit code 3"),
    ],
)
async def test_a_task_that_raises_or_leaves_fails_and_says_how(
    rig: Rig, kind: type[Worker], does: str, says: str
) -> None:
    """A task raises, with a short or a very long message, or ends its process with a code.

    FAILED with what it said, of which 8 KiB are kept; its worker does the next task.
    """
    await rig.server()
    worker = await rig.worker(kind, slots=1)
    job_id = await rig.post(job("raising", toil(kind.key, does=does)))
    rig.healed()
    await rig.recovered(SOON, job_id)

    [task] = await rig.tasks_of(job_id)
    message = await failed(rig, task)
    assert says in message
    assert len(message) <= TEXT_LIMIT
    await rig.recovered(SOON, await rig.post(job("next", toil(kind.key))))
    assert worker.alive
    rig.outcome = f"failed: {message[:80]}"


@row(23)
async def test_a_flood_on_stderr_drowns_nobody(rig: Rig) -> None:
    """A task writes 100 MB to stderr, then raises.

    FAILED with what it raised; all of it passes through, and nothing of it stays in memory.
    """
    await rig.server()
    worker = await rig.worker(ChildToil, slots=1)
    before = worker.memory()
    job_id = await rig.post(job("flooding", toil("CHILDTOIL", does="flood")))
    rig.healed()
    await rig.recovered(SOON, job_id)

    [task] = await rig.tasks_of(job_id)
    assert await failed(rig, task) == "ValueError: after the flood"
    grown = worker.memory() - before
    assert grown < 20 * MIB
    assert (rig.folder / f"{worker.name}.err").stat().st_size >= FLOOD
    await rig.recovered(SOON, await rig.post(job("next", toil("CHILDTOIL"))))
    rig.outcome = f"failed as it raised; its worker has grown by {grown / MIB:.0f} MiB"
