"""A server with canned answers, and `dane` as its user calls it."""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
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


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            line = f"{self.command} {self.path}"
            canned.asked.append(line)
            canned.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
            missing = {"title": "Not found", "status": 404, "detail": line, "errors": []}
            status, body = canned.answers.get(line, (404, missing))
            content = b"" if status == 204 else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  http.server calls them so

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        canned.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield canned
        listening.shutdown()
        thread.join()


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
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capture.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, captured.out, captured.err)


@pytest.fixture
def dane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dane:
    monkeypatch.setenv("DANE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return Dane(monkeypatch, capsys)
