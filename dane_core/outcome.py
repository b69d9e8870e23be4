"""What a worker may answer: done, failed, or not now."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Done:
    """The work is done. Returning a dict or a model means the same, with message "Success"."""

    response: Mapping[str, Any] = field(default_factory=dict)
    message: str = "Success"


@dataclass(slots=True, eq=False)
class Failed(Exception):
    """The work could not be done, and why. Return it or raise it.

    `state` is one of 400 malformed, 403 access denied, 404 source not found, 500 failed,
    502 partial input, 503 remote service failed; the last two are tried again by themselves.
    """

    message: str
    state: int = 500
    response: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True, eq=False)
class Refused(Exception):
    """Not now: the task goes back to its queue, and no attempt is spent.

    `delay` is how long this worker waits, in seconds, before the task may come again.
    """

    delay: float = 1.0
    message: str = "refused for now"

    def __str__(self) -> str:
        return self.message


Outcome = Done | Failed | Refused
