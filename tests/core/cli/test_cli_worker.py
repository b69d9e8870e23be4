"""`dane worker` in a process of its own: how it ends, and who watches it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from dane_core.exchange.amqp import connect
from dane_core.message import Gone, Hello, Leased
from dane_core.routing import work_queue
from tests.core.desk import Desk, message
from tests.core.labor import Laboring, Stays, command_line, has_ended

_ROOT = Path(__file__).parents[3]


@contextmanager
def dane_worker(folder: Path, **settings: str) -> Iterator[Laboring]:
    """`dane worker tests.core.labor:Stays`; killed at the end if it still runs."""
    log = folder / "log"
    environment = {**os.environ, "DANE_HOME": str(folder), "PYTHONPATH": str(_ROOT), **settings}
    code = "from dane_core.cli import main; main()"
    command = [sys.executable, "-c", code, "worker", "tests.core.labor:Stays"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=folder, env=environment, stderr=output) as process,
    ):
        try:
            yield Laboring(process, log)
        finally:
            process.kill()


@pytest.mark.services
async def test_a_second_sigterm_ends_a_worker_at_once_and_its_watchman_says_so(
    amqp_url: str, tmp_path: Path
) -> None:
    """Its tasks need not wait for their lease to end."""
    queue = f"dane.responses.{uuid4().hex[:8]}"
    settings = {
        "DANE_EXCHANGE__URL": amqp_url,
        "DANE_RABBITMQ__RESPONSE_QUEUE": queue,
        "DANE_WORKER__HAND_OFF": "0.25",
    }
    async with connect(amqp_url) as exchange:
        await exchange.delete_queue(work_queue(Stays.key))
        await exchange.declare_queue(queue)
        async with exchange.consume(queue, prefetch=100) as reports:
            desk = Desk(exchange, reports)
            with dane_worker(tmp_path, **settings) as worker:
                await desk.hear(Hello)
                await worker.says("a watchman is there")
                watchman = worker.watchman
                shown = command_line(watchman)
                await desk.send(message(Stays))
                await desk.hear(Leased)
                worker.process.send_signal(signal.SIGTERM)
                await worker.says("no more tasks are taken; what runs (1) may end")
                worker.process.send_signal(signal.SIGTERM)
                gone = await desk.hear(Gone)
                code = await asyncio.to_thread(worker.process.wait)
                await has_ended(watchman)

    assert code == 130
    assert gone.reason == "it has ended in the midst of its work"
    assert "watchman of" in shown
    assert str(urlsplit(amqp_url).password) not in shown


#: Waits for two signals on a loop that is held, with a short time for all to end by itself.
_HELD = """
import asyncio, time
from dane_core.cli import worker

async def main():
    with worker.drain_on_signals(asyncio.Event()):
        print("here", flush=True)
        time.sleep(600)

worker._AT_ONCE = 0.1
asyncio.run(main())
"""


def test_a_second_sigterm_is_heeded_by_a_process_that_is_held() -> None:
    """Work that blocks the loop would otherwise take `kill -9`, which few have the heart for."""
    with subprocess.Popen([sys.executable, "-c", _HELD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)  # one alone lets work end by itself
        process.terminate()

        assert process.wait(30) == 130
