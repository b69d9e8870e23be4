"""Writes down what workers say, in batches of whatever has arrived."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from dane_core.errors import BadMessage, ExchangeUnreachable, Unreachable
from dane_core.exchange.base import Delivery, Exchange, Fate
from dane_core.message import (
    Answer,
    Ask,
    Control,
    Envelope,
    Gone,
    Goodbye,
    Heartbeat,
    Hello,
    Leased,
    Nudge,
    Progress,
    Released,
    Report,
    Started,
    Ticket,
    Verdict,
    open_reports,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE
from dane_core.states import TaskState
from dane_server.metrics import Metrics
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher
from dane_server.runner.pace import Pace
from dane_server.runner.ticket import Signer
from dane_server.storage.view import Rejected, Rejection, Zombie
from dane_server.storage.writer import Writer

logger = logging.getLogger(__name__)

#: What a parked message says of its fault, in characters.
_FAULT_LIMIT: Final = 500


class _Ticketed(Protocol):
    @property
    def ticket(self) -> Ticket: ...


R = TypeVar("R", bound=_Ticketed)


class Recorder:
    """Turns reports into rows. A report that comes twice changes nothing the second time."""

    def __init__(
        self,
        *,
        writer: Writer,
        exchange: Exchange,
        bell: LocalBell,
        signer: Signer,
        pace: Pace,
        dispatcher: Dispatcher,
        queue: str = RESPONSE_QUEUE,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._writer = writer
        self._exchange = exchange
        self._bell = bell
        self._signer = signer
        self._pace = pace
        self._dispatcher = dispatcher
        self._queue = queue

    async def run(self) -> None:
        """Consume the response queue until cancelled.

        A batch is acknowledged after its transaction; whatever ends this in between, the
        broker delivers it again.
        """
        await self._exchange.declare_queue(DEAD_QUEUE)
        await self._exchange.declare_queue(self._queue)
        await self._exchange.broadcast(Control(act="roll").seal())
        prefetch = 2 * self._pace.batch
        async with self._exchange.consume(self._queue, prefetch=prefetch) as responses:
            while True:
                batch = await responses.take(self._pace.batch)
                await self._take(await self._readable(batch))
                await responses.ack_through(batch[-1])

    async def take_reports(self, reports: Sequence[Report]) -> None:
        """Write down a batch of reports, and send what they were holding up.

        In this order, whatever the order of their arrival: an answer is worth more than
        everything else said of its attempt, and than the end of its worker.
        """
        said: dict[type[Any], list[Any]] = defaultdict(list)
        for report in reports:
            said[type(report)].append(report)
        said = await self._genuine(said)
        await self._note_workers(said[Hello], said[Goodbye])
        await self._note_progress(said)
        await self._record(said[Answer])
        await self._lose(said[Gone])
        await self._judge(said[Ask])
        if said[Nudge]:
            await self._bell.ring()

    # --- what cannot be taken -------------------------------------------------------------

    async def _take(self, batch: Sequence[tuple[Envelope, Report]]) -> None:
        """Write down a batch; what cannot be written down whatever one does is parked.

        Otherwise one such message, delivered again and again, would hold up all others.
        """
        try:
            await self.take_reports([report for _, report in batch])
        except Unreachable:
            raise
        except Exception as fault:
            if len(batch) == 1:
                logger.exception("cannot take a report")
                await self._park(batch[0][0], fault)
                return
            logger.warning("a batch of %d reports failed, taken one by one: %r", len(batch), fault)
            for one in batch:
                await self._take([one])

    async def _readable(self, batch: Sequence[Delivery]) -> list[tuple[Envelope, Report]]:
        reports: list[tuple[Envelope, Report]] = []
        for delivery in batch:
            for envelope, report in open_reports(delivery.envelope):
                if isinstance(report, BadMessage):
                    await self._park(envelope, report)
                else:
                    reports.append((envelope, report))
        return reports

    async def _park(self, envelope: Envelope, fault: Exception) -> None:
        """Keep what cannot be taken for a person; requeued it would come back for ever."""
        logger.warning("parked a message in %s: %s", DEAD_QUEUE, fault)
        what = f"{type(fault).__name__}: {fault}"[:_FAULT_LIMIT]
        parked = replace(envelope, headers={**envelope.headers, "fault": what, "from": self._queue})
        if await self._exchange.send(DEAD_QUEUE, [parked]) != [Fate.ROUTED]:
            raise ExchangeUnreachable(f"{DEAD_QUEUE} did not take a message")

    async def _genuine(self, said: dict[type[Any], list[Any]]) -> dict[type[Any], list[Any]]:
        """The reports without those whose ticket we have not signed, which are counted."""
        forged: list[Rejection] = []
        genuine = said.copy()
        for kind in (Started, Leased, Progress, Released, Answer, Ask):
            genuine[kind] = self._signed(said[kind], forged)
        genuine[Heartbeat] = [self._signed_beat(beat, forged) for beat in said[Heartbeat]]
        if forged:
            logger.warning(
                "dropped %d reports with a forged token, the first of task %s by worker %s",
                len(forged),
                forged[0].ticket.task_id,
                forged[0].worker,
            )
            self._metrics.rejected.labels("forged").inc(len(forged))
            await self._writer.count_forged(forged)
        return genuine

    def _signed(self, reports: Sequence[R], forged: list[Rejection]) -> list[R]:
        signed = []
        for report in reports:
            if self._signer.is_genuine(report.ticket):
                signed.append(report)
            else:
                forged.append(_forged(report.ticket, getattr(report, "worker", None)))
        return signed

    def _signed_beat(self, beat: Heartbeat, forged: list[Rejection]) -> Heartbeat:
        signed = tuple(ticket for ticket in beat.running if self._signer.is_genuine(ticket))
        if len(signed) == len(beat.running):
            return beat
        forged += [_forged(one, beat.worker) for one in beat.running if one not in signed]
        return replace(beat, running=signed)

    # --- attempts -------------------------------------------------------------------------

    async def _record(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        recorded = await self._writer.record(
            answers, window=self._pace.window, lease=self._pace.lease
        )
        self._dispatcher.hand_over(recorded.claims)
        if recorded.late:
            logger.info("did not record %s", _summary(recorded.late, recorded.reasons))
            for reason, number in recorded.reasons.items():
                self._metrics.rejected.labels(reason.value).inc(number)
        if recorded.settled:
            await self._bell.ring()  # successors, or a place in the window
        if TaskState.BACKOFF in recorded.settled.values():
            self._bell.expect()

    async def _note_progress(self, said: dict[type[Any], list[Any]]) -> None:
        kinds = (Started, Leased, Heartbeat, Progress, Released)
        if not any(said[kind] for kind in kinds):
            return
        zombies = await self._writer.note_reports(
            said[Started],
            said[Progress],
            said[Released],
            leased=said[Leased],
            heartbeats=said[Heartbeat],
            patience=self._pace.patience,
        )
        await self._stop(zombies)
        if said[Released]:
            self._bell.expect()
            await self._bell.ring()

    async def _stop(self, zombies: Sequence[Zombie]) -> None:
        """Tell workers to leave what is not theirs any more; they hear it at each heartbeat."""
        words: dict[str, list[Envelope]] = defaultdict(list)
        for zombie in zombies:
            ticket = zombie.ticket
            order = Control(act="cancel", task_id=ticket.task_id, attempt=ticket.attempt)
            words[zombie.inbox].append(order.seal())
        for inbox, orders in words.items():
            await self._exchange.send(inbox, orders)

    async def _lose(self, gone: Sequence[Gone]) -> None:
        if not gone:
            return
        lost = await self._writer.lose_workers(gone, limit=self._pace.starts)
        for one in gone:
            logger.warning("worker %s is gone: %s", one.worker, one.reason or "nobody knows why")
        if lost:
            await self._bell.ring()

    async def _judge(self, asks: Sequence[Ask]) -> None:
        if not asks:
            return
        objections = await self._writer.judge(
            asks, limit=self._pace.starts, patience=self._pace.patience
        )
        for ask, objection in zip(asks, objections, strict=True):
            verdict = Verdict(ticket=ask.ticket, run=not objection, reason=objection)
            await self._exchange.send(ask.reply_to, [verdict.seal()])
        if any(objections):
            await self._bell.ring()  # a task that failed may let others go

    # --- workers --------------------------------------------------------------------------

    async def _note_workers(self, hellos: Sequence[Hello], goodbyes: Sequence[Goodbye]) -> None:
        if hellos:
            paused = await self._writer.see_workers(hellos)
            await self._tell_pauses(hellos, paused)
        fresh = {offer.key for hello in hellos if hello.fresh for offer in hello.offers}
        if fresh:
            self._dispatcher.note_bound(fresh)
            await self._writer.route_again(sorted(fresh))
            await self._bell.ring()
        for goodbye in goodbyes:
            await self._writer.forget_worker(goodbye.worker)

    async def _tell_pauses(self, hellos: Sequence[Hello], paused: frozenset[str]) -> None:
        """A worker that has just come does not know which keys are paused."""
        for hello in hellos:
            words = [
                Control(act="pause", key=offer.key).seal()
                for offer in hello.offers
                if hello.fresh and offer.key in paused
            ]
            if words and Fate.ROUTED not in await self._exchange.send(hello.inbox, words):
                logger.info("worker %s left before it was told of pauses", hello.worker)


def _forged(ticket: Ticket, worker: str | None) -> Rejection:
    return Rejection(ticket=ticket, worker=worker, reason=Rejected.FORGED)


def _summary(late: Sequence[Answer], reasons: Mapping[Rejected, int]) -> str:
    """One line for a batch: "3 answers (2 stale, 1 settled), the first of task 7, attempt 1"."""
    counted = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    first = late[0].ticket
    return (
        f"{len(late)} late answers ({counted}), the first of task {first.task_id}, "
        f"attempt {first.attempt}"
    )
