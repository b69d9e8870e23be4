"""The wire: what the server and the workers say to each other.

An `Envelope` is what an exchange carries: bytes, an address and a few properties. The other
classes are what is inside; each knows how to `seal` itself into an envelope, and `open_report`
and friends turn an envelope back, or raise `BadMessage`. Bodies are JSON objects with `"v": 1`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import uuid4

import orjson

from dane_core.errors import BadMessage
from dane_core.job import JobId, TaskId
from dane_core.routing import TASK_KEY, routing_key

T = TypeVar("T")

VERSION: Final = 1
#: The type of a message that holds several reports.
BUNDLE: Final = "bundle"

#: An answer's response travels in its message up to this size, in bytes.
INLINE_LIMIT: Final = 256 * 1024
#: The largest response of an answer, in bytes of JSON.
RESPONSE_LIMIT: Final = 4 * 1024 * 1024
#: Messages of people and exceptions are cut at this many characters.
TEXT_LIMIT: Final = 8 * 1024
#: Ids of workers and names of hosts and queues are at most this long, in characters.
NAME_LIMIT: Final = 200

_MOST_ID: Final = 2**63 - 1
_MOST: Final = 2**31 - 1
_MOST_SECONDS: Final = 1e9
#: What a worker may ask for as the lease of an attempt, in seconds.
_SHORTEST_LEASE: Final = 1.0
_LONGEST_LEASE: Final = 3600.0
#: orjson writes no JSON nested deeper than this; responses must leave room around them.
_JSON_DEPTH: Final = 254
_DEPTH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message as an exchange carries it.

    `headers` hold integers and strings only. Each publish gives the message a fresh id of
    its own, so an envelope may be sent again as it is.
    """

    type: str
    body: bytes
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int = 0
    headers: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a task message entitles its bearer to: one attempt at one task.

    `dispatch` counts the sendings of an attempt. `token` is the server's signature over task
    and attempt, so nobody can answer a task that they were not given.
    """

    task_id: TaskId
    attempt: int
    dispatch: int
    token: str

    @property
    def headers(self) -> dict[str, int | str]:
        return {"attempt": self.attempt, "dispatch": self.dispatch, "token": self.token}


# --- to the workers -------------------------------------------------------------------------

#: This process, among all that send.
_PROCESS: Final = uuid4().hex


class Stamp(NamedTuple):
    """A moment of one process, on a clock that nobody sets: it tells what came before what there.

    `at` is in seconds since anything.
    """

    process: str
    at: float

    @classmethod
    def here(cls, at: float | None = None) -> Self:
        """Now, or the given time of `time.monotonic`."""
        return cls(_PROCESS, time.monotonic() if at is None else at)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMessage:
    """A task to do: DESIGN 5's `job`, `task` and `response`."""

    ticket: Ticket
    job_id: JobId
    source_url: str
    source_id: str
    type: str | None
    priority: int
    metadata: Mapping[str, Any]
    key: str
    name: str | None
    args: Mapping[str, Any]
    timeout: float | None
    response: Mapping[str, Any]
    partial: bool = False  # some earlier answers were too large to come along
    sent_at: float = 0.0  # seconds since the epoch, the server's clock
    stamp: Stamp | None = None  # the same moment

    @property
    def routing_key(self) -> str:
        return routing_key(self.type, self.key)

    def seal(self, reply_to: str) -> Envelope:
        body = {
            "v": VERSION,
            "job": {
                "job_id": self.job_id,
                "source_url": self.source_url,
                "source_id": self.source_id,
                "type": self.type,
                "priority": self.priority,
                "metadata": self.metadata,
            },
            "task": {
                "task_id": self.ticket.task_id,
                "task_key": self.key,
                "name": self.name,
                "args": self.args,
                "attempt": self.ticket.attempt,
                "timeout": self.timeout,
            },
            "response": self.response,
            "partial": self.partial,
            "sent_at": self.sent_at,
            "stamp": self.stamp and [*self.stamp],
        }
        return Envelope(
            type="task",
            body=orjson.dumps(body),
            correlation_id=str(self.ticket.task_id),
            reply_to=reply_to,
            priority=self.priority,
            headers=self.ticket.headers,
        )


def open_task(envelope: Envelope) -> TaskMessage:
    """Read a task message. Raises: BadMessage."""
    body = _body(envelope)
    job, task = _get(body, "job", dict), _get(body, "task", dict)
    return TaskMessage(
        ticket=_ticket(envelope),
        job_id=JobId(_get(job, "job_id", int)),
        source_url=_get(job, "source_url", str),
        source_id=_get(job, "source_id", str),
        type=_maybe(job, "type", str),
        priority=_get(job, "priority", int),
        metadata=_get(job, "metadata", dict),
        key=_get(task, "task_key", str),
        name=_maybe(task, "name", str),
        args=_get(task, "args", dict),
        timeout=_number(task, "timeout"),
        response=_get(body, "response", dict),
        partial=_maybe(body, "partial", bool) or False,
        sent_at=_number(body, "sent_at") or 0.0,
        stamp=_stamp(body),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A word to all workers (fanout). It never carries truth, only the hint to look again.

    `act` is one of
    `cancel`   stop running attempts of this job or task; ask before starting others of it
    `recall`   tasks of this job or key were taken back: ask before starting them
    `pause`    take no more tasks of this key · `resume`  take them again
    `drain`    finish what runs and stop (only the worker named)
    `roll`     say hello again: a server has just started
    `welcome`  to one worker that said hello: by now the server knows that it listens
    """

    act: str
    job_id: JobId | None = None
    task_id: TaskId | None = None
    attempt: int | None = None  # with task_id: only this attempt; None is any
    key: str | None = None
    worker: str | None = None
    grace: float | None = None  # with cancel: seconds until work is ended by force
    listening: int | None = None  # with welcome: that of the hello
    #: Seconds since the epoch, the server's clock; None from a server that does not say it.
    sent_at: float | None = field(default_factory=time.time, compare=False)
    stamp: Stamp | None = field(default_factory=Stamp.here, compare=False)

    def seal(self) -> Envelope:
        return Envelope(
            type="control",
            body=_dumps(
                act=self.act,
                job_id=self.job_id,
                task_id=self.task_id,
                attempt=self.attempt,
                key=self.key,
                worker=self.worker,
                grace=self.grace,
                listening=self.listening,
                sent_at=self.sent_at,
                stamp=self.stamp and [*self.stamp],
            ),
        )


def open_control(envelope: Envelope) -> Control:
    """Read a control message. Raises: BadMessage."""
    body = _body(envelope)
    job_id, task_id = _maybe(body, "job_id", int), _maybe(body, "task_id", int)
    return Control(
        act=_get(body, "act", str),
        job_id=None if job_id is None else JobId(job_id),
        task_id=None if task_id is None else TaskId(task_id),
        attempt=_maybe(body, "attempt", int),
        key=_maybe(body, "key", str),
        worker=_maybe(body, "worker", str),
        grace=_seconds(body, "grace"),
        listening=_maybe(body, "listening", int),
        sent_at=_number(body, "sent_at"),
        stamp=_stamp(body),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to `Ask`, sent to the worker's inbox: run this ticket, or drop it."""

    ticket: Ticket
    run: bool
    reason: str = ""

    def seal(self) -> Envelope:
        return Envelope(
            type="verdict",
            body=_dumps(run=self.run, reason=self.reason),
            correlation_id=str(self.ticket.task_id),
            headers=self.ticket.headers,
        )


def open_verdict(envelope: Envelope) -> Verdict:
    """Read a verdict. Raises: BadMessage."""
    body = _body(envelope)
    return Verdict(
        ticket=_ticket(envelope), run=_get(body, "run", bool), reason=_get(body, "reason", str)
    )


# --- from the workers, all on the response queue ----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How an attempt ended. `state` is a number of `states.ANSWERS`; times in seconds.

    `runtime` is measured on the worker's monotonic clock; clocks are never compared.
    """

    ticket: Ticket
    state: int
    message: str
    response: Mapping[str, Any]
    worker: str | None = None
    runtime: float | None = None
    started_at: str | None = None  # the worker's clock, ISO 8601 UTC, for people

    def seal(self) -> Envelope:
        return _report(
            "answer",
            self.ticket,
            _dumps(
                state=self.state,
                message=self.message,
                response=self.response,
                worker=self.worker,
                runtime=self.runtime,
                started_at=self.started_at,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A worker has begun; sent once an attempt has run for a second. `runtime` so far."""

    ticket: Ticket
    worker: str
    runtime: float

    def seal(self) -> Envelope:
        return _report("started", self.ticket, _dumps(worker=self.worker, runtime=self.runtime))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attempt is: `fraction` from 0 to 1, and a word about it."""

    ticket: Ticket
    fraction: float
    message: str = ""

    def seal(self) -> Envelope:
        return _report(
            "progress", self.ticket, _dumps(fraction=self.fraction, message=self.message)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A worker hands an attempt back undone (drain, refusal): to be sent again, none spent."""

    ticket: Ticket
    worker: str
    delay: float = 0.0  # seconds
    reason: str = ""

    def seal(self) -> Envelope:
        return _report(
            "released",
            self.ticket,
            _dumps(worker=self.worker, delay=self.delay, reason=self.reason),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """The hand-off: from here on this attempt lives on a lease in the store, not on its message.

    Once it is confirmed the message is settled, so no timeout and no loss of the broker can
    take the attempt away. The lease lasts `lease` seconds from each heartbeat that names it.
    """

    ticket: Ticket
    worker: str
    runtime: float  # seconds so far
    lease: float

    def seal(self) -> Envelope:
        return _report(
            "leased",
            self.ticket,
            _dumps(worker=self.worker, runtime=self.runtime, lease=self.lease),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A worker is alive, and these attempts are being done there: one message for all of them."""

    worker: str
    running: tuple[Ticket, ...]
    lease: float  # seconds: how long what is leased may go on without another heartbeat
    #: Those that have no message any more; the server takes them onto a lease if they are on none.
    leased: frozenset[Ticket] = frozenset()

    def seal(self) -> Envelope:
        running = [
            {**_ticket_body(ticket), "leased": ticket in self.leased} for ticket in self.running
        ]
        return Envelope(
            type="heartbeat", body=_dumps(worker=self.worker, running=running, lease=self.lease)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A worker's process has ended without a goodbye, and how; its watchman says so."""

    worker: str
    reason: str = ""

    def seal(self) -> Envelope:
        return Envelope(type="gone", body=_dumps(worker=self.worker, reason=self.reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """May I still run this ticket? Answered with a `Verdict` to `reply_to`."""

    ticket: Ticket
    worker: str
    reply_to: str
    redelivered: bool = False  # another worker may have died with it in its hands

    def seal(self) -> Envelope:
        return Envelope(
            type="ask",
            body=_dumps(worker=self.worker, redelivered=self.redelivered),
            correlation_id=str(self.ticket.task_id),
            reply_to=self.reply_to,
            headers=self.ticket.headers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a worker can do with one task key."""

    key: str
    types: tuple[str, ...] = ()  # empty: every type
    description: str = ""
    args_schema: Mapping[str, Any] | None = None  # JSON Schema of `args`
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker is here and its queues are bound. Sent at start, then every 15 s."""

    worker: str
    host: str
    pid: int
    slots: int
    inbox: str
    offers: tuple[Offer, ...]
    running: tuple[Ticket, ...] = ()
    fresh: bool = False  # the first hello after (re)binding its queues
    #: How often this worker has begun to listen, while it waits to be welcomed; otherwise 0.
    listening: int = 0

    def seal(self) -> Envelope:
        return Envelope(
            type="hello",
            reply_to=self.inbox,
            body=_dumps(
                worker=self.worker,
                host=self.host,
                pid=self.pid,
                slots=self.slots,
                fresh=self.fresh,
                listening=self.listening,
                offers=[
                    {
                        "key": offer.key,
                        "types": offer.types,
                        "description": offer.description,
                        "args_schema": offer.args_schema,
                        "version": offer.version,
                    }
                    for offer in self.offers
                ],
                running=[_ticket_body(ticket) for ticket in self.running],
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """A worker leaves of its own will."""

    worker: str

    def seal(self) -> Envelope:
        return Envelope(type="goodbye", body=_dumps(worker=self.worker))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nudge:
    """An API process has written something: runners, look at the store."""

    def seal(self) -> Envelope:
        return Envelope(type="nudge", body=_dumps())


Report = (
    Answer
    | Started
    | Progress
    | Released
    | Leased
    | Heartbeat
    | Gone
    | Ask
    | Hello
    | Goodbye
    | Nudge
)


def open_report(envelope: Envelope) -> Report:
    """Read what a worker or an API process says. Raises: BadMessage."""
    return _report_in(envelope, _body(envelope))


def _report_in(envelope: Envelope, body: dict[str, Any]) -> Report:
    try:
        read = _READERS[envelope.type]
    except KeyError:
        raise BadMessage(f"unknown message type {envelope.type!r}") from None
    return read(envelope, body)


def bundle(envelopes: Sequence[Envelope]) -> Envelope:
    """Put sealed reports into one message: what a busy worker says costs the broker one."""
    said = [
        {
            "type": envelope.type,
            "correlation_id": envelope.correlation_id,
            "reply_to": envelope.reply_to,
            "headers": envelope.headers,
            "body": orjson.Fragment(envelope.body),
        }
        for envelope in envelopes
    ]
    return Envelope(type=BUNDLE, body=_dumps(said=said))


def open_reports(envelope: Envelope) -> "list[tuple[Envelope, Report | BadMessage]]":
    """The reports in a message, which may be a bundle; in place of a bad one stands why.

    Each has an envelope of its own, as if it had come alone.
    """
    try:
        if envelope.type != BUNDLE:
            return [(envelope, open_report(envelope))]
        return [_bundled(_object(item, "said")) for item in _get(_body(envelope), "said", list)]
    except BadMessage as fault:
        return [(envelope, fault)]


def _bundled(item: dict[str, Any]) -> "tuple[Envelope, Report | BadMessage]":
    body = _get(item, "body", dict)
    envelope = Envelope(
        type=_get(item, "type", str),
        body=orjson.dumps(body),
        correlation_id=_maybe(item, "correlation_id", str),
        reply_to=_maybe(item, "reply_to", str),
        headers=_get(item, "headers", dict),
    )
    try:
        return envelope, _report_in(envelope, _versioned(body, envelope.type))
    except BadMessage as fault:
        return envelope, fault


def _answer(envelope: Envelope, body: dict[str, Any]) -> Answer:
    answer = Answer(
        ticket=_ticket(envelope),
        state=_get(body, "state", int),
        message=_get(body, "message", str)[:TEXT_LIMIT],
        response=_get(body, "response", dict),
        worker=_maybe_name(body, "worker"),
        runtime=_seconds(body, "runtime"),
        started_at=_maybe(body, "started_at", str),
    )
    if _nests_too_deep(envelope, answer.response):
        # Not a BadMessage: nobody else will answer this task.
        fault = f"the response was nested deeper than {_DEPTH} levels"
        return replace(answer, state=500, message=fault, response={})
    return answer


def _started(envelope: Envelope, body: dict[str, Any]) -> Started:
    return Started(
        ticket=_ticket(envelope),
        worker=_name(body, "worker"),
        runtime=_seconds(body, "runtime") or 0.0,
    )


def _progress(envelope: Envelope, body: dict[str, Any]) -> Progress:
    fraction = _number(body, "fraction")
    if fraction is None or not 0 <= fraction <= 1:
        raise BadMessage("fraction: expected a number from 0 to 1")
    return Progress(
        ticket=_ticket(envelope),
        fraction=fraction,
        message=_get(body, "message", str)[:TEXT_LIMIT],
    )


def _released(envelope: Envelope, body: dict[str, Any]) -> Released:
    return Released(
        ticket=_ticket(envelope),
        worker=_name(body, "worker"),
        delay=min(_seconds(body, "delay") or 0.0, 86_400.0),
        reason=_get(body, "reason", str)[:TEXT_LIMIT],
    )


def _leased(envelope: Envelope, body: dict[str, Any]) -> Leased:
    return Leased(
        ticket=_ticket(envelope),
        worker=_name(body, "worker"),
        runtime=_seconds(body, "runtime") or 0.0,
        lease=_lease(body),
    )


def _heartbeat(_: Envelope, body: dict[str, Any]) -> Heartbeat:
    running = [(_running(item), _is_leased(item)) for item in _get(body, "running", list)]
    return Heartbeat(
        worker=_name(body, "worker"),
        running=tuple(ticket for ticket, _ in running),
        lease=_lease(body),
        leased=frozenset(ticket for ticket, is_leased in running if is_leased),
    )


def _is_leased(item: object) -> bool:
    """Workers of an earlier version do not say it."""
    return _maybe(_object(item, "running"), "leased", bool) or False


def _gone(_: Envelope, body: dict[str, Any]) -> Gone:
    return Gone(worker=_name(body, "worker"), reason=_get(body, "reason", str)[:TEXT_LIMIT])


def _lease(body: dict[str, Any]) -> float:
    return min(max(_seconds(body, "lease") or 0.0, _SHORTEST_LEASE), _LONGEST_LEASE)


def _ask(envelope: Envelope, body: dict[str, Any]) -> Ask:
    if envelope.reply_to is None:
        raise BadMessage("an ask without reply_to")
    return Ask(
        ticket=_ticket(envelope),
        worker=_name(body, "worker"),
        reply_to=envelope.reply_to,
        redelivered=_maybe(body, "redelivered", bool) or False,
    )


def _hello(envelope: Envelope, body: dict[str, Any]) -> Hello:
    inbox = envelope.reply_to or ""
    if not inbox.isascii() or len(inbox) > 255:
        raise BadMessage("a hello whose reply_to is not the name of a queue")
    return Hello(
        worker=_name(body, "worker"),
        host=_name(body, "host"),
        pid=_count(body, "pid"),
        slots=_count(body, "slots"),
        inbox=inbox,
        offers=tuple(_offer(offer) for offer in _get(body, "offers", list)),
        running=tuple(_running(ticket) for ticket in _get(body, "running", list)),
        fresh=_get(body, "fresh", bool),
        listening=_count(body, "listening") if "listening" in body else 0,
    )


def _offer(item: object) -> Offer:
    body = _object(item, "offers")
    types = _get(body, "types", list)
    if not all(isinstance(media_type, str) for media_type in types):
        raise BadMessage("offers.types: expected strings")
    key = _get(body, "key", str)
    if not TASK_KEY.fullmatch(key):
        raise BadMessage(f"offers.key: {key[:100]!r} is not a task key")
    return Offer(
        key=key,
        types=tuple(types),
        description=_get(body, "description", str)[:TEXT_LIMIT],
        args_schema=_maybe(body, "args_schema", dict),
        version=_get(body, "version", str)[:NAME_LIMIT],
    )


def _running(item: object) -> Ticket:
    body = _object(item, "running")
    return Ticket(
        task_id=TaskId(_count(body, "task_id", _MOST_ID)),
        attempt=_count(body, "attempt"),
        dispatch=_count(body, "dispatch"),
        token=_get(body, "token", str),
    )


_READERS: Final[Mapping[str, Callable[[Envelope, dict[str, Any]], Report]]] = {
    "answer": _answer,
    "started": _started,
    "progress": _progress,
    "released": _released,
    "leased": _leased,
    "heartbeat": _heartbeat,
    "gone": _gone,
    "ask": _ask,
    "hello": _hello,
    "goodbye": lambda _, body: Goodbye(worker=_name(body, "worker")),
    "nudge": lambda *_: Nudge(),
}


# --- reading with care --------------------------------------------------------------------------


def _report(kind: str, ticket: Ticket, body: bytes) -> Envelope:
    return Envelope(
        type=kind, body=body, correlation_id=str(ticket.task_id), headers=ticket.headers
    )


def _ticket_body(ticket: Ticket) -> dict[str, int | str]:
    return {"task_id": ticket.task_id, **ticket.headers}


def _dumps(**members: Any) -> bytes:
    return orjson.dumps({"v": VERSION, **members})


def _body(envelope: Envelope) -> dict[str, Any]:
    try:
        body = orjson.loads(envelope.body)
    except orjson.JSONDecodeError as fault:
        raise BadMessage(f"{envelope.type}: not JSON: {fault}") from None
    return _versioned(_object(body, envelope.type), envelope.type)


def _versioned(body: dict[str, Any], where: str) -> dict[str, Any]:
    if body.get("v") != VERSION:
        raise BadMessage(f"{where}: version {body.get('v')!r}, expected {VERSION}")
    return body


def _ticket(envelope: Envelope) -> Ticket:
    headers = envelope.headers
    try:
        task_id = int(envelope.correlation_id or "")
    except ValueError:
        task_id = 0
    if not 0 < task_id <= _MOST_ID:
        raise BadMessage(f"correlation_id {envelope.correlation_id!r} is not a task id")
    return Ticket(
        task_id=TaskId(task_id),
        attempt=_count(headers, "attempt"),
        dispatch=_count(headers, "dispatch"),
        token=_get(headers, "token", str),
    )


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadMessage(f"{where}: expected an object")
    return value


def _get(body: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = body.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadMessage(f"{name}: expected {kind.__name__}, not {type(value).__name__}")
    return value


def _maybe(body: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    return None if body.get(name) is None else _get(body, name, kind)


def _count(body: Mapping[str, Any], name: str, most: int = _MOST) -> int:
    value = _get(body, name, int)
    if not 0 <= value <= most:
        raise BadMessage(f"{name}: expected a number from 0 to {most}")
    return value


def _name(body: Mapping[str, Any], name: str) -> str:
    return _get(body, name, str)[:NAME_LIMIT]


def _maybe_name(body: Mapping[str, Any], name: str) -> str | None:
    return None if body.get(name) is None else _name(body, name)


def _seconds(body: Mapping[str, Any], name: str) -> float | None:
    value = _number(body, name)
    return None if value is None else min(max(value, 0.0), _MOST_SECONDS)


def _nests_too_deep(envelope: Envelope, response: Mapping[str, Any]) -> bool:
    if envelope.body.count(b"{") + envelope.body.count(b"[") <= _DEPTH:
        return False
    wrapped: Any = response
    for _ in range(_JSON_DEPTH - _DEPTH):
        wrapped = [wrapped]
    try:
        orjson.dumps(wrapped)
    except TypeError:
        return True
    return False


def _stamp(body: Mapping[str, Any]) -> Stamp | None:
    match body.get("stamp"):
        case None:
            return None
        case [str(process), int() | float() as at]:
            return Stamp(process, at)
    raise BadMessage("stamp: expected a process and a number")


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadMessage(f"{name}: expected a number, not {type(value).__name__}")
    return float(value)
