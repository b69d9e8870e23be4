"""Request bodies: what may come in, how much of it, and how a stream falls into documents."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from dane_server.api.guard import is_from_page
from dane_server.api.problems import Rejection

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
#: Names under which NDJSON travels; it was never registered.
NDJSON_NAMES: Final = frozenset({NDJSON, "application/ndjson", "application/jsonl"})

#: A client that sends nothing for so long has gone, or means harm (slowloris).
STALL_SECONDS: Final = 30.0


def media_type(request: Request, accepted: Collection[str]) -> str:
    """The body's media type, one of `accepted`. Raises: Rejection (415)."""
    _refuse_encoded(request)
    values = request.headers.getlist("content-type")
    if len(values) == 1:
        kind, charset = _parse(values[0])
        if kind in accepted and charset in ("", "utf-8"):
            return kind
    known = sorted(accepted)
    message = f"expected {' or '.join(known)}, in UTF-8"
    raise Rejection(415, "header.Content-Type", message, headers={"Accept": ", ".join(known)})


async def spec_type(request: Request) -> str | None:
    """The media type of a job specification; None where DANE 0.1's script sent it bare.

    No browser can have sent a body without a type and without naming its origin, so that one
    is no door for a page. Raises: Rejection (415).
    """
    if "content-type" in request.headers or is_from_page(request.headers):
        return media_type(request, {JSON})
    _refuse_encoded(request)
    return None


def _refuse_encoded(request: Request) -> None:
    """Nothing is unpacked here, so nothing can burst. Raises: Rejection (415)."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Rejection(415, "header.Content-Encoding", "send the body as it is")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises: Rejection, 413 as soon as it is too long, 408 when it stalls."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
        raise too_long(limit)
    body = bytearray()
    async for chunk in chunks(request, limit):
        body += chunk
    return bytes(body)


async def chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises: Rejection, 413 after `limit` bytes, 408 when it stalls."""
    stream, length = aiter(request.stream()), 0
    while (chunk := await _next(stream)) is not None:
        length += len(chunk)
        if length > limit:
            raise too_long(limit)
        yield chunk


def too_long(limit: int) -> Rejection:
    return Rejection(413, "body", f"longer than {limit:,} bytes")


@dataclass(frozen=True, slots=True)
class Document:
    """One specification of many: its line (or its place in the array), from 1, and its bytes.

    `raw` is None where it was too long to keep.
    """

    number: int
    raw: bytes | None


class Lines:
    """Cuts NDJSON into documents. Blank lines are counted, and nothing else."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._number = 0
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[Document]:
        """The documents that this chunk completes."""
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._keep(part)
            yield from self._cut()
        self._keep(rest)

    def finish(self) -> Iterator[Document]:
        """The last line, which needs no newline."""
        yield from self._cut()

    def _keep(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._buffer) + len(part) > self._limit
        if self._too_long:
            self._buffer.clear()
        else:
            self._buffer += part

    def _cut(self) -> Iterator[Document]:
        self._number += 1
        raw, too_long = bytes(self._buffer), self._too_long
        self._buffer.clear()
        self._too_long = False
        if too_long or raw.strip():
            yield Document(self._number, None if too_long else raw)


class Items:
    """Cuts a JSON array into documents, whatever they are: each is parsed, and may fail, alone.

    It follows strings and brackets only, so that the array never has to be whole in memory.
    """

    _OUTSIDE: Final = re.compile(rb'["\[\]{},]')
    _INSIDE: Final = re.compile(rb'["\\]')

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()  # of the item that is being read
        self._seen = 0  # how much of the buffer was looked at
        self._depth = 0  # 1: in the array
        self._in_string = False
        self._too_long = False
        self._number = 0
        self._closed = False

    def feed(self, chunk: bytes) -> Iterator[Document]:
        """The documents that this chunk completes. Raises: Rejection, where it is no array."""
        self._buffer += chunk
        if self._depth == 0 and not self._closed and not self._open():
            return
        while not self._closed and (mark := self._next_mark()):
            yield from self._pass(mark)
        if self._closed:
            self._expect_nothing()
        elif len(self._buffer) > self._limit:
            self._drop()

    def finish(self) -> Iterator[Document]:
        """Nothing more. Raises: Rejection, when the array has not ended."""
        if not self._closed:
            raise _no_array("the array does not end")
        yield from ()

    def _open(self) -> bool:
        text = self._buffer.lstrip(b" \t\r\n")
        if text and text[:1] != b"[":
            raise _no_array("expected an array")
        self._buffer = text[1:]
        self._depth = 1 if text else 0
        return bool(text)

    def _next_mark(self) -> bytes | None:
        """The next byte with a meaning; what lies before it counts as looked at."""
        while found := (self._INSIDE if self._in_string else self._OUTSIDE).search(
            self._buffer, self._seen
        ):
            if found[0] != b"\\":
                self._seen = found.end()
                return found[0]
            if found.end() == len(self._buffer):
                self._seen = found.start()  # what it escapes is in the next chunk
                return None
            self._seen = found.end() + 1
        self._seen = len(self._buffer)
        return None

    def _pass(self, mark: bytes) -> Iterator[Document]:
        if mark == b'"':
            self._in_string = not self._in_string
        elif mark in b"[{":
            self._depth += 1
        elif self._depth > 1:
            self._depth -= mark in b"]}"
        elif mark in b",]":
            self._closed = mark == b"]"
            yield from self._cut()

    def _cut(self) -> Iterator[Document]:
        raw = bytes(self._buffer[: self._seen - 1]).strip(b" \t\r\n")
        too_long = self._too_long or len(raw) > self._limit
        del self._buffer[: self._seen]
        self._seen = 0
        self._too_long = False
        if self._closed and self._number == 0 and not raw and not too_long:
            return  # an empty array
        self._number += 1
        yield Document(self._number, None if too_long else raw)

    def _drop(self) -> None:
        """Forget what was looked at of an item that is too long already."""
        self._too_long = True
        del self._buffer[: self._seen]
        self._seen = 0

    def _expect_nothing(self) -> None:
        if self._buffer.strip(b" \t\r\n"):
            raise _no_array("something follows the array")
        self._buffer.clear()


async def documents(stream: AsyncIterator[bytes], cutter: Lines | Items) -> AsyncIterator[Document]:
    """The documents of a body, as they arrive. Raises: Rejection, after the good ones."""
    async for chunk in stream:
        for document in cutter.feed(chunk):
            yield document
    for document in cutter.finish():
        yield document


def _parse(content_type: str) -> tuple[str, str]:
    """Media type and charset of a Content-Type, in lower case; no charset is empty."""
    kind, *parameters = content_type.lower().split(";")
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip('"').replace("utf8", "utf-8")
    return kind.strip(), charset


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await anext(stream, None)
    except TimeoutError:
        raise Rejection(408, "body", f"nothing came for {STALL_SECONDS:g} seconds") from None


def _no_array(reason: str) -> Rejection:
    return Rejection(422, "body", reason)
