"""Words in which the tests of exchanges say what they do and see."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict
from uuid import uuid4

from dane_core.exchange.base import Delivery, Exchange, Fate, Subscription
from dane_core.message import Envelope

#: Seconds after which something that should happen has not, on a machine with much else to do.
PATIENCE = 30.0


@dataclass(frozen=True)
class Both:
    """One exchange as two processes see it; in memory there is only one."""

    here: Exchange
    there: Exchange


class Names(TypedDict):
    """What `connect` calls its exchanges."""

    task_exchange: str
    control_exchange: str


def letter(text: str = "", *, priority: int = 0) -> Envelope:
    return Envelope(type="task", body=text.encode(), priority=priority)


def addressed(key: str, texts: Iterable[str]) -> list[tuple[str, Envelope]]:
    return [(key, letter(text)) for text in texts]


def texts(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.envelope.body.decode() for delivery in deliveries]


def routed(count: int) -> list[Fate]:
    return [Fate.ROUTED] * count


def unknown(count: int) -> list[Fate]:
    return [Fate.UNKNOWN] * count


def exchange_names() -> Names:
    """Names of exchanges that no other test uses."""
    name = uuid4().hex[:12]
    return Names(task_exchange=f"tasks-{name}", control_exchange=f"control-{name}")


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Exactly so many deliveries, however they arrive."""
    taken: list[Delivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            taken += await subscription.take(count - len(taken))
    return taken


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until this holds; RabbitMQ does not answer acks, so their effect is looked for."""
    async with asyncio.timeout(PATIENCE):
        while not await check():  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.01)
