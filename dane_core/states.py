"""The states of tasks and jobs, what may follow what, and the numbers shown outside.

`docs/states.md` draws the same table; a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class TaskState(StrEnum):
    """Where a task is on its way from accepted to settled."""

    BLOCKED = "blocked"  # waits for its predecessors
    HELD = "held"  # reset by an operator; waits for a predecessor to finish again
    READY = "ready"  # may be sent once it is due and the window has a place
    DISPATCHING = "dispatching"  # claimed by a runner; being sent, under a short lease
    QUEUED = "queued"  # the exchange has confirmed it
    RUNNING = "running"  # a worker has said that it started
    UNROUTABLE = "unroutable"  # no queue is bound to its key
    BACKOFF = "backoff"  # failed for now; ready again when due
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class JobStatus(StrEnum):
    """What a job is doing, as a whole."""

    ACCEPTED = "accepted"  # stored; none of its tasks was sent yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # nothing runs or is queued, and something needs a person
    CANCELLED = "cancelled"
    PAUSED = "paused"


#: What may follow what, by the ordinary course of things and by an operator's act.
#: Anything unsettled may be cancelled; anything but blocked may be reset. What is begun anew,
#: by a retry or a reset, is blocked again while a predecessor of it is not done.
NEXT: Final[Mapping[TaskState, frozenset[TaskState]]] = {
    TaskState.BLOCKED: frozenset({TaskState.READY, TaskState.CANCELLED, TaskState.SKIPPED}),
    TaskState.HELD: frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.CANCELLED}),
    TaskState.READY: frozenset(
        {
            TaskState.DISPATCHING,
            TaskState.RUNNING,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.BACKOFF,
            TaskState.CANCELLED,
            TaskState.HELD,
            TaskState.BLOCKED,
        }
    ),
    TaskState.DISPATCHING: frozenset(
        {
            TaskState.QUEUED,
            TaskState.RUNNING,
            TaskState.UNROUTABLE,
            TaskState.READY,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.BACKOFF,
            TaskState.CANCELLED,
            TaskState.HELD,
            TaskState.BLOCKED,
        }
    ),
    TaskState.QUEUED: frozenset(
        {
            TaskState.RUNNING,
            TaskState.READY,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.BACKOFF,
            TaskState.CANCELLED,
            TaskState.HELD,
            TaskState.BLOCKED,
        }
    ),
    TaskState.RUNNING: frozenset(
        {
            TaskState.READY,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.BACKOFF,
            TaskState.CANCELLED,
            TaskState.HELD,
            TaskState.BLOCKED,
        }
    ),
    TaskState.UNROUTABLE: frozenset(
        {
            TaskState.READY,
            TaskState.RUNNING,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.BACKOFF,
            TaskState.CANCELLED,
            TaskState.HELD,
            TaskState.BLOCKED,
        }
    ),
    TaskState.BACKOFF: frozenset(
        {TaskState.READY, TaskState.BLOCKED, TaskState.CANCELLED, TaskState.HELD}
    ),
    TaskState.SUCCEEDED: frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.HELD}),
    TaskState.FAILED: frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.HELD}),
    TaskState.CANCELLED: frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.HELD}),
    TaskState.SKIPPED: frozenset({TaskState.READY, TaskState.BLOCKED, TaskState.HELD}),
}

#: A result of the current attempt is taken in these states. READY and UNROUTABLE are
#: among them: a message that was thought lost may still have reached a worker.
IN_FLIGHT: Final = frozenset(
    {
        TaskState.READY,
        TaskState.DISPATCHING,
        TaskState.QUEUED,
        TaskState.RUNNING,
        TaskState.UNROUTABLE,
    }
)
#: Somebody or something will move these on without a person.
ACTIVE: Final = IN_FLIGHT | {TaskState.BACKOFF}
#: Nothing moves these on but a person.
SETTLED: Final = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.SKIPPED}
)
#: A message of these may be lying in a queue.
SENT: Final = frozenset({TaskState.DISPATCHING, TaskState.QUEUED})


@dataclass(frozen=True, slots=True)
class Face:
    """How a state looks outside: DANE 0.1's number and message."""

    number: int
    message: str


FACES: Final[Mapping[TaskState, Face]] = {
    TaskState.BLOCKED: Face(201, "Created"),
    TaskState.HELD: Face(201, "Reset"),
    TaskState.READY: Face(201, "Created"),
    TaskState.DISPATCHING: Face(102, "Queued"),
    TaskState.QUEUED: Face(102, "Queued"),
    TaskState.RUNNING: Face(102, "Queued"),  # as 0.1 wrote it; `status` tells them apart
    TaskState.UNROUTABLE: Face(422, "Unroutable task"),
    TaskState.BACKOFF: Face(503, "Failed for now"),  # its own number is the worker's
    TaskState.SUCCEEDED: Face(200, "Success"),
    TaskState.FAILED: Face(500, "Failed"),  # its own number is the worker's
    TaskState.CANCELLED: Face(499, "Cancelled"),
    TaskState.SKIPPED: Face(424, "Skipped"),
}

#: Numbers a worker may answer with, and what each makes of the task.
ANSWERS: Final[Mapping[int, TaskState]] = {
    200: TaskState.SUCCEEDED,
    400: TaskState.FAILED,
    403: TaskState.FAILED,
    404: TaskState.FAILED,
    422: TaskState.FAILED,
    499: TaskState.CANCELLED,
    500: TaskState.FAILED,
    502: TaskState.BACKOFF,
    503: TaskState.BACKOFF,
    504: TaskState.BACKOFF,
}

#: What each number means, in the words of `GET /DANE/limits` and the docs.
MEANINGS: Final[Mapping[int, str]] = {
    102: "queued or running",
    200: "succeeded",
    201: "waiting or ready",
    400: "malformed",
    403: "access denied",
    404: "source not found",
    422: "no worker",
    424: "skipped",
    499: "cancelled",
    500: "failed",
    502: "partial input",
    503: "remote service failed",
    504: "timed out",
}


def follows(old: TaskState, new: TaskState) -> bool:
    """Whether a task in `old` may move to `new`."""
    return new in NEXT[old]


def outcome_state(number: int) -> TaskState:
    """What a worker's answer `number` makes of its task; unknown numbers fail it."""
    return ANSWERS.get(number, TaskState.FAILED)


def outcome_number(number: int) -> int:
    """The number that is kept of a worker's answer; one that nobody knows is a failure."""
    return number if number in ANSWERS else 500
