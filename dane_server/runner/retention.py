"""Keeps the store bounded: what has been kept long enough goes, a little at a time."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from dane_server.metrics import Metrics
from dane_server.settings import RetentionSection
from dane_server.storage.retention import Keep, Retention
from dane_server.storage.turns import Turns
from dane_server.supervise import Stopping

logger = logging.getLogger(__name__)

#: Between two batches, so that those who work are not held up.
_BREATH: Final = timedelta(seconds=0.05)
#: Attempts that ended within this time are looked through, at each pass.
_LATELY: Final = timedelta(hours=3)

_KINDS: Final = {
    "jobs": "jobs",
    "request_keys": "Idempotency-Keys",
    "rejected": "counts of refused answers",
    "attempts": "attempts",
}


def keep_of(settings: RetentionSection) -> Keep:
    """What the settings say, where 0 means for ever."""

    def days(number: float) -> timedelta | None:
        return timedelta(days=number) if number else None

    return Keep(
        jobs=days(settings.JOBS),
        failed=days(settings.FAILED),
        once=days(settings.ONCE),
        rejected=days(settings.REJECTED),
        attempts=settings.ATTEMPTS or None,
    )


class Housekeeper:
    """Passes over the store now and then, one server at a time."""

    def __init__(
        self,
        *,
        retention: Retention,
        turns: Turns,
        metrics: Metrics,
        keep: Keep,
        every: timedelta = timedelta(hours=1),
        breath: timedelta = _BREATH,
        stopping: Stopping | None = None,
    ) -> None:
        self._stopping = stopping or Stopping()
        self._retention = retention
        self._turns = turns
        self._metrics = metrics
        self._keep = keep
        self._every = every
        self._breath = breath

    async def run(self) -> None:
        """Pass over the store until told to stop; not at the start, but after a while."""
        while True:
            # Jittered, so that servers started together do not come all at once.
            pause = self._every.total_seconds() * random.uniform(0.1, 1.0)  # noqa: S311
            async with self._stopping.idle():
                await asyncio.sleep(pause)
            async with self._turns.take("retention") as ours:
                if ours:
                    await self.pass_over()

    async def pass_over(self) -> Mapping[str, int]:
        """Remove everything that is too old; how much of each kind."""
        keep, went = self._keep, Counter[str]()
        async for jobs in self._retention.old_jobs(keep):
            for job_id in jobs:
                went["jobs"] += await self._retention.remove_job(job_id, keep)
            await self._breathe()
        if keep.once is not None:
            while gone := await self._retention.forget_request_keys(keep.once):
                went["request_keys"] += gone
                await self._breathe()
        if keep.rejected is not None:
            while gone := await self._retention.forget_rejections(keep.rejected):
                went["rejected"] += gone
                await self._breathe()
        if keep.attempts is not None:
            since = max(_LATELY, 3 * self._every)
            went["attempts"] += await self._retention.forget_attempts(keep.attempts, since)
        for kind, number in went.items():
            self._metrics.removed.labels(kind).inc(number)
        _tell(went)
        return went

    async def would_go(self) -> Mapping[str, int]:
        """How much of each kind a pass would remove; of attempts it cannot be told beforehand."""
        keep, counted = self._keep, Counter[str]()
        async for jobs in self._retention.old_jobs(keep):
            counted["jobs"] += len(jobs)
        if keep.once is not None:
            counted["request_keys"] = await self._retention.count_request_keys(keep.once)
        if keep.rejected is not None:
            counted["rejected"] = await self._retention.count_rejections(keep.rejected)
        return counted

    async def _breathe(self) -> None:
        pause = self._breath.total_seconds() * random.uniform(0.5, 1.5)  # noqa: S311
        async with self._stopping.idle():
            await asyncio.sleep(pause)


def _tell(went: Mapping[str, int]) -> None:
    told = ", ".join(f"{number} {_KINDS[name]}" for name, number in went.items() if number)
    logger.info("retention: %s", f"removed {told}" if told else "nothing was old enough")
