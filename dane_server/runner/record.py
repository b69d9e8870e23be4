"""Writes down what workers say, in batches of whatever has arrived."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from dane_core.errors import BadMessage, ExchangeUnreachable, NotFound, Unreachable
from dane_core.exchange.base import Delivery, Exchange, Fate, Subscription
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
    Verdict,
    open_reports,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE
from dane_core.states import TaskState
from dane_server.metrics import Metrics
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher, Moment
from dane_server.runner.pace import Pace
from dane_server.runner.sift import Said, bounded, by_kind, sift
from dane_server.runner.ticket import Signer
from dane_server.storage.chunk import chunks
from dane_server.storage.view import Rejected, Twice, Zombie
from dane_server.storage.writer import Writer
from dane_server.supervise import Stopping

logger = logging.getLogger(__name__)

#: What a parked message says of its fault, in characters.
_FAULT_LIMIT: Final = 500
_UNRECORDABLE: Final = "its answer cannot be recorded"


class Recorder:
    """Turns reports into rows. A report that comes twice changes nothing the second time."""

    def __init__(  # noqa: PLR0913 - what it works with
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
        left_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._left_over = left_over
        self._writer = writer
        self._exchange = exchange
        self._bell = bell
        self._signer = signer
        self._pace = pace
        self._dispatcher = dispatcher
        self._queue = queue
        self._warned: set[str] = set()  # keys whose tasks were done twice

    async def run(self, stopping: Stopping | None = None) -> None:
        """Consume the response queue until told to stop.

        A batch is acknowledged after its transaction; whatever ends this in between, the
        broker delivers it again.
        """
        stopping = stopping or Stopping()
        await self._exchange.declare_queue(DEAD_QUEUE)
        await self._exchange.declare_queue(self._queue)
        await self._exchange.broadcast(Control(act="roll").seal())
        try:
            async with self._exchange.consume(self._queue, prefetch=self._pace.batch) as responses:
                await self._record_all(responses, stopping)
        except NotFound as gone:
            if gone.kind != "queue":
                raise
            # Removed since it was declared: it is made again by who begins again.
            raise ExchangeUnreachable(str(gone)) from None

    async def _record_all(self, responses: Subscription, stopping: Stopping) -> None:
        while True:
            async with stopping.idle():
                batch = await responses.take(self._pace.batch)
            for some in chunks(await self._readable(batch), self._pace.batch):
                await self._take(some)
            await responses.ack_through(batch[-1])

    async def take_reports(self, reports: Sequence[Report]) -> None:
        """Write down a batch of reports, and send what they were holding up.

        In this order, whatever the order of their arrival: an answer is worth more than
        everything else said of its attempt, and than the end of its worker.
        """
        said = await self._genuine(by_kind(reports))
        await self._note_workers(said[Hello], said[Goodbye])
        await self._note_progress(said)
        await self._record(said[Answer])
        await self._lose(said[Gone])
        await self._judge(said[Ask])
        if said[Nudge]:
            await self._bell.ring()

    # --- what cannot be taken -------------------------------------------------------------

    async def _take(
        self, batch: Sequence[tuple[Envelope, Report]], *, is_last_try: bool = False
    ) -> None:
        """Write down a batch; what cannot be written down whatever one does is parked.

        Otherwise one such message, delivered again and again, would hold up all others. Each is
        tried once more, alone: what was in the way may have passed.
        """
        try:
            await self.take_reports([report for _, report in batch])
        except Unreachable:
            raise
        except (OSError, MemoryError) as fault:  # for want of files or memory, here and now
            raise Unreachable(f"reports cannot be taken now: {fault!r}") from fault
        except Exception as fault:
            if is_last_try:
                logger.exception("cannot take a report")
                await self._give_up(*batch[0], fault)
                return
            logger.warning("a batch of %d reports failed, taken one by one: %r", len(batch), fault)
            for one in batch:
                await self._take([one], is_last_try=True)

    async def _give_up(self, envelope: Envelope, report: Report, fault: Exception) -> None:
        await self._park(envelope, fault)
        if isinstance(report, Answer) and not report.message.startswith(_UNRECORDABLE):
            # Nobody else will answer this task, and done again it would answer the same.
            why = f"{_UNRECORDABLE}: {_named(fault)}"
            failed = replace(report, state=500, message=why, response={})
            await self._take([(failed.seal(), failed)])

    async def _readable(self, batch: Sequence[Delivery]) -> list[tuple[Envelope, Report]]:
        reports: list[tuple[Envelope, Report]] = []
        for delivery in batch:
            for envelope, report in open_reports(delivery.envelope):
                if isinstance(report, BadMessage):
                    await self._park(envelope, report)
                else:
                    reports.append((envelope, bounded(report, len(envelope.body))))
        return reports

    async def _park(self, envelope: Envelope, fault: Exception) -> None:
        """Keep what cannot be taken for a person; requeued it would come back for ever."""
        logger.warning("parked a message in %s: %s", DEAD_QUEUE, fault)
        headers = {**envelope.headers, "fault": _named(fault), "from": self._queue}
        parked = replace(envelope, headers=headers)
        if await self._exchange.send(DEAD_QUEUE, [parked]) != [Fate.ROUTED]:
            raise ExchangeUnreachable(f"{DEAD_QUEUE} did not take a message")

    async def _genuine(self, said: Said) -> Said:
        """The reports without those whose ticket we have not signed, which are counted."""
        genuine, forged = sift(said, self._signer)
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

    # --- attempts -------------------------------------------------------------------------

    async def _record(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        began = Moment()
        recorded = await self._writer.record(
            answers, window=self._dispatcher.window, lease=self._pace.lease
        )
        self._dispatcher.note_settled(recorded.settled)
        self._dispatcher.hand_over(recorded.claims, began)
        await self._dispatcher.see_off()
        if recorded.late:
            logger.info("did not record %s", _summary(recorded.late, recorded.reasons))
            for reason, number in recorded.reasons.items():
                self._metrics.rejected.labels(reason.value).inc(number)
            self._warn_of_twins(recorded.twice)
        if recorded.walks:
            self._left_over()
        if recorded.settled and recorded.more:
            await self._bell.ring()  # successors, or a place in the window
        if TaskState.BACKOFF in recorded.settled.values():
            self._bell.expect()

    def _warn_of_twins(self, twice: Sequence[Twice]) -> None:
        """Say once of each key what costs its workers double from now on."""
        for task_id, key, first, second in twice:
            if key not in self._warned:
                self._warned.add(key)
                logger.warning(
                    "task %s of %s was done twice, by %s and by %s: it was delivered again, or "
                    "two queues are bound to its key",
                    *(task_id, key, first, second),
                )

    async def _note_progress(self, said: Said) -> None:
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
        await self._tell(
            (
                zombie.inbox,
                Control(
                    act="cancel",
                    task_id=zombie.ticket.task_id,
                    attempt=zombie.ticket.attempt,
                    grace=self._pace.cancel_grace.total_seconds(),
                ),
            )
            for zombie in zombies
        )

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
        await self._tell(
            (ask.reply_to, Verdict(ticket=ask.ticket, run=not objection, reason=objection))
            for ask, objection in zip(asks, objections, strict=True)
        )
        if any(objections):
            await self._bell.ring()  # a task that failed may let others go

    # --- workers --------------------------------------------------------------------------

    async def _note_workers(self, hellos: Sequence[Hello], goodbyes: Sequence[Goodbye]) -> None:
        if hellos:
            paused = await self._writer.see_workers(hellos)
            await self._welcome(hellos, paused)
        fresh = {offer.key for hello in hellos if hello.fresh for offer in hello.offers}
        if fresh:
            self._dispatcher.note_bound(fresh)
            await self._bell.ring()
        for goodbye in goodbyes:
            await self._writer.forget_worker(goodbye.worker)

    async def _welcome(self, hellos: Sequence[Hello], paused: frozenset[str]) -> None:
        """Who has just come does not know which keys are paused, nor what time it is here."""
        words = [
            (hello.inbox, Control(act="pause", key=offer.key))
            for hello in hellos
            for offer in hello.offers
            if hello.fresh and offer.key in paused
        ]
        words += [
            (hello.inbox, Control(act="welcome", worker=hello.worker, listening=hello.listening))
            for hello in hellos
            if hello.listening
        ]
        await self._tell(words)

    async def _tell(self, words: Iterable[tuple[str, Control | Verdict]]) -> None:
        """Say something to workers, in one go: a silent broker may hold up others only once.

        Nothing is repeated. Who does not hear a verdict hands the task back, who is not
        welcomed says hello again, and who is not stopped is told so at its next heartbeat.
        """
        sealed = [(inbox, word.seal()) for inbox, word in words]
        if not sealed:
            return
        if self._exchange.blocked:
            logger.info("%d words to workers are not sent: the broker is blocked", len(sealed))
            return
        fates = await self._exchange.send_each(sealed)
        if unheard := len(fates) - fates.count(Fate.ROUTED):
            logger.info("%d of %d words to workers found nobody", unheard, len(sealed))


def _named(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}"[:_FAULT_LIMIT]


def _summary(late: Sequence[Answer], reasons: Mapping[Rejected, int]) -> str:
    """One line for a batch: "3 answers (2 stale, 1 settled), the first of task 7, attempt 1"."""
    counted = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    first = late[0].ticket
    return (
        f"{len(late)} late answers ({counted}), the first of task {first.task_id}, "
        f"attempt {first.attempt}"
    )
