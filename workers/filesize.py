"""FILESIZE: how large the source is."""

from typing import Literal

from pydantic import BaseModel

from dane_core import TaskContext, Worker

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class FileSize(Worker):
    """Size of the source file, in bytes or another unit."""

    key = "FILESIZE"
    run_in = "thread"

    class Args(BaseModel):
        """The unit of the answer."""

        unit: Literal["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"] = "B"

    def work(self, task: TaskContext, args: Args) -> dict[str, object]:
        size = task.source_path.stat().st_size
        return {"size": size if args.unit == "B" else size / _UNITS[args.unit], "unit": args.unit}
