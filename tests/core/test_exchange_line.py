"""All ways in which a broker fails to answer are told as one."""

import asyncio

import pytest
from aio_pika.exceptions import ChannelInvalidStateError

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.line import answer_within


class GivenUp(Exception):
    """Some other library's word for something else."""


@pytest.mark.parametrize(
    "loss",
    [
        Exception,  # aiormq says no more than this on a connection that is given up
        ConnectionResetError("cut"),
        ChannelInvalidStateError("closed"),
        asyncio.CancelledError(),  # that nobody asked for
    ],
)
async def test_a_loss_is_a_broker_that_cannot_be_reached(loss: BaseException) -> None:
    """Whoever restores what is lost must survive each of them."""
    with pytest.raises(ExchangeUnreachable):
        async with answer_within(5):
            raise loss


async def test_a_fault_that_is_no_loss_is_left_as_it_is() -> None:
    with pytest.raises(GivenUp):
        async with answer_within(5):
            raise GivenUp


async def test_silence_is_a_loss_too() -> None:
    with pytest.raises(ExchangeUnreachable, match="did not answer in"):
        async with answer_within(0.01):
            await asyncio.Event().wait()
