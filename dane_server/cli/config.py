"""`dane config`: what the configuration comes to, and where each value is from."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from dane_core.cli.terminal import SET_UP, AsJson, Config, named, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dane_core.settings import Settings


def register(app: typer.Typer) -> None:
    app.command("config", rich_help_panel=SET_UP)(show_config)


def show_config(*, config: Config = None, as_json: AsJson = False) -> None:
    """Print the merged configuration, secrets starred, and where each value was set."""
    from dane_core.settings import load, masked, usual_files
    from dane_server.settings import ServerSettings

    settings, origins = load(ServerSettings, files=named(config))
    found = {
        "settings": shown(settings),
        "origins": {name: place for name, place in origins.items() if "." in name},
        "files": [str(path) for path in (*usual_files(), *named(config))],
        "store": masked(settings.store_url),
        "exchange": masked(settings.exchange_url),
        "api": masked(settings.api_url),
    }
    show(found, as_json=as_json, render=_page)


def shown(settings: "Settings") -> dict[str, dict[str, Any]]:
    """Every setting by section and key, fit to be shown."""
    from dane_core.settings import Section, masked

    sections = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {
        name: {key: masked(getattr(section, key)) for key in type(section).model_fields}
        for name, section in sections.items()
        if isinstance(section, Section)
    }


def _page(found: Mapping[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from dane_core.cli.render import plain

    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("SETTING", "VALUE", "FROM"):
        table.add_column(column, overflow="fold")
    for section, keys in found["settings"].items():
        for key, value in keys.items():
            place = found["origins"].get(f"{section}.{key}")
            text = "" if value is None else plain(value)
            style = "dim" if place is None else ""
            table.add_row(f"{section}.{key}", Text(text, style), Text(place or "default", style))
    files = ", ".join(found["files"]) or "none"
    summary = [f"files     {files}"]
    summary += [f"{name:<9} {found[name]}" for name in ("store", "exchange", "api")]
    return Group(table, Text(), Text("\n".join(summary)))
