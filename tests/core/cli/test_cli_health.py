"""A worker's answer to GET /health."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from dane_core.cli.health import answer_health
from dane_core.errors import BadSettings


def well() -> tuple[bool, Mapping[str, Any]]:
    return True, {"worker": "w1"}


def unwell() -> tuple[bool, Mapping[str, Any]]:
    return False, {"connected": False}


async def test_a_worker_that_is_well_answers_200() -> None:
    async with answer_health(0, well) as port, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/health?x=1")

    assert (answer.status_code, answer.json()) == (200, {"worker": "w1"})


async def test_a_worker_without_its_broker_answers_503() -> None:
    async with answer_health(0, unwell) as port, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/health")

    assert (answer.status_code, answer.json()) == (503, {"connected": False})


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/health", 405)]
)
async def test_anything_else_is_refused(method: str, path: str, status: int) -> None:
    async with answer_health(0, well) as port, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, f"http://127.0.0.1:{port}{path}")

    assert answer.status_code == status


@pytest.mark.parametrize("sent", [b"", b"\x00\xff\r\n\r\n", b"GET " + b"x" * 100_000])
async def test_noise_harms_nobody(sent: bytes) -> None:
    """Scanners and broken probes come by; the next question is answered all the same."""
    async with answer_health(0, well) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        await reader.read()
        writer.close()

        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/health")

    assert answer.status_code == 200


async def test_a_port_that_is_taken_is_a_wrong_setting() -> None:
    async with answer_health(0, well) as port:
        with pytest.raises(BadSettings, match=f"port {port} cannot be had.*--health-port"):
            async with answer_health(port, well):
                pass
