"""The answers of earlier tasks; those too large to come along are fetched page by page."""

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx

from dane_core.outcome import Failed

_PAGE_TIMEOUT: Final = 30.0  # seconds

Answer = dict[str, Any]


class Upstream:
    """Answers of earlier tasks with one key: `await` it for a list, or iterate over it."""

    def __init__(
        self, key: str, inline: Sequence[Answer] = (), page_url: str | None = None
    ) -> None:
        self._key = key
        self._inline = inline
        self._page_url = page_url

    def __await__(self) -> Generator[Any, None, list[Answer]]:
        return self._all().__await__()

    async def __aiter__(self) -> AsyncIterator[Answer]:
        for answer in self._inline:
            yield answer
        if self._page_url is None:
            return
        pages = _Pages(self._key)
        async with httpx.AsyncClient(timeout=_PAGE_TIMEOUT) as client:
            while pages.remain:
                with _explained(self._key):
                    page = await client.get(self._page_url, params=pages.query)
                    answers = pages.read(page)
                for answer in answers:
                    yield answer

    def __iter__(self) -> Iterator[Answer]:
        yield from self._inline
        if self._page_url is None:
            return
        pages = _Pages(self._key)
        with httpx.Client(timeout=_PAGE_TIMEOUT) as client:
            while pages.remain:
                with _explained(self._key):
                    answers = pages.read(client.get(self._page_url, params=pages.query))
                yield from answers

    async def _all(self) -> list[Answer]:
        return [answer async for answer in self]


class _Pages:
    """Where we are in the pages of one key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._after = -1
        self.remain = True

    @property
    def query(self) -> dict[str, str | int]:
        return {"key": self._key, "after": self._after}

    def read(self, page: httpx.Response) -> list[Answer]:
        page.raise_for_status()
        body = page.json()
        following = body["next"]
        if following is None:
            self.remain = False
        elif following > self._after:
            self._after = following
        else:
            raise ValueError("its pages go in circles")
        return [item["response"] for item in body["answers"]]


@contextmanager
def _explained(key: str) -> Iterator[None]:
    """What goes wrong with a page, said as the outcome of the task that wanted it."""
    try:
        yield
    except httpx.HTTPError as fault:
        raise Failed(f"the answers of {key} could not be fetched: {fault}", 503) from fault
    except (ValueError, LookupError, TypeError) as fault:
        raise Failed(
            f"the answers of {key} could not be read: {type(fault).__name__}: {fault}", 503
        ) from fault
