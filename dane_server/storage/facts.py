"""What the doctor is told of the store: plain facts, gathered here and judged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dane_core.states import TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """The counters of a job as they are kept, and as its tasks say."""

    id: int
    status: str
    finished: bool
    kept: Mapping[str, int]
    counted: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A task, or a join (`key` is None), that waits for another number than its edges say."""

    id: int
    job_id: int
    key: str | None
    state: TaskState
    pending: int
    counted: int  # predecessors that hold it back
    in_vain: int  # those of them that are done all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A task whose job is gone (`orphaned`), or over although the task is not."""

    id: int
    job_id: int
    key: str | None
    state: TaskState
    orphaned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A task that somebody should have looked at `seconds` ago."""

    id: int
    key: str | None
    state: TaskState
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LapsedLease:
    """A running task whose lease ended `seconds` ago."""

    id: int
    attempt: int
    worker: str | None
    beats: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNowhere:
    """A task that runs on a message, by a worker that is not known."""

    id: int
    attempt: int
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A task that a worker said at `seen_at` it was doing, and how it stands in the store."""

    worker: str
    seen_at: datetime
    id: int
    state: TaskState | None  # None: there is no such task
    attempt: int = 0
    holder: str | None = None  # who does it, as the store has it
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """A task key: what waits and lies in its queue, and who would do it."""

    key: str
    paused: bool
    types: tuple[str, ...] | None  # that its workers take; empty: all; None: nobody offered
    workers: int  # that are here and offer it
    counts: Mapping[TaskState, int]
    ready_long: Sequence[int]  # tasks that nothing in the store holds back
    queued: int  # tasks that lie in its queue by the books
    unmoved: int  # those of them that lay there at the look before
    lying: Sequence[int]  # a few of them
    idle: bool  # every worker of it has room for another task
    unroutable: Sequence[tuple[str | None, int, int]]  # (media type, how many, the first)
    limited: bool = False  # what is ready may wait for its concurrency or its rate


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What the store says, apart from its jobs, which are gone through one by one."""

    strays: Sequence[Stray] = ()
    overdue: Sequence[Overdue] = ()
    lapsed: Sequence[LapsedLease] = ()
    nowhere: Sequence[RunningNowhere] = ()
    named: Sequence[Named] = ()
    keys: Sequence[KeyFacts] = ()
