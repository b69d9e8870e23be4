"""Every error is an answer of one shape, and none tells what is not the client's business."""

import logging
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from dane_core.errors import (
    BadSpec,
    DaneError,
    ExchangeUnreachable,
    Fault,
    OutcomeUnknown,
    StoreUnreachable,
)
from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from dane_server.api import create_api
from dane_server.api.problems import ROWS, problem
from dane_server.runner.runner import Runner
from dane_server.settings import ServerSettings
from dane_server.storage.reader import Reader
from dane_server.supervise import Stopping


class BrokenReader:
    """Every question ends in the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def small_job_view(self, _job_id: int, *, most: int) -> None:  # noqa: ARG002
        raise self.error

    async def ping(self) -> None:
        raise self.error


class DeafExchange:
    """Has lost its connection."""

    connected = False
    blocked = ""


class BlockedExchange:
    """Has raised an alarm."""

    connected = True
    blocked = "low on memory"


class IdleRunner:
    """Does nothing, and was not told to stop."""

    stopping = Stopping()


def client_of(error: Exception, exchange: object = None) -> httpx.AsyncClient:
    api = create_api(
        runner=cast("Runner", IdleRunner()),
        reader=cast("Reader", BrokenReader(error)),
        settings=ServerSettings(),
        exchange=cast("Exchange", exchange or MemoryExchange()),
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost:5500")


def tree(root: type[DaneError]) -> Iterator[type[DaneError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from tree(kind)


def test_every_error_has_a_row_in_the_table() -> None:
    """A new error must say how it looks outside."""
    public = {kind for kind in tree(DaneError) if not kind.__name__.startswith("_")}

    assert public - ROWS.keys() == set()


def test_errors_of_the_server_do_not_speak_in_their_own_words() -> None:
    """They are written for operators, and may name hosts and tables."""
    told = [row.detail for row in ROWS.values() if row.status >= 500]

    assert all(told)


async def test_who_cannot_be_told_what_became_of_a_request_is_told_that() -> None:
    """Not that nothing was changed; and how to be sure the next time."""
    async with client_of(OutcomeUnknown("lost at db7.internal")) as http:
        told = (await http.get("/DANE/job/1")).json()

    assert told["status"] == 503
    assert told["type"] == "urn:dane:problem:outcome-unknown"
    assert "Nothing was changed" not in told["detail"]
    assert "Idempotency-Key" in told["detail"]


@pytest.mark.parametrize("kind", [StoreUnreachable, OutcomeUnknown, ExchangeUnreachable])
async def test_what_is_out_of_reach_may_be_asked_again(kind: type[DaneError]) -> None:
    async with client_of(kind("no route to db7.internal")) as http:
        answer = await http.get("/DANE/job/1")

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "db7.internal" not in answer.text


@pytest.mark.parametrize(
    ("exchange", "messagequeue"),
    [
        (MemoryExchange(), "200 OK"),
        (DeafExchange(), "502 Bad Gateway"),
        (BlockedExchange(), "blocked: low on memory"),
    ],
)
async def test_a_server_that_reaches_nothing_is_alive_but_not_ready(
    exchange: object, messagequeue: str
) -> None:
    """In DANE 0.1's words, and with a status that load balancers understand."""
    async with client_of(StoreUnreachable("gone"), exchange) as http:
        health, ready = await http.get("/DANE/health"), await http.get("/DANE/ready")

    assert (health.status_code, ready.status_code) == (200, 503)
    assert ready.json()["database"] == "502 Bad Gateway"
    assert ready.json()["messagequeue"] == messagequeue
    assert "retry-after" in ready.headers


async def test_what_nobody_expected_leaks_nothing_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets a name for it, under which the operator finds the traceback."""
    async with client_of(ZeroDivisionError("in /srv/secret.py")) as http:
        answer = await http.get("/DANE/job/1")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "ZeroDivisionError" not in answer.text
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info is not None
    incident = logged[0].getMessage().split()[-1]
    assert incident in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "url", "allow"),
    [
        ("PUT", "/DANE/job/1", "GET, DELETE, HEAD"),
        ("POST", "/DANE/job/1", "GET, DELETE, HEAD"),
        ("GET", "/DANE/job", "POST"),
        ("DELETE", "/DANE/jobs", "GET, POST, HEAD"),
        ("GET", "/DANE/job/1/retry", "POST"),
        ("GET", "/DANE/job/1/delete", "POST"),
        ("GET", "/DANE/task/1/forceretry", "POST"),
        ("GET", "/DANE/task/1/reset", "POST"),
        ("POST", "/DANE/docs", "GET, HEAD"),
        ("OPTIONS", "/DANE/health", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    http: httpx.AsyncClient, method: str, url: str, allow: str
) -> None:
    """All of them: the framework names those of one route only."""
    answer = await http.request(method, url)

    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert ("DANE changes nothing on GET" in answer.json()["detail"]) == (method == "GET")


def test_a_fault_of_the_whole_body_has_a_path_too() -> None:
    told: dict[str, Any] = dict(problem(BadSpec([Fault("", "not JSON")])))

    assert told["errors"] == [{"path": "body", "message": "not JSON"}]
