"""Runs one command, and ends it when whoever asked for it is gone, however they went.

    python guard.py SETTINGS

SETTINGS is JSON: `command`; `after`, a command to run at the end, or null; `folder`, to be removed
at the end, or null. Prints the command's process id. The asker holds the other end of standard
input: a line on it ends the command; its mere end, by exit, Ctrl-C or kill -9 alike, means that
nobody is left, and does the rest too.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

GRACE = 20.0  # seconds


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(
        settings["command"], stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    print(child.pid, flush=True)
    sys.stdout.close()
    threading.Thread(target=_leave_with, args=(child,), daemon=True).start()
    asked = sys.stdin.buffer.readline()
    _end(child)
    if not asked:
        _tidy(settings)
    os._exit(0)


def _tidy(settings: dict[str, Any]) -> None:
    if settings["after"]:
        subprocess.run(settings["after"], stdin=subprocess.DEVNULL, check=False)
    if settings["folder"]:
        shutil.rmtree(settings["folder"], ignore_errors=True)


def _leave_with(child: "subprocess.Popen[bytes]") -> None:
    """When the command ends by itself, or was killed, there is nothing left to guard."""
    code = child.wait()
    if not _ending.is_set():
        os._exit(1 if code else 0)


def _end(child: "subprocess.Popen[bytes]") -> None:
    _ending.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        os.killpg(child.pid, signal.SIGKILL)  # whoever of its children is left


_ending = threading.Event()

if __name__ == "__main__":
    main()
