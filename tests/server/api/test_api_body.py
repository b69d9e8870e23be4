"""Bodies are read piece by piece, and never further than allowed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from dane_server.api import body
from dane_server.api.body import Document, Items, Lines, read_body
from dane_server.api.problems import Rejection

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WHITE = st.text(" \t\r\n", max_size=3)
SIZES = st.lists(st.integers(1, 7), max_size=60)


def cut(cutter: Lines | Items, whole: bytes, sizes: Iterable[int] = ()) -> list[Document]:
    """What a cutter makes of a body that arrives in pieces of these sizes, then the rest."""
    found: list[Document] = []
    for size in sizes:
        found += cutter.feed(whole[:size])
        whole = whole[size:]
    return [*found, *cutter.feed(whole), *cutter.finish()]


@given(st.lists(ANYTHING, max_size=8), SIZES, WHITE, st.booleans())
def test_an_array_falls_into_its_items_however_it_arrives(
    items: list[Any],
    sizes: list[int],
    white: str,
    spaced: bool,  # noqa: FBT001
) -> None:
    """Brackets, commas, quotes and backslashes inside strings cut nothing."""
    text = json.dumps(items, indent=1 if spaced else None, ensure_ascii=False)

    found = cut(Items(10_000), f"{white}{text}{white}".encode(), sizes)

    assert [json.loads(document.raw or b"") for document in found] == items
    assert [document.number for document in found] == list(range(1, len(items) + 1))


@given(st.lists(ANYTHING, max_size=8), SIZES, st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines_are_cut_however_they_arrive(items: list[Any], sizes: list[int], end: str) -> None:
    """Numbers are those of an editor: blank lines count."""
    text = end.join(json.dumps(item) for item in items)

    found = cut(Lines(10_000), text.encode(), sizes)

    assert [json.loads(document.raw or b"") for document in found] == items
    assert [document.number for document in found] == [
        1 + place * (2 if end == "\n\n" else 1) for place in range(len(items))
    ]


@given(st.binary(max_size=200), SIZES)
def test_nothing_breaks_the_cutters(whole: bytes, sizes: list[int]) -> None:
    cut(Lines(20), whole, sizes)
    with suppress(Rejection):
        cut(Items(20), b"[" + whole, sizes)


@pytest.mark.parametrize(
    "whole", [b"", b"  ", b"{}", b"[", b"[1", b'["', b"[1,", b"[1]]", b"[1] 2", b"nonsense", b"]"]
)
def test_what_is_no_whole_array_is_refused(whole: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        cut(Items(100), whole)

    assert (caught.value.status, caught.value.faults[0].path) == (422, "body")


@pytest.mark.parametrize(
    ("whole", "raws"),
    [
        (b"[]", []),
        (b" [ ] ", []),
        (b"[1,]", [b"1", b""]),
        (b"[,]", [b"", b""]),
        (b"[{], 2]", [b"{]", b"2"]),
        (b"[}, 2]", [b"}", b"2"]),
        (b'["]", "\\\\", "\\""]', [b'"]"', b'"\\\\"', b'"\\""']),
    ],
)
def test_an_odd_array_is_cut_where_it_can_be(whole: bytes, raws: list[bytes]) -> None:
    """Each piece is then read, and refused, alone."""
    assert [document.raw for document in cut(Items(100), whole)] == raws


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_document_that_is_too_long_is_let_go(chunk: int) -> None:
    """The ones around it are whole; what is too long is never kept whole."""
    long = '"' + "x" * 5000 + '"'
    sizes = [chunk] * (10_000 // chunk)

    lines = cut(Lines(100), f"1\n{long}\n2".encode(), sizes)
    items = cut(Items(100), f"[1,{long},2]".encode(), sizes)

    assert lines == items == [Document(1, b"1"), Document(2, None), Document(3, b"2")]


def test_a_document_of_just_the_limit_is_kept() -> None:
    assert cut(Lines(3), b"123\n1234") == [Document(1, b"123"), Document(2, None)]
    assert cut(Items(3), b"[123,1234]") == [Document(1, b"123"), Document(2, None)]


def request_of(chunks: AsyncIterator[bytes], **headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        chunk = await anext(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def test_reading_stops_as_soon_as_a_body_is_too_long() -> None:
    """A hundred megabytes are not taken in to be refused."""
    given_out = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given_out
        while given_out < 10_000:
            given_out += 10
            yield b"x" * 10

    with pytest.raises(Rejection) as caught:
        await read_body(request_of(endless()), limit=95)

    assert caught.value.status == 413
    assert given_out == 100


async def test_a_body_that_says_it_is_too_long_is_not_read_at_all() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    with pytest.raises(Rejection) as caught:
        await read_body(request_of(unread(), content_length="96"), limit=95)

    assert caught.value.status == 413


async def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then would hold a connection for ever (slowloris)."""
    monkeypatch.setattr(body, "STALL_SECONDS", 0.01)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    with pytest.raises(Rejection) as caught:
        await read_body(request_of(stalled()), limit=95)

    assert caught.value.status == 408
