"""What is read off the wire of what RabbitMQ says of a connection; see also tests/contracts."""

import pytest

from dane_core.exchange.amqp.overheard import Overheard

# Frames as RabbitMQ 3.10 sends them, on channel 0; the acks are on channel 1.
BLOCKED = b"\x01\x00\x00\x00\x00\x00\x12\x00\x0a\x00\x3c\x0dlow on memory\xce"
UNBLOCKED = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x3d\xce"
CLOSE = b"\x01\x00\x00\x00\x00\x00\x15\x00\x0a\x00\x32\x01\x40\x0aCONN - bye\x00\x00\x00\x00\xce"
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
ACK = b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x01\x00\xce"


@pytest.mark.parametrize("size", [1, 2, 7, 8, 1000])
def test_an_alarm_is_heard_however_the_wire_cuts_it(size: int) -> None:
    said = HEARTBEAT + ACK + BLOCKED + ACK
    overheard = Overheard()

    for start in range(0, len(said), size):
        overheard.hear(said[start : start + size])

    assert overheard.blocked == "low on memory"
    overheard.hear(HEARTBEAT + UNBLOCKED)
    assert overheard.blocked == ""


def test_what_a_message_contains_is_no_alarm() -> None:
    """A returned message comes back whole over the same wire."""
    overheard = Overheard()

    body = b"\x03\x00\x01" + len(BLOCKED).to_bytes(4, "big") + BLOCKED + b"\xce"
    overheard.hear(body + ACK)

    assert overheard.blocked == ""


def test_a_new_connection_has_heard_nothing() -> None:
    overheard = Overheard()
    overheard.hear(BLOCKED + ACK[:9])

    overheard.forget()
    assert overheard.blocked == ""

    overheard.hear(BLOCKED)
    assert overheard.blocked == "low on memory"


def test_why_a_connection_was_closed_is_heard() -> None:
    """The library makes of it that it expected another frame."""
    overheard = Overheard()

    overheard.hear(HEARTBEAT + CLOSE)

    assert overheard.closed == "CONN - bye"
