"""What operators do: the store decides, workers are told, runners are woken."""

import logging
from datetime import timedelta

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange
from dane_core.job import JobId, TaskId
from dane_core.message import Control
from dane_server.runner.bell import Bell
from dane_server.storage.acts import Acts

logger = logging.getLogger(__name__)


class Operator:
    """Retry, reset, cancel, pause, delete. Each is true once it returns, whatever the broker does.

    Telling the workers is a courtesy that saves work: an attempt that was taken away cannot be
    recorded any more, and a stale message is asked about before it is run.
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

    async def retry_job(self, job_id: JobId) -> None:
        await self._acts.retry_job(job_id)
        await self._bell.ring()

    async def cancel_job(self, job_id: JobId) -> None:
        await self._acts.cancel_job(job_id)
        await self._stop(job_id=job_id)

    async def pause_job(self, job_id: JobId) -> None:
        await self._acts.pause_job(job_id)
        await self._tell(Control(act="recall", job_id=job_id))

    async def resume_job(self, job_id: JobId) -> None:
        await self._acts.resume_job(job_id)
        await self._bell.ring()

    async def delete_job(self, job_id: JobId) -> None:
        await self._acts.delete_job(job_id)
        await self._stop(job_id=job_id)

    async def retry_task(self, task_id: TaskId) -> None:
        await self._acts.retry_task(task_id)
        await self._bell.ring()

    async def force_task(self, task_id: TaskId) -> None:
        old_attempt = await self._acts.force_task(task_id)
        await self._stop(task_id=task_id, attempt=old_attempt)
        await self._bell.ring()

    async def reset_task(self, task_id: TaskId) -> None:
        old_attempt = await self._acts.reset_task(task_id)
        await self._stop(task_id=task_id, attempt=old_attempt)

    async def pause_key(self, key: str) -> None:
        await self._acts.pause_key(key)
        await self._tell(Control(act="recall", key=key), Control(act="pause", key=key))

    async def resume_key(self, key: str) -> None:
        await self._acts.resume_key(key)
        await self._tell(Control(act="resume", key=key))
        await self._bell.ring()

    async def retry_key(self, key: str, number: int) -> int:
        retried = await self._acts.retry_key(key, number)
        await self._bell.ring()
        return retried

    async def _stop(
        self,
        *,
        job_id: JobId | None = None,
        task_id: TaskId | None = None,
        attempt: int | None = None,
    ) -> None:
        """Have workers end what they do of this, by force once the grace time is over."""
        word = Control(
            act="cancel", job_id=job_id, task_id=task_id, attempt=attempt, grace=self._grace
        )
        await self._tell(word)

    async def _tell(self, *words: Control) -> None:
        try:
            for word in words:
                await self._exchange.broadcast(word.seal())
        except ExchangeUnreachable as fault:
            logger.warning("workers were not told to %s: %s", words[0].act, fault)
