"""What a worker says to the server: everything goes out here, in whatever number has come."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import INLINE_LIMIT, Answer, Envelope, Report, Ticket, bundle
from dane_core.worker.spool import Spool

logger = logging.getLogger(__name__)

#: Envelopes that wait for their confirmation together, at most.
_WINDOW: Final = 200
#: Reports in one message at most; together they are no larger than one may be.
_BUNDLE: Final = 50
#: Between two tries to deliver, in seconds: the first pause, and the longest.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 15.0
#: Between two looks whether an alarm of the broker is over, in seconds. No event tells it.
_ALARM_LOOK: Final = 0.5
#: An answer that took this many seconds of work is on disk before it is sent.
_COSTLY: Final = 1.0


class Outbox:
    """One sender for all attempts: one message when idle, many at once under load.

    With a `spool`, answers that cost something, or that nobody takes, outlive this process.
    """

    def __init__(self, exchange: Exchange, queue: str, spool: Spool | None = None) -> None:
        self._exchange = exchange
        self._queue = queue
        self._spool = spool
        self._waiting: list[tuple[Envelope, asyncio.Future[Fate]]] = []
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Send what is posted, until cancelled."""
        while True:
            await self._news.wait()
            batch, self._waiting = self._waiting[:_WINDOW], self._waiting[_WINDOW:]
            if not self._waiting:
                self._news.clear()
            fates = await self._send([envelope for envelope, _ in batch])
            for (_, future), fate in zip(batch, fates, strict=True):
                if not future.done():
                    future.set_result(fate)

    async def post(self, report: Report) -> Fate:
        """Say something once. Losing it costs nothing but news."""
        fate: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        self._waiting.append((report.seal(), fate))
        self._news.set()
        return await fate

    async def deliver(self, report: Report) -> None:
        """Say something until the exchange has confirmed it, however long that takes."""
        kept = isinstance(report, Answer) and _is_costly(report) and await self._keep(report)
        pause = _FIRST_PAUSE
        while (fate := await self._try(report)) is not Fate.ROUTED:
            if isinstance(report, Answer) and not kept:
                kept = await self._keep(report)
            logger.warning(
                "%s is %s; again in %.1f s", type(report).__name__, fate.name.lower(), pause
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            while self._exchange.blocked:  # noqa: ASYNC110  nothing tells when that ends
                await asyncio.sleep(_ALARM_LOOK)
        if kept and isinstance(report, Answer) and self._spool is not None:
            await self._spool.drop(report.ticket)

    async def deliver_kept(self, ticket: Ticket) -> bool:
        """Deliver the answer to a ticket that a worker wrote down before it died, if one did."""
        answer = await self._spool.find(ticket) if self._spool is not None else None
        if answer is None or self._spool is None:
            return False
        logger.info("task %s was done already: its answer is sent", ticket.task_id)
        await self.deliver(answer)
        await self._spool.forget(ticket)
        return True

    async def deliver_left(self) -> None:
        """Deliver what dead workers on this disk left, now and later, until cancelled."""
        if self._spool is None:
            await asyncio.Event().wait()
        else:
            await self._spool.run(self._send_left)

    async def _send_left(self, answer: Answer) -> bool:
        return await self._try(answer) is Fate.ROUTED

    async def _try(self, report: Report) -> Fate:
        # What is said to a blocked broker waits on the wire, and would be said twice.
        return Fate.UNKNOWN if self._exchange.blocked else await self.post(report)

    async def _keep(self, answer: Answer) -> bool:
        return self._spool is not None and await self._spool.keep(answer)

    async def _send(self, envelopes: list[Envelope]) -> list[Fate]:
        groups = list(_bundles(envelopes))
        sent = [group[0] if len(group) == 1 else bundle(group) for group in groups]
        try:
            fates = await self._exchange.send(self._queue, sent)
        except ExchangeUnreachable:
            return [Fate.UNKNOWN] * len(envelopes)
        return [fate for group, fate in zip(groups, fates, strict=True) for _ in group]


def _bundles(envelopes: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
    """Cut into what goes as one message, in order."""
    start = size = 0
    for place, envelope in enumerate(envelopes):
        length = len(envelope.body)
        if place > start and (place - start == _BUNDLE or size + length > INLINE_LIMIT):
            yield envelopes[start:place]
            start, size = place, 0
        size += length
    if envelopes:
        yield envelopes[start:]


def _is_costly(answer: Answer) -> bool:
    return (answer.runtime or 0.0) >= _COSTLY
