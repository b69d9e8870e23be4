"""A server with canned answers, and `dane` in a folder of its own."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.cli.called import Canned, Dane


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

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  http.server calls them so

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        canned.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield canned
        listening.shutdown()
        thread.join()


@pytest.fixture
def dane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dane:
    monkeypatch.setenv("DANE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return Dane(monkeypatch, capsys)
