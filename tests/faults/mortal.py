"""`python -m tests.faults.mortal FOLDER DATABASE TIMES`: a writer on SQLite that is killed often.

Each time another process opens the store, stores jobs, claims them and records their answers,
with a checkpoint after every commit, until `kill -9` ends it somewhere. Then the file is looked
at. Prints one line of JSON: how often it was killed, in what state, and what SQLite said.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

from dane_core.message import Answer
from dane_server.storage import migrate
from dane_server.storage.engine import Store, open_store
from dane_server.storage.view import Claim, Once, Submitted
from dane_server.storage.writer import Writer
from tests.faults.history import Ended, History, Sent
from tests.server.ledger import new_job, sequence, task, ticket

#: Pages after which SQLite checkpoints: at nearly every commit.
_PAGES: Final = 8
#: Seconds a writer lives from its first commit on, at most.
_LIFE: Final = 0.15
_LEASE: Final = timedelta(minutes=1)


async def write(folder: Path, database: str, ready: int) -> None:
    """Store jobs and have them done, until killed."""
    history = History(folder)
    async with open_store(database) as store:
        await _checkpoint_often(store)
        writer = Writer(store)
        number = 0
        while True:
            await _post(writer, history, f"mortal-{os.getpid()}-{number}")
            if not number:
                os.write(ready, b"!")
            number += 1
            claims = await writer.claim_ready(window=1000, limit=3, lease=_LEASE)
            answers = [_done(claim, history) for claim in claims]
            await writer.record(answers, window=0, lease=_LEASE)


async def _checkpoint_often(store: Store) -> None:
    async with store.engine.connect() as connection:
        await connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint={_PAGES}")


async def _post(writer: Writer, history: History, name: str) -> None:
    steps = [task("TOIL", args={"size": 100}), task("TOIL")]
    new = new_job(sequence(*steps), source_id=name, once=Once(key=name, digest="0" * 64))
    [stored] = await writer.store_jobs([new])
    assert isinstance(stored, Submitted)
    history.note(Sent(source_id=name, status=201, key=name, job_id=stored.job_id))


def _done(claim: Claim, history: History) -> Answer:
    value = uuid4().hex
    history.note(
        Ended(
            task_id=claim.task_id,
            attempt=claim.attempt,
            job_id=claim.job_id,
            key=claim.key,
            pid=os.getpid(),
            value=value,
        )
    )
    response = {"value": value}
    return Answer(ticket=ticket(claim), state=200, message="OK", response=response, runtime=0.0)


def lives_and_dies(folder: Path, database: str, chance: random.Random) -> None:
    """Have a writer write, and kill it somewhere."""
    hears, ready = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(write(folder, database, ready))
        finally:
            os._exit(1)  # whatever ended it but the signal
    os.close(ready)
    assert os.read(hears, 1), "a writer ended before its first commit"
    os.close(hears)
    time.sleep(chance.uniform(0, _LIFE))  # it dies anywhere, so no event can be waited for
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "a writer ended by itself"


def examined(path: Path) -> str:
    """What SQLite finds in a file that nobody has open; it is left as it is."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
        found += connection.execute("PRAGMA foreign_key_check").fetchall()
    connection.close()
    return ", ".join(str(column) for line in found for column in line)


def main(args: Sequence[str]) -> None:
    folder, path, times = Path(args[0]), Path(args[1]), int(args[2])
    database, chance = f"sqlite+aiosqlite:///{path}", random.Random(times)
    asyncio.run(_make(database))
    found: list[str] = []
    with_log = 0
    for _ in range(times):
        lives_and_dies(folder, database, chance)
        with_log += path.with_name(path.name + "-wal").exists()
        found.append(examined(path))
    print(json.dumps({"killed": times, "with_log": with_log, "found": sorted(set(found))}))


async def _make(database: str) -> None:
    async with open_store(database) as store:
        await migrate.upgrade(store)


if __name__ == "__main__":
    main(sys.argv[1:])
