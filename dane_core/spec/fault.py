"""Collects what is wrong with an input, and says where in words that are safe to show."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final, TypeAlias

from dane_core.errors import BadSpec, Fault

#: Nobody reads more, and an attacker does not get to make us write more.
MOST_FAULTS: Final = 100

#: Where in an input: the way there, and the last step. Written out only when needed.
Path: TypeAlias = "tuple[Path, str | int] | None"

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHOWN: Final = 60


class Faults:
    """Every fault found so far in one input."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, path: Path, message: str) -> None:
        """Note a fault. Raises: BadSpec, when there are too many to go on."""
        if len(self._faults) == MOST_FAULTS:
            more = Fault("", f"there are more faults than these {MOST_FAULTS}")
            raise BadSpec([*self._faults, more])
        self._faults.append(Fault(written(path), message))

    def refusal(self) -> BadSpec:
        """The error that tells them all."""
        return BadSpec(self._faults)


def written(path: Path) -> str:
    """A path as people read it: `tasks.taskSequential[1].Task.args`."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        if isinstance(step, int):
            steps.append(f"[{step}]")
        elif _PLAIN.fullmatch(step):
            steps.append(f".{step}")
        else:
            steps.append(f"[{shown(step)}]")
    return "".join(reversed(steps)).removeprefix(".")


def shown(text: str) -> str:
    """What somebody sent, quoted, cut, and without anything that does not print."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def named(text: str) -> str:
    """A name as it is when it is plain, else as `shown`."""
    return text if _PLAIN.fullmatch(text) else shown(text)


def meant(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'args'?` when a name is close to a known one, else nothing."""
    candidates = list(known)
    # Comparing is slow, and a guess among thousands of names helps nobody.
    if len(name) > _SHOWN or len(candidates) > MOST_FAULTS:
        return ""
    close = get_close_matches(name, candidates, n=1)
    return f"; did you mean {shown(close[0])}?" if close else ""
