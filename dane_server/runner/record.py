"""Writes down what workers say, in batches of whatever has arrived."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from dane_core.errors import BadMessage, ExchangeUnreachable
from dane_core.exchange.base import Delivery, Exchange, Fate
from dane_core.message import (
    Answer,
    Ask,
    Control,
    Envelope,
    Goodbye,
    Hello,
    Nudge,
    Progress,
    Released,
    Report,
    Started,
    Verdict,
    BUNDLE,
    open_bundle,
    open_report,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher
from dane_server.runner.pace import Pace
from dane_server.runner.ticket import Signer
from dane_server.storage.writer import Writer

logger = logging.getLogger(__name__)
R = TypeVar("R")


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
    ) -> None:
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
                await self.take_reports(await self._readable(batch))
                await responses.ack_through(batch[-1])

    async def take_reports(self, reports: Sequence[Report]) -> None:
        """Write down a batch of reports, and send what they were holding up."""
        said: dict[type[Any], list[Any]] = defaultdict(list)
        for report in reports:
            said[type(report)].append(report)
        await self._note_workers(said[Hello], said[Goodbye])
        await self._note_progress(
            self._genuine(said[Started]),
            self._genuine(said[Progress]),
            self._genuine(said[Released]),
        )
        await self._record(self._genuine(said[Answer]))
        await self._judge(self._genuine(said[Ask]))
        if said[Nudge]:
            await self._bell.ring()

    async def _readable(self, batch: Sequence[Delivery]) -> list[Report]:
        reports: list[Report] = []
        for delivery in batch:
            try:
                if delivery.envelope.type == BUNDLE:
                    for envelope, report in open_bundle(delivery.envelope):
                        if isinstance(report, BadMessage):
                            await self._park(envelope, report)
                        else:
                            reports.append(report)
                else:
                    reports.append(open_report(delivery.envelope))
            except BadMessage as fault:
                await self._park(delivery.envelope, fault)
        return reports

    async def _park(self, envelope: Envelope, fault: BadMessage) -> None:
        """Keep what cannot be read for a person; requeued it would come back for ever."""
        logger.warning("parked a message in %s: %s", DEAD_QUEUE, fault)
        if await self._exchange.send(DEAD_QUEUE, [envelope]) != [Fate.ROUTED]:
            raise ExchangeUnreachable(f"{DEAD_QUEUE} did not take a message")

    def _genuine(self, reports: Sequence[R]) -> list[R]:
        """Those whose ticket we have signed."""
        genuine = []
        for report in reports:
            ticket = report.ticket  # type: ignore[attr-defined]
            if self._signer.is_genuine(ticket):
                genuine.append(report)
            else:
                logger.warning(
                    "task %s: dropped a %s with a forged token",
                    ticket.task_id,
                    type(report).__name__.lower(),
                )
        return genuine

    async def _record(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        recorded = await self._writer.record(
            answers, window=self._pace.window, lease=self._pace.lease
        )
        self._dispatcher.hand_over(recorded.claims)
        for answer in recorded.late:
            logger.info(
                "task %s: ignored a late answer (%s) of attempt %s",
                answer.ticket.task_id,
                answer.state,
                answer.ticket.attempt,
            )
        if recorded.settled:
            await self._bell.ring()  # successors, or a place in the window

    async def _note_progress(
        self,
        started: Sequence[Started],
        progress: Sequence[Progress],
        released: Sequence[Released],
    ) -> None:
        if started or progress or released:
            await self._writer.note_reports(started, progress, released)
        if released:
            await self._bell.ring()

    async def _judge(self, asks: Sequence[Ask]) -> None:
        if not asks:
            return
        for ask, objection in zip(asks, await self._writer.judge(asks), strict=True):
            verdict = Verdict(ticket=ask.ticket, run=not objection, reason=objection)
            await self._exchange.send(ask.reply_to, [verdict.seal()])

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
