"""`dane workers`: who is there for which task key, and holding one back, or some of it."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dane_core.cli.terminal import SERVICE, AsJson, Config, Server, number_or_none, show, talk

if TYPE_CHECKING:
    from dane_core.client import Client

Key = Annotated[str, typer.Argument(metavar="KEY", help="A task key.")]


def register(app: typer.Typer) -> None:
    workers = typer.Typer(invoke_without_command=True)
    workers.callback()(list_keys)
    for act in (pause, resume, retry, limits):
        workers.command()(act)
    app.add_typer(workers, name="workers", rich_help_panel=SERVICE)


def list_keys(
    context: typer.Context,
    *,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List task keys: their workers, and what waits, is queued and runs."""
    from dane_core.cli.render import keys_table

    if context.invoked_subcommand is None:
        keys = talk(server, config, lambda client: client.workers())
        show(keys, as_json=as_json, render=keys_table)


def pause(
    key: Key, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Start no more tasks of a key."""
    found = talk(server, config, lambda client: client.pause_key(key))
    show(found, as_json=as_json, render=_one_line)


def resume(
    key: Key, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Go on with the tasks of a key."""
    found = talk(server, config, lambda client: client.resume_key(key))
    show(found, as_json=as_json, render=_one_line)


def retry(
    key: Key,
    *,
    state: Annotated[int, typer.Option(help="Tasks in this state, like 500.")] = 500,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run again every task of a key that is in a state."""
    found = talk(server, config, lambda client: client.retry_key(key, state))
    show(found, as_json=as_json, render=_one_line)


def limits(
    key: Key,
    *,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N|none", help="Sent or running at once, at most.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="R|none", help="Sent in a second, at most.")
    ] = None,
    burst: Annotated[
        str | None, typer.Option(metavar="N|none", help="So many of a rate may go together.")
    ] = None,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show how much of a key may be under way, and who has its places; or change it."""
    from dane_core.cli.render import limits_page

    changes: dict[str, float | None] = {}
    if concurrency is not None:
        changes["concurrency"] = number_or_none("--concurrency", concurrency, int)
    if rate is not None:
        changes["rate"] = number_or_none("--rate", rate, float)
    if burst is not None:
        changes["burst"] = number_or_none("--burst", burst, int)

    async def ask(client: "Client") -> dict[str, Any]:
        if changes:
            await client.limit_key(key, **changes)
        return await client.key_limits(key)

    show(talk(server, config, ask), as_json=as_json, render=limits_page)


def _one_line(answer: dict[str, Any]) -> str:
    key = answer["task_key"]
    if "retried" in answer:
        return f"{key}: {answer['retried']} tasks run again"
    return f"{key} is paused" if answer["paused"] else f"{key} goes on"
