"""Where the server may listen: nowhere that other machines can reach."""

import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from dane_core.errors import BadSettings, UnsafeBind
from dane_server.bind import check_bind, listen


def resolving_to(*addresses: str) -> Callable[..., Sequence[tuple[Any, ...]]]:
    def resolve(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
        return [(None, None, 0, "", (address, 0)) for address in addresses]

    return resolve


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.8.9.10", "127.8.9.10"),
        ("127.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_a_loopback_address_is_fine(host: str, address: str) -> None:
    assert check_bind(host) == address


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "0", "::", "[::]", "", "10.1.2.3", "192.168.0.1", "8.8.8.8", "::ffff:10.0.0.1"],
)
def test_any_other_address_is_refused_with_the_setting_named(host: str) -> None:
    with pytest.raises(UnsafeBind, match=r"DANE\.HOST must be a loopback address"):
        check_bind(host)


def test_localhost_is_fine_while_it_is_this_machine() -> None:
    assert check_bind("localhost", resolving_to("::1", "127.0.0.1")) == "127.0.0.1"


@pytest.mark.parametrize("addresses", [("10.0.0.7",), ("127.0.0.1", "10.0.0.7"), ()])
def test_a_name_that_is_also_another_machine_is_refused(addresses: tuple[str, ...]) -> None:
    """/etc/hosts may give the machine's own name both kinds of address."""
    with pytest.raises(UnsafeBind):
        check_bind("localhost", resolving_to(*addresses))


@pytest.mark.parametrize("host", ["no.such.name.invalid", "a b", "x" * 300, "é" * 80])
def test_a_name_of_nothing_is_a_wrong_setting(host: str) -> None:
    def resolve(name: str, *_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(BadSettings, match=r"DANE\.HOST"):
        check_bind(host, resolve)


def test_a_busy_port_is_explained_with_the_remedy() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(BadSettings, match=f"port {port} is in use.*--port or DANE.PORT"):
            listen("127.0.0.1", port)


def test_no_socket_is_opened_on_an_unsafe_address() -> None:
    with pytest.raises(UnsafeBind):
        listen("0.0.0.0", 0)


def test_what_is_answered_leaves_at_once() -> None:
    """Held back until the client acknowledges what came before, it would be 40 ms late."""
    with (
        closing(listen("127.0.0.1", 0)) as door,
        closing(socket.create_connection(door.getsockname())),
        closing(door.accept()[0]) as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
