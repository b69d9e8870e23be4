"""A job as it stands when it has just been stored: known, without asking the store for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dane_core.job import Counts, Job, JobId, Retry, Task, TaskId
from dane_core.states import JobStatus, TaskState
from dane_server.graph import Graph
from dane_server.storage.nodes import priority_of
from dane_server.storage.view import JobView, NewJob


@dataclass(frozen=True, slots=True)
class JustStored:
    """A new job, and what the store has given it: ids, in the order of its nodes, and a time."""

    new: NewJob
    graph: Graph
    job_id: JobId
    node_ids: Sequence[int]
    created_at: datetime  # UTC, as the store writes it

    def view(self) -> JobView:
        """What the reader would show, as long as nobody has done anything with it.

        That some of it may have been claimed along, or found to have no queue, is not shown: that
        is what becomes of it next.
        """
        tasks = [self._task(seq) for seq in range(self.graph.total)]
        job = self._job(state=tasks[0].number)
        return JobView(job=job, tree=self.graph.tree, tasks=tasks, answers={})

    def _job(self, state: int) -> Job:
        spec = self.new.spec
        return Job(
            id=self.job_id,
            source_url=spec.source_url,
            source_id=spec.source_id,
            type=spec.type,
            metadata=spec.metadata,
            priority=spec.priority,
            shared=self.new.shared,
            status=JobStatus.ACCEPTED,
            state=state,
            counts=Counts(
                total=self.graph.total,
                blocked=self.graph.total - self.graph.active,
                held=0,
                active=self.graph.active,
                succeeded=0,
                failed=0,
                forgiven=0,
                cancelled=0,
                skipped=0,
            ),
            paused=False,
            created_at=self.created_at.replace(tzinfo=UTC),
            started_at=None,
            finished_at=None,
            owner=self.new.owner,
        )

    def _task(self, seq: int) -> Task:
        spec, pending = self.graph.tasks[seq], self.graph.pending[seq]
        return Task(
            id=TaskId(self.node_ids[seq]),
            job_id=self.job_id,
            seq=seq,
            key=spec.key,
            name=spec.name,
            args=spec.args,
            priority=priority_of(spec, self.new.spec.priority),
            timeout=spec.timeout,
            retry=spec.retry or Retry(),
            allow_failure=spec.allow_failure,
            state=TaskState.BLOCKED if pending else TaskState.READY,
            outcome=None,
            message=None,
            attempt=1,
            dispatch=0,
            worker=None,
            progress=None,
            pending=pending,
            due_at=self.created_at.replace(tzinfo=UTC),
            queued_at=None,
            started_at=None,
            finished_at=None,
        )
