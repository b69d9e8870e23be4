"""Decides of the first tasks of jobs in the transaction that stores them: claims them, mostly.

Left to the dispatcher, they would cost a transaction more, and wait for it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId, TaskId
from dane_core.routing import routing_key
from dane_core.states import TaskState
from dane_server.graph import Graph
from dane_server.storage.claiming import Claiming
from dane_server.storage.inline import NOTHING
from dane_server.storage.nodes import Row, priority_of, rows_of
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.view import Claim, JobHead, NewJob

#: What of a new task is said only where something was decided; then each row has it.
_UNDECIDED: Row = {"dispatch": 0, "queued_at": None}


#: Of whom nothing is asked.
_NOTHING = Claiming(window=0, limit=0, lease=timedelta(0))


class _Probe(NamedTuple):
    """The task that finds out whether there is a queue now, for all that are like it."""

    new: NewJob
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What becomes of new tasks that wait for nothing.

    Those of some `keys` are claimed. Of a routing key that had no queue lately only the first is
    to be sent, to find out; the others are written down as unroutable at once.
    """

    asked: Claiming = _NOTHING
    keys: frozenset[str] = frozenset()
    _probes: dict[str, _Probe] = field(default_factory=dict)  # by routing key

    @classmethod
    async def found(
        cls, connection: AsyncConnection, new_jobs: Sequence[NewJob], asked: Claiming | None
    ) -> Self:
        """Claim of keys that have room for all that is new; they are held until the commit.

        Not of one that somebody else holds, so that nobody waits, here or there: what is large
        takes long to be stored, and is not claimed either. Nor of one with others ready, or with
        limits: whose turn it is, and when, is found out with them.
        """
        if asked is None or asked.window <= 0:
            return cls()
        if sum(new.rows for new in new_jobs) > asked.limit:
            return cls(asked=asked)
        wanted = _first_keys(new_jobs)
        keys = {"keys": sorted(wanted)}
        rows = (await connection.execute(sql.hold_free_keys(), keys)).all()
        if len(rows) > 1:  # others may have changed what was counted before all of them were held
            keys = {"keys": [row.task_key for row in rows]}
            rows = (await connection.execute(sql.standing_of_keys(), keys)).all()
        free = (row.task_key for row in rows if wanted[row.task_key] <= asked.window - row.sent)
        return cls(asked=asked, keys=frozenset(free))

    @property
    def _decides(self) -> bool:
        return bool(self.keys or self.asked.unbound)

    @property
    def unrouted(self) -> frozenset[str]:
        """The routing keys that were taken to have no queue."""
        return frozenset(self._probes)

    def rows(self, new: NewJob, now: datetime) -> Iterator[Row]:
        """The rows of a job's nodes; to be asked for one job after the other."""
        for row in rows_of(new.graph, new.spec.priority):
            yield row | {"due_at": now} | (self._decided(new, row, now) if self._decides else {})

    def claims(
        self, new: NewJob, job_id: JobId, node_ids: Sequence[int]
    ) -> tuple[Sequence[Claim], bool]:
        """What was claimed of a job, and whether more of it is ready; after its `rows`."""
        if not self._decides or not isinstance(new.graph, Graph):
            return (), True
        keys = {seq: new.graph.tasks[seq].key for seq in _first(new.graph)}
        ready = [seq for seq, key in keys.items() if not self._is_unrouted(new, seq, key)]
        head = _head(new, job_id)
        claims = [
            _claim(new, new.graph, seq, TaskId(node_ids[seq]), head)
            for seq in ready
            if keys[seq] in self.keys
        ]
        return claims, len(claims) < len(ready)

    def _decided(self, new: NewJob, row: Row, now: datetime) -> Row:
        if row["pending"]:
            return _UNDECIDED
        if self._is_unrouted(new, row["seq"], row["task_key"]):
            state, dispatch, again = TaskState.UNROUTABLE, 0, self.asked.again
        elif row["task_key"] in self.keys:
            state, dispatch, again = TaskState.DISPATCHING, 1, self.asked.lease
        else:
            return _UNDECIDED
        # A worker may well be quicker than the confirmation, hence the time of sending.
        return {
            "state": state.value,
            "dispatch": dispatch,
            "queued_at": now,
            "due_at": now + again,
        }

    def _is_unrouted(self, new: NewJob, seq: int, key: str) -> bool:
        """Whether another task finds out for this one that there is no queue."""
        address = routing_key(new.spec.type, key)
        if address not in self.asked.unbound:
            return False
        probe = self._probes.setdefault(address, _Probe(new, seq))
        return probe.new is not new or probe.seq != seq


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
