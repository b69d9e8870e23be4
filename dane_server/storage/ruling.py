"""Decides whether a worker that asks may run a task. Nothing here looks at a store or a clock."""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from dane_core.message import Ask
from dane_core.states import SENT, TaskState

PAUSED: Final = "the job was paused"


class Act(Enum):
    """What becomes of a task that was asked about."""

    NONE = auto()  # nothing: the asker runs its message or drops it
    START = auto()  # it runs at the asker; that is a start more
    LEASE = auto()  # it goes on where it is, on a lease
    TAKE_BACK = auto()  # its message is dropped, so it is ready again
    QUARANTINE = auto()  # it has ended too many of those that began it


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a task stands when somebody asks about it."""

    attempt: int
    dispatch: int
    state: TaskState
    worker: str | None
    leased: bool
    is_over: bool  # its lease has ended
    renewed: bool  # its worker was heard of since it has this lease
    starts: int
    paused: bool
    cancelling: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """The asker may run its ticket unless there is an objection; what else happens."""

    objection: str = ""
    act: Act = Act.NONE


def rule(ask: Ask, task: Standing | None, living: Container[str], *, limit: int) -> Ruling:
    """Whether a ticket may be run; `living` workers keep what they have.

    A message comes again when the connection of whoever had it is lost. If that was a worker
    that died with the task in its hands, the task may be to blame: it is let start again
    `limit` times. A worker does not ask about what it is doing: one that asks about its own task
    was let start it, or begin it, and never did, unless it was heard to do it since.
    """
    ticket = ask.ticket
    if task is None:
        return Ruling("the job was deleted")
    if task.attempt != ticket.attempt:
        return Ruling(f"attempt {ticket.attempt} was superseded by attempt {task.attempt}")
    if task.state is TaskState.RUNNING:
        is_askers = task.worker == ask.worker and not task.renewed
        if task.leased and not task.is_over and not is_askers:
            return Ruling(f"worker {task.worker} has it")
        if task.worker != ask.worker and task.worker in living:
            return Ruling(f"worker {task.worker} has it", Act.NONE if task.leased else Act.LEASE)
    if objection := _stopped(ask, task):
        return objection
    return _begin(ask, task, limit)


def _stopped(ask: Ask, task: Standing) -> Ruling | None:
    is_out = task.state in SENT or task.state is TaskState.RUNNING
    is_newest = task.dispatch == ask.ticket.dispatch
    if task.paused:
        # No other message would bring it to a worker after the pause.
        return Ruling(PAUSED, Act.TAKE_BACK if is_out and is_newest else Act.NONE)
    if task.cancelling:
        return Ruling("the job is being cancelled")
    if not is_out:
        return Ruling(f"the task is {task.state}")
    return None if is_newest else Ruling("the task was sent again since")


def _begin(ask: Ask, task: Standing, limit: int) -> Ruling:
    # Asked twice, or again after the verdict was lost: it is one start.
    begun_already = task.state is TaskState.RUNNING and task.worker == ask.worker
    if not ask.redelivered or (begun_already and not (task.leased and task.is_over)):
        return Ruling()
    if task.starts >= limit:
        return Ruling("it has ended the workers that began it", Act.QUARANTINE)
    return Ruling(act=Act.START)
