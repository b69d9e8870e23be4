"""The server's verbs of `dane`: dev, serve, doctor, db, config and demo."""

import typer

from dane_core.cli import run
from dane_server.cli import config, demo, doctor, serve, store


def register(app: typer.Typer) -> None:
    """Add the server's verbs to `dane`."""
    for room in (serve, doctor, store, config, demo):
        room.register(app)


def serve_main() -> None:
    """`dane-server`, the name DANE 0.1 had for `dane serve`."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(serve.serve)
    run(app, "dane-server")
