"""Compares store, broker and workers, and repairs what does not agree.

What must agree is judged in `checks`; here the facts are fetched and the repairs are done,
through the same verbs as the sweeper's.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from dane_core.errors import BadMessage, ExchangeUnreachable
from dane_core.exchange.base import Delivery, Exchange, Fate
from dane_core.job import TaskId
from dane_core.message import Control, open_report
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, epoch_queue, work_queue
from dane_server.runner.bell import Bell
from dane_server.runner.checks import (
    BrokerFacts,
    Check,
    Finding,
    Repair,
    Sighting,
    judge,
    judge_jobs,
)
from dane_server.runner.epoch import Marker
from dane_server.runner.evidence import TIMES_ON_THEIR_WORD
from dane_server.runner.pace import Pace
from dane_server.storage.access import Access

#: What falls due is looked after within seconds; what is late by this much was forgotten.
LATE: Final = timedelta(seconds=60)
#: Batches of unfinished jobs recounted in one round of the continuous check.
_BATCHES: Final = 5
#: Parked reports held at once.
_PARKED: Final = 1000


class Doctor:
    """Examines a store and its broker; without an `exchange`, the store alone.

    Everything it reads of the store raises StoreUnreachable; a broker that does not answer
    is left out of what is seen.
    """

    def __init__(
        self,
        *,
        access: Access,
        exchange: Exchange | None,
        bell: Bell,
        pace: Pace,
        response_queue: str = RESPONSE_QUEUE,
        late: timedelta = LATE,
    ) -> None:
        self._access = access
        self._exchange = exchange
        self._bell = bell
        self._pace = pace
        self._response_queue = response_queue
        self._late = late.total_seconds()
        self._place = 0  # the job up to which the last round came

    # --- looking ------------------------------------------------------------------------

    async def see(self, since: Sighting | None = None) -> Sighting:
        """Look at the store and the broker once; `since` is the look before."""
        examiner = self._access.examiner
        at = time.monotonic()
        sight = await self._access.sweeps.look()
        epoch = sight.epoch.name if sight.epoch else None
        # The broker first: what is answered in between is then not missed in the store.
        broker = None
        if self._exchange is not None:
            keys = await examiner.wanted_keys()
            broker = await _look_at(self._exchange, self._response_queue, keys, epoch)
        facts = await examiner.store(grace=self._late, since=since.time if since else None)
        return Sighting(at=at, time=sight.time, epoch=epoch, store=facts, broker=broker)

    # --- judging ------------------------------------------------------------------------

    def judge(self, now: Sighting, before: Sighting) -> list[Finding]:
        """What two looks show, jobs apart."""
        apart = self._pace.lost_after.total_seconds()
        return list(judge(now, before, window=self._pace.window, apart=apart))

    def proof_takes(self, now: Sighting, before: Sighting) -> float:
        """Seconds until another look would prove that a queue has lost messages, if it has.

        0 when nothing looks like it.
        """
        apart = self._pace.lost_after.total_seconds()
        for length in (apart, apart * TIMES_ON_THEIR_WORD):
            then = replace(now, at=before.at + length)
            if any(finding.check is Check.QUEUED for finding in self.judge(then, before)):
                return max(before.at + length - now.at, 0.0)
        return 0.0

    async def examine_schema(self) -> list[Finding]:
        """See whether the tables are those of this version."""
        told = await self._access.examiner.outdated()
        remedy = "dane db upgrade, or start the version that made the tables"
        return [
            Finding(check=Check.SCHEMA, subject="schema", sentence=sentence, remedy=remedy)
            for sentence in [told]
            if sentence
        ]

    async def examine_jobs(self) -> list[Finding]:
        """Recount every job that is not over."""
        return [one async for some in self._examined(0) for one in some]

    async def examine_some_jobs(self) -> list[Finding]:
        """Recount the next jobs that are not over; behind the last comes the first again."""
        findings: list[Finding] = []
        batches = 0
        async for some in self._examined(self._place):
            findings += some
            batches += 1
            if batches == _BATCHES:
                return findings
        self._place = 0
        return findings

    async def _examined(self, after: int) -> AsyncIterator[list[Finding]]:
        examiner = self._access.examiner
        async for ids in examiner.unfinished(after):
            self._place = ids[-1]
            yield list(judge_jobs(await examiner.jobs(ids), await examiner.nodes(ids)))

    # --- repairing ----------------------------------------------------------------------

    async def repair(self, finding: Finding) -> bool:
        """Do what the finding asks for; false when it is for a person to do.

        Raises: StoreUnreachable, ExchangeUnreachable.
        """
        ids, access = finding.ids, self._access
        match finding.repair:
            case Repair.RECOUNT:
                for job_id in ids:
                    await access.mending.recount(job_id)
                await self._bell.ring()
            case Repair.BURY:
                await access.mending.bury(ids)
                await access.acts.finish_walks()
            case Repair.SWEEP:
                await self._sweep(ids)
            case Repair.RING:
                await self._bell.ring()
            case Repair.ROUTE:
                await access.writer.route_again([finding.key or ""])
                await self._bell.ring()
            case Repair.LEASE:
                await access.mending.put_on_lease(ids, self._pace.patience.total_seconds())
            case Repair.RECALL:
                await access.acts.recall_key(finding.key or "")
                await self._say(Control(act="recall", key=finding.key))
                await self._bell.ring()
            case Repair.STOP:
                for task_id in ids:
                    await self._say(Control(act="cancel", task_id=TaskId(task_id)))
            case Repair.RENEW:
                await self._renew()
            case None:
                return False
        return True

    async def _sweep(self, ids: Sequence[int]) -> None:
        sweeps, pace = self._access.sweeps, self._pace
        while await sweeps.sweep(limit=pace.batch, silence=pace.silence):
            pass
        await sweeps.watch_unwatched(pace.patience)
        sight = await sweeps.look()
        over = [one for one in sight.running if one.leased and one.task_id in ids]
        await sweeps.lose(over, "its lease ended, and nobody took it back", limit=pace.starts)
        await self._bell.ring()

    async def _renew(self) -> None:
        if self._exchange is None:
            return
        pace, sweeps = self._pace, self._access.sweeps
        marker = Marker(
            sweeps=sweeps, exchange=self._exchange, claimed=pace.lease, given=pace.patience
        )
        await marker.look((await sweeps.look()).epoch)
        await self._bell.ring()

    async def _say(self, word: Control) -> None:
        if self._exchange is not None:
            await self._exchange.broadcast(word.seal())


# --- the broker ---------------------------------------------------------------------------------


async def examine_broker(exchange: Exchange, response_queue: str) -> list[Finding]:
    """What can be said of a broker while the store cannot be reached."""
    never = datetime.min  # noqa: DTZ901 - naive, as the database's clock is
    looks = [
        Sighting(
            at=time.monotonic(),
            time=never,
            epoch=None,
            store=None,
            broker=await _look_at(exchange, response_queue, [], None),
        )
        for _ in range(2)
    ]
    return list(judge(looks[1], looks[0], window=0, apart=0.0))


async def _look_at(
    exchange: Exchange, response_queue: str, keys: Sequence[str], epoch: str | None
) -> BrokerFacts | None:
    names = [*map(work_queue, keys), DEAD_QUEUE, response_queue]
    try:
        depths = {name: await exchange.depth(name) for name in names}
        mark = await exchange.depth(epoch_queue(epoch)) if epoch else None
    except ExchangeUnreachable:
        return None
    return BrokerFacts(depths=depths, response_queue=response_queue, epoch=mark)


# --- parked reports ----------------------------------------------------------------------------


async def replay_dead(exchange: Exchange, response_queue: str) -> AsyncIterator[str]:
    """Send reports that were parked back to where they are recorded; what becomes of each.

    What cannot be read stays, and what the response queue does not take.
    Raises: ExchangeUnreachable.
    """
    depth = await exchange.depth(DEAD_QUEUE)
    left = min(depth.waiting, _PARKED) if depth else 0
    if not left:
        return
    async with exchange.consume(DEAD_QUEUE, prefetch=_PARKED) as parked:
        while left > 0:
            for delivery in await parked.take(left):
                left -= 1
                told, gone = await _replayed(exchange, response_queue, delivery)
                if gone:
                    await parked.ack(delivery)
                yield told


async def _replayed(exchange: Exchange, queue: str, delivery: Delivery) -> tuple[str, bool]:
    envelope = delivery.envelope
    what = f"{envelope.type} of task {envelope.correlation_id or '?'}"
    try:
        open_report(envelope)
    except BadMessage as fault:
        return f"{what}: stays in {DEAD_QUEUE}, it cannot be read: {fault}", False
    if list(await exchange.send(queue, [envelope])) != [Fate.ROUTED]:
        return f"{what}: stays in {DEAD_QUEUE}, {queue} did not take it", False
    return f"{what}: sent to {queue} again", True
