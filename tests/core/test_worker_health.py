"""The page on which orchestrators look whether a worker process is well."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dane_core.worker.health import health_page


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with health_page("127.0.0.1", 0, lambda: (True, {"status": "ok"})) as bound:
        yield bound


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /health HTTP/1.1", "200 OK"),
        ("GET /health/?verbose=1 HTTP/1.0", "200 OK"),
        ("HEAD /health HTTP/1.1", "200 OK"),
        ("GET / HTTP/1.1", "404 Not Found"),
        ("POST /health HTTP/1.1", "405 Method Not Allowed"),
        ("nonsense", "405 Method Not Allowed"),
    ],
)
async def test_only_health_is_served(port: int, request_line: str, status: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request_line}\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()

    assert answer.startswith(f"HTTP/1.1 {status}\r\n")


@pytest.mark.parametrize("sent", [b"", b"GET /health", b"x" * 100_000])
async def test_a_client_that_talks_nonsense_disturbs_nobody(port: int, sent: bytes) -> None:
    _, rude = await asyncio.open_connection("127.0.0.1", port)
    rude.write(sent)
    rude.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\n\r\n")

    assert b'{"status":"ok"}' in await reader.read()
    writer.close()
