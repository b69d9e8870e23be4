"""Writes once what is said in one turn of the loop."""

import asyncio
from collections.abc import Iterable
from typing import Any


class GatheringWriter(asyncio.StreamWriter):
    """A stream writer that hands its transport all that one turn of the loop has written.

    aiormq writes each frame by itself: a system call for every acknowledgement, and a packet.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said: list[Any] = []

    def write(self, data: Any) -> None:
        if not self._said:
            asyncio.get_running_loop().call_soon(self._flush)
        self._said.append(data)

    def writelines(self, data: Iterable[Any]) -> None:
        for piece in data:
            self.write(piece)

    def write_eof(self) -> None:
        self._flush()
        super().write_eof()

    def close(self) -> None:
        self._flush()
        super().close()

    async def drain(self) -> None:
        self._flush()
        await super().drain()

    def _flush(self) -> None:
        said, self._said = self._said, []
        # What is said to a connection that is closed is lost: asyncio drops it, uvloop objects.
        if said and not self.transport.is_closing():
            super().write(b"".join(said))
