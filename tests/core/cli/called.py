"""`dane` as its user calls it, and a server with canned answers."""

import json
import logging
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from dane_core import cli


@dataclass
class Canned:
    """Answers `METHOD path` with what it was told; remembers what it was asked."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def answer(self, line: str, body: Any = None, status: int = 200) -> None:
        self.answers[line] = (status, body)


@dataclass(frozen=True)
class Said:
    """What a call of `dane` printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Dane:
    """`dane`, in a folder of its own without any configuration."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capture = capture

    def __call__(self, *args: object) -> Said:
        self._patch.setattr(sys, "argv", ["dane", *map(str, args)])
        # A verb that logs sends it to this test's stderr, which the next one has not.
        self._patch.setattr(logging.getLogger(), "handlers", [])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capture.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, captured.out, captured.err)
