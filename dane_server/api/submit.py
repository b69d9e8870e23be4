"""Submitting jobs: one, or as many as a stream brings."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from tempfile import SpooledTemporaryFile
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from dane_core.errors import DaneError
from dane_core.spec import JobSpec, Limits, parse_job
from dane_server.api.answer import PREFIX, JobAnswer, LineAnswer, dump
from dane_server.api.body import (
    JSON,
    NDJSON,
    NDJSON_NAMES,
    Document,
    Items,
    Lines,
    chunks,
    documents,
    media_type,
    read_body,
    too_long,
)
from dane_server.api.deps import (
    LARGE_BODY,
    ExactForSender,
    OnceKey,
    TheLimits,
    TheReader,
    TheRunner,
    TheSettings,
    WithTasks,
    beside,
)
from dane_server.api.jobs import show_job
from dane_server.api.openapi import BATCH_REQUEST, JOB_REQUEST, problems
from dane_server.api.problems import Rejection, problem
from dane_server.runner.runner import Runner
from dane_server.storage.view import Once, Submitted

router = APIRouter(prefix=PREFIX, tags=["jobs"])

#: Specifications stored in one transaction: so many, or so many bytes of them.
CHUNK_LINES: Final = 500
CHUNK_BYTES: Final = 4 * 1024 * 1024
#: Results of a longer stream wait in a file until it has ended.
SPOOL_BYTES: Final = 1024 * 1024

Outcome = Submitted | DaneError | Rejection


async def _raw_spec(request: Request, limits: TheLimits) -> bytes:
    return await read_body(request, limits.body)


@router.post("/job/", status_code=201, include_in_schema=False)
@router.post(
    "/job",
    status_code=201,
    openapi_extra=JOB_REQUEST,
    responses={201: {"model": JobAnswer}, **problems(409, 413, 415, 422)},
)
async def submit_job(
    exact: ExactForSender,
    once_key: OnceKey,
    raw: Annotated[bytes, Depends(_raw_spec)],
    limits: TheLimits,
    runner: TheRunner,
    reader: TheReader,
    with_tasks: WithTasks = True,  # noqa: FBT002
) -> Response:
    """Submit one job.

    Follow it at the address in `Location`. With an `Idempotency-Key` a request that is sent
    again gives the job of the first one, and `Idempotent-Replayed: true`.
    """
    spec = await beside(len(raw) > LARGE_BODY, parse_job, raw, limits)
    once = once_key and Once(key=once_key, digest=hashlib.sha256(raw).hexdigest())
    submitted = await runner.submit(spec, once=once or None)
    answer = await show_job(reader, submitted.job_id, exact=exact, with_tasks=with_tasks)
    answer.status_code = 201
    answer.headers["Location"] = f"{PREFIX}/job/{submitted.job_id}"
    if submitted.replayed:
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


@router.post(
    "/jobs",
    openapi_extra=BATCH_REQUEST,
    responses={
        200: {
            "model": list[LineAnswer],
            "description": "One result per specification, in the format of the request.",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        },
        **problems(413, 415, 422),
    },
)
async def submit_jobs(
    request: Request, limits: TheLimits, runner: TheRunner, settings: TheSettings
) -> Response:
    """Submit many jobs: NDJSON, or a JSON array.

    Each chunk of specifications is stored in one transaction as it arrives; a bad one fails
    alone. There is one result per specification, also where the stream broke off: what came
    before was stored. An `Idempotency-Key` is refused here; give each job its own request.
    """
    if "idempotency-key" in request.headers:
        raise Rejection(
            422, "header.Idempotency-Key", "is for one job a request: POST it to /DANE/job"
        )
    kind = media_type(request, NDJSON_NAMES | {JSON})
    cutter = Items(limits.body) if kind == JSON else Lines(limits.body)
    stream = documents(chunks(request, settings.API.BATCH_BODY), cutter)
    # Results wait until the body was read: most clients read nothing while they write, and
    # both sides would wait for the other as soon as the network's buffers are full.
    results = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed when sent
    async for result in _take(stream, runner, limits):
        results.write(dump(result) + b"\n")
    return StreamingResponse(_send(results, kind), media_type=JSON if kind == JSON else NDJSON)


async def _take(
    stream: AsyncIterator[Document], runner: Runner, limits: Limits
) -> AsyncIterator[LineAnswer]:
    """Store what a stream brings, chunk by chunk; say what became of each document."""
    last = 0
    try:
        async for chunk in _in_chunks(stream):
            last = chunk[-1].number
            outcomes = await _store([_read(document, limits) for document in chunk], runner)
            for document, outcome in zip(chunk, outcomes, strict=True):
                yield _line(document.number, outcome)
    except Rejection as rejection:
        yield _line(last + 1, rejection)


async def _in_chunks(stream: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    try:
        async for document in stream:
            chunk.append(document)
            size += len(document.raw or b"")
            if len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    except Rejection:
        # What was whole before the stream broke is stored, and then the break is told.
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _read(document: Document, limits: Limits) -> JobSpec | DaneError | Rejection:
    if document.raw is None:
        return too_long(limits.body)
    try:
        return parse_job(document.raw, limits)
    except DaneError as error:
        return error


async def _store(
    read: Sequence[JobSpec | DaneError | Rejection], runner: Runner
) -> Sequence[Outcome]:
    """The outcome of each: the job, or what stood against it."""
    specs = [item for item in read if isinstance(item, JobSpec)]
    try:
        stored = iter(await runner.submit_many(specs) if specs else ())
    except DaneError as error:  # the whole chunk: the store was out of reach
        stored = iter([error] * len(specs))
    return [next(stored) if isinstance(item, JobSpec) else item for item in read]


def _line(number: int, outcome: Outcome) -> LineAnswer:
    if isinstance(outcome, Exception):
        told = problem(outcome)
        return LineAnswer(
            line=number,
            status=told["status"],
            type=told["type"],
            title=told["title"],
            detail=told["detail"],
            errors=told["errors"],
        )
    return LineAnswer(line=number, status=201, job_id=outcome.job_id)


def _send(results: "SpooledTemporaryFile[bytes]", kind: str) -> Iterator[bytes]:
    """The results as NDJSON, or as the array that was asked with."""
    with results:
        results.seek(0)
        if kind != JSON:
            yield from iter(lambda: results.read(64 * 1024), b"")
            return
        separators = (b"[" if n == 0 else b"," for n in count())
        empty = True
        for separator, line in zip(separators, results, strict=False):
            yield separator + line.rstrip(b"\n")
            empty = False
        yield b"[]" if empty else b"]"
