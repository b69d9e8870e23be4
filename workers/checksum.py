"""CHECKSUM: a digest of the source, to notice when it changes."""

import hashlib
from typing import Final, Literal

from pydantic import BaseModel

from dane_core import Failed, TaskContext, Worker

_CHUNK: Final = 1024 * 1024


class Checksum(Worker):
    """Checksum of the source file, as hexadecimal digits."""

    key = "CHECKSUM"
    run_in = "thread"

    class Args(BaseModel):
        """Which checksum; md5 and sha1 are for comparing with old lists, not for safety."""

        algorithm: Literal["sha256", "sha512", "sha3_256", "blake2b", "sha1", "md5"] = "sha256"

    def work(self, task: TaskContext, args: Args) -> dict[str, str]:
        digest = hashlib.new(args.algorithm, usedforsecurity=False)
        path = task.source_path
        size, done = path.stat().st_size, 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                if task.cancelled:
                    raise Failed("Cancelled", 499)
                digest.update(chunk)
                done += len(chunk)
                task.progress(done / max(size, done))
        return {"algorithm": args.algorithm, "checksum": digest.hexdigest()}
