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
from dane_server.storage.trip import read
from dane_server.storage.view import Claim, JobHead, NewJob

#: What of a new task is said only where something was decided; then each row has it.
_UNDECIDED: Row = {"dispatch": 0, "queued_at": None}

#: Claims nothing.
_NOTHING = Claiming(window=0, limit=0, lease=timedelta(0))


class _Probe(NamedTuple):
    """The task that finds out whether there is a queue now, for all that are like it."""

    new: NewJob
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What becomes of new tasks that wait for nothing, of some `keys`: they are claimed.

    Of a routing key that had no queue lately only the first is, to find out; the others are
    written down as unroutable at once.
    """

    asked: Claiming = _NOTHING
    keys: frozenset[str] = frozenset()
    _probes: dict[str, _Probe] = field(default_factory=dict)  # by routing key
    _unrouted: set[str] = field(default_factory=set)  # routing keys, where there are others

    @classmethod
    async def found(
        cls, connection: AsyncConnection, new_jobs: Sequence[NewJob], asked: Claiming | None
    ) -> Self:
        """Claim of keys that have room for all that is new; they are held until the commit.

        Not of one that somebody else holds, so that nobody waits, here or there: what is large
        takes long to be stored, and is not claimed either. Nor of one with others ready, or with
        limits: whose turn it is, and when, is found out with them.
        """
        if asked is None or asked.window <= 0 or sum(new.rows for new in new_jobs) > asked.limit:
            return cls()
        wanted = _Wanted(new_jobs)
        keys = {"keys": sorted(wanted.number)}
        rows = await read(connection, sql.hold_free_keys(), keys)
        if len(rows) > 1:  # others may have changed what was counted before all of them were held
            keys = {"keys": [row.task_key for row in rows]}
            rows = await read(connection, sql.standing_of_keys(), keys)
        free = (row.task_key for row in rows if wanted.fits(row.task_key, row.sent, asked))
        return cls(asked=asked, keys=frozenset(free))

    @property
    def unrouted(self) -> frozenset[str]:
        """The routing keys for which tasks were written down as unroutable."""
        return frozenset(self._unrouted)

    def rows(self, new: NewJob, now: datetime) -> Iterator[Row]:
        """The rows of a job's nodes; to be asked for one job after the other."""
        for row in rows_of(new.graph, new.spec.priority):
            yield row | {"due_at": now} | (self._decided(new, row, now) if self.keys else {})

    def claims(
        self, new: NewJob, job_id: JobId, node_ids: Sequence[int]
    ) -> tuple[Sequence[Claim], bool]:
        """What was claimed of a job, and whether more of it is ready; after its `rows`."""
        if not self.keys or not isinstance(new.graph, Graph):
            return (), True
        first = {seq: new.graph.tasks[seq].key for seq in _first(new.graph)}
        own = [seq for seq, key in first.items() if key in self.keys]
        head = _head(new, job_id)
        claims = [
            _claim(new, new.graph, seq, TaskId(node_ids[seq]), head)
            for seq in own
            if not self._is_unrouted(new, seq, first[seq])
        ]
        return claims, len(own) < len(first)

    def _decided(self, new: NewJob, row: Row, now: datetime) -> Row:
        key = row["task_key"]
        if row["pending"] or key not in self.keys:
            return _UNDECIDED
        if self._is_unrouted(new, row["seq"], key):
            return _standing(TaskState.UNROUTABLE, 0, now, self.asked.again)
        # A worker may well be quicker than the confirmation, hence the time of sending.
        return _standing(TaskState.DISPATCHING, 1, now, self.asked.lease)

    def _is_unrouted(self, new: NewJob, seq: int, key: str) -> bool:
        """Whether another task finds out for this one that there is no queue."""
        address = routing_key(new.spec.type, key)
        if address not in self.asked.unbound:
            return False
        probe = self._probes.setdefault(address, _Probe(new, seq))
        if probe.new is new and probe.seq == seq:
            return False
        self._unrouted.add(address)
        return True


def _standing(state: TaskState, dispatch: int, now: datetime, again: timedelta) -> Row:
    """How a new task stands, which is looked at again after some time."""
    return {
        "state": state.value,
        "dispatch": dispatch,
        "queued_at": now,
        "due_at": now + again,
    }


class _Wanted:
    """How many new tasks of each key wait for nothing, and of which keys a job has several."""

    def __init__(self, new_jobs: Sequence[NewJob]) -> None:
        self.number = Counter[str]()
        self._crowded: set[str] = set()
        for new in new_jobs:
            if isinstance(new.graph, Graph):
                own = Counter(new.graph.tasks[seq].key for seq in _first(new.graph))
                self.number += own
                self._crowded |= {key for key, number in own.items() if number > 1}

    def fits(self, key: str, sent: int, asked: Claiming) -> bool:
        """Whether all of a key may be sent; the reserved places are for one of each job."""
        most = asked.common if key in self._crowded else asked.window
        return self.number[key] <= most - sent


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
