"""What every verb shares: its options, the server it asks, and how it prints."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dane_core.client import Client

T = TypeVar("T")

#: Headings of `dane --help`.
WORK: Final = "Work"
SERVICE: Final = "Service"
SET_UP: Final = "Set up"

_FILE_WIDTH: Final = 200

Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="The server; else DANE_API_URL, else the configuration's."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="One more configuration file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def talk(server: str | None, config: Path | None, ask: Callable[["Client"], Awaitable[T]]) -> T:
    """Do something with a client of the server that is meant."""
    from dane_core.client import Client

    async def talking() -> T:
        async with Client(address(server, config)) as client:
            return await ask(client)

    return asyncio.run(talking())


def address(server: str | None, config: Path | None) -> str:
    """The server's URL. A URL that is named needs no configuration to be in order."""
    if server is not None:
        return server
    from dane_core.settings import Settings, load

    settings, _ = load(Settings, files=named(config))
    return settings.api_url


def named(config: Path | None) -> list[Path]:
    """The files of `--config`."""
    return [] if config is None else [config]


def number_or_none(option: str, value: str, kind: Callable[[str], T]) -> T | None:
    """The number that an option was given, or None for `none`."""
    if value.lower() == "none":
        return None
    try:
        return kind(value)
    except ValueError:
        raise typer.BadParameter(
            f"{value!r} is neither a number nor none", param_hint=option
        ) from None


def show(value: Any, *, as_json: bool, render: Callable[[Any], "RenderableType"]) -> None:
    """Print a value, for people or for programs."""
    if as_json:
        print_json(value)
    else:
        console().print(render(value))


def print_json(value: Any) -> None:
    """One JSON value, on as many lines as it reads best."""
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def print_lines(values: Iterable[Any]) -> None:
    """JSON values, one a line."""
    import orjson

    for value in values:
        typer.echo(orjson.dumps(value))


def console(*, stderr: bool = False) -> "Console":
    """Where people read: nothing is guessed from the text, which may be anybody's."""
    from rich.console import Console

    screen = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = _FILE_WIDTH  # a file has no edge to fold lines at
    return screen


def complain(message: str) -> None:
    """Say something on stderr."""
    typer.echo(f"dane: {message}", err=True)
