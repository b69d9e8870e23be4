"""A RabbitMQ that is restarted, killed, wiped or out of memory under its users."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from urllib.parse import urlsplit

import aiormq
import pytest

from dane_core.exchange.amqp import AmqpExchange, connect
from dane_core.exchange.base import Depth, Fate
from tests.contracts.steps import (
    PATIENCE,
    Names,
    eventually,
    exchange_names,
    letter,
    routed,
    take,
    texts,
)
from tests.services.proxy import proxy_to
from tests.services.rabbitmq import Broker

pytestmark = pytest.mark.services

COMING_BACK = 4 * PATIENCE
#: In one go: each command takes the better part of a second.
_ANOTHER_PASSWORD = """
    ok = rabbit_auth_backend_internal:change_password(<<"dane">>, <<"another">>, <<"a test">>),
    rabbit_networking:close_all_connections("the password was changed").
"""
_ANOTHER_HOST = """
    ok = rabbit_vhost:delete(<<"dane-test">>, <<"a test">>),
    ok = rabbit_vhost:add(<<"dane-test">>, <<"a test">>),
    rabbit_auth_backend_internal:set_permissions(
        <<"dane">>, <<"dane-test">>, <<".*">>, <<".*">>, <<".*">>, <<"a test">>).
"""


@pytest.fixture
def names() -> Names:
    return exchange_names()


@pytest.fixture
async def exchange(broker: Broker, names: Names) -> AsyncIterator[AmqpExchange]:
    async with connect(broker.url, patience=timedelta(seconds=2), **names) as exchange:
        yield exchange


async def _while_away(exchange: AmqpExchange, act: Callable[[], object]) -> None:
    """Do something to the broker, and wait until the exchange has told that all is back."""
    back = exchange.reconnections()
    await asyncio.to_thread(act)
    async with asyncio.timeout(COMING_BACK):
        await anext(back)


async def test_a_restart_loses_nothing_and_everything_is_back(
    exchange: AmqpExchange, broker: Broker, queue: str
) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])
    messages = [("video.OCR", letter(str(number), priority=number)) for number in range(8)]
    assert await exchange.publish(messages) == routed(8)
    async with exchange.consume(queue, prefetch=2) as subscription:
        held = await take(subscription, 2)

        await _while_away(exchange, broker.restart)

        again = await take(subscription, 2)
        assert texts(again) == texts(held) == ["7", "6"]
        await subscription.ack_through(again[-1])
        assert texts(await take(subscription, 2)) == ["5", "4"]
        assert await exchange.depth(queue) == Depth(waiting=4, consumers=1)
        async with exchange.listen(f"{queue}-inbox") as inbox:
            await exchange.broadcast(letter("heard"))
            assert texts(await take(inbox, 1)) == ["heard"]


async def test_no_confirmed_message_is_lost_when_the_broker_is_killed(
    exchange: AmqpExchange, broker: Broker, queue: str
) -> None:
    """Under load, with many in flight: what is called routed must be there afterwards."""
    await exchange.declare_queue(queue)
    # A queue younger than the last flush of the broker's own database is lost with all in it.
    await asyncio.to_thread(broker.control, "eval", "catch mnesia:sync_log().")
    fates: dict[str, Fate] = {}
    enough, back = asyncio.Event(), asyncio.Event()

    async def publish(publisher: int) -> None:
        for batch in range(100_000):
            if back.is_set():
                return
            names = [f"{publisher}-{batch}-{number}" for number in range(20)]
            told = await exchange.send(queue, [letter(name) for name in names])
            fates.update(zip(names, told, strict=True))
            if len(fates) > 1000:
                enough.set()
            if Fate.UNKNOWN in told:
                await asyncio.sleep(0.1)  # as a publisher does that looks again later

    async with asyncio.TaskGroup() as group:
        for publisher in range(4):
            group.create_task(publish(publisher))
        await enough.wait()
        await _while_away(exchange, lambda: _kill_and_start(broker))
        back.set()

    confirmed = {name for name, fate in fates.items() if fate is Fate.ROUTED}
    there: set[str] = set()
    async with exchange.consume(queue, prefetch=500) as subscription:
        async with asyncio.timeout(PATIENCE):
            while not confirmed <= there:
                taken = await subscription.take(500)
                there.update(texts(taken))
                await subscription.ack_through(taken[-1])
    assert Fate.UNROUTABLE not in fates.values()


async def test_a_wiped_broker_is_furnished_again(
    exchange: AmqpExchange, broker: Broker, queue: str
) -> None:
    """No exchanges, queues or bindings: the store has the tasks, and these carry them again."""
    await exchange.declare_queue(queue, ["*.OCR"])
    await exchange.declare_queue(f"{queue}-idle", ["video.*"])
    await exchange.publish([("video.OCR", letter("gone"))])
    async with (
        exchange.consume(queue, prefetch=1) as subscription,
        exchange.listen(f"{queue}-inbox") as inbox,
    ):
        await take(subscription, 1)

        await _while_away(exchange, broker.wipe)

        assert await exchange.publish([("video.OCR", letter("new"))]) == routed(1)
        assert await exchange.depth(f"{queue}-idle") == Depth(waiting=1, consumers=0)
        [delivery] = await take(subscription, 1)
        assert (texts([delivery]), delivery.redelivered) == (["new"], False)
        await exchange.broadcast(letter("heard"))
        assert texts(await take(inbox, 1)) == ["heard"]


async def test_one_queue_that_came_back_different_does_not_hold_up_the_others(
    broker: Broker, names: Names, queue: str
) -> None:
    """After a wipe somebody else was faster with one name: that one key waits for a person."""
    async with (
        proxy_to(broker.url) as proxy,
        connect(proxy.url, **names) as exchange,
    ):
        await exchange.declare_queue(f"{queue}-1", ["*.ONE"])
        await exchange.declare_queue(f"{queue}-2", ["*.TWO"])
        async with exchange.consume(f"{queue}-2", prefetch=1) as subscription:
            back = exchange.reconnections()
            proxy.refuse()
            await asyncio.to_thread(broker.wipe)
            async with aiormq.connect(broker.url) as other:
                await (await other.channel()).queue_declare(f"{queue}-1", durable=True)
            proxy.mend()
            async with asyncio.timeout(COMING_BACK):
                await anext(back)

            assert await exchange.publish([("a.TWO", letter("works"))]) == routed(1)
            assert texts(await take(subscription, 1)) == ["works"]


async def test_results_are_consumed_while_publishing_is_blocked(
    exchange: AmqpExchange, broker: Broker, names: Names, queue: str
) -> None:
    """A broker short of memory blocks who publishes; only consuming can relieve it."""
    await exchange.declare_queue(queue)
    assert await exchange.send(queue, [letter(str(number)) for number in range(5)]) == routed(5)
    async with exchange.consume(queue, prefetch=1) as subscription:
        await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "0.00001")
        try:
            assert exchange.blocked == ""  # a broker tells only who publishes
            async with connect(broker.url, check_every=timedelta(seconds=0.1), **names) as quiet:
                await eventually(lambda: _is_blocked(quiet))  # so whoever is idle asks
            assert await exchange.send(queue, [letter("blocked")]) == [Fate.UNKNOWN]
            assert exchange.blocked == "low on memory"
            assert exchange.connected
            for number in range(5):
                [delivery] = await take(subscription, 1)
                await subscription.ack(delivery)
                assert texts([delivery]) == [str(number)]
            assert await exchange.depth(queue) == Depth(waiting=0, consumers=1)
        finally:
            await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "0.6")

        [late] = await take(subscription, 1)  # unknown it was, and now it has arrived
        assert texts([late]) == ["blocked"]
        assert exchange.blocked == ""
        assert await exchange.send(queue, [letter("free")]) == routed(1)


async def test_a_full_queue_refuses_and_takes_again(
    exchange: AmqpExchange, broker: Broker, queue: str
) -> None:
    """Refused is not unknown: it has not arrived, and the next message may be taken."""
    await exchange.declare_queue(queue, ["*.FULL"])
    await exchange.declare_queue(f"{queue}-free", ["*.FREE"])
    limit = '{"max-length": 2, "overflow": "reject-publish"}'
    await asyncio.to_thread(
        broker.control, "set_policy", "-p", "dane-test", "full", f"^{queue}$", limit
    )

    fates = await exchange.publish(
        [(f"x.{key}", letter(key)) for key in ("FULL", "FULL", "FULL", "FREE", "NOBODY")]
    )

    assert fates == [*routed(2), Fate.REFUSED, Fate.ROUTED, Fate.UNROUTABLE]
    async with exchange.consume(queue, prefetch=1) as subscription:
        await subscription.ack((await take(subscription, 1))[0])
        assert await exchange.publish([("x.FULL", letter("again"))]) == routed(1)


async def test_a_password_that_no_longer_works_is_told_and_works_again_once_it_does(
    exchange: AmqpExchange, broker: Broker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    password = urlsplit(broker.url).password or ""
    await exchange.declare_queue(queue)

    async def refused() -> bool:
        return "ACCESS_REFUSED" in caplog.text

    async with exchange.consume(queue, prefetch=1) as subscription:
        back = exchange.reconnections()
        await asyncio.to_thread(broker.control, "eval", _ANOTHER_PASSWORD)
        await eventually(refused)
        assert not exchange.connected
        assert await exchange.send(queue, [letter()]) == [Fate.UNKNOWN]

        await asyncio.to_thread(broker.control, "change_password", "dane", password)
        async with asyncio.timeout(COMING_BACK):
            await anext(back)

        assert await exchange.send(queue, [letter("heard")]) == routed(1)
        assert texts(await take(subscription, 1)) == ["heard"]
    assert "the password was changed" in caplog.text
    assert caplog.text.count("connected to RabbitMQ again") == 2
    assert password not in caplog.text


async def test_rights_that_were_taken_away_are_told_and_missed_until_they_are_back(
    exchange: AmqpExchange, broker: Broker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection stays: only what is not allowed any more fails, and whoever asks is told."""
    await exchange.declare_queue(queue)
    await asyncio.to_thread(broker.control, "clear_permissions", "-p", "dane-test", "dane")
    assert await exchange.send(queue, [letter()]) == [Fate.UNKNOWN]
    assert "ACCESS_REFUSED - access to exchange" in caplog.text
    assert "ACCESS_REFUSED - access to exchange" in exchange.blocked

    rights = ("set_permissions", "-p", "dane-test", "dane", ".*", ".*", ".*")
    await asyncio.to_thread(broker.control, *rights)

    async def is_allowed() -> bool:
        return not exchange.blocked

    await eventually(is_allowed)
    assert await exchange.send(queue, [letter()]) == routed(1)


async def test_a_virtual_host_that_was_deleted_and_put_back_is_furnished_again(
    exchange: AmqpExchange, broker: Broker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])
    async with exchange.consume(queue, prefetch=1) as subscription:
        await _while_away(exchange, lambda: broker.control("eval", _ANOTHER_HOST))

        assert await exchange.publish([("video.OCR", letter("new"))]) == routed(1)
        assert texts(await take(subscription, 1)) == ["new"]
    assert "vhost 'dane-test' is deleted" in caplog.text


async def test_consuming_goes_on_after_the_broker_has_lost_its_patience(
    exchange: AmqpExchange, broker: Broker, queue: str
) -> None:
    """RabbitMQ closes the channel of whoever keeps a delivery too long, with all it holds."""
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("long")])
    await asyncio.to_thread(_set, broker, consumer_timeout=1000, channel_tick_interval=200)
    try:
        async with exchange.consume(queue, prefetch=1) as subscription:
            [first] = await take(subscription, 1)
            [again] = await take(subscription, 1)
            await subscription.ack(first)
            await subscription.ack(again)

            assert (first.redelivered, again.redelivered) == (False, True)
            await exchange.send(queue, [letter("next")])
            assert texts(await take(subscription, 1)) == ["next"]
    finally:
        await asyncio.to_thread(
            _set, broker, consumer_timeout=1_800_000, channel_tick_interval=60_000
        )


async def _is_blocked(exchange: AmqpExchange) -> bool:
    return exchange.blocked == "low on memory"


def _kill_and_start(broker: Broker) -> None:
    broker.kill()
    broker.start()


def _set(broker: Broker, **settings: int) -> None:
    """Change settings that channels read when they are opened; times in milliseconds."""
    for name, value in settings.items():
        broker.control("eval", f"application:set_env(rabbit, {name}, {value}).")
