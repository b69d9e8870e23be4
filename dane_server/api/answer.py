"""What the API answers with: its shapes, as OpenAPI publishes them and mypy checks them.

Members that are `NotRequired` are ours. They are left out of answers in DANE 0.1's exact shape.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final, NotRequired

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from dane_core.states import JobStatus, TaskState
from dane_server.api.problems import FaultBody

PREFIX: Final = "/DANE"


class RetryBody(TypedDict):
    """How often and how soon a task that failed for now is tried again; times in seconds."""

    limit: int
    delay: float
    factor: float
    max_delay: float


class TaskMembers(TypedDict):
    """A task as DANE 0.1 shows it, and what its specification said beyond its key."""

    task_key: str
    task_id: int
    task_state: int
    task_msg: str
    job_id: int
    name: NotRequired[str]
    args: NotRequired[Mapping[str, Any]]
    priority: NotRequired[int]
    timeout: NotRequired[float]
    retry: NotRequired[RetryBody]
    allow_failure: NotRequired[bool]


class TaskRowMembers(TaskMembers):
    """A task in the list of its job's tasks: also how it is doing. Times are UTC."""

    seq: int  # its place in the specification, from 0
    status: TaskState
    attempt: int
    worker: str | None
    progress: float | None  # from 0 to 1
    progress_message: str | None  # while it runs: what its worker says it is doing
    due_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


class TaskRow(TypedDict):
    """A task in a list."""

    Task: TaskRowMembers


class AttemptBody(TypedDict):
    """One try at a task that has ended. `runtime` in seconds, by the worker's clock."""

    number: int
    worker: str | None
    state: int
    message: str
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime
    runtime: float | None


class RejectedBody(TypedDict):
    """Answers of one attempt that were not recorded, counted; `worker` sent the last one.

    `reason` is `stale` (a later attempt has replaced it), `settled` (the task was done or
    cancelled already) or `forged` (it was not signed by this server).
    """

    attempt: int
    reason: str
    times: int
    worker: str | None
    last_at: datetime


class TaskDetail(TaskRowMembers):
    """A task by itself: also the attempts that ended, its answer, and what was not recorded."""

    attempts: list[AttemptBody]
    rejected: list[RejectedBody]
    cancel: "CancelBody | None"  # while an attempt that was taken away may go on
    response: Mapping[str, Any] | None
    links: Mapping[str, str]


class TaskAnswer(TypedDict):
    """A task by itself; in the exact shape of DANE 0.1 without what is ours."""

    Task: TaskDetail | TaskMembers


class TasksPage(TypedDict):
    """Tasks of a job in the order of its specification; `next` is the page after this one."""

    tasks: list[TaskRow]
    next: str | None


class CountsBody(TypedDict):
    """How many tasks are where; they add up to `total`."""

    total: int
    blocked: int
    held: int
    active: int
    succeeded: int
    failed: int
    forgiven: int  # failed, but allowed to
    cancelled: int
    skipped: int


class CancelBody(TypedDict):
    """Work was taken away from its worker, which may be at it until it is ended by force."""

    requested_at: datetime
    ended_by: datetime


class JobHead(TypedDict):
    """A job without its tasks. Times are UTC."""

    job_id: int
    source_url: str
    source_id: str
    metadata: Mapping[str, Any]
    priority: int
    type: NotRequired[str | None]
    status: NotRequired[JobStatus]
    state: NotRequired[int]  # that of its furthest unfinished task
    paused: NotRequired[bool]
    counts: NotRequired[CountsBody]
    created_at: NotRequired[datetime]
    started_at: NotRequired[datetime | None]
    finished_at: NotRequired[datetime | None]
    cancel: NotRequired[CancelBody]  # while work on it may go on although it was cancelled
    cancelling: NotRequired[bool]  # true while tasks of it are still to be cancelled
    owner: NotRequired[str]  # who asked for it, where somebody said so
    links: NotRequired[Mapping[str, str]]


class JobAnswer(JobHead):
    """A job. `tasks` and `response` are left out with `?tasks=false`.

    `tasks` nests as the specification did, each task being `{"Task": {…}}`. `response` has
    `SHARED`, and by task key the answers that have come: the answer itself where one task has
    that key; else a list in graph order, with null for each task that has not answered.
    """

    tasks: NotRequired[Mapping[str, Any]]
    response: NotRequired[Mapping[str, Any]]


class JobsPage(TypedDict):
    """Jobs, newest first; `next` is the page after this one."""

    jobs: list[JobHead]
    next: str | None


class JobIds(TypedDict):
    """Ids of jobs, oldest first."""

    jobs: list[int]


class LineAnswer(TypedDict):
    """What became of one specification of many: its id, or the members of a problem."""

    line: int
    status: int
    job_id: NotRequired[int]
    type: NotRequired[str]
    title: NotRequired[str]
    detail: NotRequired[str]
    errors: NotRequired[list[FaultBody]]


class ExplanationBody(TypedDict):
    """Why a task is not running now: a code, a sentence for people, and the facts as data."""

    task_id: int
    reason: str
    sentence: str
    data: Mapping[str, Any]


class UpstreamItem(TypedDict):
    """The answer of an earlier task."""

    task_id: int
    task_key: str
    name: str | None
    seq: int
    response: Mapping[str, Any]


class UpstreamPage(TypedDict):
    """Answers of earlier tasks in graph order; `next` is the `after` of the next page."""

    answers: list[UpstreamItem]
    next: int | None


class WorkerBody(TypedDict):
    """A worker that has been heard of lately."""

    worker: str
    host: str
    pid: int
    slots: int
    task_keys: list[str]
    running: list[int]  # task ids
    seen_at: datetime
    since: datetime


class KeyBody(TypedDict):
    """A task key: who can do it, and how much of it there is.

    `waiting` tasks wait for a worker, `ready` ones for a place in the window. `queue` is what
    the broker has: its messages and consumers, or null where there is no queue or no broker.
    `oldest_wait` in seconds; `rate` in attempts ended per second over the last five minutes.
    """

    task_key: str
    paused: bool
    types: list[str]
    description: str
    version: str
    args_schema: Mapping[str, Any] | None
    waiting: int
    ready: int
    queued: int
    running: int
    oldest_wait: float | None
    rate: float
    limits: "KeyLimitsBody"
    queue: "QueueBody | None"
    workers: list[WorkerBody]


class QueueBody(TypedDict):
    """A queue at this moment."""

    name: str
    messages: int
    consumers: int


class WorkersBody(TypedDict):
    """Every task key that is known."""

    keys: list[KeyBody]


class KeyLimitsBody(TypedDict):
    """How much of a task key may be under way, over all servers; null: as much as there is.

    `concurrency` tasks sent or running at once, `rate` sent in a second, `burst` of them together.
    """

    concurrency: int | None
    rate: float | None
    burst: int | None


class HolderBody(TypedDict):
    """A task that has one of the places of its key: in its queue, or running `since` then."""

    task_id: int
    job_id: int
    state: TaskState
    worker: str | None
    since: datetime | None


class KeyLimited(TypedDict):
    """A task key with its limits."""

    task_key: str
    limits: KeyLimitsBody


class KeyHeld(KeyLimited):
    """A task key with its limits, and the tasks that have its places, in the order of their ids.

    `next` is the page of them after this one.
    """

    holders: list[HolderBody]
    next: str | None


class OwnerBody(TypedDict):
    """Somebody who asks for jobs: `open` of their tasks are to be done, `max_open` may be.

    A task of an owner with `weight` 3 goes three times as often as one of an owner with 1, where
    both want the same workers. The owner without a name is nobody in particular.
    """

    owner: str
    weight: int
    max_open: int | None
    open: int


class OwnersPage(TypedDict):
    """Owners in the order of their names; `next` is the page after this one."""

    owners: list[OwnerBody]
    next: str | None


class KeyActed(TypedDict):
    """A task key after an operator's act."""

    task_key: str
    paused: bool


class KeyRetried(TypedDict):
    """How many tasks of a key run again."""

    task_key: str
    retried: int


class ReadyBody(TypedDict):
    """DANE 0.1's words for each part: "200 OK" or "502 Bad Gateway".

    And "blocked: low on memory" for a broker that has raised that alarm.
    """

    database: str
    messagequeue: str
    version: str
    server: NotRequired[str]  # "stopping", when it is


class LimitsBody(TypedDict):
    """What a specification may hold; sizes in bytes, texts in characters, and what states mean.

    `open_tasks` of unfinished jobs there may be, and `open_tasks_per_owner` of each owner that has
    no limit of its own.
    """

    tasks: int
    depth: int
    body: int
    args: int
    metadata: int
    url: int
    source_id: int
    key: int
    name: int
    type: int
    batch_body: int
    open_tasks: int
    open_tasks_per_owner: int | None
    page: int
    priority: int
    task_key: str
    media_type: str
    states: Mapping[str, str]


class Answer(Response):
    """JSON as the API writes it: UTC times, and no trip through Python's own encoder."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content)


class AsItComes(Response):
    """An answer whose parts are still being made while it is sent.

    Unlike Starlette's it leaves `receive` to who reads the request at the same time, and a
    client that goes away cancels nothing.
    """

    def __init__(self, parts: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self._send_parts(send, gone=asyncio.Event())

    async def _send_parts(self, send: Send, gone: asyncio.Event) -> None:
        status = self.status_code
        await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if gone.is_set():
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Streamed(AsItComes):
    """An answer to a request that has been read, made while it is sent, to who is still there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        gone = asyncio.Event()
        watching = asyncio.create_task(_watch(receive, gone))
        try:
            await self._send_parts(send, gone)
        finally:
            watching.cancel()


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def dump(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)
