"""Who may run a task that somebody asks about: every case of the rule, without a store."""

from dataclasses import replace

import pytest

from dane_core.job import TaskId
from dane_core.message import Ask, Ticket
from dane_core.states import SENT, TaskState
from dane_server.storage.ruling import Act, Ruling, Standing, rule

TICKET = Ticket(task_id=TaskId(7), attempt=2, dispatch=5, token="")
ASK = Ask(ticket=TICKET, worker="w2", reply_to="i.w2", redelivered=True)
QUEUED = Standing(
    attempt=2,
    dispatch=5,
    state=TaskState.QUEUED,
    worker=None,
    leased=False,
    is_over=False,
    renewed=False,
    starts=0,
    paused=False,
    cancelling=False,
)
RUNNING = replace(QUEUED, state=TaskState.RUNNING, worker="w1")
LEASED = replace(RUNNING, leased=True)
OVER = replace(LEASED, is_over=True)

ALIVE = frozenset({"w1", "w2"})
GONE = frozenset({"w2"})
LIMIT = 3

GO = Ruling()
START = Ruling(act=Act.START)
THEIRS = Ruling("worker w1 has it")
TO_LEASE = Ruling("worker w1 has it", Act.LEASE)
PAUSED = Ruling("the job was paused")
TAKEN_BACK = Ruling("the job was paused", Act.TAKE_BACK)
FAILED = Ruling("it has ended the workers that began it", Act.QUARANTINE)


@pytest.mark.parametrize(
    ("task", "living", "expected"),
    [
        # whose message came again before anybody said that it began
        (QUEUED, ALIVE, START),
        (replace(QUEUED, state=TaskState.DISPATCHING), ALIVE, START),
        (replace(QUEUED, starts=LIMIT - 1), ALIVE, START),
        (replace(QUEUED, starts=LIMIT), ALIVE, FAILED),
        # which somebody has
        (RUNNING, ALIVE, TO_LEASE),
        (RUNNING, GONE, START),
        (replace(RUNNING, worker=None), ALIVE, START),
        (replace(RUNNING, starts=LIMIT), ALIVE, TO_LEASE),
        (replace(RUNNING, starts=LIMIT), GONE, FAILED),
        # which the asker was let start already
        (replace(RUNNING, worker="w2"), ALIVE, GO),
        (replace(RUNNING, worker="w2", starts=LIMIT), ALIVE, GO),
        # on a lease
        (LEASED, ALIVE, THEIRS),
        (LEASED, GONE, THEIRS),
        (replace(LEASED, worker="w2", renewed=True), ALIVE, Ruling("worker w2 has it")),
        (replace(LEASED, worker="w2"), ALIVE, GO),
        (OVER, ALIVE, THEIRS),
        (OVER, GONE, START),
        (replace(OVER, worker="w2"), ALIVE, START),
        (replace(OVER, starts=LIMIT), GONE, FAILED),
        # stopped by a person
        (replace(QUEUED, paused=True), ALIVE, TAKEN_BACK),
        (replace(QUEUED, paused=True, dispatch=6), ALIVE, PAUSED),
        (replace(QUEUED, paused=True, state=TaskState.READY), ALIVE, PAUSED),
        (replace(RUNNING, paused=True), ALIVE, TO_LEASE),
        (replace(RUNNING, paused=True), GONE, TAKEN_BACK),
        (replace(QUEUED, cancelling=True), ALIVE, Ruling("the job is being cancelled")),
        (replace(LEASED, cancelling=True), ALIVE, THEIRS),
        # not what the ticket says
        (None, ALIVE, Ruling("the job was deleted")),
        (replace(QUEUED, attempt=3), ALIVE, Ruling("attempt 2 was superseded by attempt 3")),
        (replace(LEASED, attempt=3), ALIVE, Ruling("attempt 2 was superseded by attempt 3")),
        (replace(QUEUED, dispatch=6), ALIVE, Ruling("the task was sent again since")),
        (replace(RUNNING, dispatch=6), GONE, Ruling("the task was sent again since")),
    ],
)
def test_a_message_that_came_again_is_judged_by_who_has_its_task(
    task: Standing | None, living: frozenset[str], expected: Ruling
) -> None:
    assert rule(ASK, task, living, limit=LIMIT) == expected


@pytest.mark.parametrize("state", sorted(set(TaskState) - SENT - {TaskState.RUNNING}))
def test_nothing_is_run_that_is_not_out(state: TaskState) -> None:
    ruling = rule(ASK, replace(QUEUED, state=state), ALIVE, limit=LIMIT)

    assert ruling == Ruling(f"the task is {state}")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (QUEUED, GO),
        (replace(QUEUED, starts=LIMIT), GO),
        (RUNNING, TO_LEASE),
        (LEASED, THEIRS),
        (replace(QUEUED, paused=True), TAKEN_BACK),
        (replace(QUEUED, dispatch=6), Ruling("the task was sent again since")),
    ],
)
def test_a_message_that_came_once_counts_no_start(task: Standing, expected: Ruling) -> None:
    """It was published before this worker listened, or a control message named it."""
    assert rule(replace(ASK, redelivered=False), task, ALIVE, limit=LIMIT) == expected
