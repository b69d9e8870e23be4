"""What the store gives and takes: views and queries of the reader, work for the writer."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from dane_core.job import Attempt, Cancel, Job, JobId, Task, TaskId
from dane_core.message import (
    Answer,
    Heartbeat,
    Leased,
    Offer,
    Progress,
    Released,
    Started,
    Ticket,
)
from dane_core.routing import routing_key
from dane_core.spec import JobSpec
from dane_core.states import JobStatus, TaskState
from dane_server.graph import Graph
from dane_server.storage.inline import Inline
from dane_server.storage.nodes import PackedGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job with its tasks in the order of the specification, and their answers."""

    job: Job
    tree: Any  # the specification's nesting, each task replaced by its `seq`
    tasks: Sequence[Task]
    answers: Mapping[TaskId, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeJob:
    """A job whose tasks are too many to be looked at together."""

    job: Job
    tree: str  # as in `JobView`, in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list. Every condition given must hold."""

    statuses: frozenset[JobStatus] = frozenset()
    state: int | None = None  # some task shows this number
    task_key: str | None = None  # some task has this key
    source_id: str | None = None
    owner: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None  # created at or after
    until: datetime | None = None  # created before
    limit: int = 50
    after: str | None = None  # the `next` of the page before


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Jobs, newest first; `next` asks for the page after this one."""

    jobs: Sequence[Job]
    next: str | None


class Rejected(StrEnum):
    """Why an answer was not recorded."""

    STALE = "stale"  # of an attempt that is not the current one
    SETTLED = "settled"  # the task had one already, or was cancelled
    GONE = "gone"  # there is no such task any more
    FORGED = "forged"  # its token is not ours


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedState:
    """Answers of one attempt that were not recorded, counted. Attempt 0: none that ever was."""

    attempt: int
    reason: Rejected
    times: int
    worker: str | None  # the last one
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task with its job, the attempts that ended, its answer, and what was not recorded."""

    task: Task
    job: Job
    attempts: Sequence[Attempt]
    answer: Mapping[str, Any] | None
    rejected: Sequence[RejectedState]
    cancel: Cancel | None = None  # while an attempt that was taken away may go on


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker that has been heard of lately."""

    id: str
    host: str
    pid: int
    slots: int
    task_keys: tuple[str, ...]
    running: tuple[TaskId, ...]
    seen_at: datetime
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """How much of a task key may be under way, over all servers; None: as much as there is."""

    concurrency: int | None = None  # sent or running at once
    rate: float | None = None  # sent in a second,
    burst: int | None = None  # so many of them together


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """A task key: who can do it, and how much of it there is."""

    key: str
    paused: bool
    offer: Offer | None  # None until a worker has announced itself for it
    workers: Sequence[WorkerState]
    waiting: int  # 422: for a worker
    ready: int  # for a place in the window
    queued: int
    running: int
    limits: KeyLimits = field(default_factory=KeyLimits)
    #: Of keys that are listed only.
    oldest_wait: float | None = None  # seconds
    rate: float = 0.0  # attempts ended per second over the last five minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A task that has one of the places of its key."""

    task_id: TaskId
    job_id: JobId
    state: TaskState
    worker: str | None  # once it runs
    since: datetime | None  # it runs, or lies in the queue


#: So many tasks of higher priority are counted, and no more.
MOST_ABOVE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands between a ready task and its turn, besides the window of its key."""

    limits: KeyLimits = field(default_factory=KeyLimits)
    held: int = 0  # places of the key that are taken
    first: Holder | None = None  # who has one of them
    rate_wait: float = 0.0  # seconds until the rate of the key lets the next one go
    above: int = 0  # ready tasks of the key with a higher priority, counted up to `MOST_ABOVE`


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerState:
    """Somebody who has asked for jobs; the one without a name is nobody in particular."""

    name: str
    weight: int  # its share of a key, next to that of others who want it too
    max_open: int | None  # tasks of its unfinished jobs; None: as many as the settings say
    open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The facts that decide why a task is not running now."""

    task: Task
    job: Job
    key: KeyState
    open_predecessors: Sequence[Task]  # the first ten, of a task that waits for them
    ahead: int  # tasks of this key that go before it, of those alike up to `MOST_ABOVE`
    now: datetime
    leased: bool = False  # it runs on a lease, which ends when the task is due
    standing: Standing = field(default_factory=Standing)  # of a task that is ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Answers of earlier tasks, in graph order."""

    answers: Sequence[tuple[Task, Mapping[str, Any]]]
    next: int | None  # ask again with this as `after_seq`; None: that was all


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """An Idempotency-Key and the request it stands for (`digest`: sha256 of the body, hex)."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job that was stored, now or by an earlier request with the same key."""

    job_id: JobId
    replayed: bool
    #: How it stands as it was stored now; None of one so large that it is not held as objects.
    view: Callable[[], JobView] | None = field(default=None, compare=False, repr=False)
    #: Those of its tasks that were claimed as they were stored; and whether others are ready.
    claims: Sequence["Claim"] = field(default=(), compare=False, repr=False)
    #: The routing keys for which some of its batch were written down as unroutable, unsent.
    unrouted: AbstractSet[str] = field(default=frozenset(), compare=False, repr=False)
    more: bool = field(default=False, compare=False, repr=False)


# --- what the writer takes and gives --------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to store: its specification, compiled, and where its files go."""

    spec: JobSpec
    graph: Graph | PackedGraph
    shared: Mapping[str, str]
    once: Once | None = None
    owner: str = ""  # whose it is; nobody's in particular

    @property
    def rows(self) -> int:
        """How many rows its graph becomes: nodes and edges."""
        return self.graph.nodes + self.graph.links


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A task taken for sending. `dispatch` is the number of the sending to come."""

    task_id: TaskId
    job_id: JobId
    key: str
    type: str | None  # of its job: a task before it may have found it out
    name: str | None
    args: Mapping[str, Any]
    priority: int
    timeout: float | None
    attempt: int
    dispatch: int
    fanin: int
    #: What earlier tasks answered, and what is of its job, where whoever claimed it knows.
    earlier: Inline | None = None
    head: "JobHead | None" = None

    @property
    def routing_key(self) -> str:
        """What it is published under."""
        return routing_key(self.type, self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHead:
    """What every message of a job's tasks carries, and nothing can change."""

    id: JobId
    source_id: str
    source_url: str
    metadata: Mapping[str, Any]
    shared: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A report that changed nothing, and why."""

    ticket: Ticket
    worker: str | None
    reason: Rejected


class Twice(NamedTuple):
    """One attempt that two workers have answered: the first counts."""

    task_id: TaskId
    key: str
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a batch of answers."""

    settled: Mapping[TaskId, TaskState]
    late: Sequence[Answer]  # duplicates, superseded attempts, tasks settled or deleted before
    reasons: Mapping[Rejected, int]  # how many of the late ones for each
    twice: Sequence[Twice]  # those of them that a second worker gave
    ready: Sequence[TaskId]  # what they were holding up
    claims: Sequence[Claim]  # those of them that were taken for sending along the way
    more: bool = True  # there may be others that are ready now, or that have room now
    walks: bool = False  # what they were holding up is too much, and is let go in walks


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What workers say, in one batch, of attempts that go on or were handed back."""

    started: Sequence[Started] = ()
    leased: Sequence[Leased] = ()
    heartbeats: Sequence[Heartbeat] = ()
    progress: Sequence[Progress] = ()
    released: Sequence[Released] = ()

    def __bool__(self) -> bool:
        return any((self.started, self.leased, self.heartbeats, self.progress, self.released))


class Place(NamedTuple):
    """Where a walk over the tasks of a key and a state has stopped."""

    rank: int = -1
    owner_id: int = -1
    job_id: int = -1
    task_id: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Zombie:
    """A worker at work on what is not its own any more, and where it listens."""

    inbox: str
    ticket: Ticket
