"""Processes that end when we do, and the ports and folders they live on."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")


class Unavailable(Exception):
    """One way to a service does not work here, and why."""


class Guarded:
    """A command in a process group of its own, ended by a guard if we cannot do it ourselves.

    Its output goes to `log`. When it ends because we do, the guard runs `after` and removes
    `folder`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        after: Sequence[str] | None = None,
    ) -> None:
        settings = {
            "command": [*command],
            "folder": str(folder) if folder else None,
            "after": after and [*after],
        }
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, str(_GUARD), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        first = self._guard.stdout.readline()
        self._guard.stdout.close()
        if not first:
            self.stop()
            raise Unavailable(f"{command[0]} did not start: {tail(log)}")
        self.pid = int(first)

    @property
    def alive(self) -> bool:
        return self._guard.poll() is None

    def stop(self) -> None:
        """Let it end in good order, and wait for that. Ended already is fine."""
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._guard.stdin.write(b"end\n")
            self._guard.stdin.close()
        self._guard.wait()

    def kill(self) -> None:
        """End it as kill -9 does, with all its children."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.stop()


def wait_until(ready: Callable[[], bool], process: Guarded, *, seconds: float, log: Path) -> None:
    """Wait until a service answers. Raises: Unavailable, if it ends first or takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not process.alive:
            raise Unavailable(f"it ended while starting: {tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"it was not ready after {seconds:g} s: {tail(log)}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dane-services-"))


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def find_program(names: Sequence[str], folders: Sequence[str]) -> str | None:
    """The first of these programs in one of the folders (globs are fine) or on the PATH."""
    for folder in folders:
        base = Path(folder)
        for found in sorted(Path(base.anchor).glob(str(base.relative_to(base.anchor)))):
            for name in names:
                if os.access(found / name, os.X_OK):
                    return str(found / name)
    return next(filter(None, map(shutil.which, names)), None)


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for a message."""
    if not log.exists():
        return "(no output)"
    text = log.read_text(errors="replace").strip()
    return " | ".join(text.splitlines()[-lines:]) or "(no output)"
