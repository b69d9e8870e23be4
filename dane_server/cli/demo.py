"""`dane demo`: the whole of DANE in one process, at work on some files."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from dane_core.cli.submit import source_of
from dane_core.cli.terminal import SERVICE, AsJson, console, print_json
from dane_core.errors import DaneError
from dane_server.cli.serve import installed, needing

if TYPE_CHECKING:
    from dane_core.client import Client
    from dane_server.cli.demo_view import Progress, Result

T = TypeVar("T")
Json = dict[str, Any]

TASKS: Final = {
    "taskSequential": [
        "DOWNLOAD",
        {"taskParallel": ["FILESIZE", "CHECKSUM", "MEDIAINFO", "THUMBNAIL"]},
    ]
}
_KEYS: Final = frozenset({"DOWNLOAD", "FILESIZE", "CHECKSUM", "MEDIAINFO", "THUMBNAIL"})
#: Jobs that are watched at the same time; the others wait their turn anyway.
_WATCHED: Final = 16
_INTERRUPTED: Final = 130


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SERVICE)(demo)


def demo(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|DIR|URL…]",
            help="What to work on; without any, a clip, an image and a sound made on the spot.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where thumbnails are kept.")] = Path(
        "dane-demo"
    ),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the service up afterwards, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """See DANE at work: size, checksum, media facts and a thumbnail of each file.

    Everything runs in this process, on a free port of this machine, with a database that is
    thrown away afterwards. Exits with 1 if anything failed.
    """
    from dane_server.logs import set_up_logging

    set_up_logging(level="ERROR")
    named = expand(sources) if sources else _samples(out.absolute() / "samples")
    if not asyncio.run(demonstrate(named, out.absolute(), keep=keep, as_json=as_json)):
        raise typer.Exit(1)


def expand(sources: Sequence[str]) -> list[str]:
    """The sources, with every folder replaced by the files in and below it."""
    found: list[str] = []
    for source in sources:
        if "://" not in source and Path(source).is_dir():
            files = [path for path in sorted(Path(source).rglob("*")) if path.is_file()]
            seen = [path for path in files if not _is_hidden(path.relative_to(source))]
            if not seen:
                raise typer.BadParameter(f"{source}: there is no file in this folder")
            found += map(str, seen)
        else:
            found.append(source)
    return list(dict.fromkeys(found))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _samples(folder: Path) -> list[str]:
    with needing("server,media"):
        from dane_server.cli.samples import make_samples

    return [str(path) for path in make_samples(folder)]


async def demonstrate(sources: Sequence[str], out: Path, *, keep: bool, as_json: bool) -> bool:
    """Run a server with workers, do the sources, print what came out; whether all went well."""
    with needing("server"):
        from dane_server.app import run_server
        from dane_server.settings import ServerSettings

    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    with TemporaryDirectory(prefix="dane-demo-") as data:
        settings = ServerSettings(DANE_SERVER={"DATA_FOLDER": data})
        server = asyncio.create_task(
            run_server(
                settings,
                workers=_workers(),
                slots=min(max(os.cpu_count() or 1, 2), 4),
                port=0,
                on_ready=ready.set_result,
                stop=stop,
            )
        )
        try:
            url = await _while_up(server, stop, ready)
            typer.echo(f"DANE is up at {url}, for {len(sources)} sources", err=True)
            results = keep_thumbnails(await _while_up(server, stop, _work(url, sources)), out)
            _print(results, out, as_json=as_json)
            if keep:
                typer.echo(f"The service stays up at {url} until Ctrl-C.", err=as_json)
                await server
        finally:
            stop.set()
            await asyncio.gather(server, return_exceptions=True)
    return all(result.succeeded for result in results)


def _workers() -> list[Any]:
    workers = [worker for worker in installed() if worker.key in _KEYS]
    if missing := _KEYS - {worker.key for worker in workers}:
        raise DaneError(
            f"the demo needs {', '.join(sorted(missing))}: pip install 'dane-router[server,media]'"
        )
    return workers


async def _while_up(server: "asyncio.Task[None]", stop: asyncio.Event, work: Awaitable[T]) -> T:
    """The outcome of some work, unless the server ends first: by its own fault, or by Ctrl-C."""
    working = asyncio.ensure_future(work)
    await asyncio.wait({server, working}, return_when=asyncio.FIRST_COMPLETED)
    if working.done() and not stop.is_set():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await server
    raise typer.Exit(_INTERRUPTED)


async def _work(url: str, sources: Sequence[str]) -> "list[Result]":
    """Post a job for each source, and follow them all."""
    from dane_core.client import Client
    from dane_server.cli.demo_view import Progress, Result

    async with Client(url) as client:
        outcomes = await client.submit_many([_spec(source) for source in sources])
        ids = [outcome["job_id"] for outcome in outcomes if "job_id" in outcome]
        progress = Progress(total=len(ids))
        with _showing(progress):
            jobs = await _follow(client, ids, progress)
    return [
        Result(
            source=source,
            job=jobs.get(outcome.get("job_id", 0)),
            refusal=outcome.get("detail", ""),
        )
        for source, outcome in zip(sources, outcomes, strict=True)
    ]


def _showing(progress: "Progress") -> AbstractContextManager[object]:
    """Show progress on a terminal; results alone go to stdout."""
    from rich.live import Live

    screen = console(stderr=True)
    if not screen.is_terminal:
        return nullcontext()
    return Live(
        get_renderable=progress.render, console=screen, refresh_per_second=10, transient=True
    )


def _spec(source: str) -> Json:
    members = source_of(source)
    # What kind of file it is shall be found out, not guessed from its name.
    members.pop("type", None)
    return {**members, "tasks": TASKS}


async def _follow(client: "Client", ids: Sequence[int], progress: "Progress") -> dict[int, Json]:
    latest: dict[int, Json] = {}
    places = asyncio.Semaphore(_WATCHED)

    async def follow(job_id: int) -> None:
        async with places:
            async for job in client.follow(job_id):
                latest[job_id] = job
                progress.see(job)

    async with asyncio.TaskGroup() as group:
        for job_id in ids:
            group.create_task(follow(job_id))
    return latest


def keep_thumbnails(results: "Sequence[Result]", folder: Path) -> "list[Result]":
    """Copy thumbnails out of the data that is thrown away, under the names of their sources."""
    names = Counter(Path(result.source).name for result in results)

    def kept(result: "Result") -> "Result":
        found = result.answers.get("THUMBNAIL", {}).get("thumbnail")
        if found is None or result.job is None:
            return result
        name = Path(result.source).name
        target = folder / f"{name if names[name] == 1 else result.job['source_id']}.jpg"
        folder.mkdir(parents=True, exist_ok=True)
        return replace(result, kept=Path(shutil.copyfile(found, target)))

    return [kept(result) for result in results]


def _print(results: "Sequence[Result]", out: Path, *, as_json: bool) -> None:
    from dane_server.cli.demo_view import results_page

    if as_json:
        print_json([result.facts for result in results])
    else:
        console().print(results_page(results, out))
