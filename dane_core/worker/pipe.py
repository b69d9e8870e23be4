"""What a worker and its child processes say to each other: frames of JSON.

A frame is four bytes of length and a JSON object. Both ends are this version of this code on
one machine, and nothing from the network comes in here unread.
"""

import asyncio
import socket
import struct
import threading
from typing import Any, Final

import orjson

Frame = dict[str, Any]

_LENGTH: Final = struct.Struct("!I")


def pack(frame: Frame) -> bytes:
    body = orjson.dumps(frame)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None when the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        frame: Frame = orjson.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return frame


class Pipe:
    """The child's end: plain blocking calls, from any thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        data = pack(frame)
        with self._lock:
            self._end.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame; None when the other end is gone."""
        head = self._exactly(_LENGTH.size)
        body = self._exactly(_LENGTH.unpack(head)[0]) if head else None
        frame: Frame | None = orjson.loads(body) if body else None
        return frame

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._end.recv(size - len(data))
            except ConnectionError:
                return None
            if not piece:
                return None
            data += piece
        return bytes(data)
