"""Errors as answers: which status each error gets, and one shape for all of them (RFC 9457)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from typing_extensions import TypedDict

from dane_core.errors import (
    BadMessage,
    BadSettings,
    BadSpec,
    BadWorker,
    DaneError,
    ExchangeUnreachable,
    Fault,
    IllegalMove,
    KeyReused,
    NotFound,
    OutcomeUnknown,
    QueueMismatch,
    RefusedByServer,
    ServerUnreachable,
    SourceConflict,
    StoreOutdated,
    StoreTaken,
    StoreUnreachable,
    TooMuchOpen,
    Unreachable,
    UnsafeBind,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER: Final = "5"  # seconds; the pools and circuits behind us try again sooner
FOR_NOW: Final = frozenset({429, 503})  # statuses of what may be asked again a moment later
MOST_FAULTS: Final = 101  # in one answer: a specification's hundred, and that there are more
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class FaultBody(TypedDict):
    """One thing wrong: where, and what was expected there."""

    path: str
    message: str


class Problem(TypedDict):
    """What every answer that is not a success looks like."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultBody]


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of error looks outside.

    `detail` is said instead of the error's own words where those are for operators: they are
    in the log, and may name machines. `path` is the part of the request at fault.
    """

    status: int
    name: str
    title: str
    detail: str | None = None
    path: str | None = None


_AGAIN: Final = "Nothing was changed that was not acknowledged; try again in a moment."
_LOOK: Final = (
    "It may have been done, or not: the store did not confirm it. Look before you send it again; "
    "a job that is submitted with an Idempotency-Key can just be sent again."
)
_INSIDE: Final = "The server is not in order; its log says why."

#: The one table. An error of a class that is not here is its nearest ancestor's.
ROWS: Final[Mapping[type[DaneError], Row]] = {
    DaneError: Row(500, "internal", "DANE failed", _INSIDE),
    BadSpec: Row(422, "bad-spec", "The request cannot be accepted"),
    NotFound: Row(404, "not-found", "Not found", path="path"),
    SourceConflict: Row(
        409, "source-conflict", "The source_id has another source_url", path="source_id"
    ),
    KeyReused: Row(
        422, "key-reused", "The key stands for another request", path="header.Idempotency-Key"
    ),
    TooMuchOpen: Row(429, "too-much-open", "Too much is to be done already", path="tasks"),
    IllegalMove: Row(409, "illegal-move", "The present state does not allow this", path="path"),
    Unreachable: Row(503, "unreachable", "A part of DANE cannot be reached now", _AGAIN),
    StoreUnreachable: Row(503, "store-unreachable", "The store cannot be reached now", _AGAIN),
    OutcomeUnknown: Row(503, "outcome-unknown", "It is not known whether this was done", _LOOK),
    ExchangeUnreachable: Row(
        503, "exchange-unreachable", "The message broker cannot be reached now", _AGAIN
    ),
    ServerUnreachable: Row(503, "unreachable", "A part of DANE cannot be reached now", _AGAIN),
    StoreTaken: Row(503, "store-taken", "The store is in use by another server", _INSIDE),
    StoreOutdated: Row(503, "store-outdated", "The store needs an upgrade", _INSIDE),
    QueueMismatch: Row(503, "queue-mismatch", "A queue has other arguments", _INSIDE),
    BadMessage: Row(500, "internal", "DANE failed", _INSIDE),
    BadSettings: Row(500, "internal", "DANE failed", _INSIDE),
    BadWorker: Row(500, "internal", "DANE failed", _INSIDE),
    UnsafeBind: Row(500, "internal", "DANE failed", _INSIDE),
    RefusedByServer: Row(502, "refused", "Another server refused", _INSIDE),
}


class Rejection(Exception):  # not a DaneError: HTTP's own faults have no meaning elsewhere
    """A request that HTTP itself gives a reason to refuse; `path` is the part at fault."""

    def __init__(
        self, status: int, path: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{path}: {message}")
        self.status = status
        self.faults = (Fault(path, message),)
        self.headers = headers or {}


def row_of(error: DaneError) -> Row:
    return next(ROWS[kind] for kind in type(error).__mro__ if kind in ROWS)


def problem(error: DaneError | Rejection) -> Problem:
    """What the client is told about an error."""
    if isinstance(error, Rejection):
        return _body(error.status, str(error), error.faults)
    row = row_of(error)
    faults: Sequence[Fault] = ()
    if isinstance(error, BadSpec):
        faults = error.faults
    elif row.path is not None:
        faults = (Fault(row.path, str(error)),)
    detail = row.detail or (str(error) if row.path else _count(faults))
    return _body(row.status, detail, faults, kind=f"urn:dane:problem:{row.name}", title=row.title)


def answer(body: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as a response."""
    return Response(
        orjson.dumps(body), body["status"], headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def refuse(rejection: Rejection) -> Response:
    """The response for a request that goes no further."""
    return answer(problem(rejection), rejection.headers)


def broken(incident: str) -> Response:
    """The response after a fault of ours: nothing but the name under which it was logged."""
    return answer(_body(500, f"DANE failed; the log has it as incident {incident}."))


def answer_problems(app: FastAPI) -> None:
    """Make every error an application/problem+json answer."""
    app.add_exception_handler(DaneError, _on_error)
    app.add_exception_handler(Rejection, _on_rejection)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def _body(
    status: int,
    detail: str,
    faults: Sequence[Fault] = (),
    *,
    kind: str = "about:blank",
    title: str | None = None,
) -> Problem:
    return Problem(
        type=kind,
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=[
            FaultBody(path=fault.path or "body", message=fault.message)
            for fault in faults[:MOST_FAULTS]
        ],
    )


def _count(faults: Sequence[Fault]) -> str:
    return str(faults[0]) if len(faults) == 1 else f"{len(faults)} faults"


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DaneError)  # noqa: S101 - registered for no other
    body = problem(error)
    if body["status"] >= 500:
        logger.warning("%s %s: %s", request.method, request.url.path, error)
    return answer(body, {"Retry-After": RETRY_AFTER} if body["status"] in FOR_NOW else None)


async def _on_rejection(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejection)  # noqa: S101
    return refuse(error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 405:
        return _wrong_method(request)
    if error.status_code == 404:
        return refuse(Rejection(404, "path", f"there is nothing at {request.url.path}"))
    return answer(_body(error.status_code, str(error.detail)), error.headers)


def _wrong_method(request: Request) -> Response:
    allowed = [method for method in METHODS if _takes(request, method)]
    message = f"{request.url.path} does not take {request.method}, but {' and '.join(allowed)}"
    if request.method == "GET":
        message += (
            "; DANE changes nothing on GET, since browsers and crawlers send those unasked "
            "(COMPAT.GET_ACTIONS turns DANE 0.1's behaviour on)"
        )
    if "GET" in allowed:
        allowed.append("HEAD")
    return refuse(Rejection(405, "method", message, headers={"Allow": ", ".join(allowed)}))


def _takes(request: Request, method: str) -> bool:
    # Starlette names the methods of the first route of a path only.
    scope = {**request.scope, "method": method, "path": request.scope["path"]}
    routes = request.app.router.routes
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


async def _on_parameters(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [_fault(item) for item in error.errors()]
    return answer(_body(422, _count(faults), faults))


def _fault(item: Mapping[str, Any]) -> Fault:
    path = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    return Fault(path, message[:1].lower() + message[1:])


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it
