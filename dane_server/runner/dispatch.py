"""Sends what may run: claim in the store first, publish second, mark what was confirmed."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from dane_core.errors import ExchangeUnreachable, StoreUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.job import JobId, TaskId
from dane_core.message import Stamp, TaskMessage
from dane_core.routing import RESPONSE_QUEUE, task_key_of
from dane_server.runner.bell import LocalBell
from dane_server.runner.bindings import Bindings
from dane_server.runner.heads import Heads
from dane_server.runner.pace import Pace
from dane_server.runner.route import Router
from dane_server.runner.ticket import Signer
from dane_server.storage.chunk import chunks
from dane_server.storage.claiming import Claiming
from dane_server.storage.inline import Inline
from dane_server.storage.reader import Reader
from dane_server.storage.view import Claim, JobHead
from dane_server.storage.writer import Writer
from dane_server.supervise import Stopped, Stopping

logger = logging.getLogger(__name__)

#: Between two looks whether an alarm of the broker is over, in seconds. No event tells it.
_ALARM_LOOK: Final = 0.25
#: What was sent along is written down as sent unless it is answered within so many seconds.
_MARKED_AFTER: Final = 0.05
#: What is handed over goes before what is ready in the store for so many seconds at a time.
_FIRST_FOR: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When something began, on this process's clocks, in seconds."""

    wall: float = field(default_factory=time.time)
    monotonic: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        return time.monotonic() - self.monotonic


class _Batch(NamedTuple):
    """Claims to send together, with a moment before they were claimed."""

    claimed: Moment
    claims: Sequence[Claim]
    along: bool  # by who recorded what was before them


class Dispatcher:
    """Moves ready tasks from the store into the exchange, the most urgent first."""

    def __init__(
        self,
        *,
        writer: Writer,
        reader: Reader,
        exchange: Exchange,
        bell: LocalBell,
        signer: Signer,
        pace: Pace,
        reply_to: str = RESPONSE_QUEUE,
        stopping: Stopping | None = None,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._exchange = exchange
        self._bell = bell
        self._signer = signer
        self._pace = pace
        self._reply_to = reply_to
        self._stopping = stopping or Stopping()
        #: Lets go what found no queue; to be kept running beside this.
        self.router = Router(writer=writer, bell=bell, stopping=self._stopping)
        self._handed_over: deque[tuple[Moment, Sequence[Claim]]] = deque()
        self._heads = Heads(reader)
        self._on_the_way: set[TaskId] = set()  # being sent, and not answered yet
        self._unmarked: dict[TaskId, tuple[Moment, Claim]] = {}  # the longest sent comes first
        self._bound_meanwhile: set[str] = set()
        self._bindings = Bindings()
        self._next_look: float | None = None  # when there may be more, by `time.monotonic`

    async def run(self) -> None:
        """Send whenever the bell rings, until told to stop; no claim is left unsent then."""
        look = True
        with suppress(StoreUnreachable):  # it is tried again; others are not to wait for it
            await self._mark_unanswered(0.0)  # sent before the connection was lost
        while True:
            if await self._outlast_alarm() or look:
                self._next_look = time.monotonic()
            # A claim that has seen all there was need not be followed by another: a bell rings.
            while not self._exchange.blocked and await self.send_some(look=self._may_look):
                await self._mark_unanswered(_MARKED_AFTER)
            await self._mark_unanswered(_MARKED_AFTER)
            if not self._exchange.blocked:
                look = await self._wait()

    async def _wait(self) -> bool:
        """Wait until there is something to do; whether to look for it in the store."""
        try:
            async with self._stopping.idle():
                return await self._bell_or_next_look()
        except Stopped:
            try:
                while await self.send_some(look=False):  # handed over a moment ago
                    pass
            finally:
                await self._mark_unanswered(0.0)
            raise

    async def _bell_or_next_look(self) -> bool:
        """Wait for the bell, but not longer than until the rate of a key lets a task go.

        Nor much longer than until what was sent along is to be marked.
        """
        waits = [_MARKED_AFTER] if self._unmarked else []
        if self._next_look is not None:
            waits.append(max(self._next_look - time.monotonic(), 0.0))
        try:
            async with asyncio.timeout(min(waits, default=None)):
                return await self._bell.heard()
        except TimeoutError:
            return False

    @property
    def _may_look(self) -> bool:
        return self._next_look is not None and time.monotonic() >= self._next_look

    @property
    def _store_waits_long(self) -> bool:
        due = self._next_look
        return due is not None and time.monotonic() - due > _FIRST_FOR

    @property
    def window(self) -> int:
        """How many tasks of a key may be in the exchange.

        None are to be claimed while stopping, or while the exchange takes nothing.
        """
        takes = self._exchange.connected and not self._exchange.blocked
        return 0 if self._stopping.told or not takes else self._pace.window

    def claiming(self) -> Claiming:
        """What to keep to in claiming what is then handed over."""
        return Claiming(
            window=self.window,
            limit=self._pace.batch,
            lease=self._pace.lease,
            again=self._pace.route_again,
            unbound=self._bindings.unbound,
        )

    def hand_over(self, claims: Sequence[Claim], claimed: Moment) -> None:
        """Have sent what was claimed elsewhere, before anything else.

        `claimed` is a moment before the claim. Whoever hands over is to `see_off` then.
        """
        if claims and not self._exchange.blocked:  # otherwise their leases bring them back
            self._handed_over += [(claimed, some) for some in chunks(claims, self._pace.batch)]
            self._bell.call()

    async def see_off(self) -> None:
        """Send what was handed over while everything stops, since `run` may have ended.

        Raises: ExchangeUnreachable.
        """
        while self._stopping.told and self._handed_over and await self.send_some():
            pass

    def note_unrouted(self, routing_keys: AbstractSet[str]) -> None:
        """Tasks were written down as unroutable: let those go that would find a queue by now."""
        if bound := routing_keys - self._bindings.unbound:
            self.router.note_bound({task_key_of(address) for address in bound})

    def note_settled(self, task_ids: Iterable[TaskId]) -> None:
        """These tasks have been answered: that they were sent need not be written down any more."""
        for task_id in task_ids:
            self._on_the_way.discard(task_id)
            self._unmarked.pop(task_id, None)

    def note_bound(self, keys: Collection[str]) -> None:
        """Queues were bound for these keys: what found none may go, or is finding none just now."""
        self._bound_meanwhile |= set(keys)
        self._bindings.forget(keys)
        self.router.note_bound(keys)

    async def send_some(self, *, look: bool = True) -> bool:
        """Send one batch of what is ready; false when there was nothing.

        What was handed over goes first. Then, if it is to `look`, what is found in the store; but
        that does not wait for long.
        Raises: ExchangeUnreachable, without claiming anything, or when the exchange stopped
        answering in the middle: then the leases of the claims bring the tasks back.
        """
        if not self._exchange.connected:
            self._handed_over.clear()  # their leases bring them back
            raise ExchangeUnreachable("no connection to the exchange")
        if look and self._store_waits_long:
            batch = await self._found_batch() or self._handed_batch()
        else:
            batch = self._handed_batch() or (await self._found_batch() if look else None)
        if batch is None:
            return False
        heads = await self._heads.of(batch.claims)
        claims = [claim for claim in batch.claims if claim.job_id in heads]
        self._bound_meanwhile.clear()
        ids = {claim.task_id for claim in claims}
        self._on_the_way |= ids
        try:
            await self._send(batch._replace(claims=claims), heads)
        finally:
            self._on_the_way -= ids
        return True

    async def _send(self, batch: "_Batch", heads: Mapping[JobId, JobHead]) -> None:
        """Publish claims; of a routing key without a queue only the first, while it has none.

        What became of that one would become of the others: hundreds of thousands may wait for a
        worker.
        """
        claims, probes = batch.claims, self._bindings.probes(batch.claims)
        first = [one for one in claims if probes.get(one.routing_key, one) is one]
        others = [one for one in claims if probes.get(one.routing_key, one) is not one]
        fates = await self._publish(batch._replace(claims=first), heads)
        of_key = {key: fates.get(probe.task_id) for key, probe in probes.items()}
        alike = [one for one in others if of_key[one.routing_key] is Fate.UNROUTABLE]
        fates |= {one.task_id: Fate.UNROUTABLE for one in alike}
        await self._mark([*first, *alike], fates, along=batch.along)
        if found := [one for one in others if of_key[one.routing_key] is Fate.ROUTED]:
            fates = await self._publish(batch._replace(claims=found), heads)
            await self._mark(found, fates, along=batch.along)

    async def _publish(self, batch: "_Batch", heads: Mapping[JobId, JobHead]) -> dict[TaskId, Fate]:
        """What became of each message; of what is left to its lease, nothing."""
        messages = await self._messages(batch.claims, heads, batch.claimed)
        if self._is_too_late(batch.claimed):
            return {}
        fates = await self._exchange.publish(
            [(message.routing_key, message.seal(self._reply_to)) for message in messages]
        )
        return {claim.task_id: fate for claim, fate in zip(batch.claims, fates, strict=True)}

    async def _outlast_alarm(self) -> bool:
        """Claim nothing while the broker takes nothing: what is claimed waits for its lease.

        Returns whether there was an alarm.
        """
        if not (reason := self._exchange.blocked):
            return False
        logger.warning("the broker takes no messages (%s): no tasks are sent until it does", reason)
        self._handed_over.clear()
        await self._mark_unanswered(0.0)
        while self._exchange.blocked:
            async with self._stopping.idle():
                await asyncio.sleep(_ALARM_LOOK)
        logger.warning("the broker takes messages again: tasks are sent")
        return True

    def _handed_batch(self) -> "_Batch | None":
        """What was handed over, some of it together."""
        limit = self._pace.batch
        while self._handed_over:
            claimed, claims = self._handed_over.popleft()
            while self._handed_over and len(claims) + len(self._handed_over[0][1]) <= limit:
                claims = [*claims, *self._handed_over.popleft()[1]]
            if not self._is_too_late(claimed):
                return _Batch(claimed, claims, along=True)
        return None

    async def _found_batch(self) -> "_Batch | None":
        """What there is to send in the store, claimed now; nothing while stopping."""
        now, pace = Moment(), self._pace
        if self._stopping.told:
            return None
        self._next_look = None
        claims = await self._writer.claim_ready(
            window=pace.window,
            limit=pace.batch,
            lease=pace.lease,
            ageing=pace.ageing,
            put_off=self._put_off,
        )
        return _Batch(now, claims, along=False) if claims else None

    def _put_off(self, seconds: float) -> None:
        at, soonest = time.monotonic() + seconds, self._next_look
        self._next_look = at if soonest is None else min(at, soonest)

    def _is_too_late(self, claimed: Moment) -> bool:
        """Whether claims may not be confirmed before their lease ends: then they stay unsent.

        Their lease brings them back; sent now as well, they would be sent twice.
        """
        late = claimed.age > self._pace.lease.total_seconds() / 2
        if late:
            logger.warning("claimed tasks were not sent in time: they are sent after their lease")
        return late

    async def _messages(
        self, claims: Sequence[Claim], heads: Mapping[JobId, JobHead], claimed: Moment
    ) -> list[TaskMessage]:
        # Sent at the time of the claim: what was changed after that, a worker asks about.
        unknown = [claim for claim in claims if claim.earlier is None]
        earlier = await self._reader.responses(unknown) if unknown else {}
        return [
            self._message(
                claim, heads[claim.job_id], claim.earlier or earlier[claim.task_id], claimed
            )
            for claim in claims
        ]

    def _message(
        self,
        claim: Claim,
        head: JobHead,
        response: Inline,
        claimed: Moment,
    ) -> TaskMessage:
        answers, partial = response
        return TaskMessage(
            ticket=self._signer.ticket(claim.task_id, claim.attempt, claim.dispatch),
            job_id=claim.job_id,
            source_url=head.source_url,
            source_id=head.source_id,
            type=claim.type,
            priority=claim.priority,
            metadata=head.metadata,
            key=claim.key,
            name=claim.name,
            args=claim.args,
            timeout=claim.timeout,
            response={"SHARED": head.shared, **answers},
            partial=partial,
            sent_at=claimed.wall,
            stamp=Stamp.here(claimed.monotonic),
        )

    async def _mark(
        self, claims: Sequence[Claim], fates: Mapping[TaskId, Fate], *, along: bool
    ) -> None:
        by_fate: dict[Fate, list[Claim]] = {fate: [] for fate in Fate}
        for claim in claims:
            if (fate := fates.get(claim.task_id)) is not None:
                by_fate[fate].append(claim)
        await self._note_sent(by_fate[Fate.ROUTED], by_fate[Fate.UNROUTABLE], along=along)
        unroutable = {claim.key for claim in by_fate[Fate.UNROUTABLE]}
        if unroutable:
            self._put_off(0.0)  # their places are free again, and nobody rings for that
        if bound := sorted(unroutable & self._bound_meanwhile):
            self.router.note_bound(bound)
        if found := self._bindings.note(by_fate, just_bound=bound):
            self.router.note_bound(found)
        if by_fate[Fate.UNKNOWN]:
            raise ExchangeUnreachable(
                f"{len(by_fate[Fate.UNKNOWN])} messages were not confirmed in time"
            )

    async def _note_sent(
        self, routed: Sequence[Claim], unroutable: Sequence[Claim], *, along: bool
    ) -> None:
        """Write down what the exchange took; of what was sent along, later, or never.

        A worker that is quick answers first, and then it is written down that it did.
        """
        now = Moment()
        sent = {
            one.task_id: (now, _light(one)) for one in routed if one.task_id in self._on_the_way
        }
        self._unmarked |= sent
        if along and not self._stopping.told:
            sent = {}
        if sent or unroutable:
            await self._write_down(sent, unroutable)

    async def _mark_unanswered(self, patience: float) -> None:
        """Write down that tasks were sent which were not answered for so many seconds."""
        sent = dict(self._unmarked)
        if sent and next(iter(sent.values()))[0].age >= patience:
            await self._write_down(sent, [])

    async def _write_down(
        self, sent: Mapping[TaskId, tuple[Moment, Claim]], unroutable: Sequence[Claim]
    ) -> None:
        """Mark what was sent; what cannot be marked now is left to another time."""
        claims = [claim for _, claim in sent.values()]
        await self._writer.mark_sent(claims, unroutable, again=self._pace.route_again)
        for task_id, one in sent.items():
            if self._unmarked.get(task_id) is one:  # and not sent once more meanwhile
                del self._unmarked[task_id]


def _light(claim: Claim) -> Claim:
    """A claim without what only its message needed, which may be large."""
    return replace(claim, args={}, earlier=None, head=None)
