"""How a process ended, in words for people who were not there."""

import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

#: What most often is behind a signal.
_CAUSES: Final[Mapping[int, str]] = {
    signal.SIGKILL: "out of memory, or killed by somebody",
    signal.SIGSEGV: "a crash in a native library",
    signal.SIGBUS: "a crash in a native library, or a file cut short while it was read",
    signal.SIGABRT: "a native library gave up",
    signal.SIGILL: "a native library made for another processor",
    signal.SIGFPE: "a division by zero in a native library",
    signal.SIGTERM: "somebody asked it to stop",
    signal.SIGXCPU: "its limit of CPU time was reached",
    signal.SIGPIPE: "it wrote to something that was gone",
}
_OUT_OF_MEMORY: Final = "out of memory: the kernel has killed it"
#: What `ru_maxrss` counts in.
_RSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class OomKills:
    """Notices when the kernel has killed something in our cgroup (version 2) for want of memory."""

    def __init__(self, events: Path | None) -> None:
        self._events = events
        self._known = self._count()

    def noticed(self) -> bool:
        """Whether there was one since this was last asked."""
        before, self._known = self._known, self._count()
        return self._known > before

    def _count(self) -> int:
        try:
            text = self._events.read_text() if self._events else ""
            counts = dict(line.split() for line in text.splitlines())
            return int(counts.get("oom_kill", 0))
        except (OSError, ValueError):
            return 0


def memory_events() -> Path | None:
    """Where the kernel counts what befalls the memory of our cgroup."""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return Path("/sys/fs/cgroup", line.removeprefix("0::/"), "memory.events")
    except OSError:
        pass
    return None


def wait_for(pid: int) -> tuple[int, int]:
    """Wait for a child: its exit code as `subprocess` has it, and its peak memory in bytes."""
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:  # somebody else has waited for it, and knows more
        return 0, 0
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * _RSS_UNIT


def how_it_ended(code: int, peak: int = 0, *, oom: bool = False) -> str:
    """A process's exit code in words; negative for a signal, as `subprocess` has it."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended in the midst of it, with exit code {code}"
    cause = _OUT_OF_MEMORY if oom and number == signal.SIGKILL else _CAUSES.get(number)
    words = f"was ended by {name} (exit code {128 + number}){f': {cause}' if cause else ''}"
    return f"{words}; {_usage(peak)}" if peak else words


def _usage(peak: int) -> str:
    # Linux counts what a process was before its exec, too: that was us.
    ours = _our_peak()
    if peak <= ours:
        return f"it had used less than {_amount(ours)}"
    return f"it had used {_amount(peak)} at its peak"


def _our_peak() -> int:
    """The most we have held ourselves, in bytes; of us, too, `getrusage` tells what was before."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
