"""Submitting as many jobs as a stream brings."""

from collections.abc import AsyncIterator, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from dane_core.errors import DaneError
from dane_core.spec import Limits
from dane_server.api.answer import PREFIX, AsItComes, LineAnswer, dump
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
    too_long,
)
from dane_server.api.deps import LARGE_BODY, TheLimits, TheOwner, TheRunner, TheSettings, beside
from dane_server.api.openapi import BATCH_REQUEST, problems
from dane_server.api.problems import Rejection, problem
from dane_server.runner.draft import Draft, draft, is_very_large
from dane_server.runner.runner import Runner
from dane_server.storage.view import Submitted

router = APIRouter(prefix=PREFIX, tags=["jobs"])

#: Specifications stored in one transaction: so many, or so many bytes of them.
CHUNK_LINES: Final = 500
CHUNK_BYTES: Final = 4 * 1024 * 1024
#: Results of a longer stream wait in a file until it has ended.
SPOOL_BYTES: Final = 1024 * 1024
#: White space may stand before any JSON. It says that somebody is still at work.
SIGN_OF_LIFE: Final = b" "

Read = Draft | DaneError | Rejection
Outcome = Submitted | DaneError | Rejection


@router.post(
    "/jobs",
    openapi_extra=BATCH_REQUEST,
    responses={
        200: {
            "model": list[LineAnswer],
            "description": "One result per specification, in the format of the request.",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        },
        **problems(400, 415, 422),
    },
)
async def submit_jobs(
    request: Request,
    owner: TheOwner,
    limits: TheLimits,
    runner: TheRunner,
    settings: TheSettings,
) -> Response:
    """Submit many jobs: NDJSON, or a JSON array.

    Each chunk of specifications is stored in one transaction as it arrives; a bad one fails
    alone, and one for which there is no room (429). There is one result per specification, and
    one more that says so where the stream broke off: what came before that was stored. An
    `Idempotency-Key` is refused here; give each job its own request.
    """
    if "idempotency-key" in request.headers:
        raise Rejection(
            422, "header.Idempotency-Key", "is for one job a request: POST it to /DANE/job"
        )
    kind = media_type(request, NDJSON_NAMES | {JSON})
    cutter = Items(limits.body) if kind == JSON else Lines(limits.body)
    stream = documents(chunks(request, settings.API.BATCH_BODY), cutter)
    taken = _take(stream, runner, limits, owner)
    first = await anext(taken, None)  # a request that is wrong from its start is refused here
    parts = _answer(_chained(first, taken), as_array=kind == JSON)
    return AsItComes(parts, media_type=JSON if kind == JSON else NDJSON)


async def _answer(
    taken: AsyncIterator[list[LineAnswer]], *, as_array: bool
) -> AsyncIterator[bytes]:
    # Results wait until the body was read: most clients read nothing while they write, and
    # both sides would wait for the other as soon as the network's buffers are full. So that
    # those who do read are not left wondering, there is a sign of life for each chunk.
    with SpooledTemporaryFile(max_size=SPOOL_BYTES) as results:
        async for lines in taken:
            results.writelines(dump(line) + b"\n" for line in lines)
            yield SIGN_OF_LIFE
        results.seek(0)
        for part in _array(results) if as_array else iter(lambda: results.read(65_536), b""):
            yield part


async def _chained(
    first: list[LineAnswer] | None, rest: AsyncIterator[list[LineAnswer]]
) -> AsyncIterator[list[LineAnswer]]:
    if first is not None:
        yield first
    async for lines in rest:
        yield lines


def _array(lines: IO[bytes]) -> Iterator[bytes]:
    before = b"["
    for line in lines:
        yield before + line.rstrip()
        before = b","
    yield b"[]" if before == b"[" else b"]"


async def _take(
    stream: AsyncIterator[Document], runner: Runner, limits: Limits, owner: str
) -> AsyncIterator[list[LineAnswer]]:
    """Store what a stream brings, chunk by chunk; say what became of each document."""
    last = 0
    try:
        async for chunk in _in_chunks(stream):
            outcomes = await _store(await _read_all(chunk, runner, limits), runner, owner)
            last = chunk[-1].number
            yield [
                _line(document.number, outcome)
                for document, outcome in zip(chunk, outcomes, strict=True)
            ]
    except Rejection as rejection:
        if last == 0:  # nothing was stored: the request as a whole is at fault
            raise
        yield [_line(last + 1, rejection)]
    except ClientDisconnect:
        return


async def _in_chunks(stream: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    """Documents by the chunk. Raises: Rejection or ClientDisconnect, after the whole ones."""
    chunk: list[Document] = []
    size = 0
    try:
        async for document in stream:
            chunk.append(document)
            size += len(document.raw or b"")
            if len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    except (Rejection, ClientDisconnect):
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


async def _read_all(chunk: Sequence[Document], runner: Runner, limits: Limits) -> list[Read]:
    """What each document says; the very large ones one by one."""
    small = [document for document in chunk if not _is_very_large(document)]
    size = sum(len(document.raw or b"") for document in small)
    read = iter(await beside(size > LARGE_BODY, _read, small, limits))
    return [
        await _read_alone(document, runner, limits) if _is_very_large(document) else next(read)
        for document in chunk
    ]


def _is_very_large(document: Document) -> bool:
    return document.raw is not None and is_very_large(document.raw)


def _read(chunk: Sequence[Document], limits: Limits) -> list[Read]:
    return [_draft(document, limits) for document in chunk]


def _draft(document: Document, limits: Limits) -> Read:
    if document.raw is None:
        return too_long(limits.body)
    try:
        return draft(document.raw, limits)
    except DaneError as error:
        return error


async def _read_alone(document: Document, runner: Runner, limits: Limits) -> Read:
    try:
        return await runner.read(document.raw or b"", limits)
    except DaneError as error:
        return error


async def _store(read: Sequence[Read], runner: Runner, owner: str) -> list[Outcome]:
    """The outcome of each: the job, or what stood against it."""
    drafts = [item for item in read if isinstance(item, Draft)]
    try:
        stored = iter(await runner.submit_many(drafts, owner=owner) if drafts else ())
    except DaneError as error:  # the whole chunk: the store was out of reach
        stored = iter([error] * len(drafts))
    return [next(stored) if isinstance(item, Draft) else item for item in read]


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
