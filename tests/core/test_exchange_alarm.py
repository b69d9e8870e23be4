"""What is read off the wire when a RabbitMQ takes no messages; see also tests/contracts."""

import pytest

from dane_core.exchange.amqp.alarm import Alarm

# Frames as RabbitMQ 3.10 sends them, on channel 0; the acks are on channel 1.
BLOCKED = b"\x01\x00\x00\x00\x00\x00\x12\x00\x0a\x00\x3c\x0dlow on memory\xce"
UNBLOCKED = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x3d\xce"
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
ACK = b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x01\x00\xce"


@pytest.mark.parametrize("size", [1, 2, 7, 8, 1000])
def test_an_alarm_is_heard_however_the_wire_cuts_it(size: int) -> None:
    said = HEARTBEAT + ACK + BLOCKED + ACK
    alarm = Alarm()

    for start in range(0, len(said), size):
        alarm.hear(said[start : start + size])

    assert alarm.reason == "low on memory"
    alarm.hear(HEARTBEAT + UNBLOCKED)
    assert alarm.reason == ""


def test_what_a_message_contains_is_no_alarm() -> None:
    """A returned message comes back whole over the same wire."""
    alarm = Alarm()

    body = b"\x03\x00\x01" + len(BLOCKED).to_bytes(4, "big") + BLOCKED + b"\xce"
    alarm.hear(body + ACK)

    assert alarm.reason == ""


def test_a_new_connection_has_heard_nothing() -> None:
    alarm = Alarm()
    alarm.hear(BLOCKED + ACK[:9])

    alarm.forget()
    assert alarm.reason == ""

    alarm.hear(BLOCKED)
    assert alarm.reason == "low on memory"
