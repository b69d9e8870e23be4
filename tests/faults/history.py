"""What happened, as those say who were there: append-only lines that survive `kill -9`."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

#: Names the folder of the history to the workers of a test.
FOLDER_VARIABLE: Final = "FAULTS_HISTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request of a client, and what came back; status 0 is no answer at all."""

    source_id: str
    status: int
    key: str | None = None  # its Idempotency-Key
    job_id: int | None = None
    sound: bool = True  # the specification is one that is to be accepted
    content_type: str = ""
    retry_after: str = ""  # as the header said
    took: float = 0.0  # seconds
    paths: Sequence[str] = ()  # of the faults that were named
    body: str = ""  # of an answer that is not a success
    at: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """`work` was entered: `value` is what this very execution is about to produce."""

    task_id: int
    attempt: int
    job_id: int
    key: str
    pid: int  # of the worker, whose child this may be
    value: str
    at: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`work` is about to return, with 200 and its value, or with another number."""

    task_id: int
    attempt: int
    job_id: int
    key: str
    pid: int
    value: str
    outcome: int = 200
    at: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaved:
    """`work` is about to end as a task should not: one of `trouble`."""

    task_id: int
    attempt: int
    does: str
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A task was settled when somebody looked."""

    task_id: int
    attempt: int
    state: str
    outcome: int | None
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """A person's act was accepted, or may have been; what it concerned may change, or be gone."""

    act: str
    job_id: int
    task_id: int | None = None
    at: float = field(default_factory=time.monotonic)


Event: TypeAlias = Sent | Began | Ended | Misbehaved | Seen | Acted
_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (Sent, Began, Ended, Misbehaved, Seen, Acted)
}


class History:
    """The events of one test, of all its processes, in the order in which they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "history.jsonl"

    def note(self, event: Event) -> None:
        """Write it down; what was written stays, whoever is killed.

        Begun on a line of its own: whoever wrote before may have been killed in the middle.
        """
        line = "\n" + json.dumps({"is": type(event).__name__, **asdict(event)}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(file)

    def events(self) -> list[Event]:
        if not self._path.exists():
            return []
        return [*_read(self._path.read_text().splitlines())]

    def began(self, **where: object) -> list[Began]:
        """The beginnings that have these values: `began(task_id=7, attempt=1)`."""
        return [event for event in self.events() if isinstance(event, Began) and _has(event, where)]

    def ended(self, **where: object) -> list[Ended]:
        return [event for event in self.events() if isinstance(event, Ended) and _has(event, where)]

    # --- words to workers that hold ------------------------------------------------------------

    def say(self, word: str) -> None:
        """Let go on who holds for this word."""
        (self.folder / f"word-{word}").touch()

    def has_word(self, word: str) -> bool:
        return (self.folder / f"word-{word}").exists()


def _read(lines: Iterable[str]) -> Iterable[Event]:
    """What was written to its end. A process killed before that did nothing after it."""
    for line in lines:
        if line.endswith("}"):
            values = json.loads(line)
            event: Event = _KINDS[values.pop("is")](**values)
            yield event


def _has(event: object, where: dict[str, object]) -> bool:
    return all(getattr(event, name) == value for name, value in where.items())
