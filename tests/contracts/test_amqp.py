"""What is RabbitMQ's alone: how things look on the broker, and lost connections."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, cast
from urllib.parse import urlsplit

import aiormq
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.common import FieldTable

from dane_core.errors import ExchangeUnreachable, QueueMismatch
from dane_core.exchange.amqp import AmqpExchange, connect
from dane_core.exchange.amqp.subscription import AmqpSubscription
from dane_core.exchange.base import Depth, Fate, Subscription
from dane_core.message import Envelope
from tests.contracts.steps import (
    PATIENCE,
    Names,
    addressed,
    eventually,
    exchange_names,
    letter,
    routed,
    take,
    texts,
    unknown,
)
from tests.services.process import free_port
from tests.services.proxy import Proxy, proxy_to

pytestmark = pytest.mark.services

SOON = timedelta(seconds=0.5)
NEVER = timedelta(days=1)
OFTEN = timedelta(seconds=0.1)
ARGUMENTS: Final[FieldTable] = {"x-queue-type": "classic", "x-max-priority": 10}


@pytest.fixture
def names() -> Names:
    return exchange_names()


@pytest.fixture
async def raw(amqp_url: str) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    """A channel to see and do on the broker what the exchange does not."""
    async with aiormq.connect(amqp_url) as connection:
        yield await connection.channel()


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(amqp_url) as proxy:
        yield proxy


@pytest.fixture
async def exchange(proxy: Proxy, names: Names) -> AsyncIterator[AmqpExchange]:
    """An exchange whose wire can be cut, impatient, and never looking without a reason."""
    async with connect(proxy.url, patience=SOON, check_every=NEVER, **names) as exchange:
        yield exchange


@asynccontextmanager
async def restored(exchange: AmqpExchange) -> AsyncIterator[None]:
    """Leave the block once the exchange has told that everything is there again."""
    telling = exchange.reconnections()
    yield
    async with asyncio.timeout(3 * PATIENCE):
        await anext(telling)


# --- on the broker ------------------------------------------------------------------------------


async def test_a_queue_has_exactly_the_arguments_that_never_change(
    exchange: AmqpExchange, raw: aiormq.Channel, queue: str
) -> None:
    """Other versions of DANE declare it too: any other argument would be refused for ever."""
    await exchange.declare_queue(queue)

    await raw.queue_declare(queue, durable=True, arguments=ARGUMENTS)
    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
        await raw.queue_declare(queue, durable=True, arguments={**ARGUMENTS, "x-expires": 9**9})


async def test_a_message_is_persistent_dated_and_has_an_id_of_its_own(
    exchange: AmqpExchange, raw: aiormq.Channel, queue: str
) -> None:
    """The library matches returned messages by this id: one used twice swaps two fates."""
    await exchange.declare_queue(queue)
    envelope = Envelope(
        type="answer", body=b"{}", correlation_id="7", reply_to="r", headers={"token": "t"}
    )

    await exchange.send(queue, [envelope, envelope])

    found = [(await _get(raw, queue)).header.properties for _ in range(2)]
    assert [each.delivery_mode for each in found] == [2, 2]
    assert found[0].message_id != found[1].message_id
    age = datetime.now(UTC) - (found[0].timestamp or datetime.min.replace(tzinfo=UTC))
    assert abs(age) < timedelta(minutes=1)
    assert found[0].content_type == "application/json"
    assert (found[0].message_type, found[0].correlation_id, found[0].reply_to) == (
        "answer",
        "7",
        "r",
    )


async def test_a_foreign_message_without_properties_is_delivered(
    exchange: AmqpExchange, raw: aiormq.Channel, queue: str
) -> None:
    """Its reader will refuse it; it must not get stuck here."""
    await exchange.declare_queue(queue)
    await raw.basic_publish(b"\xff\xfe", routing_key=queue)

    async with exchange.consume(queue, prefetch=1) as subscription:
        [delivery] = await take(subscription, 1)

    assert delivery.envelope == Envelope(type="", body=b"\xff\xfe")


async def test_a_queue_with_other_arguments_is_named_and_harms_no_other(
    exchange: AmqpExchange, raw: aiormq.Channel, queue: str
) -> None:
    await exchange.declare_queue(queue)
    await raw.queue_declare(f"{queue}-old", durable=True)
    async with exchange.consume(queue, prefetch=1) as subscription:
        publishing = exchange.publish(addressed("a.B", ["x"]))
        with pytest.raises(QueueMismatch, match=f"{queue}-old.*x-max-priority"):
            await exchange.declare_queue(f"{queue}-old")

        assert await publishing == [Fate.UNROUTABLE]
        await exchange.send(queue, [letter("fine")])
        assert texts(await take(subscription, 1)) == ["fine"]


async def test_an_exchange_of_another_type_is_named(
    amqp_url: str, raw: aiormq.Channel, names: Names
) -> None:
    await raw.exchange_declare(names["task_exchange"], exchange_type="direct", durable=True)

    with pytest.raises(QueueMismatch, match=f"exchange '{names['task_exchange']}'"):
        async with connect(amqp_url, **names):
            pass


# --- the first connection -----------------------------------------------------------------------


async def test_an_absent_broker_is_told_without_the_password() -> None:
    url = f"amqp://me:secret@127.0.0.1:{free_port()}/v"

    with pytest.raises(ExchangeUnreachable, match=re.escape("me:***@127.0.0.1")) as told:
        async with connect(url):
            pass

    assert "secret" not in str(told.value)


async def test_a_wrong_password_is_told(amqp_url: str) -> None:
    address = urlsplit(amqp_url)
    url = f"amqp://{address.username}:wrong@{address.hostname}:{address.port}{address.path}"

    with pytest.raises(ExchangeUnreachable, match="ACCESS_REFUSED"):
        async with connect(url):
            pass


async def test_an_unknown_virtual_host_is_told(amqp_url: str) -> None:
    url = urlsplit(amqp_url)._replace(path="/nowhere").geturl()

    with pytest.raises(ExchangeUnreachable, match="vhost nowhere not found"):
        async with connect(url):
            pass


async def test_a_broker_that_says_nothing_is_given_up(proxy: Proxy) -> None:
    """To connect takes three answers, one after the other, so it may take thrice the patience."""
    proxy.silence()

    with pytest.raises(ExchangeUnreachable, match=r"did not answer in 1\.5 s"):
        async with connect(proxy.url, patience=SOON):
            pass


# --- a connection lost --------------------------------------------------------------------------


async def test_after_a_cut_everything_is_there_again(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])
    await exchange.publish(addressed("video.OCR", ["held"]))
    async with (
        exchange.consume(queue, prefetch=5) as subscription,
        exchange.listen(f"{queue}-inbox") as inbox,
    ):
        [held] = await take(subscription, 1)
        async with restored(exchange):
            proxy.cut()

        [again] = await take(subscription, 1)
        assert (texts([again]), again.redelivered) == (["held"], True)
        assert again.tag > held.tag
        await subscription.ack(held)  # in other hands by now: settles nothing
        await subscription.nack(held)
        await subscription.ack_through(held)
        assert await exchange.publish(addressed("video.OCR", ["new"])) == routed(1)
        [new] = await take(subscription, 1)
        await subscription.ack_through(new)
        await exchange.broadcast(letter("all ears"))
        assert texts(await take(inbox, 1)) == ["all ears"]
    assert await exchange.depth(queue) == Depth(waiting=0, consumers=0)


async def test_what_arrived_before_a_cut_is_not_taken_after_it(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    """It is redelivered; taken as it lay here too, it would run twice."""
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter(str(number)) for number in range(5)])
    async with exchange.consume(queue, prefetch=5) as subscription:
        await take(subscription, 1)
        async with restored(exchange):
            proxy.cut()

        again = await take(subscription, 5)
        assert texts(again) == list("01234")
        assert all(each.redelivered for each in again)


async def test_messages_in_flight_when_the_wire_is_cut_are_unknown(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    """aiormq cancels those who wait: the publisher must not vanish with them."""
    await exchange.declare_queue(queue)
    proxy.silence()
    publishing = asyncio.create_task(exchange.send(queue, [letter()] * 150))
    await asyncio.sleep(0.1)  # until they are on the wire, which nobody tells

    proxy.cut()

    assert await publishing == unknown(150)


async def test_a_silent_broker_makes_fates_unknown_after_one_patience(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    """Three windows, but who has no answer on the first does not wait for the others."""
    await exchange.declare_queue(queue)
    proxy.silence()
    begun = asyncio.get_running_loop().time()

    fates = await exchange.send(queue, [letter()] * 600)

    assert fates == unknown(600)
    assert asyncio.get_running_loop().time() - begun < 3 * SOON.total_seconds()
    proxy.mend()
    assert await exchange.send(queue, [letter()]) == routed(1)


async def test_without_a_connection_every_verb_says_so(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    await exchange.declare_queue(queue)
    async with restored(exchange):
        proxy.refuse()
        await eventually(lambda: _is(not exchange.connected))

        assert await exchange.publish(addressed("a.B", "12")) == unknown(2)
        assert await exchange.send(queue, [letter()]) == unknown(1)
        with pytest.raises(ExchangeUnreachable):
            await exchange.broadcast(letter())
        with pytest.raises(ExchangeUnreachable):
            await exchange.declare_queue(queue)
        with pytest.raises(ExchangeUnreachable):
            await exchange.depth(queue)
        with pytest.raises(ExchangeUnreachable):
            await exchange.delete_queue(queue)
        with pytest.raises(ExchangeUnreachable):
            async with exchange.consume(queue, prefetch=1):
                pass
        with pytest.raises(ExchangeUnreachable):
            async with exchange.listen(f"{queue}-inbox"):
                pass
        proxy.mend()

    assert exchange.connected


async def test_a_silent_connection_is_found_out_and_replaced(
    proxy: Proxy, names: Names, queue: str
) -> None:
    """No reset comes from a pulled cable: only the heartbeat tells.

    The library then cancels those who wait for an answer, although nobody cancelled them.
    """
    patience = timedelta(seconds=PATIENCE)
    async with connect(f"{proxy.url}?heartbeat=1", patience=patience, **names) as exchange:
        await exchange.declare_queue(queue)
        async with exchange.consume(queue, prefetch=1) as subscription:
            async with restored(exchange):
                proxy.silence()
                fates, depth = await asyncio.gather(
                    asyncio.create_task(exchange.send(queue, [letter("late")])),
                    asyncio.create_task(exchange.depth(queue)),
                    return_exceptions=True,
                )
                assert fates == unknown(1)
                assert isinstance(depth, ExchangeUnreachable)
                proxy.mend()

            assert await exchange.send(queue, [letter("new")]) == routed(1)
            [delivery] = await take(subscription, 1)
            if texts([delivery]) == ["late"]:  # unknown: it may have arrived, or not
                await subscription.ack(delivery)
                [delivery] = await take(subscription, 1)
            assert texts([delivery]) == ["new"]


async def test_leaving_while_the_wire_is_cut_is_quiet(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    await exchange.declare_queue(queue)
    async with (
        exchange.consume(queue, prefetch=1) as subscription,
        exchange.listen(f"{queue}-inbox"),
    ):
        await exchange.send(queue, [letter()])
        [delivery] = await take(subscription, 1)
        proxy.refuse()
        await eventually(lambda: _is(not exchange.connected))
        await subscription.ack(delivery)


async def test_a_cancelled_publisher_is_cancelled(
    exchange: AmqpExchange, proxy: Proxy, queue: str
) -> None:
    """Telling the library's cancellations from real ones must not swallow the real ones."""
    await exchange.declare_queue(queue)
    proxy.silence()
    publishing = asyncio.create_task(exchange.send(queue, [letter()]))
    await asyncio.sleep(0)

    publishing.cancel()

    await asyncio.wait([publishing])
    assert publishing.cancelled()
    proxy.mend()


async def test_a_cancellation_is_heeded_wherever_it_arrives(
    exchange: AmqpExchange, queue: str
) -> None:
    """The library replaces one that meets a closing channel by the news of that closing.

    A worker that was told to stop at that moment would go on for ever.
    """
    await exchange.declare_queue(queue)

    async def work_for_ever() -> None:
        while True:
            async with exchange.consume(queue, prefetch=1) as subscription:
                await exchange.send(queue, [letter()])
                await subscription.ack((await subscription.take(1))[0])
                await exchange.depth(f"{queue}-absent")

    for turns in range(400):
        working = asyncio.create_task(work_for_ever())
        for _ in range(turns):
            await asyncio.sleep(0)
        working.cancel()

        await asyncio.wait([working], timeout=PATIENCE)
        assert working.cancelled()


# --- lost on the broker -------------------------------------------------------------------------


async def test_a_deleted_exchange_is_made_again_with_its_bindings(
    exchange: AmqpExchange, raw: aiormq.Channel, names: Names, queue: str
) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])
    async with restored(exchange):
        await raw.exchange_delete(names["task_exchange"])
        assert await exchange.publish(addressed("video.OCR", "12")) == unknown(2)

    assert await exchange.publish(addressed("video.OCR", "3")) == routed(1)
    assert await exchange.depth(queue) == Depth(waiting=1, consumers=0)


async def test_a_consumer_the_broker_has_forgotten_is_found_by_the_check(
    amqp_url: str, names: Names, queue: str
) -> None:
    """Workers of other systems sat connected and deaf until somebody restarted them."""
    async with connect(amqp_url, check_every=SOON, **names) as exchange:
        await exchange.declare_queue(queue)
        async with exchange.consume(queue, prefetch=1) as subscription:
            async with restored(exchange):
                await _forget_consumers(exchange)

            await exchange.send(queue, [letter("heard")])
            assert texts(await take(subscription, 1)) == ["heard"]


async def test_a_consumer_with_its_hands_full_is_not_taken_for_a_lost_one(
    amqp_url: str, names: Names, queue: str
) -> None:
    often = timedelta(seconds=0.05)
    async with connect(amqp_url, check_every=often, **names) as exchange:
        await exchange.declare_queue(queue)
        await exchange.send(queue, [letter("1"), letter("2")])
        async with exchange.consume(queue, prefetch=1) as subscription:
            [first] = await take(subscription, 1)
            for _ in range(20):  # checks go on meanwhile, over the same connection
                assert await exchange.depth(queue) == Depth(waiting=1, consumers=1)
                await asyncio.sleep(0.02)
            await subscription.ack(first)

            [second] = await take(subscription, 1)
            assert (second.tag, second.redelivered) == (2, False)


async def test_a_consumer_that_hears_nothing_gets_a_new_channel(
    amqp_url: str, names: Names, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker has forgotten it, and another one hides that from whoever counts consumers."""
    async with (
        connect(amqp_url, **names) as elsewhere,
        connect(amqp_url, check_every=OFTEN, **names) as exchange,
    ):
        await exchange.declare_queue(queue)
        async with (
            elsewhere.consume(queue, prefetch=1) as other,
            exchange.consume(queue, prefetch=1) as subscription,
        ):
            await _forget_consumers(exchange)
            await exchange.send(queue, [letter("1"), letter("2")])
            await take(other, 1)

            assert texts(await take(subscription, 1)) == ["2"]
            assert exchange.cures == 1
            assert f"{queue} has messages, but none reaches us" in caplog.text


async def test_a_consumer_that_a_new_channel_does_not_help_gets_a_new_connection(
    amqp_url: str, names: Names, queue: str
) -> None:
    async with connect(amqp_url, check_every=OFTEN, **names) as exchange:
        await exchange.declare_queue(queue)
        async with (
            exchange.consume(queue, prefetch=1) as subscription,
            exchange.consume(queue, prefetch=1) as lucky,
        ):
            _stop_ear(exchange, subscription)
            await exchange.send(queue, [letter(text) for text in "123"])
            [held] = await take(lucky, 1)
            async with restored(exchange):
                [delivery] = await take(subscription, 1)

            assert exchange.cures == 2
            assert delivery.redelivered
            await lucky.ack(held)  # of the connection that was given up: settles nothing
            assert len(await take(lucky, 1)) == 1


async def test_a_consumer_that_rests_or_is_full_is_not_taken_for_a_deaf_one(
    amqp_url: str, names: Names, queue: str
) -> None:
    async with connect(amqp_url, check_every=OFTEN, **names) as exchange:
        await exchange.declare_queue(queue)
        async with (
            exchange.consume(queue, prefetch=1) as full,
            exchange.consume(queue, prefetch=1) as retired,
        ):
            await exchange.send(queue, [letter(text) for text in "1234"])
            await take(full, 1)
            [last] = await take(retired, 1)
            await retired.ack_last(last)
            for _ in range(20):  # checks go on meanwhile, over the same connection
                depth = await exchange.depth(queue)
                assert depth is not None
                assert depth.waiting == 2
                await asyncio.sleep(OFTEN.total_seconds() / 2)

            assert exchange.cures == 0


async def test_a_queue_of_nobodys_making_is_consumed_again_once_it_is_back(
    exchange: AmqpExchange, raw: aiormq.Channel, queue: str
) -> None:
    """Declared by another process: only that one knows its bindings."""
    await raw.queue_declare(queue, durable=True, arguments=ARGUMENTS)
    async with exchange.consume(queue, prefetch=1) as subscription:
        async with restored(exchange):
            await raw.queue_delete(queue)
            await raw.queue_declare(queue, durable=True, arguments=ARGUMENTS)

        await exchange.send(queue, [letter("back")])
        assert texts(await take(subscription, 1)) == ["back"]


def _stop_ear(exchange: AmqpExchange, subscription: Subscription) -> None:
    """Have all deliveries over the present connection get lost on their way to a subscription."""
    line = exchange._consuming
    heard, deaf = cast("AmqpSubscription", subscription), line._connection.transport
    receive = heard._receive

    async def receive_over_others(message: DeliveredMessage) -> None:
        if line._connection.transport is not deaf:
            await receive(message)

    heard._receive = receive_over_others  # type: ignore[method-assign]
    assert heard._channel is not None
    [tag] = heard._channel.consumers
    heard._channel.consumers[tag] = receive_over_others


async def _forget_consumers(exchange: AmqpExchange) -> None:
    """Cancel every consumer behind the back of its subscription."""
    for subscription in exchange._subscriptions:
        channel = subscription._channel
        assert channel is not None
        for tag in [*channel.consumers]:
            await channel.basic_cancel(tag)


async def _get(raw: aiormq.Channel, queue: str) -> DeliveredMessage:
    message = await raw.basic_get(queue, no_ack=True)
    assert isinstance(message, DeliveredMessage)
    return message


async def _is(fact: bool) -> bool:  # noqa: FBT001 - a predicate in passing
    return fact
