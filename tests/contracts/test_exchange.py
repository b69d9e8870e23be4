"""What every exchange does, over memory and RabbitMQ alike."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from dane_core.errors import ExchangeUnreachable, NotFound
from dane_core.exchange.base import Depth, Exchange, Fate
from dane_core.message import Envelope
from tests.contracts.steps import (
    PATIENCE,
    Both,
    addressed,
    eventually,
    letter,
    routed,
    take,
    texts,
)

# --- routing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("binding", "reached", "missed"),
    [
        ("video.OCR", ["video.OCR"], ["image.OCR", "video.ASR", "video", "video.OCR.x"]),
        ("*.OCR", ["video.OCR", "image.OCR"], ["OCR", "a.b.OCR", "video.ASR"]),
        ("#.OCR", ["OCR", "video.OCR", "a.b.OCR"], ["OCR.video", "video.OCRX", "video.ocr"]),
        ("video.#", ["video", "video.OCR", "video.a.b"], ["videos.OCR", "image.video"]),
        ("#", ["", "x", "a.b.c"], []),
        ("a.*.c.#", ["a.b.c", "a.b.c.d.e"], ["a.c", "a.b.b.c"]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "a.b.c"]),
    ],
)
async def test_a_topic_binding_lets_through_what_amqp_says(
    exchange: Exchange, queue: str, binding: str, reached: list[str], missed: list[str]
) -> None:
    await exchange.declare_queue(queue, [binding])

    fates = await exchange.publish([(key, letter(key)) for key in reached + missed])

    assert fates == routed(len(reached)) + [Fate.UNROUTABLE] * len(missed)
    async with exchange.consume(queue, prefetch=20) as subscription:
        assert texts(await take(subscription, len(reached))) == reached


async def test_two_bindings_that_match_bring_one_copy(exchange: Exchange, queue: str) -> None:
    """A worker for several types must not get a task once per type."""
    await exchange.declare_queue(queue, ["video.OCR", "#.OCR"])

    await exchange.publish([("video.OCR", letter())])

    assert await exchange.depth(queue) == Depth(waiting=1, consumers=0)


async def test_every_queue_that_matches_gets_a_copy(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue, ["#.OCR"])
    await exchange.declare_queue(queue + "-2", ["video.*"])

    fates = await exchange.publish([("video.OCR", letter())])

    assert fates == routed(1)
    assert await exchange.depth(queue) == await exchange.depth(queue + "-2") == Depth(1, 0)


async def test_declaring_again_adds_bindings(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue, ["video.OCR"])
    await exchange.publish([("video.OCR", letter("kept"))])

    await exchange.declare_queue(queue, ["image.OCR"])

    keys = ["video.OCR", "image.OCR", "sound.OCR"]
    fates = await exchange.publish([(key, letter()) for key in keys])
    assert fates == [Fate.ROUTED, Fate.ROUTED, Fate.UNROUTABLE]
    assert await exchange.depth(queue) == Depth(waiting=3, consumers=0)


async def test_a_queue_can_be_sent_to_by_its_name(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)

    assert await exchange.send(queue, [letter("1"), letter("2")]) == routed(2)
    assert await exchange.send(queue + "-absent", [letter()]) == [Fate.UNROUTABLE]

    async with exchange.consume(queue, prefetch=5) as subscription:
        assert texts(await take(subscription, 2)) == ["1", "2"]


async def test_several_queues_can_be_sent_to_in_one_go(exchange: Exchange, queue: str) -> None:
    """Hundreds of inboxes one by one would take as many silences of the broker."""
    other = f"{queue}-2"
    await exchange.declare_queue(queue)
    await exchange.declare_queue(other)

    fates = await exchange.send_each(
        [(queue, letter("1")), (f"{queue}-absent", letter()), (other, letter("2"))]
    )

    assert fates == [Fate.ROUTED, Fate.UNROUTABLE, Fate.ROUTED]
    async with exchange.consume(other, prefetch=5) as subscription:
        assert texts(await take(subscription, 1)) == ["2"]


# --- fates --------------------------------------------------------------------------------------


async def test_every_message_has_its_own_fate_also_hundreds_in_flight(
    exchange: Exchange, queue: str
) -> None:
    """Returns and confirms are different frames; mixed up, a task waits for no one."""
    await exchange.declare_queue(queue, ["*.OCR"])
    keys = [f"video.{'OCR' if number % 3 else 'NOBODY'}" for number in range(500)]

    fates = await exchange.publish([(key, letter()) for key in keys])

    expected = [Fate.ROUTED if key == "video.OCR" else Fate.UNROUTABLE for key in keys]
    assert fates == expected
    assert await exchange.depth(queue) == Depth(expected.count(Fate.ROUTED), 0)


async def test_publishers_at_once_learn_their_own_fates(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])

    async with asyncio.TaskGroup() as group:
        lost = [group.create_task(exchange.publish([("a.NO", letter())] * 50)) for _ in range(4)]
        sent = [group.create_task(exchange.publish([("a.OCR", letter())] * 50)) for _ in range(4)]

    assert all(task.result() == [Fate.UNROUTABLE] * 50 for task in lost)
    assert all(task.result() == routed(50) for task in sent)


async def test_the_same_envelope_can_be_sent_again(exchange: Exchange, queue: str) -> None:
    """A ticket is sent again when its fate was unknown."""
    await exchange.declare_queue(queue, ["*.OCR"])
    envelope = letter("again")

    assert await exchange.publish([("a.OCR", envelope), ("a.OCR", envelope)]) == routed(2)
    assert await exchange.publish([("a.NO", envelope), ("a.OCR", envelope)]) == [
        Fate.UNROUTABLE,
        Fate.ROUTED,
    ]

    assert await exchange.depth(queue) == Depth(waiting=3, consumers=0)


async def test_nothing_to_send_is_fine(exchange: Exchange, queue: str) -> None:
    assert await exchange.publish([]) == []
    assert await exchange.send(queue, []) == []


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(
            type="task",
            body='{"v": 1, "name": "Ж🙂"}'.encode(),
            correlation_id="9223372036854775807",
            reply_to="dane.responses",
            priority=7,
            headers={"attempt": 3, "dispatch": 2**40, "token": "f" * 64, "negative": -5},
        ),
        Envelope(type="nudge", body=b""),
        Envelope(type="answer", body=bytes(range(256)) * 8192),  # two MiB, in many frames
    ],
    ids=["full", "empty", "large"],
)
async def test_an_envelope_arrives_as_it_was_sent(
    exchange: Exchange, queue: str, envelope: Envelope
) -> None:
    await exchange.declare_queue(queue)

    await exchange.send(queue, [envelope])

    async with exchange.consume(queue, prefetch=1) as subscription:
        [delivery] = await take(subscription, 1)
        assert delivery.envelope == envelope


# --- order --------------------------------------------------------------------------------------


async def test_higher_priorities_come_first_then_older_ones(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    order = [("a", 1), ("b", 10), ("c", 0), ("d", 1), ("e", 10), ("f", 5)]
    await exchange.send(queue, [letter(text, priority=priority) for text, priority in order])

    async with exchange.consume(queue, prefetch=10) as subscription:
        assert "".join(texts(await take(subscription, 6))) == "befadc"


async def test_a_priority_over_ten_is_ten(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("ten", priority=10), letter("more", priority=200)])

    async with exchange.consume(queue, prefetch=10) as subscription:
        assert texts(await take(subscription, 2)) == ["ten", "more"]


async def test_a_message_that_goes_back_keeps_its_place(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("1"), letter("2"), letter("3")])

    async with exchange.consume(queue, prefetch=1) as subscription:
        [first] = await take(subscription, 1)
        await subscription.nack(first)
        [again] = await take(subscription, 1)
        await subscription.ack(again)
        [second] = await take(subscription, 1)

    assert texts([first, again, second]) == ["1", "1", "2"]
    assert [each.redelivered for each in (first, again, second)] == [False, True, False]
    assert [each.tag for each in (first, again, second)] == [1, 2, 3]


# --- consuming ----------------------------------------------------------------------------------


async def test_a_consumer_that_settles_its_last_message_is_given_no_other(
    exchange: Exchange, queue: str
) -> None:
    """Whoever works on for an hour without its message must not hold the next one meanwhile."""
    await exchange.declare_queue(queue, ["#"])
    await exchange.publish(addressed("x", "ab"))
    async with exchange.consume(queue, prefetch=1) as subscription:
        [held] = await take(subscription, 1)
        await subscription.ack_last(held)
    async with exchange.consume(queue, prefetch=2) as other:
        [next_one] = await take(other, 1)

        assert texts([held, next_one]) == ["a", "b"]
        assert not next_one.redelivered
        assert await exchange.depth(queue) == Depth(waiting=0, consumers=1)


async def test_messages_wait_for_a_consumer(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    async with exchange.consume(queue, prefetch=1):
        pass
    await exchange.send(queue, [letter("patient")])

    async with exchange.consume(queue, prefetch=1) as subscription:
        assert texts(await take(subscription, 1)) == ["patient"]


async def test_a_consumer_waits_for_messages(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    async with exchange.consume(queue, prefetch=1) as subscription:
        taking = asyncio.create_task(take(subscription, 1))
        await exchange.send(queue, [letter("late")])

        assert texts(await taking) == ["late"]


async def test_a_consumer_holds_no_more_than_its_prefetch(exchange: Exchange, queue: str) -> None:
    """Whoever hoards keeps tasks from workers that are idle."""
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter(str(number)) for number in range(5)])

    async with exchange.consume(queue, prefetch=2) as subscription:
        held = await take(subscription, 2)
        assert await exchange.depth(queue) == Depth(waiting=3, consumers=1)
        await subscription.ack(held[0])
        [third] = await take(subscription, 1)

        assert texts([third]) == ["2"]
        assert await exchange.depth(queue) == Depth(waiting=2, consumers=1)


async def test_a_prefetch_below_one_is_refused(exchange: Exchange, queue: str) -> None:
    """To RabbitMQ, zero would mean: everything."""
    await exchange.declare_queue(queue)

    with pytest.raises(ValueError, match="prefetch 0"):
        async with exchange.consume(queue, prefetch=0):
            pass


async def test_take_returns_what_is_there_up_to_its_limit(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter(str(number)) for number in range(5)])

    async with exchange.consume(queue, prefetch=5) as subscription:
        first = await subscription.take(2)
        rest = await take(subscription, 5 - len(first))

    assert 1 <= len(first) <= 2
    assert texts([*first, *rest]) == list("01234")


async def test_a_take_that_is_cancelled_loses_nothing(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    async with exchange.consume(queue, prefetch=5) as subscription:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await subscription.take(1)
        await exchange.send(queue, [letter("safe")])

        assert texts(await take(subscription, 1)) == ["safe"]


async def test_consumers_take_turns(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    async with AsyncExitStack() as stack:
        subscriptions = [
            await stack.enter_async_context(exchange.consume(queue, prefetch=10)) for _ in range(3)
        ]
        await exchange.send(queue, [letter(str(number)) for number in range(9)])

        shares = [texts(await take(subscription, 3)) for subscription in subscriptions]

    assert sorted(map(sorted, shares)) == [["0", "3", "6"], ["1", "4", "7"], ["2", "5", "8"]]


async def test_a_consumer_without_room_is_passed_over(exchange: Exchange, queue: str) -> None:
    """One worker with a long task must not hold up the others."""
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("long")])
    async with exchange.consume(queue, prefetch=1) as busy:
        await take(busy, 1)
        async with exchange.consume(queue, prefetch=1) as idle:
            for number in range(3):
                await exchange.send(queue, [letter(str(number))])
                [delivery] = await take(idle, 1)
                await idle.ack(delivery)
                assert texts([delivery]) == [str(number)]


async def test_an_absent_queue_cannot_be_consumed(exchange: Exchange, queue: str) -> None:
    watching = exchange.reconnections()
    with pytest.raises(NotFound, match=queue):
        async with exchange.consume(queue, prefetch=1):
            pass

    told = asyncio.ensure_future(anext(watching))
    await exchange.declare_queue(queue)
    assert not told.done()
    told.cancel()


# --- settling -----------------------------------------------------------------------------------


async def test_an_acked_message_is_gone(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter()])
    async with exchange.consume(queue, prefetch=1) as subscription:
        [delivery] = await take(subscription, 1)
        await subscription.ack(delivery)

    assert await exchange.depth(queue) == Depth(waiting=0, consumers=0)


async def test_acking_through_settles_what_came_before_and_nothing_after(
    exchange: Exchange, queue: str
) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter(str(number)) for number in range(6)])
    async with exchange.consume(queue, prefetch=6) as subscription:
        held = await take(subscription, 6)
        await subscription.nack(held[0])
        [back] = await take(subscription, 1)
        await subscription.ack(held[2])

        await subscription.ack_through(held[3])

    assert texts([back]) == ["0"]
    async with exchange.consume(queue, prefetch=6) as subscription:
        assert texts(await take(subscription, 3)) == ["0", "4", "5"]


async def test_settling_twice_does_nothing(exchange: Exchange, queue: str) -> None:
    """To RabbitMQ it is an error that costs the channel and all it holds."""
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("1"), letter("2")])
    async with exchange.consume(queue, prefetch=2) as subscription:
        first, second = await take(subscription, 2)
        await subscription.ack(first)
        await subscription.ack(first)
        await subscription.nack(first)
        await subscription.ack_through(first)

        await exchange.send(queue, [letter("3")])
        [third] = await take(subscription, 1)
        assert (third.tag, third.redelivered) == (3, False)
        await subscription.ack_through(third)
        await subscription.ack_through(second)

    assert await exchange.depth(queue) == Depth(waiting=0, consumers=0)


async def test_what_a_leaving_consumer_holds_goes_back_in_order(
    exchange: Exchange, queue: str
) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter(str(number)) for number in range(5)])
    async with exchange.consume(queue, prefetch=3) as subscription:
        await subscription.take(1)  # what has arrived but was not taken goes back too

    async with exchange.consume(queue, prefetch=5) as subscription:
        again = await take(subscription, 5)
    assert texts(again) == ["0", "1", "2", "3", "4"]
    assert [each.redelivered for each in again] == [True, True, True, False, False]


async def test_another_consumer_gets_what_a_dead_one_held(both: Both, queue: str) -> None:
    exchange: Exchange = both.here
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter("orphan")])
    taken = asyncio.Event()

    async def die() -> None:
        async with both.there.consume(queue, prefetch=1) as subscription:
            await take(subscription, 1)
            taken.set()
            await asyncio.Event().wait()

    dying = asyncio.create_task(die())
    async with asyncio.timeout(PATIENCE):
        await taken.wait()
    async with exchange.consume(queue, prefetch=1) as subscription:
        dying.cancel()
        [delivery] = await take(subscription, 1)

    assert (texts([delivery]), delivery.redelivered) == (["orphan"], True)
    await asyncio.wait([dying])


async def test_settling_after_leaving_does_nothing(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    await exchange.send(queue, [letter()])
    async with exchange.consume(queue, prefetch=1) as subscription:
        [delivery] = await take(subscription, 1)

    await subscription.ack(delivery)

    assert await exchange.depth(queue) == Depth(waiting=1, consumers=0)


async def test_nothing_can_be_taken_after_leaving(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue)
    async with exchange.consume(queue, prefetch=1) as subscription:
        waiting = asyncio.create_task(subscription.take(1))
        await asyncio.sleep(0)

    with pytest.raises(ExchangeUnreachable):
        await waiting
    with pytest.raises(ExchangeUnreachable):
        await subscription.take(1)


# --- depth and deletion -------------------------------------------------------------------------


async def test_depth_counts_what_waits_and_who_consumes(exchange: Exchange, queue: str) -> None:
    assert await exchange.depth(queue) is None
    await exchange.declare_queue(queue)
    assert await exchange.depth(queue) == Depth(waiting=0, consumers=0)
    await exchange.send(queue, [letter(), letter(), letter()])

    async with exchange.consume(queue, prefetch=1), exchange.consume(queue, prefetch=1):
        assert await exchange.depth(queue) == Depth(waiting=1, consumers=2)
    assert await exchange.depth(queue) == Depth(waiting=3, consumers=0)


async def test_a_deleted_queue_is_gone_with_what_was_in_it(exchange: Exchange, queue: str) -> None:
    await exchange.declare_queue(queue, ["*.OCR"])
    await exchange.publish([("video.OCR", letter())])

    await exchange.delete_queue(queue)

    assert await exchange.depth(queue) is None
    assert await exchange.publish([("video.OCR", letter())]) == [Fate.UNROUTABLE]
    await exchange.delete_queue(queue)  # absent is fine


async def test_a_deleted_queue_that_is_consumed_is_made_again(both: Both, queue: str) -> None:
    """An operator deletes a queue live: its workers must not sit there deaf."""
    here: Exchange = both.here
    await here.declare_queue(queue, ["*.OCR"])
    await here.publish(addressed("video.OCR", ["held", "lost"]))
    restored = here.reconnections()
    async with here.consume(queue, prefetch=1) as subscription:
        [held] = await take(subscription, 1)

        await both.there.delete_queue(queue)
        async with asyncio.timeout(PATIENCE):
            await anext(restored)

        assert await here.publish([("video.OCR", letter("new"))]) == routed(1)
        [new] = await take(subscription, 1)
        assert (texts([new]), new.redelivered) == (["new"], False)
        await subscription.ack(held)  # of a queue that is no more
        await subscription.nack(held)
        assert new.tag > held.tag
        await subscription.ack(new)
        assert await here.depth(queue) == Depth(waiting=0, consumers=1)


# --- control ------------------------------------------------------------------------------------


async def test_a_broadcast_reaches_all_who_listen_now(both: Both, queue: str) -> None:
    here: Exchange = both.here
    await here.declare_queue(queue, ["#"])
    await here.broadcast(letter("too early"))

    async with here.listen(f"{queue}-1") as one, both.there.listen(f"{queue}-2") as two:
        await both.there.broadcast(letter("now"))

        assert texts(await take(one, 1)) == texts(await take(two, 1)) == ["now"]
    await here.broadcast(letter("too late"))
    assert await here.depth(queue) == Depth(waiting=0, consumers=0)


async def test_an_inbox_gets_what_is_sent_to_it_alone(both: Both, queue: str) -> None:
    """The server answers one worker's question."""
    async with both.here.listen(f"{queue}-1") as one, both.here.listen(f"{queue}-2") as two:
        assert await both.there.send(f"{queue}-1", [letter("verdict")]) == routed(1)
        await both.there.broadcast(letter("all"))

        mine = await take(one, 2)
        assert texts(mine) == ["verdict", "all"]
        assert texts(await take(two, 1)) == ["all"]
        await one.ack_through(mine[-1])


async def test_an_inbox_is_gone_with_its_listener(both: Both, queue: str) -> None:
    async with both.here.listen(queue) as inbox:
        await both.there.send(queue, [letter("unread")])
        await take(inbox, 1)

    assert await both.there.depth(queue) is None
    assert await both.there.send(queue, [letter()]) == [Fate.UNROUTABLE]
    async with both.here.listen(queue) as inbox:
        await both.here.broadcast(letter("fresh"))
        assert texts(await take(inbox, 1)) == ["fresh"]


async def test_a_listener_keeps_hearing_while_it_settles(exchange: Exchange, queue: str) -> None:
    async with exchange.listen(queue) as inbox:
        for number in range(250):
            await exchange.broadcast(letter(str(number)))
            [delivery] = await take(inbox, 1)
            await inbox.ack(delivery)

            assert texts([delivery]) == [str(number)]


async def test_an_exchange_in_use_is_connected(both: Both) -> None:
    async def ready() -> bool:
        return bool(both.here.connected and both.there.connected)

    await eventually(ready)
