"""Every error DANE raises on purpose.

DaneError
├── BadSpec             what a client sent cannot be accepted; all faults at once
├── BadSettings         the configuration cannot be used; all faults at once
├── BadMessage          bytes on the wire that are not one of our messages
├── NotFound            no such job, task or task key
├── SourceConflict      one source_id, two source_urls
├── KeyReused           an Idempotency-Key used again for another request
├── TooMuchOpen         so much is to be done already that no more is taken in
├── IllegalMove         the state of a job or task does not allow this
├── BadWorker           a worker class or target that cannot be served
├── UnsafeBind          an open address without authentication
├── Unreachable         a part of DANE cannot be reached now
│   ├── StoreUnreachable
│   ├── ExchangeUnreachable
│   └── ServerUnreachable
├── StoreTaken          a second server on one SQLite file
├── StoreOutdated       the store's tables are not the ones this version knows
├── QueueMismatch       a queue exists with other arguments
└── RefusedByServer     the server answered a client with a problem
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: where, and what was expected there."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class DaneError(Exception):
    """Something DANE knows how to explain."""


class _Faulty(DaneError):
    """Carries every fault found, not only the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = tuple(faults)


class BadSpec(_Faulty):
    """A request that cannot be accepted, with every fault found in it."""


class BadSettings(_Faulty):
    """A configuration that cannot be used; paths name the file and the key."""


class BadMessage(DaneError):
    """A message that is not one of ours, or not whole."""


class NotFound(DaneError):
    """There is no such job, task or task key."""

    def __init__(self, kind: str, ident: object) -> None:
        super().__init__(f"there is no {kind} {ident}")
        self.kind = kind
        self.ident = ident


class SourceConflict(DaneError):
    """A source_id that already belongs to another source_url."""

    def __init__(self, source_id: str, source_url: str) -> None:
        super().__init__(f"source_id {source_id!r} already belongs to {source_url!r}")
        self.source_id = source_id
        self.source_url = source_url


class KeyReused(DaneError):
    """An Idempotency-Key that was used before, for a different request."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r} was used before for another request")
        self.key = key


class TooMuchOpen(DaneError):
    """A job that is not taken in now: too many tasks are open already.

    `owner` is None where everybody's tasks are counted together.
    """

    def __init__(self, tasks: int, count: int, limit: int, owner: str | None = None) -> None:
        whose = "" if owner is None else f" of {owner!r}" if owner else " of nobody in particular"
        super().__init__(
            f"{count:,} tasks{whose} are open, and {limit:,} may be: no room for {tasks:,} more"
        )
        self.count = count
        self.limit = limit
        self.owner = owner


class IllegalMove(DaneError):
    """An act that the present state of a job or task does not allow."""

    def __init__(self, subject: str, state: str, act: str) -> None:
        super().__init__(f"{subject} is {state}: cannot {act}")
        self.subject = subject
        self.state = state
        self.act = act


class BadWorker(DaneError):
    """A worker class, or the name of one, that cannot be served."""


class UnsafeBind(DaneError):
    """An address other machines can reach, without authentication."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"refusing to listen on {host}: authentication is off, so DANE.HOST must be "
            "a loopback address (127.0.0.1, ::1 or localhost)"
        )
        self.host = host


class Unreachable(DaneError):
    """A part of DANE that cannot be reached now; trying again later may help."""


class StoreUnreachable(Unreachable):
    """The database does not answer."""


class OutcomeUnknown(StoreUnreachable):
    """A change that the database may have kept or not: its COMMIT was not acknowledged."""


class ExchangeUnreachable(Unreachable):
    """The message broker does not answer."""


class ServerUnreachable(Unreachable):
    """The DANE server does not answer a client."""


class StoreTaken(DaneError):
    """Another server already uses this SQLite file."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"another DANE server uses {path}; one SQLite file serves one server "
            "(for several servers set STORE.URL to a MariaDB)"
        )
        self.path = path


class StoreOutdated(DaneError):
    """The tables in the store are not the ones this version of DANE knows."""


class QueueMismatch(DaneError):
    """A queue that exists with other arguments than DANE gives it; or an exchange."""

    def __init__(self, queue: str, reason: str, *, kind: str = "queue") -> None:
        super().__init__(
            f"{kind} {queue!r} exists with other arguments: {reason}; "
            "delete it on the broker (its tasks are safe in the store) and start again"
        )
        self.queue = queue


class RefusedByServer(DaneError):
    """The server understood a request and said no."""

    def __init__(self, status: int, title: str, detail: str, faults: Sequence[Fault] = ()) -> None:
        told = [str(fault) for fault in faults]
        if len(faults) == 1 and detail in (told[0], faults[0].message):
            detail, told = told[0], []  # once is enough
        lines = [f"{status} {title}: {detail}" if detail else f"{status} {title}"]
        super().__init__("\n  ".join(lines + told))
        self.status = status
        self.faults = tuple(faults)
