"""`dane dev` and `dane serve`: run a server, with or without workers beside it."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dane_core.cli.heap import settle_heap
from dane_core.cli.loop import run
from dane_core.cli.terminal import SERVICE, AsJson, Config, complain, named, print_lines
from dane_core.errors import BadWorker, DaneError

if TYPE_CHECKING:
    from dane_core.worker.worker import Worker
    from dane_server.settings import ServerSettings

#: Tasks at once in `dane dev`, unless WORKER.SLOTS says otherwise.
_DEV_SLOTS: Final = 2

Port = Annotated[
    int | None,
    typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.  [default: 5500]"),
]


class ServerRole(StrEnum):
    """A part of the server that may have a process of its own."""

    API = "api"
    RUNNER = "runner"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SERVICE)(dev)
    app.command(rich_help_panel=SERVICE)(serve)


def dev(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET…]",
            help="Workers as for `dane worker`; without any, all that are installed.",
        ),
    ] = None,
    *,
    port: Port = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Tasks done at the same time.  [default: 2]")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run everything in one process: the API, the runner and the workers."""
    from dane_core.cli.worker import found

    settings = settings_for(config, {"WORKER": {"SLOTS": slots}})
    workers = found(targets) if targets else installed()
    chosen = settings.WORKER.SLOTS if "SLOTS" in settings.WORKER.model_fields_set else _DEV_SLOTS
    with needing("server"):
        from dane_server.app import run_server

    run(
        run_server(
            settings,
            workers=workers,
            slots=chosen,
            port=port,
            on_ready=announcing(settings, workers, as_json=as_json),
        )
    )


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")
    ] = None,
    port: Port = None,
    role: Annotated[
        ServerRole | None, typer.Option(help="Only this part; the other runs elsewhere.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run the server: the API and the runner."""
    settings = settings_for(config, {"DANE": {"HOST": host}})
    with needing("server"):
        from dane_server.app import ROLES, run_server

    roles = frozenset(part for part in ROLES if role is None or part == role)
    if role is ServerRole.RUNNER:
        settle_heap()
        _say({"role": "runner"}, "DANE's runner is at work; Ctrl-C stops it.", as_json=as_json)
    announce = announcing(settings, (), as_json=as_json)
    run(run_server(settings, roles=roles, port=port, on_ready=announce))


def settings_for(
    config: Config, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> "ServerSettings":
    """The server's settings, with the log begun."""
    from dane_core.settings import load
    from dane_server.logs import set_up_logging
    from dane_server.settings import ServerSettings

    settings, _ = load(ServerSettings, files=named(config), overrides=overrides)
    set_up_logging(level=settings.LOGGING.LEVEL, folder=settings.LOGGING.DIR)
    return settings


def installed() -> "Sequence[type[Worker]]":
    """Every installed worker whose own libraries are installed too."""
    from dane_core.worker.discover import installed_keys, installed_worker

    workers = []
    for key in installed_keys():
        try:
            workers.append(installed_worker(key))
        except BadWorker as error:
            complain(f"{key} is left out: {error}")
    return workers


def announcing(
    settings: "ServerSettings", workers: "Sequence[type[Worker]]", *, as_json: bool
) -> Callable[[str], None]:
    """Says, once the server answers, where, and what it works with."""
    from dane_core.settings import masked

    store, exchange = masked(settings.store_url), masked(settings.exchange_url)
    keys = sorted(worker.key for worker in workers)

    def announce(url: str) -> None:
        settle_heap()
        facts = {"url": url, "keys": keys, "store": store, "exchange": exchange}
        lines = [f"DANE is ready at {url} (its API: {url}/DANE/docs)"]
        lines += [f"  workers   {', '.join(keys)}"] if keys else []
        lines += [f"  store     {store}", f"  exchange  {exchange}", "Ctrl-C stops it."]
        _say(facts, "\n".join(lines), as_json=as_json)

    return announce


def _say(facts: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_lines([facts])
    else:
        typer.echo(text)


@contextmanager
def needing(extras: str) -> Iterator[None]:
    """Explain that what is imported here comes with these extras of the installation."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DaneError(
            f"this needs more libraries ({error.name} is missing): "
            f"pip install 'dane-router[{extras}]'"
        ) from error
