"""What `work` knows about its task, and what it can say while it runs."""

import asyncio
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Generator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from dane_core.job import JobId, TaskId
from dane_core.outcome import Failed

if TYPE_CHECKING:
    from dane_core.worker.upstream import Upstream

_URL: Final = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")
#: A file on this machine: file:///path, file://localhost/path or file:/path.
_FILE_URL: Final = re.compile(
    r"file:(?://(?:localhost)?(/.*)|(/(?!/).*))", re.IGNORECASE | re.DOTALL
)


class Cancellation:
    """Whether the task was cancelled: true or false, and something to wait for.

    `if task.cancelled:` everywhere; `await task.cancelled` on the loop;
    `task.cancelled.wait(seconds)` elsewhere, which says whether it was.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return self._event.is_set()

    def __await__(self) -> Generator[Any, None, None]:
        loop = asyncio.get_running_loop()
        cancelled = loop.create_future()  # of this await alone

        def tell() -> None:
            loop.call_soon_threadsafe(_settle, cancelled)

        self.then(tell)
        cancelled.add_done_callback(lambda _: self._forget(tell))
        return cancelled.__await__()

    def wait(self, timeout: float | None = None) -> bool:
        return self._event.wait(timeout)

    def set(self) -> None:
        with self._lock:
            self._event.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def then(self, call: Callable[[], object]) -> None:
        """Call this once the task is cancelled, in the thread that cancels it."""
        with self._lock:
            if not self._event.is_set():
                self._calls.append(call)
                return
        call()

    def _forget(self, call: Callable[[], object]) -> None:
        with self._lock:
            if call in self._calls:
                self._calls.remove(call)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


@dataclass(slots=True, kw_only=True, eq=False)
class TaskContext:
    """One attempt at one task, as `work` sees it.

    A body of work may run more than once; `(task_id, attempt)` tells the tries apart.
    """

    task_id: TaskId
    job_id: JobId
    attempt: int
    key: str
    name: str | None = None
    source_url: str
    source_id: str
    type: str | None = None  # media type family: video, image, sound, text …
    metadata: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)  # as they came; see `Worker.Args`
    #: Answers of earlier tasks by their key, and SHARED; a list where tasks share a key.
    response: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False  # some earlier answers were too large to come along
    api_url: str | None = None
    cancelled: Cancellation = field(default_factory=Cancellation)
    on_progress: Callable[[float, str], object] = field(default=lambda *_: None, repr=False)

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the work is, from 0 to 1. Call it as often as you like."""
        fraction = float(fraction)
        if not math.isnan(fraction):
            self.on_progress(min(max(fraction, 0.0), 1.0), str(message))

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger whose lines name the task."""
        ids = {"task_id": self.task_id, "job_id": self.job_id, "attempt": self.attempt}
        return _TaskLog(logging.getLogger(f"dane_core.worker.{self.key}"), ids)

    @property
    def temp_folder(self) -> Path:
        """For files that other tasks on this source may need; made on first use."""
        return self._shared_folder("TEMP_FOLDER")

    @property
    def out_folder(self) -> Path:
        """For files that are results; made on first use."""
        return self._shared_folder("OUT_FOLDER")

    @property
    def source_path(self) -> Path:
        """The source as a local file: itself, or what DOWNLOAD fetched.

        Raises: Failed, with state 404, 403 or 400, in words for the submitter.
        """
        fetched = _fetched(self.response.get("DOWNLOAD"))
        if fetched is not None:
            return _readable([fetched], f"{fetched}, where DOWNLOAD put the source,")
        candidates = _local_paths(self.source_url)
        if not candidates:
            raise Failed(
                f"{self.source_url} is not a local file: put DOWNLOAD before {self.key}", 404
            )
        return _readable(candidates, str(candidates[0]))

    def upstream(self, key: str) -> "Upstream":
        """The answers of earlier tasks with this key, in graph order, however large.

        `await task.upstream("SHOTS")` gives a list; `async for` (or, in a plain `def work`,
        `for`) gives them one by one. Those that came with the task are not fetched again.
        """
        from dane_core.worker.upstream import Upstream  # noqa: PLC0415  few need its web client

        inline = self.response.get(key)
        if inline is None and self.partial:
            return Upstream(key, page_url=self._upstream_url(key))
        return Upstream(key, inline if isinstance(inline, list) else [inline] if inline else [])

    def _upstream_url(self, key: str) -> str:
        if self.api_url is None:
            raise Failed(
                f"the answers of {key} were too large to come along, and this worker was "
                "not told where the server's API is"
            )
        return f"{self.api_url.rstrip('/')}/DANE/task/{self.task_id}/upstream"

    def _shared_folder(self, name: str) -> Path:
        shared = self.response.get("SHARED")
        folder = shared.get(name) if isinstance(shared, Mapping) else None
        if not isinstance(folder, str) or not folder:
            raise Failed(f"the task came without SHARED.{name}")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        return path


class _TaskLog(logging.LoggerAdapter[logging.Logger]):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        ids: Mapping[str, object] = self.extra or {}
        kwargs["extra"] = {**ids, **(kwargs.get("extra") or {})}
        return f"task {ids.get('task_id')}: {msg}", kwargs


def _fetched(answer: object) -> Path | None:
    """The file that DOWNLOAD, or the first of several, answered with."""
    for one in answer if isinstance(answer, list) else [answer]:
        if isinstance(one, Mapping) and isinstance(one.get("file_path"), str):
            return Path(one["file_path"])
    return None


def _local_paths(source_url: str) -> list[Path]:
    """Where a plain path or a file:// URL may point, the likeliest first.

    Sources are stored requoted, so `/my file` may have come as `/my%20file`; but a file may
    also really be called `100%25`. A `?` or `#` in a path is what it looks like.
    """
    if url := _FILE_URL.fullmatch(source_url):
        path = url[1] or url[2]
        return [_unquoted(path), Path(path)]
    return [] if _URL.match(source_url) else [Path(source_url), _unquoted(source_url)]


def _unquoted(path: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(path)))


def _readable(candidates: list[Path], name: str) -> Path:
    for path in candidates:
        try:
            if path.is_dir():
                raise Failed(f"{name} is a folder, not a file", 400)
            if path.exists():
                break
        except PermissionError:
            break
        except (OSError, ValueError):
            continue
    else:
        raise Failed(f"{name} is not there", 404)
    if not os.access(path, os.R_OK):
        raise Failed(f"{name} may not be read by this worker", 403)
    return path
