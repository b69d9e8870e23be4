"""Notices that the broker is not the one that tasks were sent to, and sends them again.

A broker that was wiped, or put back from its definitions, looks like any other. So the one in
use keeps a marker: a durable queue, named after the epoch, with one message that nobody takes.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import Control, Envelope
from dane_core.routing import epoch_queue
from dane_server.storage.sweeps import Epoch, Sweeps

logger = logging.getLogger(__name__)


class Marker:
    """The mark on the broker, which all servers on one store look at."""

    def __init__(
        self,
        *,
        sweeps: Sweeps,
        exchange: Exchange,
        claimed: timedelta,
        given: timedelta,
        new_name: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._sweeps = sweeps
        self._exchange = exchange
        self._claimed = claimed
        self._given = given
        self._new_name = new_name
        self._mine: set[str] = set()  # names whose queues were made here
        self._proposal: str | None = None

    async def look(self, epoch: Epoch | None) -> bool:
        """See whether the mark of the epoch is there; whether anything was sent again.

        Raises: ExchangeUnreachable: a broker that does not answer is no evidence of anything.
        """
        await self._drop_outdated(epoch)
        if epoch is None or not await self._is_marked(epoch):
            begun = await self._begin(epoch)
            if begun is None:
                return False  # another server was quicker; at the next look all is well
            epoch = begun
        return await self._put_right(epoch)

    async def _is_marked(self, epoch: Epoch) -> bool:
        depth = await self._exchange.depth(epoch_queue(epoch.name))
        return depth is not None and depth.waiting == 1

    async def _begin(self, before: Epoch | None) -> Epoch | None:
        """Mark this broker first, agree in the store second: nobody knows of half a mark."""
        self._proposal = self._proposal or self._new_name()
        await self._mark(self._proposal)
        begun = await self._sweeps.begin_epoch(self._proposal, after=before)
        self._proposal = None
        if begun is not None and before is not None:
            logger.warning("the broker has lost what was sent to it: sending it again")
            self._mine.add(before.name)  # it may be there still, but wrong
        await self._drop_outdated(begun)
        return begun

    async def _mark(self, name: str) -> None:
        queue = epoch_queue(name)
        self._mine.add(name)
        await self._exchange.declare_queue(queue)
        depth = await self._exchange.depth(queue)
        if depth is not None and depth.waiting == 1:
            return  # an earlier try got this far
        mark = Envelope(type="epoch", body=b"{}")
        if list(await self._exchange.send(queue, [mark])) != [Fate.ROUTED]:
            raise ExchangeUnreachable(f"{queue} did not take its mark")

    async def _put_right(self, epoch: Epoch) -> bool:
        if epoch.began is None:
            return False
        # What went to this one before it was looked at is there twice soon: to be asked about.
        for key in await self._sweeps.keys_to_send():
            await self._exchange.broadcast(Control(act="recall", key=key).seal())
        sent = await self._sweeps.put_right(epoch, claimed=self._claimed, given=self._given)
        logger.warning("%s tasks that were on the lost broker are sent again", sent)
        return sent > 0

    async def _drop_outdated(self, epoch: Epoch | None) -> None:
        """Of the queues made here only that of the epoch is to be kept, and made again."""
        current = {self._proposal, epoch.name if epoch else None}
        for name in sorted(self._mine - current):
            await self._exchange.delete_queue(epoch_queue(name))
            self._mine.discard(name)
