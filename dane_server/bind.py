"""The door: which addresses the server may listen on, and taking hold of one."""

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from dane_core.errors import BadSettings, Fault, UnsafeBind

Resolve = Callable[..., Sequence[tuple[Any, ...]]]

_BACKLOG: Final = 2048


def check_bind(host: str, resolve: Resolve = socket.getaddrinfo) -> str:
    """The loopback address to listen on for `host`.

    A name is resolved here, once, and every address it stands for must be a loopback one, so
    that what was checked is what is used. Raises: UnsafeBind; BadSettings for no such name.
    """
    if not host.strip("[]"):
        raise UnsafeBind("every address (an empty host)")
    try:
        found = resolve(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise BadSettings([Fault("DANE.HOST", f"{host!r} is no address: {reason}")]) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(_is_loopback, addresses)):
        raise UnsafeBind(host)
    return min(addresses, key=lambda address: ":" in address)  # 127.0.0.1 before ::1


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a checked address; port 0 takes a free one.

    Raises: UnsafeBind; BadSettings when the port cannot be had, with what to do about it.
    """
    address = check_bind(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Its connections have it from here: asyncio sets it only where the protocol is named. An
        # answer's body would otherwise wait for the client to acknowledge its head, some 40 ms.
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Else a server that restarts would wait for its old connections to be forgotten.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address, port))
        door.listen(_BACKLOG)
    except OSError as error:
        door.close()
        raise BadSettings([Fault("DANE.PORT", _why_not(port, error))]) from None
    return door


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def _why_not(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use, perhaps by another DANE; stop that program, "
            "or choose another port with --port or DANE.PORT"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs rights this user does not have; choose one above 1023"
    return f"port {port} cannot be had: {error.strerror}"
