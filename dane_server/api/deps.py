"""What routes ask for by type: the parts of the server, ids, and parameters read strictly."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, ParamSpec, TypeVar, cast

from fastapi import Depends, Path, Query, Request
from pydantic import BeforeValidator, Field, WithJsonSchema

from dane_core.exchange.base import Exchange
from dane_core.job import JobId, TaskId
from dane_core.routing import TASK_KEY
from dane_core.spec import Limits
from dane_server.api.body import spec_type
from dane_server.api.problems import Rejection
from dane_server.runner.runner import Runner
from dane_server.settings import ServerSettings
from dane_server.storage.reader import Reader

P = ParamSpec("P")
T = TypeVar("T")

LARGEST_ID: Final = 2**63 - 1
#: Longer bodies are read beside the event loop, jobs of more tasks are written some at a time.
LARGE_BODY: Final = 32 * 1024
LARGE_JOB: Final = 500

_DIGITS: Final = re.compile(r"-?[0-9]{1,19}")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_OWNER: Final = re.compile(r"[\x21-\x7e]{1,100}")
_PLAIN: Final = r"^[^\x00-\x1f\x7f]*$"
_FLAWS: Final = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
_OLDEST, _NEWEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the routes are given to work with."""

    runner: Runner
    reader: Reader
    settings: ServerSettings
    exchange: Exchange
    limits: Limits


# --- the parts -----------------------------------------------------------------------------------


def parts_of(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


async def _parts(request: Request) -> Parts:
    return parts_of(request)


async def _runner(request: Request) -> Runner:
    return parts_of(request).runner


async def _reader(request: Request) -> Reader:
    return parts_of(request).reader


async def _settings(request: Request) -> ServerSettings:
    return parts_of(request).settings


async def _exchange(request: Request) -> Exchange:
    return parts_of(request).exchange


async def _limits(request: Request) -> Limits:
    return parts_of(request).limits


#: All of them: each dependency by itself costs what a small query does.
TheParts = Annotated[Parts, Depends(_parts)]
TheRunner = Annotated[Runner, Depends(_runner)]
TheReader = Annotated[Reader, Depends(_reader)]
TheSettings = Annotated[ServerSettings, Depends(_settings)]
TheExchange = Annotated[Exchange, Depends(_exchange)]
TheLimits = Annotated[Limits, Depends(_limits)]


# --- parameters ----------------------------------------------------------------------------------


def _whole(value: object) -> object:
    """Digits only: int() would also take " 7", "7_0" and "+7"."""
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("expected a whole number, in digits")
    return value


def _text(value: object) -> object:
    if isinstance(value, str) and _FLAWS.search(value):
        raise ValueError("contains a control character")
    return value


def _key(value: object) -> object:
    key = value.upper() if isinstance(value, str) and value.isascii() else ""
    if not TASK_KEY.fullmatch(key):
        raise ValueError(f"expected a task key: {TASK_KEY.pattern}")
    return key


def _owner_name(value: object) -> object:
    if value != "" and not (isinstance(value, str) and _OWNER.fullmatch(value)):
        raise ValueError("expected up to 100 visible ASCII characters")
    return value


def _time(value: object) -> object:
    """An ISO 8601 time; without an offset it is UTC."""
    # In a query a plus that was not escaped arrives as a space.
    text = re.sub(r" (?=\d\d:\d\d$)", "+", str(value))
    try:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        time = _NEWEST
    if not _OLDEST <= time < _NEWEST:
        raise ValueError("expected an ISO 8601 time, such as 2030-01-31T12:00:00Z")
    return time


#: In front of a number: only digits are one.
WHOLE: Final = BeforeValidator(_whole)
#: In front of a text: nothing that steers a terminal or ends a line.
TEXT: Final = BeforeValidator(_text)

Id = Annotated[int, Field(ge=1, le=LARGEST_ID), WHOLE]
After = Annotated[int, Field(ge=-1, le=LARGEST_ID), WHOLE]
State = Annotated[int, Field(ge=100, le=599), WHOLE]
SourceId = Annotated[
    str, Field(min_length=1, max_length=255, json_schema_extra={"pattern": _PLAIN}), TEXT
]
Key = Annotated[
    str,
    BeforeValidator(_key),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,100}$"}),
]
OwnerName = Annotated[
    str,
    BeforeValidator(_owner_name),
    WithJsonSchema({"type": "string", "pattern": "^[!-~]{0,100}$"}),
]
Time = Annotated[
    datetime, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})
]

JobIdPath = Annotated[Id, Path(description="The job's id.")]
TaskIdPath = Annotated[Id, Path(description="The task's id.")]
KeyPath = Annotated[Key, Path(description="A task key; small letters are read as capitals.")]
SourceIdPath = Annotated[SourceId, Path(description="The source's id in its collection.")]
Limit = Annotated[int, Field(ge=1, le=500), WHOLE, Query(description="How many at most.")]
WithTasks = Annotated[
    bool, Query(alias="tasks", description="false: the job's head only, without its tasks.")
]


async def _job_id(job_id: JobIdPath) -> JobId:
    return JobId(job_id)


async def _task_id(task_id: TaskIdPath) -> TaskId:
    return TaskId(task_id)


TheJob = Annotated[JobId, Depends(_job_id)]
TheTask = Annotated[TaskId, Depends(_task_id)]


async def only_known_parameters(request: Request) -> None:
    """Refuse parameters the published contract does not have: they are typing errors.

    Raises: Rejection (422).
    """
    template = request.scope["route"].path_format.rstrip("/")
    operations = request.app.openapi()["paths"][template]
    declared = operations[request.method.lower()].get("parameters", [])
    known = {item["name"]: item["schema"] for item in declared if item["in"] == "query"}
    for name in dict.fromkeys(request.query_params):
        if name.startswith("metadata.") and "metadata.KEY" in known:
            continue
        if name not in known:
            raise Rejection(
                422, f"query.{name[:100]}", f"unknown; known here: {', '.join(known) or 'none'}"
            )
        if len(request.query_params.getlist(name)) > 1 and known[name].get("type") != "array":
            raise Rejection(422, f"query.{name}", "given twice")


async def _once_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _VISIBLE.fullmatch(keys[0]):
        raise Rejection(
            422, "header.Idempotency-Key", "expected 1 to 255 visible ASCII characters, once"
        )
    return keys[0]


#: The Idempotency-Key of a request, if it has one.
OnceKey = Annotated[str | None, Depends(_once_key)]


async def _owner(request: Request) -> str:
    """Who asks, as the proxy in front says; nobody in particular where it says nothing."""
    header = parts_of(request).settings.API.OWNER_HEADER
    names = request.headers.getlist(header) if header else []
    if not names:
        return ""
    if len(names) > 1 or not _OWNER.fullmatch(names[0]):
        raise Rejection(400, f"header.{header}", "expected 1 to 100 visible ASCII characters, once")
    return names[0]


#: Whose a job is that this request submits.
TheOwner = Annotated[str, Depends(_owner)]


# --- how to answer -------------------------------------------------------------------------------


async def _exact(
    request: Request,
    shape: Annotated[
        Literal["0.1"] | None, Query(description="0.1: no member that DANE 0.1 did not have.")
    ] = None,
) -> bool:
    return parts_of(request).settings.COMPAT.EXACT_SHAPE or shape is not None


async def _exact_for_sender(
    exact: Annotated[bool, Depends(_exact)], kind: Annotated[str | None, Depends(spec_type)]
) -> bool:
    return exact or kind is None


#: Whether to leave out what DANE 0.1 did not have (docs/decisions/0001).
Exact = Annotated[bool, Depends(_exact)]
#: The same for the answer to a submission, which DANE 0.1's script sends without a type.
ExactForSender = Annotated[bool, Depends(_exact_for_sender)]


async def beside(large: bool, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: FBT001
    """Do pure work, in a thread where it is `large` enough to hold the event loop up."""
    if large:
        return await asyncio.to_thread(act, *args, **kwargs)
    return act(*args, **kwargs)
