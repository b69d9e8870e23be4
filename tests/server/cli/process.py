"""`dane` in a process of its own: one that serves, and gets signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_CODE: Final = "from dane_core.cli import main; main()"
#: Seconds for a process to start or to stop on a busy machine.
PATIENCE: Final = 60


class Process:
    """A `dane` that runs."""

    def __init__(self, running: "subprocess.Popen[str]") -> None:
        self._running = running

    def line(self) -> Any:
        """The next line of its output, which is JSON; it waits for one."""
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert line, self._running.communicate(timeout=PATIENCE)[1]
        return json.loads(line)

    def text_until(self, words: str) -> str:
        """The line of its output that has these words; those before it are read and dropped."""
        assert self._running.stdout is not None
        for line in self._running.stdout:
            if words in line:
                return line
        raise AssertionError(self._running.communicate(timeout=PATIENCE)[1])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code, and what was said on stderr."""
        self._running.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """The exit code, and what was said on stderr, once it ends by itself."""
        _, err = self._running.communicate(timeout=PATIENCE)
        return self._running.returncode, err


@contextmanager
def running(folder: Path, *args: object, **environment: str) -> Iterator[Process]:
    """`dane` with these arguments, standing in `folder`; killed if it is left running."""
    started = subprocess.Popen(
        [sys.executable, "-c", _CODE, *map(str, args)],
        cwd=folder,
        env={**os.environ, "DANE_HOME": str(folder / "home"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield Process(started)
        finally:
            if started.poll() is None:
                started.kill()
