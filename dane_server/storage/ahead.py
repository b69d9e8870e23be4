"""Claims the first tasks of jobs in the transaction that stores them.

Left to the dispatcher, they would cost a transaction more, and wait for it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId, TaskId
from dane_core.states import TaskState
from dane_server.graph import Graph
from dane_server.storage.claiming import Claiming
from dane_server.storage.inline import NOTHING
from dane_server.storage.nodes import Row, priority_of
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.view import Claim, JobHead, NewJob

#: What of a new task is known of a claimed one alone; a row of either kind has it.
_UNCLAIMED: Row = {"dispatch": 0, "queued_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The keys whose new tasks are claimed as they are stored."""

    keys: frozenset[str] = field(default_factory=frozenset)
    lease: timedelta = timedelta(0)

    @classmethod
    async def found(
        cls, connection: AsyncConnection, new_jobs: Sequence[NewJob], asked: Claiming | None
    ) -> Self:
        """Those that have room for all that is new; held until the end of the transaction.

        Not one that somebody else holds, so that nobody waits, here or there: what is large
        takes long to be stored, and is not claimed either. Nor one with others ready, or with
        limits: whose turn it is, and when, is found out with them.
        """
        if asked is None or asked.window <= 0 or sum(new.rows for new in new_jobs) > asked.limit:
            return cls()
        wanted = _first_keys(new_jobs)
        keys = {"keys": sorted(wanted)}
        rows = (await connection.execute(sql.hold_free_keys(), keys)).all()
        if len(rows) > 1:  # others may have changed what was counted before all of them were held
            keys = {"keys": [row.task_key for row in rows]}
            rows = (await connection.execute(sql.standing_of_keys(), keys)).all()
        free = (row.task_key for row in rows if wanted[row.task_key] <= asked.window - row.sent)
        return cls(keys=frozenset(free), lease=asked.lease)

    def written(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of new nodes, the first tasks of these keys as claimed."""
        if not self.keys:
            yield from rows
            return
        for row in rows:
            yield row | (self._taken(row["due_at"]) if self._takes(row) else _UNCLAIMED)

    def claims(
        self, new: NewJob, job_id: JobId, node_ids: Sequence[int]
    ) -> tuple[Sequence[Claim], bool]:
        """What was claimed of a job, and whether more of it is ready."""
        if not self.keys or not isinstance(new.graph, Graph):
            return (), True
        first = _first(new.graph)
        head = _head(new, job_id)
        claims = [
            _claim(new, new.graph, seq, TaskId(node_ids[seq]), head)
            for seq in first
            if new.graph.tasks[seq].key in self.keys
        ]
        return claims, len(claims) < len(first)

    def _takes(self, row: Row) -> bool:
        return row["pending"] == 0 and row["task_key"] in self.keys

    def _taken(self, now: datetime) -> Row:
        return {
            "state": TaskState.DISPATCHING.value,
            "dispatch": 1,
            "queued_at": now,  # a worker may well be quicker than the confirmation
            "due_at": now + self.lease,
        }


def _first_keys(new_jobs: Sequence[NewJob]) -> Counter[str]:
    """How many tasks of each key wait for nothing."""
    graphs = (new.graph for new in new_jobs if isinstance(new.graph, Graph))
    return Counter(graph.tasks[seq].key for graph in graphs for seq in _first(graph))


def _first(graph: Graph) -> list[int]:
    return [seq for seq in range(graph.total) if graph.pending[seq] == 0]


def _head(new: NewJob, job_id: JobId) -> JobHead:
    spec = new.spec
    return JobHead(
        id=job_id,
        source_id=spec.source_id,
        source_url=spec.source_url,
        metadata=spec.metadata,
        shared=new.shared,
    )


def _claim(new: NewJob, graph: Graph, seq: int, task_id: TaskId, head: JobHead) -> Claim:
    task = graph.tasks[seq]
    return Claim(
        task_id=task_id,
        job_id=head.id,
        key=task.key,
        type=new.spec.type,
        name=task.name,
        args=task.args,
        priority=priority_of(task, new.spec.priority),
        timeout=task.timeout,
        attempt=1,
        dispatch=1,
        fanin=0,
        earlier=NOTHING,
        head=head,
    )
