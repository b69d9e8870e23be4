"""Jobs, tasks and attempts as they are at one moment: frozen snapshots, and their ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NewType

from dane_core.states import FACES, JobStatus, TaskState

JobId = NewType("JobId", int)
TaskId = NewType("TaskId", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how soon a task that failed for now is tried again; times in seconds."""

    limit: int = 3
    delay: float = 2.0
    factor: float = 2.0
    max_delay: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many tasks of a job are where; they add up to `total`."""

    total: int
    blocked: int
    held: int
    active: int
    succeeded: int
    failed: int
    forgiven: int  # failed, but allowed to
    cancelled: int
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Work was taken away from its worker, which may be at it until it is ended by force."""

    requested_at: datetime
    ended_by: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job without its tasks."""

    id: JobId
    source_url: str
    source_id: str
    type: str | None
    metadata: Mapping[str, Any]
    priority: int
    shared: Mapping[str, str]  # TEMP_FOLDER and OUT_FOLDER
    status: JobStatus
    state: int  # that of its furthest unfinished task, as DANE 0.1 counts
    counts: Counts
    paused: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel: Cancel | None = None  # while work on it may go on although it was cancelled
    cancelling: bool = False  # tasks of it are still to be cancelled
    owner: str = ""  # who asked for it; nobody in particular


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as it stands."""

    id: TaskId
    job_id: JobId
    seq: int  # its place in the specification, from 0
    key: str
    name: str | None
    args: Mapping[str, Any]
    priority: int
    timeout: float | None
    retry: Retry
    allow_failure: bool
    state: TaskState
    outcome: int | None  # the worker's number, once it has failed or succeeded
    message: str | None
    attempt: int
    dispatch: int
    worker: str | None
    progress: float | None
    pending: int  # predecessors not done
    due_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def number(self) -> int:
        """The state as DANE 0.1's number."""
        failed = self.state in (TaskState.FAILED, TaskState.BACKOFF)
        return self.outcome if failed and self.outcome else FACES[self.state].number

    @property
    def text(self) -> str:
        """The message that goes with the number; while it runs, that of DANE 0.1."""
        face = FACES[self.state].message
        return face if self.state is TaskState.RUNNING else self.message or face


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a task that has ended."""

    number: int
    worker: str | None
    outcome: int
    message: str
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime
    runtime: float | None  # seconds
