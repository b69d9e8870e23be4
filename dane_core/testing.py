"""For the tests of task developers: run one worker, without a server or a broker."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dane_core.folders import source_folders
from dane_core.job import JobId, TaskId
from dane_core.outcome import Outcome, Refused
from dane_core.worker.context import TaskContext
from dane_core.worker.isolation import place_for
from dane_core.worker.place import LoopPlace, Place, ThreadPlace
from dane_core.worker.worker import Worker, check_worker


async def run_worker(  # noqa: PLR0913 - each is something a task may have
    worker: type[Worker],
    *,
    source: str | Path,
    args: Mapping[str, Any] | None = None,
    response: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    media_type: str | None = None,
    attempt: int = 1,
    cancelled: bool = False,
    folder: Path | None = None,
    on_progress: Callable[[float, str], object] = lambda *_: None,
    isolated: bool = False,
) -> Outcome:
    """What a worker answers to a task on `source`, a path or URL.

    `response` is what earlier tasks would have answered, by key. Files that the worker makes
    are below `folder`, or gone afterwards if none is given. `work` runs in this process, where
    a debugger and monkeypatches reach it; `isolated` runs it where a service would.
    Raises: BadWorker, if the class or its `setup` is at fault; nothing that `work` raises.
    """
    check_worker(worker)
    with _folder(folder) as root:
        task = TaskContext(
            task_id=TaskId(1),
            job_id=JobId(1),
            attempt=attempt,
            key=worker.key,
            source_url=str(source),
            source_id="source",
            type=media_type,
            metadata=metadata or {},
            args=args or {},
            response={
                "SHARED": source_folders(Path(root) / "TEMP", Path(root) / "OUT", "source"),
                **(response or {}),
            },
            on_progress=on_progress,
        )
        if cancelled:
            task.cancelled.set()
        async with place_for(worker, 1) if isolated else _here(worker) as place:
            try:
                async with place.seat() as run:
                    return await run(task)
            except Refused as refused:
                return refused


def _here(worker: type[Worker]) -> Place:
    return LoopPlace(worker) if iscoroutinefunction(worker.work) else ThreadPlace(worker, 1)


def _folder(folder: Path | None) -> AbstractContextManager[str | Path]:
    return TemporaryDirectory(prefix="dane-") if folder is None else nullcontext(folder)
