"""What operators do: the store decides, workers are told, runners are woken."""

from datetime import timedelta
from typing import Any

from dane_core.exchange.base import Exchange
from dane_core.job import JobId, TaskId
from dane_core.message import Control
from dane_server.runner.bell import Bell
from dane_server.runner.walk import Walk, Walks, begin_walk, tell
from dane_server.storage.acts import Acts


class Operator:
    """Retry, cancel, pause, prioritize, delete: in force once it returns, whatever the broker does.

    What is cancelled, paused, prioritized or deleted is marked first; then workers are told; then
    its tasks are gone through, those of a large job by the walker after this has returned. At last
    the bell is rung: what had a place under a limit may have left it to another. Telling
    the workers is a courtesy that saves work: an attempt that was taken away cannot be recorded any
    more, and a stale message is asked about before it is run.
    """

    def __init__(
        self,
        acts: Acts,
        exchange: Exchange,
        bell: Bell,
        *,
        cancel_grace: timedelta = timedelta(seconds=10),
    ) -> None:
        self._acts = acts
        self._exchange = exchange
        self._bell = bell
        self._grace = cancel_grace.total_seconds()
        self._walks = Walks.of(acts, cancel_grace=cancel_grace)

    async def retry_job(self, job_id: JobId) -> None:
        await self._acts.begin_retrying(job_id)
        await self._walk(self._walks.retry, job_id)
        await self._bell.ring()

    async def cancel_job(self, job_id: JobId) -> None:
        await self._acts.begin_cancelling(job_id)
        await self._walk(self._walks.cancel, job_id)
        await self._bell.ring()

    async def pause_job(self, job_id: JobId) -> None:
        await self._acts.begin_pausing(job_id)
        await self._walk(self._walks.pause, job_id)
        await self._bell.ring()

    async def resume_job(self, job_id: JobId) -> None:
        await self._acts.resume_job(job_id)
        await self._bell.ring()

    async def prioritize_job(self, job_id: JobId, priority: int) -> None:
        await self._acts.begin_prioritizing(job_id, priority)
        await self._walk(self._walks.rerank, job_id)
        await self._bell.ring()

    async def delete_job(self, job_id: JobId) -> None:
        await self._acts.bury_job(job_id)
        await self._walk(self._walks.delete, job_id)
        await self._bell.ring()

    async def retry_task(self, task_id: TaskId) -> None:
        await self._acts.retry_task(task_id)
        await self._bell.ring()

    async def force_task(self, task_id: TaskId) -> None:
        old_attempt = await self._acts.force_task(task_id)
        await self._stop(task_id, old_attempt)
        await self._bell.ring()

    async def reset_task(self, task_id: TaskId) -> None:
        old_attempt = await self._acts.reset_task(task_id)
        await self._stop(task_id, old_attempt)
        await self._bell.ring()

    async def prioritize_task(self, task_id: TaskId, priority: int) -> None:
        await self._acts.prioritize_task(task_id, priority)
        await tell(self._exchange, Control(act="recall", task_id=task_id))
        await self._bell.ring()

    async def pause_key(self, key: str) -> None:
        await self._acts.begin_pausing_key(key)
        await tell(self._exchange, Control(act="pause", key=key))
        await self._walk(self._walks.pause_key, key)

    async def resume_key(self, key: str) -> None:
        await self._acts.resume_key(key)
        await tell(self._exchange, Control(act="resume", key=key))
        await self._bell.ring()

    async def retry_key(self, key: str, number: int) -> int:
        retried = await self._acts.retry_key(key, number)
        await self._bell.ring()
        return retried

    def left_over(self) -> None:
        """A walk has steps left; where there is a walker it is woken, elsewhere one looks soon."""

    async def _walk(self, walk: Walk[Any], subject: Any) -> None:
        if await begin_walk(walk, subject, self._exchange):
            self.left_over()

    async def _stop(self, task_id: TaskId, attempt: int) -> None:
        """Have workers end an attempt, by force once the grace time is over."""
        word = Control(act="cancel", task_id=task_id, attempt=attempt, grace=self._grace)
        await tell(self._exchange, word)
