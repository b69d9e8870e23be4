"""`dane worker`: do tasks of the given kinds until told to stop."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dane_core.cli.heap import settle_heap
from dane_core.cli.loop import run
from dane_core.cli.terminal import SERVICE, AsJson, Config, named, print_lines
from dane_core.errors import BadSettings, Fault

if TYPE_CHECKING:
    from dane_core.settings import Settings
    from dane_core.worker.worker import Worker


#: Seconds for a process that is to end at once: to stop its children, and the last of them hard.
_AT_ONCE: Final = 4.0
#: The exit code of a worker that was made to end.
_KILLED: Final = 130


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SERVICE)(worker)


def worker(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET…",
            help="package.module:Class, path/file.py, path/file.py:Class, or an installed key.",
        ),
    ],
    *,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Tasks done at the same time.  [default: 1]")
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Answer /health on this port of 127.0.0.1."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Do tasks. SIGTERM or Ctrl-C finishes what runs and stops; a second one stops at once."""
    from dane_core.settings import Settings, load

    settings, _ = load(
        Settings,
        files=named(config),
        overrides={"WORKER": {"SLOTS": slots, "HEALTH_PORT": health_port}},
    )
    classes = found(targets)
    start_logging(settings)
    try:
        run(serve_workers(classes, settings, as_json=as_json))
    except asyncio.CancelledError:
        raise typer.Exit(_KILLED) from None


def found(targets: Sequence[str]) -> "list[type[Worker]]":
    """The worker classes that targets mean, each once. Raises: BadWorker."""
    from dane_core.worker.discover import find_workers

    return list(dict.fromkeys(cls for target in targets for cls in find_workers(target)))


async def serve_workers(
    classes: "Sequence[type[Worker]]", settings: "Settings", *, as_json: bool
) -> None:
    """Serve worker classes over the configured broker, until drained."""
    from dane_core.exchange.amqp import connect
    from dane_core.worker.attempt import Pace
    from dane_core.worker.serve import Serving, serve
    from dane_core.worker.spool import spool_folder

    chosen, broker = settings.WORKER, broker_of(settings)
    serving = Serving(
        slots=chosen.SLOTS,
        grace=chosen.GRACE,
        beat=chosen.BEAT,
        pace=Pace(hand_off=chosen.HAND_OFF),
        watched_at=broker,
        api_url=settings.api_url,
        response_queue=settings.RABBITMQ.RESPONSE_QUEUE,
        health_port=chosen.HEALTH_PORT,
        spool=spool_folder(chosen.SPOOL, broker, settings.RABBITMQ.RESPONSE_QUEUE),
    )
    draining = asyncio.Event()
    async with connect(
        broker, name=serving.worker_id, task_exchange=settings.RABBITMQ.EXCHANGE
    ) as exchange:
        with drain_on_signals(draining), _explaining(chosen.HEALTH_PORT):
            settle_heap()
            _announce(serving.worker_id, classes, serving.slots, as_json=as_json)
            await serve(classes, exchange, serving, draining=draining)


def _announce(
    worker_id: str, classes: "Sequence[type[Worker]]", slots: int, *, as_json: bool
) -> None:
    keys = sorted(cls.key for cls in classes)
    if as_json:
        print_lines([{"worker": worker_id, "keys": keys, "slots": slots}])
    else:
        typer.echo(f"worker {worker_id} takes {', '.join(keys)}; Ctrl-C stops it.")


@contextmanager
def _explaining(health_port: int | None) -> Iterator[None]:
    """Say which setting is meant when the port for /health is taken."""
    try:
        yield
    except OSError as error:
        if health_port is None or error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = f"port {health_port} cannot be had ({os.strerror(error.errno)})"
        fault = Fault("WORKER.HEALTH_PORT", f"{reason}; choose another with --health-port")
        raise BadSettings([fault]) from None


def broker_of(settings: "Settings") -> str:
    """Where a worker finds its tasks. Raises: BadSettings, when no broker was named."""
    if settings.exchange_url.startswith("memory:"):
        raise BadSettings(
            [
                Fault(
                    "EXCHANGE.URL",
                    "a worker needs the address of the broker: set it, or the section RABBITMQ "
                    "(to run workers and server in one process: dane dev)",
                )
            ]
        )
    return settings.exchange_url


@contextmanager
def drain_on_signals(draining: asyncio.Event) -> Iterator[None]:
    """Within this, SIGTERM and SIGINT ask for an end; a second one makes it now."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    signals = (signal.SIGTERM, signal.SIGINT)
    heard = 0

    def stop(_number: int, _frame: object) -> None:
        nonlocal heard
        heard += 1
        loop.call_soon_threadsafe(draining.set)
        if heard == 2 and task is not None:
            loop.call_soon_threadsafe(task.cancel)
            last = threading.Timer(_AT_ONCE, _vanish)
            last.daemon = True
            last.start()
        elif heard > 2:
            _vanish()

    # Not `loop.add_signal_handler`: work that blocks the loop must not keep the process.
    earlier = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _vanish() -> None:
    """End this process whatever holds it up. Its tasks go back, its watchman says so."""
    os._exit(_KILLED)


def start_logging(settings: "Settings") -> None:
    """Log as LOGGING says: to stderr, and to a file in DIR if there is one."""
    import logging

    from dane_core.worker.watched import LOG_LINE

    handlers: list[logging.Handler] = [logging.StreamHandler()]
    folder: Path | None = settings.LOGGING.DIR
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "dane-worker.log", encoding="utf-8"))
    logging.basicConfig(
        level=settings.LOGGING.LEVEL,
        format=LOG_LINE,
        handlers=handlers,
    )
    for name in ("aio_pika", "aiormq", "httpx"):  # what they know our own parts say better
        logging.getLogger(name).setLevel(logging.CRITICAL)
