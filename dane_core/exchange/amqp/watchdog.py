"""Finds consumers that hear nothing although there is something to hear.

Workers of other systems have sat connected and deaf until a person restarted them. From inside
such a consumer looks like an idle one; only its queue tells.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.subscription import AmqpSubscription
from dane_core.exchange.base import Depth

logger = logging.getLogger(__name__)

#: Checks in a row at which nothing had come although something waited.
_PATIENCE: Final = 2
#: A slow wire looks deaf too while a large message is on it, and each cure sends that again.
_MOST_PATIENCE: Final = 64


class _Ear(NamedTuple):
    """What was found out about one subscription."""

    heard: int  # deliveries until the latest check
    missed: int = 0  # checks in a row at which something waited, since the last cure
    cures: int = 0  # that did not help

    @property
    def is_deaf(self) -> bool:
        return self.missed >= min(_PATIENCE << self.cures, _MOST_PATIENCE)


class Watchdog:
    """Gives deaf subscriptions a new channel first, and a new connection when that is no help.

    `cures` counts how often.
    """

    def __init__(
        self,
        *,
        depth: Callable[[str], Awaitable[Depth | None]],
        reconnect: Callable[[], Awaitable[None]],
    ) -> None:
        self.cures = 0
        self._depth = depth
        self._reconnect = reconnect
        self._ears: dict[AmqpSubscription, _Ear] = {}

    async def check(self, subscriptions: Iterable[AmqpSubscription]) -> None:
        """Look at every subscription once."""
        known, self._ears = self._ears, {}
        for subscription in subscriptions:
            ear = await self._examine(subscription, known.get(subscription))
            self._ears[subscription] = await self._cure(subscription, ear) if ear.is_deaf else ear

    async def _examine(self, subscription: AmqpSubscription, before: _Ear | None) -> _Ear:
        if before is None or before.heard != subscription.heard:
            before = _Ear(subscription.heard)
        if not subscription.is_hungry:
            return before._replace(missed=0)
        try:
            depth = await self._depth(subscription.queue)
        except ExchangeUnreachable:
            return before._replace(missed=0)
        if subscription.heard != before.heard or depth is None or not depth.waiting:
            return _Ear(subscription.heard)
        return before._replace(missed=before.missed + 1)

    async def _cure(self, subscription: AmqpSubscription, ear: _Ear) -> _Ear:
        self.cures += 1
        if ear.cures % 2 == 0:
            logger.warning(
                "%s has messages, but none reaches us: consuming it anew", subscription.queue
            )
            subscription.lose()
        else:
            logger.warning(
                "%s has messages, and still none reaches us: connecting anew", subscription.queue
            )
            await self._reconnect()
        return _Ear(subscription.heard, cures=ear.cures + 1)
