"""`dane`: the command line. Client and worker verbs are here; others come by entry point.

Importing this loads neither a web client nor the broker's library: each verb does, when called.
"""

import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Final

import typer

from dane_core.cli import job, owners, submit, task, worker, workers
from dane_core.cli.terminal import complain
from dane_core.errors import (
    BadSettings,
    DaneError,
    QueueMismatch,
    RefusedByServer,
    StoreOutdated,
    StoreTaken,
    Unreachable,
    UnsafeBind,
)

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED_SETTINGS: Final = 78

_COMMANDS: Final = "dane.commands"


def main() -> None:
    """Run `dane`, and end every error of ours with one sentence and its exit code."""
    run(build(), "dane")


def run(app: typer.Typer, name: str) -> None:
    """Run commands with the arguments of this process, and exit."""
    try:
        app(prog_name=name)
    except DaneError as error:
        sys.exit(tell(error))
    except ExceptionGroup as group:
        ours, others = group.split(DaneError)
        if ours is None or others is not None:
            raise
        sys.exit(tell(_first(ours)))


def build() -> typer.Typer:
    """The commands of this package and of every installed one that adds some."""
    app = typer.Typer(
        name="dane",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_dane)
    for room in (submit, job, task, workers, owners, worker):
        room.register(app)
    for plugin in entry_points(group=_COMMANDS):
        try:
            plugin.load()(app)
        except ImportError as error:
            complain(f"the commands of {plugin.value} cannot be loaded: {error}")
    return app


def tell(error: DaneError) -> int:
    """Print an error as a sentence; the exit code that goes with it."""
    if isinstance(error, BadSettings):
        faults = "".join(f"\n  {fault}" for fault in error.faults)
        complain(f"the configuration cannot be used{faults}")
    else:
        complain(str(error))
    return code_of(error)


def code_of(error: DaneError) -> int:
    """The exit code of an error: 2 usage, 3 no server has time for it, 78 refused settings."""
    match error:
        case Unreachable() | RefusedByServer(status=429 | 502 | 503 | 504):
            return UNREACHABLE
        case BadSettings() | UnsafeBind() | StoreTaken() | StoreOutdated() | QueueMismatch():
            return REFUSED_SETTINGS
        case _:
            return USAGE


def _first(group: BaseExceptionGroup[DaneError]) -> DaneError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if asked:
        typer.echo(f"dane {version('dane-router')}")
        raise typer.Exit


def _dane(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Routes compute-heavy tasks to the machines that can do them.

    Every verb takes --json, and exits with 0 done, 1 the job failed, 2 wrong usage,
    3 cannot reach the server, 78 refused configuration.
    """
