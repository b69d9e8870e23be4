"""`dane task`: look at one task, ask why it waits, run it again."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from typing import Annotated

import typer

from dane_core.cli.terminal import WORK, AsJson, Config, Server, show, talk

TaskNumber = Annotated[int, typer.Argument(metavar="TASK", min=1, help="The id of a task.")]


def register(app: typer.Typer) -> None:
    tasks = typer.Typer(no_args_is_help=True, help="Look at a task, and act on it.")
    tasks.command("show")(show_task)
    for act in (explain, retry, forceretry, reset, priority):
        tasks.command()(act)
    app.add_typer(tasks, name="task", rich_help_panel=WORK)


def show_task(
    task: TaskNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Show a task, its attempts and its answer."""
    from dane_core.cli.render import task_page

    found = talk(server, config, lambda client: client.task(task))
    show(found, as_json=as_json, render=task_page)


def explain(
    task: TaskNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Say why a task is not running now."""
    from dane_core.cli.render import explanation

    found = talk(server, config, lambda client: client.explain(task))
    show(found, as_json=as_json, render=explanation)


def retry(
    task: TaskNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Run a task again, unless it is done or queued."""
    from dane_core.cli.render import task_line

    found = talk(server, config, lambda client: client.retry_task(task))
    show(found, as_json=as_json, render=task_line)


def forceretry(
    task: TaskNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Run a task again whatever its state; its old attempt counts no more."""
    from dane_core.cli.render import task_line

    found = talk(server, config, lambda client: client.force_task(task))
    show(found, as_json=as_json, render=task_line)


def reset(
    task: TaskNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Put a task back to 201, until its predecessors finish again."""
    from dane_core.cli.render import task_line

    found = talk(server, config, lambda client: client.reset_task(task))
    show(found, as_json=as_json, render=task_line)


def priority(
    task: TaskNumber,
    level: Annotated[int, typer.Argument(metavar="N", min=0, max=10, help="10 goes first.")],
    *,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give a task a priority of its own; if it has not begun, it is sent by it."""
    from dane_core.cli.render import task_line

    found = talk(server, config, lambda client: client.prioritize_task(task, level))
    show(found, as_json=as_json, render=task_line)
