"""Client: submit jobs and follow them, over HTTP."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson

from dane_core.errors import Fault, RefusedByServer, ServerUnreachable
from dane_core.states import JobStatus

T = TypeVar("T")
Json = dict[str, Any]
Spec = Mapping[str, Any] | bytes

DEFAULT_URL: Final = "http://127.0.0.1:5500"

#: Nothing happens to a job in one of these until somebody acts on it.
ENDED: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
#: A job with more tasks than this is followed by its counts alone.
MOST_FOLLOWED: Final = 1000
#: Answers that a proxy or a server gives while it starts or has lost its store.
_FOR_NOW: Final = (502, 503, 504)
_LINES_A_REQUEST: Final = 1000
_CONNECTIONS: Final = 16


class Client:
    """Talks to one DANE server.

    Use it with `async with`. A GET that fails for now is tried again after each of `pauses`
    (seconds); nothing else is ever sent twice. Every method may raise ServerUnreachable or
    RefusedByServer.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        pauses: Sequence[float] = (0.1, 0.4),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = server_address(url)
        self._pauses = tuple(pauses)
        try:
            self._http = httpx.AsyncClient(
                base_url=f"{self.url}/DANE/",
                timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0), pool=None),
                # Who follows hundreds of jobs asks for them in turn.
                limits=httpx.Limits(max_connections=_CONNECTIONS),
                transport=transport,
                # No proxy can reach the loopback address of this machine.
                trust_env=not _is_loopback(self.url),
                headers={"Accept": "application/json", "User-Agent": "dane-client"},
            )
        except httpx.InvalidURL as error:
            raise ServerUnreachable(f"{url!r} is not the address of a server: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    # --- jobs ------------------------------------------------------------------------------------

    async def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> Json:
        """Submit a job specification, as a dict or as JSON; return the job.

        The same specification sent again with the same key gives the same job.
        """
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        job: Json = await self._ask("POST", "job", content=_dump(spec), headers=headers)
        return job

    async def submit_many(self, specs: Iterable[Spec]) -> list[Json]:
        """Submit many; what became of each, in their order: `job_id`, or `detail` and `errors`."""
        outcomes: list[Json] = []
        rest = iter(specs)
        while chunk := list(islice(rest, _LINES_A_REQUEST)):
            answers = await self._ask(
                "POST",
                "jobs",
                content=b"\n".join(map(_dump, chunk)),
                headers={"Content-Type": "application/x-ndjson"},
            )
            outcomes += [{**answer, "line": len(outcomes) + answer["line"]} for answer in answers]
        return outcomes

    async def job(self, job_id: int, *, tasks: bool = True) -> Json:
        """A job, with its tasks and their answers unless `tasks` is false."""
        job: Json = await self._ask("GET", f"job/{job_id}", params={} if tasks else _HEAD_ONLY)
        return job

    async def tasks(self, job_id: int) -> list[Json]:
        """Every task of a job in the order of its specification, and how each is doing."""
        return [row["Task"] async for row in self._pages(f"job/{job_id}/tasks", "tasks", {})]

    async def jobs(self, *, limit: int = 50, **filters: Any) -> list[Json]:
        """The newest jobs, without their tasks.

        Filters are those of `GET /DANE/jobs`: status, state, task_key, source_id, owner, since,
        until.
        """
        found: list[Json] = []
        params = {name: value for name, value in filters.items() if value is not None}
        async for job in self._pages("jobs", "jobs", {**params, "limit": min(limit, 500)}):
            found.append(job)
            if len(found) >= limit:
                break
        return found

    async def unfinished(self) -> list[int]:
        """Ids of jobs that are not finished, or finished with errors."""
        return list((await self._ask("GET", "job/inprogress"))["jobs"])

    async def of_source(self, source_id: str) -> list[int]:
        """Ids of all jobs of a source."""
        return list((await self._ask("GET", f"search/{quote(source_id, safe='')}"))["jobs"])

    async def retry(self, job_id: int) -> Json:
        """Run again what failed, was cancelled or reset; return the job."""
        return await self._act(f"job/{job_id}/retry")

    async def cancel(self, job_id: int) -> None:
        """Queued tasks never start, running ones are told to stop."""
        await self._act(f"job/{job_id}/cancel")

    async def pause(self, job_id: int) -> None:
        """Start no more tasks of this job."""
        await self._act(f"job/{job_id}/pause")

    async def resume(self, job_id: int) -> None:
        """Go on with a paused job."""
        await self._act(f"job/{job_id}/resume")

    async def prioritize(self, job_id: int, priority: int) -> None:
        """Give a job another priority, from 0 to 10: higher goes first."""
        await self._change(f"job/{job_id}/priority", {"priority": priority})

    async def delete(self, job_id: int) -> None:
        """Delete a job with its tasks and answers; late answers are ignored."""
        await self._ask("DELETE", f"job/{job_id}")

    # --- tasks -----------------------------------------------------------------------------------

    async def task(self, task_id: int) -> Json:
        """One task: its attempts, worker, times, progress, message, answer."""
        return await self._task("GET", f"task/{task_id}")

    async def explain(self, task_id: int) -> Json:
        """Why a task is not running now: `reason`, `sentence` and `data`."""
        explanation: Json = await self._ask("GET", f"task/{task_id}/explain")
        return explanation

    async def retry_task(self, task_id: int) -> Json:
        """Run a task again unless it is done or queued; return it."""
        return await self._task("POST", f"task/{task_id}/retry")

    async def force_task(self, task_id: int) -> Json:
        """Run a task again whatever its state; its old attempt counts no more. Return it."""
        return await self._task("POST", f"task/{task_id}/forceretry")

    async def reset_task(self, task_id: int) -> Json:
        """Put a task back to 201, until its predecessors finish again; return it."""
        return await self._task("POST", f"task/{task_id}/reset")

    async def prioritize_task(self, task_id: int, priority: int) -> Json:
        """Give a task a priority of its own; return it."""
        return dict(
            (await self._change(f"task/{task_id}/priority", {"priority": priority}))["Task"]
        )

    # --- the server ------------------------------------------------------------------------------

    async def workers(self) -> list[Json]:
        """Every task key: its workers, and how much waits, is queued and runs."""
        return list((await self._ask("GET", "workers"))["keys"])

    async def pause_key(self, key: str) -> Json:
        """Start no more tasks of this key."""
        return await self._act(f"workers/{quote(key, safe='')}/pause")

    async def resume_key(self, key: str) -> Json:
        """Go on with the tasks of this key."""
        return await self._act(f"workers/{quote(key, safe='')}/resume")

    async def retry_key(self, key: str, state: int) -> Json:
        """Run again every task of this key that is in `state`, like 500; says how many."""
        return await self._act(f"workers/{quote(key, safe='')}/retry?state={state}")

    async def key_limits(self, key: str) -> Json:
        """How much of a key may be under way, `limits`, and all `holders` of its places."""
        path = f"workers/{quote(key, safe='')}/limits"
        page: Json = await self._ask("GET", path)
        holders = [holder async for holder in self._rest(page, "holders")]
        return {**page, "holders": holders, "next": None}

    async def limit_key(self, key: str, **limits: float | None) -> Json:
        """Change `concurrency`, `rate` or `burst` of a key; None takes a limit away."""
        return await self._change(f"workers/{quote(key, safe='')}/limits", limits)

    async def owners(self) -> list[Json]:
        """Every owner: its share, and how much of its work is open."""
        return [owner async for owner in self._pages("owners", "owners", {})]

    async def change_owner(self, name: str, **changes: int | None) -> Json:
        """Change the `weight` or `max_open` of an owner; return it."""
        return await self._change(f"owners/{quote(name, safe='')}", changes)

    async def limits(self) -> Json:
        """What a specification may hold."""
        limits: Json = await self._ask("GET", "limits")
        return limits

    async def ready(self) -> Json:
        """Whether the server reaches its store and its exchange; refused with 503 if not."""
        parts: Json = await self._ask("GET", "ready")
        return parts

    # --- following -------------------------------------------------------------------------------

    async def follow(
        self,
        job_id: int,
        *,
        shortest: timedelta = timedelta(milliseconds=100),
        longest: timedelta = timedelta(seconds=1),
        patience: timedelta = timedelta(minutes=1),
    ) -> AsyncIterator[Json]:
        """A snapshot of a job now and after each change, until it has ended.

        A snapshot is what `job` gives, each task with what `tasks` says of it besides; jobs of
        more than 1000 tasks come without `tasks` and `response`. The server is asked at
        intervals from `shortest` to `longest`, and may be away for as long as `patience`.
        """
        watch, clock, interval = _Watch(self, job_id), asyncio.get_running_loop().time, shortest
        answered_at = clock()
        while True:
            changed = False
            try:
                changed = await watch.look()
                answered_at = clock()
            except ServerUnreachable:
                if not watch.snapshot or clock() - answered_at > patience.total_seconds():
                    raise
            if changed:
                yield watch.snapshot
                if watch.snapshot["status"] in ENDED:
                    return
            interval = shortest if changed else min(interval * 1.5, longest)
            await asyncio.sleep(interval.total_seconds())

    async def wait(self, job_id: int) -> Json:
        """The job, once it has ended."""
        job: Json = {}
        async for snapshot in self.follow(job_id):
            job = snapshot
        return job

    # --- asking ----------------------------------------------------------------------------------

    async def _act(self, path: str) -> Json:
        return dict(await self._ask("POST", path) or {})

    async def _change(self, path: str, body: Mapping[str, Any]) -> Json:
        headers = {"Content-Type": "application/json"}
        return dict(await self._ask("PUT", path, content=_dump(body), headers=headers))

    async def _task(self, method: str, path: str) -> Json:
        answer: Json = await self._ask(method, path)
        return dict(answer["Task"])

    async def _pages(self, path: str, member: str, params: Json) -> AsyncIterator[Json]:
        page = await self._ask("GET", path, params=params)
        async for item in self._rest(page, member):
            yield item

    async def _rest(self, page: Json, member: str) -> AsyncIterator[Json]:
        """What a page has, and all that follow it."""
        while True:
            for item in page[member]:
                yield item
            if page["next"] is None:
                return
            # A link starts at the server's root, which is not ours behind a proxy.
            page = await self._ask("GET", page["next"].removeprefix("/DANE/"))

    async def _ask(self, method: str, path: str, **request: Any) -> Any:
        for pause in self._pauses if method == "GET" else ():
            with suppress(ServerUnreachable):
                response = await self._send(method, path, **request)
                if response.status_code not in _FOR_NOW:
                    return self._read(response)
            await asyncio.sleep(pause)
        return self._read(await self._send(method, path, **request))

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ServerUnreachable(f"no DANE server answers at {self.url}{_why(error)}") from error

    def _read(self, response: httpx.Response) -> Any:
        if response.status_code == 204:
            return None
        try:
            if response.headers.get("content-type", "").startswith("application/x-ndjson"):
                body: Any = [orjson.loads(line) for line in response.content.splitlines() if line]
            else:
                body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            body = None
        if response.is_success and body is not None:
            return body
        if isinstance(body, dict) and "title" in body:
            raise _refusal(response.status_code, body)
        raise ServerUnreachable(
            f"{self.url} answers, but not as a DANE server: "
            f"{response.status_code} {response.reason_phrase} for {response.url.path}"
        )


class _Watch:
    """What was last seen of one job."""

    def __init__(self, client: Client, job_id: int) -> None:
        self._client = client
        self._job_id = job_id
        self._head: Json = {}
        self._rows: list[Json] = []
        self.snapshot: Json = {}

    async def look(self) -> bool:
        """Look again; whether anything has changed."""
        head = await self._client.job(self._job_id, tasks=False)
        if "status" not in head:
            raise RefusedByServer(
                501, "A job cannot be followed", "this server leaves out what DANE 0.1 did not have"
            )
        is_small = head["counts"]["total"] <= MOST_FOLLOWED
        rows = await self._client.tasks(self._job_id) if is_small else []
        if (head, rows) == (self._head, self._rows):
            return False
        whole = await self._client.job(self._job_id) if is_small else head
        self._head, self._rows = head, rows
        self.snapshot = _with_rows({**whole, **head}, rows)
        return True


def _with_rows(job: Json, rows: Iterable[Json]) -> Json:
    """The job, with what the rows say of each of its tasks put into the task."""
    by_id = {row["task_id"]: row for row in rows}
    for task in tasks_in(job.get("tasks")):
        task.update(by_id.get(task["task_id"], {}))
    return job


def tasks_in(node: Any) -> list[Json]:
    """The tasks of a job's `tasks`, in the order of its specification."""
    found: list[Json] = []
    stack = [node]
    while stack:
        match stack.pop():
            case {"Task": dict(task)}:
                found.append(task)
            case {"taskSequential": list(steps)} | {"taskParallel": list(steps)}:
                stack.extend(reversed(steps))
            case {"taskGraph": dict(nodes)}:
                stack.extend(reversed(nodes.values()))
            case {"task": inner}:
                stack.append(inner)
    return found


class BlockingClient:
    """`Client` for programs without asyncio: the same verbs, each waiting for its answer.

    What has no verb here is `client.run(lambda dane: dane.explain(7))`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = 30.0) -> None:
        self._runner = asyncio.Runner()
        self._client = Client(url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._runner:
            self.run(lambda client: client.__aexit__(kind, error, trace))

    def run(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Do something with the asynchronous client, and wait for it."""

        async def answered() -> T:
            return await ask(self._client)

        return self._runner.run(answered())

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> Json:
        """Submit a job specification, as a dict or as JSON; return the job."""
        return self.run(lambda client: client.submit(spec, idempotency_key=idempotency_key))

    def job(self, job_id: int) -> Json:
        """A job, with its tasks and their answers."""
        return self.run(lambda client: client.job(job_id))

    def task(self, task_id: int) -> Json:
        """One task: its attempts, worker, times, progress, message, answer."""
        return self.run(lambda client: client.task(task_id))

    def wait(self, job_id: int) -> Json:
        """The job, once it has ended."""
        return self.run(lambda client: client.wait(job_id))

    def retry(self, job_id: int) -> Json:
        """Run again what failed, was cancelled or reset; return the job."""
        return self.run(lambda client: client.retry(job_id))

    def cancel(self, job_id: int) -> None:
        """Queued tasks never start, running ones are told to stop."""
        self.run(lambda client: client.cancel(job_id))


_HEAD_ONLY: Final = {"tasks": "false"}


def server_address(url: str) -> str:
    """A server's URL as people write it, made whole: no `/DANE` at its end, a scheme before it."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/DANE")


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _dump(spec: Spec) -> bytes:
    return spec if isinstance(spec, bytes) else orjson.dumps(spec)


def _why(error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return f" ({reason})"


def _refusal(status: int, body: Json) -> RefusedByServer:
    faults = [
        Fault(str(fault.get("path", "")), str(fault.get("message", "")))
        for fault in body.get("errors", [])
        if isinstance(fault, dict)
    ]
    return RefusedByServer(status, str(body["title"]), str(body.get("detail", "")), faults)
