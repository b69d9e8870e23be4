"""A writer that gathers what one turn of the loop says."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dane_core.exchange.amqp.gathering import GatheringWriter


class Wire(asyncio.Transport):
    """Notes what it is given, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed:
            raise RuntimeError("the handler is closed")  # as uvloop's transports do
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def writer(wire: Wire) -> AsyncIterator[GatheringWriter]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    writer = GatheringWriter(wire, protocol, reader, asyncio.get_running_loop())
    yield writer
    writer.close()


async def test_what_is_said_in_one_turn_is_written_once(
    writer: GatheringWriter, wire: Wire
) -> None:
    writer.write(b"a")
    writer.writelines([b"b", b"c"])
    assert wire.pieces == []
    await asyncio.sleep(0)

    writer.write(b"d")
    await asyncio.sleep(0)

    assert wire.pieces == [b"abc", b"d"]


async def test_who_waits_until_it_is_written_waits_for_all_of_it(
    writer: GatheringWriter, wire: Wire
) -> None:
    """`drain` tells how full the transport is: it must have been given everything."""
    writer.write(b"a")

    await writer.drain()

    assert wire.pieces == [b"a"]


async def test_last_words_are_written_before_the_wire_is_closed(
    writer: GatheringWriter, wire: Wire
) -> None:
    writer.write(b"goodbye")

    writer.close()

    assert wire.pieces == [b"goodbye"]
    assert wire.closed


async def test_what_is_said_to_a_wire_that_was_cut_is_dropped(
    writer: GatheringWriter, wire: Wire
) -> None:
    """Whoever reads from it is told; an alarm of the event loop would tell nobody anything."""
    alarms: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: alarms.append(context))
    writer.write(b"a")
    wire.closed = True

    await asyncio.sleep(0)
    writer.write(b"b")
    await writer.drain()

    assert wire.pieces == []
    assert alarms == []
