"""Processes of a rig: servers and workers that can be stopped, frozen, killed, and crash."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.faults.seams import CRASHED
from tests.services.proxy import Proxy

ROOT: Final = Path(__file__).parents[2]
#: Seconds after which something that should happen has not, on a machine with much else to do.
PATIENCE: Final = 60.0
_GRACE: Final = 40.0
#: Seconds for which `Process.block` holds the loop of a server.
BLOCKED: Final = 30.0


class Process:
    """A `dane` of the rig. What it prints is in a file."""

    def __init__(
        self,
        name: str,
        module: str,
        args: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.url = ""
        self.may_end = False  # somebody of ours ends it, or armed it to crash
        self.was_frozen = False
        self.wire: Proxy | None = None  # to the broker, if it has one of its own
        self.broker_port: int | None = None
        self.store_port: int | None = None
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *args],
                cwd=folder,
                env={**environment, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def code(self) -> int | None:
        return self._popen.poll()

    @property
    def offspring(self) -> set[int]:
        """The processes that it has started, and theirs."""
        return set(_descendants(self.pid))

    @property
    def harmed(self) -> bool:
        """Whether it was ended by force, stopped in its tracks, or cut off."""
        cut_off = self.wire is not None and self.wire.disturbed
        return self.was_frozen or cut_off or self.code not in (None, 0)

    def memory(self, what: str = "VmHWM") -> int:
        """What it has of memory, in bytes: `VmHWM` at its peak, `VmRSS` now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith(what)]
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        """Have the peak of its memory be what it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def log(self) -> str:
        return self._out.read_text(errors="replace") + self._err.read_text(errors="replace")

    async def facts(self) -> dict[str, Any]:
        """The first line that it prints, once it is ready."""
        await self.until(lambda: "\n" in self._out.read_text())
        facts: dict[str, Any] = json.loads(self._out.read_text().splitlines()[0])
        return facts

    async def says(self, text: str, within: float = PATIENCE) -> None:
        """Wait until this stands in its log."""
        await self.until(lambda: text in self.log, within)

    async def until(self, holds: Any, within: float = PATIENCE) -> None:
        async with asyncio.timeout(within):
            while not holds():
                if not self.alive and not holds():
                    raise AssertionError(f"{self.name} ended with {self.code}: {self.tail()}")
                await asyncio.sleep(0.02)

    # --- what is done to it --------------------------------------------------------------------

    def kill(self) -> None:
        """As `kill -9` does."""
        self._end_with(signal.SIGKILL)

    def kill_family(self) -> None:
        """With everything it has started, as when its machine loses power."""
        family = [self.pid, *_descendants(self.pid)]
        self.may_end = True
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        self._end_with(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP): it is there, and does nothing at all."""
        self.was_frozen = True
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def limit(self, what: int, most: int | None) -> None:
        """Set one of its limits (`resource.RLIMIT_…`) from outside; None: as it may be at most."""
        _, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (hard if most is None else most, hard))

    def block(self) -> None:
        """Hold the event loop of a server for as long as BLOCKED says."""
        self._popen.send_signal(signal.SIGUSR1)

    def _end_with(self, number: signal.Signals) -> None:
        self.may_end = True
        self._popen.send_signal(number)

    async def ended(self, within: float = PATIENCE) -> int:
        """Wait until it has ended; its exit code."""
        async with asyncio.timeout(within):
            while self.alive:  # noqa: ASYNC110 - polled, so that its end is not lost to a timeout
                await asyncio.sleep(0.02)
        return self._popen.returncode

    async def crashed(self, within: float = PATIENCE) -> None:
        """Wait until it has died at the point it was armed for."""
        code = await self.ended(within)
        assert code == CRASHED, f"{self.name} ended with {code}: {self.tail()}"

    async def stop(self) -> None:
        """End it in good order; by force, if it takes too long."""
        if self.alive:
            self.thaw()
            self.terminate()
            try:
                await self.ended(_GRACE)
            except TimeoutError:
                self.kill()
                await self.ended()
                raise AssertionError(f"{self.name} did not stop: {self.tail()}") from None

    async def end(self) -> None:
        """End it at once, whatever it does."""
        if self.alive:
            self.kill()
            await self.ended()

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.strip().splitlines()[-lines:]) or "(no output)"


def watchmen(folder: Path) -> set[int]:
    """The watchmen of workers of this folder; one whose worker was killed speaks for it yet."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_one = b"watchman of " in (process / "cmdline").read_bytes()
            if is_one and (process / "cwd").readlink() == folder:
                found.add(int(process.name))
    return found


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found
