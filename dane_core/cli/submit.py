"""`dane submit` and `dane run`: give work to a server, and see it done."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import hashlib
import mimetypes
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dane_core.cli.terminal import (
    WORK,
    AsJson,
    Config,
    Server,
    complain,
    console,
    print_lines,
    show,
    talk,
)

if TYPE_CHECKING:
    from dane_core.client import Client

Json = dict[str, Any]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=WORK)(submit)
    app.command(rich_help_panel=WORK)(run)


def submit(
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC…", help="A file, inline JSON, or - for standard input."),
    ],
    *,
    watching: Annotated[
        bool, typer.Option("--watch", help="Follow the jobs until they end.")
    ] = False,
    once: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="TEXT", help="Submit one SPEC only once, however often."
        ),
    ] = None,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Submit job specifications: one object, an array, or one object a line."""
    raw = [spec for text in specs for spec in split(read(text))]
    if once is not None and len(raw) != 1:
        raise typer.BadParameter("--idempotency-key goes with one specification")

    async def submitting(client: "Client") -> bool:
        jobs, refused = await _submit_all(client, raw, once)
        if not watching:
            _announce(jobs, as_json=as_json)
            return not refused
        ids = [job["job_id"] for job in jobs]
        return await follow_all(client, ids, as_json=as_json) and not refused

    if not talk(server, config, submitting):
        raise typer.Exit(1 if watching else 2)


async def _submit_all(
    client: "Client", raw: Sequence[bytes], once: str | None
) -> tuple[list[Json], int]:
    """The jobs that were accepted, of many only their ids; and how many were not."""
    if len(raw) == 1:
        return [await client.submit(raw[0], idempotency_key=once)], 0
    outcomes = await client.submit_many(raw)
    refused = [outcome for outcome in outcomes if "job_id" not in outcome]
    for outcome in refused:
        faults = "".join(f"\n  {e['path']}: {e['message']}" for e in outcome.get("errors", ()))
        complain(f"specification {outcome['line']}: {outcome.get('detail', '')}{faults}")
    accepted = [outcome["job_id"] for outcome in outcomes if "job_id" in outcome]
    return [{"job_id": job_id} for job_id in accepted], len(refused)


def _announce(jobs: Sequence[Json], *, as_json: bool) -> None:
    from dane_core.cli.render import job_head

    if as_json:
        print_lines(jobs)
        return
    for job in jobs:
        console().print(job_head(job) if "counts" in job else f"job {job['job_id']} accepted")


async def follow_all(client: "Client", ids: Sequence[int], *, as_json: bool) -> bool:
    """Show jobs until they end; whether all of them succeeded."""
    from dane_core.cli.watch import all_succeeded, stream, watch

    if as_json:
        return all_succeeded(await stream(client, ids))
    return all_succeeded(await watch(client, ids, console()))


def run(
    key: Annotated[str, typer.Argument(metavar="KEY", help="What to do: a task key.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file or a URL.")],
    *,
    args: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="NAME=VALUE", help="An argument of the task."),
    ] = None,
    media_type: Annotated[
        str | None, typer.Option("--type", help="Like video; else guessed from the name.")
    ] = None,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Do one task on one source, and print its answer."""
    from dane_core.cli.watch import watch

    task = {"Task": {"task_key": key, "args": dict(map(_argument, args or ()))}}
    spec = {**source_of(source, media_type), "tasks": task}

    async def running(client: "Client") -> Json:
        job = await client.submit(spec)
        (ended,) = await watch(client, [job["job_id"]], console(stderr=True))
        return ended

    job = talk(server, config, running)
    answer = job.get("response", {}).get(key.upper())
    show(job if as_json else answer, as_json=True, render=str)
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def source_of(source: str, media_type: str | None = None) -> Json:
    """The members of a specification that name a source.

    A file is named by its URL, so that any name of one survives; an id made of its name and
    its address keeps sources of one name apart, and is the same each time.
    """
    url = source if "://" in source else Path(source).expanduser().absolute().as_uri()
    name = Path(source.rstrip("/")).name
    # Such letters are the same in a folder's name, which is made of the id.
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:100] or "source"
    digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:12]
    members = {"source_url": url, "source_id": f"{readable}-{digest}"}
    kind = media_type or guess_type(name)
    return {**members, "type": kind} if kind else members


def guess_type(name: str) -> str | None:
    """The media type family of a file, as far as its name tells."""
    family = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    return {"audio": "sound"}.get(family, family if family in _FAMILIES else None)


_FAMILIES = ("video", "image", "text")


def read(text: str) -> bytes:
    """A specification as it was given: inline, from a file, or from standard input."""
    if text == "-":
        return sys.stdin.buffer.read()
    if text.lstrip().startswith(("{", "[")):
        return text.encode()
    try:
        return Path(text).expanduser().read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{text}: {error.strerror}") from None


def split(content: bytes) -> list[bytes]:
    """The specifications in one text, each as its own JSON.

    What is neither an array nor lines of objects goes as it is: the server says what is wrong.
    """
    import orjson

    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        lines = [line for line in content.splitlines() if line.strip()]
        are_objects = len(lines) > 1 and all(line.strip()[:1] == b"{" for line in lines)
        return lines if are_objects and lines[0].strip()[-1:] == b"}" else [content]
    return [orjson.dumps(item) for item in value] if isinstance(value, list) else [content]


def _argument(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value being JSON if it is some, and text if not."""
    import orjson

    name, divided, value = text.partition("=")
    if not divided or not name:
        raise typer.BadParameter(f"{text!r}: expected NAME=VALUE")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
