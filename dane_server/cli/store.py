"""`dane db`: the tables in the store."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from dane_core.cli.terminal import SET_UP, AsJson, Config, show
from dane_server.cli.serve import needing, settings_for

if TYPE_CHECKING:
    from dane_server.storage.engine import Store


def register(app: typer.Typer) -> None:
    store = typer.Typer(no_args_is_help=True, help="Make, upgrade and check the store's tables.")
    for act in (upgrade, check, retention):
        store.command()(act)
    app.add_typer(store, name="db", rich_help_panel=SET_UP)


def upgrade(*, config: Config = None, as_json: AsJson = False) -> None:
    """Make the tables, or bring them up to this version; running it again is harmless."""
    with needing("server"):
        from dane_server.storage import migrate

    _on_store(migrate.upgrade, config)
    _on_store(migrate.check, config)
    show({"upgraded": True}, as_json=as_json, render=lambda _: "the tables are up to date")


def check(*, config: Config = None, as_json: AsJson = False) -> None:
    """Say whether the tables are those of this version; exits with 78 if not."""
    with needing("server"):
        from dane_server.storage import migrate

    _on_store(migrate.check, config)
    show({"current": True}, as_json=as_json, render=lambda _: "the tables are up to date")


def retention(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing; say what would go.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove what has been kept long enough (RETENTION), as a running server does by itself."""
    settings = settings_for(config)
    with needing("server"):
        from dane_server.app import open_housekeeper

    async def passing() -> Mapping[str, int]:
        async with open_housekeeper(settings) as housekeeper:
            return await (housekeeper.would_go() if dry_run else housekeeper.pass_over())

    show(dict(asyncio.run(passing())), as_json=as_json, render=_removed)


def _removed(numbers: Mapping[str, int]) -> str:
    told = [f"{name.replace('_', ' ')}  {number}" for name, number in numbers.items() if number]
    return "\n".join(told) or "nothing is old enough"


def _on_store(act: "Callable[[Store], Awaitable[None]]", config: Config) -> None:
    from dane_server.storage.engine import open_store

    settings = settings_for(config)

    async def acting() -> None:
        async with open_store(settings.store_url) as store:
            await act(store)

    asyncio.run(acting())
