"""Both exchanges: every contract test runs over the one in memory and over RabbitMQ."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from tests.contracts.steps import PATIENCE, Both, exchange_names


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.services)])
def amqp_or_none(request: pytest.FixtureRequest) -> str | None:
    """The address of a RabbitMQ, or none for the exchange in memory."""
    return request.getfixturevalue("amqp_url") if request.param == "amqp" else None


@pytest.fixture
async def both(amqp_or_none: str | None) -> AsyncIterator[Both]:
    if amqp_or_none is None:
        exchange = MemoryExchange()
        yield Both(exchange, exchange)
        return
    names, patience = exchange_names(), timedelta(seconds=PATIENCE)
    async with (
        connect(amqp_or_none, patience=patience, **names) as here,
        connect(amqp_or_none, patience=patience, **names) as there,
    ):
        yield Both(here, there)


@pytest.fixture
def exchange(both: Both) -> Exchange:
    return both.here


@pytest.fixture
def queue() -> str:
    """A queue that no other test uses."""
    return f"dane.TEST-{uuid4().hex[:12].upper()}"
