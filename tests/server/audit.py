"""Goes through the books: recounts from the rows what the store keeps counted, and says what does
not add up.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId
from dane_core.states import ACTIVE, SETTLED, JobStatus, TaskState
from dane_server.storage.engine import Store
from dane_server.storage.tables import (
    answers,
    attempts,
    deletions,
    edges,
    jobs,
    once,
    releasing,
    rerankings,
    retryings,
    tasks,
)

COUNTERS = ("active", "held", "succeeded", "failed", "forgiven", "cancelled", "skipped")


@dataclass(frozen=True)
class Node:
    """A row of the task table: a task, or a join (`key` is None)."""

    id: int
    key: str | None
    state: TaskState
    attempt: int
    pending: int
    released: bool
    allow_failure: bool
    leased: bool
    beats: int
    newest_ended: int  # the highest number of its attempts that ended; 0 without one
    answered: int | None  # the attempt whose answer is kept

    @property
    def is_done(self) -> bool:
        forgiven = self.state is TaskState.FAILED and self.allow_failure
        return self.state is TaskState.SUCCEEDED or forgiven


@dataclass(frozen=True)
class Books:
    """All that is written of one job."""

    job: Mapping[str, Any]
    nodes: Mapping[int, Node]
    edges: Sequence[tuple[int, int, bool]]  # before, after, reopened
    #: Who lets its successors go some at a time: up to which one it has, and whether once more.
    walks: Mapping[int, tuple[int, bool]] = field(default_factory=dict)

    @property
    def tasks(self) -> Mapping[int, Node]:
        return {id_: node for id_, node in self.nodes.items() if node.key is not None}

    def is_to_come(self, src: int, dst: int) -> bool:
        """Whether a node lets its successors go, and has not come to this one."""
        after, again = self.walks.get(src, (dst, True))
        return not again and dst > after

    def tasks_before(self, task: int) -> set[int]:
        """The tasks right before one, looking through joins."""
        before: defaultdict[int, list[int]] = defaultdict(list)
        for src, dst, _ in self.edges:
            before[dst].append(src)
        found: set[int] = set()
        frontier = list(before[task])
        while frontier:
            node = frontier.pop()
            if self.nodes[node].key is None:
                frontier += before[node]
            else:
                found.add(node)
        return found


async def read_books(store: Store, job_ids: Sequence[JobId]) -> dict[JobId, Books]:
    """Read some jobs; those that do not exist are missing."""

    async def unit(connection: AsyncConnection) -> dict[JobId, Books]:
        found = await connection.execute(sa.select(jobs).where(jobs.c.id.in_(job_ids)))
        heads = {row["id"]: dict(row) for row in found.mappings()}
        nodes: dict[int, dict[int, Node]] = {job_id: {} for job_id in heads}
        for row in await connection.execute(_nodes(job_ids)):
            if row.job_id in heads:
                nodes[row.job_id][row.id] = _node(row)
        links: dict[int, list[tuple[int, int, bool]]] = {job_id: [] for job_id in heads}
        for row in await connection.execute(_edges(job_ids)):
            if row.job_id in heads:
                links[row.job_id].append((row.src, row.dst, row.reopened))
        walks: dict[int, dict[int, tuple[int, bool]]] = {job_id: {} for job_id in heads}
        for row in await connection.execute(
            sa.select(releasing).where(releasing.c.job_id.in_(heads))
        ):
            walks[row.job_id][row.src] = (row.after_dst, row.again)
        return {
            JobId(job_id): Books(head, nodes[job_id], links[job_id], walks[job_id])
            for job_id, head in heads.items()
        }

    return await store.read(unit)


async def audit(store: Store, job_id: JobId) -> list[str]:
    """Everything that does not add up in a job."""
    return faults_in((await read_books(store, [job_id]))[job_id])


def _nodes(job_ids: Sequence[JobId]) -> sa.Select[Any]:
    ended = sa.select(sa.func.max(attempts.c.number)).where(attempts.c.task_id == tasks.c.id)
    return (
        sa.select(
            tasks.c.job_id,
            tasks.c.id,
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.attempt,
            tasks.c.pending,
            tasks.c.released,
            tasks.c.allow_failure,
            tasks.c.leased,
            tasks.c.beats,
            sa.func.coalesce(ended.scalar_subquery(), 0).label("newest_ended"),
            answers.c.attempt.label("answered"),
        )
        .join_from(tasks, answers, answers.c.task_id == tasks.c.id, isouter=True)
        .where(tasks.c.job_id.in_(job_ids))
        .order_by(tasks.c.id)
    )


def _node(row: sa.Row[Any]) -> Node:
    return Node(
        id=row.id,
        key=row.task_key,
        state=TaskState(row.state),
        attempt=row.attempt,
        pending=row.pending,
        released=row.released,
        allow_failure=row.allow_failure,
        leased=row.leased,
        beats=row.beats,
        newest_ended=row.newest_ended,
        answered=row.answered,
    )


def _edges(job_ids: Sequence[JobId]) -> sa.Select[Any]:
    return (
        sa.select(tasks.c.job_id, edges)
        .join_from(edges, tasks, tasks.c.id == edges.c.src)
        .where(tasks.c.job_id.in_(job_ids))
    )


# --- what must hold ---------------------------------------------------------------------------


def faults_in(books: Books) -> list[str]:
    """Everything that does not add up."""
    return [
        *_wrong_counters(books),
        *_wrong_pending(books),
        *_in_limbo(books),
        *_wrong_status(books),
        *_wrong_attempts(books),
        *_wrong_leases(books),
    ]


def _wrong_counters(books: Books) -> list[str]:
    counted = Counter(_counter(node) for node in books.tasks.values())
    counted["active"] += len(books.walks)
    wrong = [
        f"{name} is {books.job[name]}, counted {counted[name]}"
        for name in COUNTERS
        if books.job[name] != counted[name]
    ]
    if books.job["total"] != len(books.tasks):
        wrong.append(f"total is {books.job['total']}, counted {len(books.tasks)}")
    return wrong


def _counter(node: Node) -> str | None:
    if node.state in ACTIVE:
        return "active"
    if node.state is TaskState.FAILED:
        return "forgiven" if node.allow_failure else "failed"
    return None if node.state is TaskState.BLOCKED else node.state.value


def _wrong_pending(books: Books) -> list[str]:
    """`pending` is the number of predecessors that never let go, or were reopened since.

    And of those that let go some at a time, and have not come to it.
    """
    counted = Counter(
        dst
        for src, dst, reopened in books.edges
        if reopened or not books.nodes[src].released or books.is_to_come(src, dst)
    )
    return [
        f"{_named(node)}: pending is {node.pending}, counted {counted[id_]}"
        for id_, node in books.nodes.items()
        if node.pending != counted[id_]
    ]


def _in_limbo(books: Books) -> list[str]:
    """What is blocked waits for something; joins are done when all before them is."""
    wrong = []
    for node in books.nodes.values():
        if node.state is TaskState.BLOCKED and node.pending == 0:
            wrong.append(f"{_named(node)} waits for nothing")
        if node.is_done and not node.released:
            wrong.append(f"{_named(node)} has not let its successors go")
    undone = [books.nodes[src] for src in books.walks if not books.nodes[src].is_done]
    wrong += [f"{_named(node)} lets its successors go" for node in undone]
    for src, dst, _ in books.edges:
        before, join = books.nodes[src], books.nodes[dst]
        if join.key is None and join.is_done and not before.is_done:
            wrong.append(f"{_named(join)} did not wait for {_named(before)}")
    return wrong


def _wrong_status(books: Books) -> list[str]:
    job, nodes = books.job, books.tasks.values()
    moving = bool(books.walks) or any(node.state in ACTIVE for node in nodes)
    wrong = []
    if job["status"] in (JobStatus.FAILED, JobStatus.CANCELLED) and moving:
        wrong.append(f"status is {job['status']} while tasks are active")
    if (job["status"] == JobStatus.SUCCEEDED) != all(node.is_done for node in nodes):
        wrong.append(f"status is {job['status']} with {[_named(node) for node in nodes]}")
    if (job["finished_at"] is None) != moving:
        wrong.append(f"finished_at is {job['finished_at']}, and tasks moving: {moving}")
    return wrong


def _wrong_attempts(books: Books) -> list[str]:
    """Attempts that ended are below the current one, or are the one that settled the task."""
    wrong = []
    for node in books.tasks.values():
        newest = node.attempt if node.state in SETTLED else node.attempt - 1
        if node.newest_ended > newest:
            wrong.append(f"{_named(node)}: attempt {node.newest_ended} ended already")
        if node.answered is not None and node.answered > newest:
            wrong.append(f"{_named(node)}: has an answer of attempt {node.answered}")
        if node.state is TaskState.SUCCEEDED and node.answered != node.attempt:
            wrong.append(f"{_named(node)}: has no answer of its attempt, but of {node.answered}")
    return wrong


def _wrong_leases(books: Books) -> list[str]:
    """Only what runs is on a lease."""
    return [
        f"{_named(node)}: leased {node.leased}, {node.beats} beats"
        for node in books.nodes.values()
        if (node.leased or node.beats) and node.state is not TaskState.RUNNING
    ]


def _named(node: Node) -> str:
    kind = node.key or "join"
    return f"{kind} {node.id} ({node.state}, attempt {node.attempt}, pending {node.pending})"


# --- after a deletion ---------------------------------------------------------------------------


async def rows_left(store: Store, job_id: JobId) -> dict[str, int]:
    """Rows that are there of a deleted job, and rows that hang on no task; empty is right."""
    known = sa.select(tasks.c.id)
    queries = {
        "job": _count(jobs, jobs.c.id == job_id),
        "task": _count(tasks, tasks.c.job_id == job_id),
        "answer": _count(answers, answers.c.task_id.not_in(known)),
        "attempt": _count(attempts, attempts.c.task_id.not_in(known)),
        "edge": _count(edges, sa.or_(edges.c.src.not_in(known), edges.c.dst.not_in(known))),
        "once": _count(once, once.c.job_id == job_id),
        "releasing": _count(releasing, releasing.c.src.not_in(known)),
        "reranking": _count(rerankings, rerankings.c.job_id == job_id),
        "retrying": _count(retryings, retryings.c.job_id == job_id),
        "deletion": _count(deletions, deletions.c.job_id == job_id),
    }

    async def unit(connection: AsyncConnection) -> dict[str, int]:
        found = {name: (await connection.scalars(query)).one() for name, query in queries.items()}
        return {name: number for name, number in found.items() if number}

    return await store.read(unit)


def _count(table: sa.Table, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(table).where(condition)
