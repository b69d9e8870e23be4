"""What a worker says to the server: everything goes out here, in whatever number has come."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import INLINE_LIMIT, Envelope, Report, bundle

logger = logging.getLogger(__name__)

#: Envelopes that wait for their confirmation together, at most.
_WINDOW: Final = 200
#: Reports in one message at most; together they are no larger than one may be.
_BUNDLE: Final = 50
#: Between two tries to deliver, in seconds: the first pause, and the longest.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 15.0


class Outbox:
    """One sender for all attempts: one message when idle, many at once under load."""

    def __init__(self, exchange: Exchange, queue: str) -> None:
        self._exchange = exchange
        self._queue = queue
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
        pause = _FIRST_PAUSE
        while (fate := await self.post(report)) is not Fate.ROUTED:
            logger.warning(
                "%s is %s; again in %.1f s", type(report).__name__, fate.name.lower(), pause
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

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
