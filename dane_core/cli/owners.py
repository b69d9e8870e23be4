"""`dane owners`: who asks for jobs, and what share each has."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from typing import Annotated

import typer

from dane_core.cli.terminal import SERVICE, AsJson, Config, Server, number_or_none, show, talk


def register(app: typer.Typer) -> None:
    owners = typer.Typer(invoke_without_command=True)
    owners.callback()(list_owners)
    owners.command("set")(change_owner)
    app.add_typer(owners, name="owners", rich_help_panel=SERVICE)


def list_owners(
    context: typer.Context,
    *,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List owners: their shares, and how much of theirs is open."""
    from dane_core.cli.render import owners_table

    if context.invoked_subcommand is None:
        owners = talk(server, config, lambda client: client.owners())
        show(owners, as_json=as_json, render=owners_table)


def change_owner(
    name: Annotated[str, typer.Argument(metavar="NAME", help='"" is nobody in particular.')],
    *,
    weight: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Its share, next to others who want the same."),
    ] = None,
    max_open: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="Tasks of its jobs that may be open; none: as usual."),
    ] = None,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give an owner another share, or another bound."""
    from dane_core.cli.render import owners_table

    changes: dict[str, int | None] = {} if weight is None else {"weight": weight}
    if max_open is not None:
        changes["max_open"] = number_or_none("--max-open", max_open, int)
    if not changes:
        raise typer.BadParameter("say --weight or --max-open")
    owner = talk(server, config, lambda client: client.change_owner(name, **changes))
    show(owner, as_json=as_json, render=lambda one: owners_table([one]))
