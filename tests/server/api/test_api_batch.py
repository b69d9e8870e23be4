"""Many jobs in one request: each line has its own fate."""

import json
from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from dane_core.errors import DaneError, StoreUnreachable
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_server.api import batch, create_api
from dane_server.runner.draft import Draft
from dane_server.runner.runner import Runner
from dane_server.settings import ServerSettings
from dane_server.storage.reader import Reader
from dane_server.storage.view import Submitted
from tests.server.api.served import Served

NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}


def spec(ident: str, url: str = "x") -> dict[str, Any]:
    return {"source_url": url, "source_id": ident, "tasks": "NOOP"}


def lines(*specs: Any) -> str:
    return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in specs)


def read(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


class CountingRunner:
    """Takes every job, except in the chunks it is told to fail at."""

    def __init__(self, fail_at: Sequence[int] = ()) -> None:
        self.chunks: list[int] = []
        self._fail_at = fail_at

    async def submit_many(
        self,
        specs: Sequence[Draft],
        *,
        owner: str,  # noqa: ARG002
    ) -> list[Submitted | DaneError]:
        self.chunks.append(len(specs))
        if len(self.chunks) in self._fail_at:
            raise StoreUnreachable("gone")
        first = sum(self.chunks[:-1])
        return [Submitted(job_id=JobId(first + n + 1), replayed=False) for n in range(len(specs))]


def api_of(runner: CountingRunner, **sections: Any) -> FastAPI:
    return create_api(
        runner=cast("Runner", runner),
        reader=cast("Reader", None),
        settings=ServerSettings(**sections),
        exchange=MemoryExchange(),
    )


def client_of(runner: CountingRunner, **sections: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(api_of(runner, **sections))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:5500")


async def test_a_bad_line_fails_alone(dane: Served) -> None:
    """The lines around it are jobs, and each result says which line it is of."""
    body = lines(
        spec("A"), "", "{broken", {**spec("B"), "tasks": []}, spec("A", "other"), spec("C")
    )

    answer = await dane.http.post("/DANE/jobs", content=body, headers=NDJSON)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    results = read(answer)
    assert [(result["line"], result["status"]) for result in results] == [
        (1, 201),
        (3, 422),
        (4, 422),
        (5, 409),
        (6, 201),
    ]
    assert [error["path"] for error in results[2]["errors"]] == ["tasks"]
    assert await dane.reader.unfinished() == [results[0]["job_id"], results[4]["job_id"]]


async def test_what_is_no_batch_at_all_is_refused_as_a_whole(dane: Served) -> None:
    """An answer of 200 with a complaint in it looks like one bad job among good ones."""
    answer = await dane.http.post("/DANE/jobs", json=spec("A"))

    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "array" in answer.text


async def test_an_array_is_answered_with_an_array(dane: Served) -> None:
    answer = await dane.http.post(
        "/DANE/jobs", content=json.dumps([spec("A"), 3, spec("B")]), headers=JSON
    )

    assert answer.headers["content-type"] == "application/json"
    assert [(result["line"], result["status"]) for result in answer.json()] == [
        (1, 201),
        (2, 422),
        (3, 201),
    ]


@pytest.mark.parametrize(
    ("body", "headers", "text"), [("", NDJSON, ""), ("\n\n", NDJSON, ""), ("[]", JSON, "[]")]
)
async def test_nothing_is_answered_with_nothing(
    http: httpx.AsyncClient, body: str, headers: dict[str, str], text: str
) -> None:
    answer = await http.post("/DANE/jobs", content=body, headers=headers)

    assert (answer.status_code, answer.text) == (200, text)


async def test_each_chunk_is_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one per job, which would be slow, nor one for all, which would never end."""
    monkeypatch.setattr(batch, "CHUNK_LINES", 4)
    runner = CountingRunner()

    async with client_of(runner) as http:
        answer = await http.post("/DANE/jobs", content=lines(*[spec("A")] * 10), headers=NDJSON)

    assert runner.chunks == [4, 4, 2]
    assert [result["job_id"] for result in read(answer)] == list(range(1, 11))


async def test_a_chunk_ends_where_it_gets_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "CHUNK_BYTES", 100)
    runner = CountingRunner()

    async with client_of(runner) as http:
        await http.post("/DANE/jobs", content=lines(*[spec("A")] * 4), headers=NDJSON)

    assert runner.chunks == [2, 2]


async def test_a_store_that_is_away_for_a_moment_costs_its_chunk_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each line says what became of it, so that just those can be sent again."""
    monkeypatch.setattr(batch, "CHUNK_LINES", 2)

    async with client_of(CountingRunner(fail_at=[2])) as http:
        body = lines(*[spec("A")] * 3, "{", spec("B"), spec("C"))
        answer = await http.post("/DANE/jobs", content=body, headers=NDJSON)

    statuses = [result["status"] for result in read(answer)]
    assert statuses == [201, 201, 503, 422, 201, 201]


async def test_a_line_that_is_too_long_fails_alone() -> None:
    async with client_of(CountingRunner(), LIMITS={"BODY": 200}) as http:
        body = lines(spec("A"), spec("B", "x" * 500), spec("C"))
        answer = await http.post("/DANE/jobs", content=body, headers=NDJSON)

    assert [result["status"] for result in read(answer)] == [201, 413, 201]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (f"[{json.dumps(spec('A'))}, {json.dumps(spec('B'))}", 422),
        (f"[{json.dumps(spec('A'))}] and more", 422),
        (f"[{json.dumps(spec('A'))}, {' ' * 300}1]", 413),
    ],
    ids=["cut off", "something behind", "too long"],
)
async def test_what_came_before_a_stream_broke_is_stored_and_told(body: str, status: int) -> None:
    """Else nobody would know which jobs there are."""
    async with client_of(CountingRunner(), API={"BATCH_BODY": 300}) as http:
        answer = await http.post("/DANE/jobs", content=pieces(body), headers=JSON)

    results = answer.json()
    assert [(result["line"], result["status"]) for result in results] == [(1, 201), (2, status)]
    assert results[1]["errors"][0]["path"] == "body"


async def test_a_client_that_goes_away_leaves_what_was_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not logged as a fault of ours, and half a line is no line."""
    runner = CountingRunner()
    arrived = iter([lines(spec("A"), spec("B"), "{")])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if (body := next(arrived, None)) is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body.encode(), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    api = api_of(runner)
    await api(scope_of("/DANE/jobs", b"application/x-ndjson"), receive, send)

    assert runner.chunks == [2]
    assert sent[0]["status"] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def scope_of(path: str, kind: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", kind)],
        "scheme": "http",
    }


async def pieces(text: str) -> Any:
    """A body that arrives in many pieces."""
    for start in range(0, len(text), 7):
        yield text[start : start + 7].encode()


async def test_many_results_come_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is kept in memory goes through a file."""
    monkeypatch.setattr(batch, "SPOOL_BYTES", 1000)

    async with client_of(CountingRunner()) as http:
        body = [spec("A")] * 3000
        array = await http.post("/DANE/jobs", content=json.dumps(body), headers=JSON)
        stream = await http.post("/DANE/jobs", content=lines(*body), headers=NDJSON)

    assert [result["line"] for result in array.json()] == list(range(1, 3001))
    assert [result["line"] for result in read(stream)] == list(range(1, 3001))
