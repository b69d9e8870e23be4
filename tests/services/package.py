"""Installs a Debian package, without letting its daemon start."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.services.process import Unavailable

#: Asked by package scripts before they start a daemon; 101 means: do not.
_POLICY: Final = Path("/usr/sbin/policy-rc.d")


def install(package: str) -> None:
    """Install with apt-get, as root; one process at a time. Raises: Unavailable."""
    if shutil.which("apt-get") is None:
        raise Unavailable("this system has no apt-get")
    if os.geteuid() != 0:
        raise Unavailable("apt-get install needs root")
    with _alone(), _no_daemons():
        _run("apt-get", "update")
        _run("apt-get", "install", "--yes", "--no-install-recommends", package)


@contextmanager
def _alone() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "dane-tests-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_daemons() -> Iterator[None]:
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr + done.stdout).strip().splitlines()[-1:]
        raise Unavailable(f"{' '.join(command)} failed: {''.join(last)}")
