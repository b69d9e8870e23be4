"""Jobs, tasks and workers as people see them in a terminal.

Everything that came from elsewhere goes through `plain`: a message of a worker must not move
the cursor of the terminal it is shown in.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dane_core.client import tasks_in

Json = Mapping[str, Any]

#: Sign and style of each state, of tasks and of jobs.
_LOOKS: Final = {
    "blocked": ("·", "dim"),
    "held": ("‖", "dim"),
    "ready": ("○", "blue"),
    "dispatching": ("○", "blue"),
    "queued": ("◌", "blue"),
    "running": ("●", "cyan"),
    "unroutable": ("?", "yellow"),
    "backoff": ("↻", "yellow"),
    "succeeded": ("✔", "green"),
    "failed": ("✘", "red"),
    "cancelled": ("⊘", "magenta"),
    "skipped": ("⤳", "dim"),
    "accepted": ("○", "blue"),
    "paused": ("‖", "yellow"),
}
_BY_NUMBER: Final = {
    102: "queued",
    200: "succeeded",
    201: "ready",
    422: "unroutable",
    424: "skipped",
    499: "cancelled",
}
#: Of a block of tasks as many are shown, those that need a look first.
_MOST_SHOWN: Final = 12
_UNINTERESTING: Final = ("succeeded", "blocked", "ready", "queued", "skipped")
_NO_LIMITS: Final = {"concurrency": None, "rate": None, "burst": None}
_BAR_WIDTH: Final = 12
_TEXT_WIDTH: Final = 400


# --- a job -------------------------------------------------------------------------------------


def job_tree(job: Json) -> RenderableType:
    """A job with the graph of its tasks."""
    tree = Tree(_job_line(job), guide_style="dim")
    if "tasks" in job:
        _grow(tree, job["tasks"], titled=True)
    else:
        tree.add(_counts_line(job["counts"]))
    return tree


def job_page(job: Json) -> RenderableType:
    """A job with its tasks and their answers."""
    answers = {key: value for key, value in job.get("response", {}).items() if key != "SHARED"}
    if not answers:
        return job_tree(job)
    return Group(job_tree(job), Text(), answers_table(answers))


def answers_table(answers: Json) -> Table:
    table = _table("TASK", "ANSWER")
    for key, answer in answers.items():
        table.add_row(plain(key), plain(_compact(answer)))
    return table


def jobs_table(jobs: Sequence[Json]) -> RenderableType:
    """Jobs, one a line."""
    if not jobs:
        return Text("no jobs")
    table = _table("JOB", "STATUS", "DONE", "FAILED", "TASKS", "CREATED", "SOURCE")
    for job in jobs:
        counts = job["counts"]
        table.add_row(
            str(job["job_id"]),
            _status(job["status"]),
            str(counts["succeeded"]),
            str(counts["failed"]),
            str(counts["total"]),
            _moment(job["created_at"]),
            plain(job["source_id"]),
        )
    return table


def job_head(job: Json) -> RenderableType:
    """A job on one line."""
    return _job_line(job)


def _job_line(job: Json) -> Text:
    counts = job["counts"]
    return Text.assemble(
        (f"job {job['job_id']}", "bold"),
        "  ",
        _status(job["status"]),
        f"  {counts['succeeded']}/{counts['total']}  ",
        (plain(job["source_url"]), "dim"),
    )


def _counts_line(counts: Json) -> Text:
    done = counts["total"] - counts["blocked"] - counts["held"] - counts["active"]
    words = [f"{n:,} {name}" for name, n in counts.items() if n and name != "total"]
    return Text.assemble(bar(done / max(counts["total"], 1)), "  ", ", ".join(words))


def _grow(tree: Tree, node: Any, *, titled: bool) -> None:
    """Add a node's tasks; a sequence gets a branch of its own unless `tree` stands for it."""
    match node:
        case {"taskSequential": list(steps)}:
            branch = tree if titled else tree.add(Text("one after another", "dim"))
            _grow_all(branch, [("", step) for step in steps])
        case {"taskParallel": list(steps)}:
            _grow_all(tree.add(Text("side by side", "dim")), [("", step) for step in steps])
        case {"taskGraph": dict(nodes)}:
            graph = tree.add(Text("graph", "dim"))
            _grow_all(graph, [(_place(name, inner), inner) for name, inner in nodes.items()])
        case {"Task": dict(task)}:
            tree.add(task_line(task))
        case {"task": inner}:
            _grow(tree, inner, titled=titled)


def _grow_all(tree: Tree, children: Sequence[tuple[str, Any]]) -> None:
    shown = _most_telling(children)
    for index, (label, node) in enumerate(children):
        if index in shown:
            branch = tree.add(Text(label, "dim")) if label else tree
            _grow(branch, node, titled=bool(label))
    if len(shown) < len(children):
        tree.add(_rest(node for n, (_, node) in enumerate(children) if n not in shown))


def _most_telling(children: Sequence[tuple[str, Any]]) -> set[int]:
    def is_dull(index: int) -> bool:
        return all(state_of(task) in _UNINTERESTING for task in tasks_in(children[index][1]))

    order = range(len(children))
    if len(children) > _MOST_SHOWN:
        return set(sorted(order, key=is_dull)[:_MOST_SHOWN])
    return set(order)


def _rest(nodes: Iterable[Any]) -> Text:
    counts: dict[str, int] = {}
    for node in nodes:
        for task in tasks_in(node):
            counts[state_of(task)] = counts.get(state_of(task), 0) + 1
    words = ", ".join(f"{n:,} {state}" for state, n in counts.items())
    return Text(f"… and {words}", "dim")


def _place(name: str, node: Any) -> str:
    after = node.get("after") if isinstance(node, dict) else None
    waits = f" after {', '.join(after)}" if after else ""
    return plain(f"{name}{waits}")


# --- a task ------------------------------------------------------------------------------------


def task_line(task: Json) -> Text:
    """A task on one line: sign, key, how far, and what is said of it."""
    state = state_of(task)
    sign, style = _LOOKS[state]
    line = Text.assemble((f"{sign} ", style), (plain(task["task_key"]), "bold"))
    if task.get("name"):
        line.append(f" {plain(task['name'])}", "dim")
    progress = task.get("progress")
    if state == "running" and progress is not None:
        line.append("  ").append_text(bar(progress)).append(f" {progress:4.0%}")
    line.append(f"  {_said(task, state)}", style)
    return line


def task_mark(task: Json) -> Text:
    """A task in a word or two: sign, key, and how far it is."""
    sign, style = _LOOKS[state_of(task)]
    progress = task.get("progress") if state_of(task) == "running" else None
    so_far = "" if progress is None else f" {progress:.0%}"
    return Text(f"{sign} {plain(task['task_key'])}{so_far}", style)


def task_page(task: Json) -> RenderableType:
    """A task with its attempts, its answer, and what was not recorded."""
    facts = _table(show_header=False)
    for name in ("task_id", "job_id", "name", "attempt", "worker", *_MOMENTS):
        if task.get(name) is not None:
            value = task[name]
            facts.add_row(name, _moment(value) if name in _MOMENTS else plain(value))
    parts: list[RenderableType] = [task_line(task), facts]
    if task.get("attempts"):
        parts += [Text(), _attempts(task["attempts"])]
    if task.get("rejected"):
        parts += [Text(), _rejected(task["rejected"])]
    if task.get("response") is not None:
        parts += [Text(), Text(_pretty(task["response"]))]
    return Group(*parts)


_MOMENTS: Final = ("due_at", "queued_at", "started_at", "finished_at")


def _attempts(attempts: Iterable[Json]) -> Table:
    table = _table("ATTEMPT", "STATE", "RUNTIME", "WORKER", "MESSAGE")
    for attempt in attempts:
        runtime = attempt["runtime"]
        table.add_row(
            str(attempt["number"]),
            str(attempt["state"]),
            "" if runtime is None else f"{runtime:.2f} s",
            plain(attempt["worker"] or ""),
            plain(attempt["message"]),
        )
    return table


def _rejected(rejected: Iterable[Json]) -> Table:
    """Answers that came too late, or with a token that is not the server's."""
    table = _table("NOT RECORDED", "ATTEMPT", "TIMES", "WORKER", "LAST")
    for one in rejected:
        table.add_row(
            plain(one["reason"]),
            str(one["attempt"]),
            str(one["times"]),
            plain(one["worker"] or ""),
            _moment(one["last_at"]),
        )
    return table


def explanation(found: Json) -> RenderableType:
    """Why a task is not running."""
    return Text.assemble((f"task {found['task_id']}", "bold"), f"  {plain(found['sentence'])}")


def _said(task: Json, state: str) -> str:
    if state == "unroutable":
        key = task["task_key"]
        return plain(f"no worker is bound to {key}; start one, like `dane worker {key}`")
    if state == "running":
        return plain(task.get("progress_message") or state)
    return plain(task.get("task_msg", "")) if state in ("failed", "backoff") else state


def state_of(task: Json) -> str:
    """The name of a task's state; from its number where the server gave only that."""
    state = task.get("status") or _BY_NUMBER.get(task["task_state"], "failed")
    return state if state in _LOOKS else "failed"


# --- workers -----------------------------------------------------------------------------------


def keys_table(keys: Sequence[Json]) -> RenderableType:
    """Task keys: who can do them, and how much of each there is."""
    if not keys:
        return Text("no worker has come yet")
    table = _table("KEY", "TYPES", "WORKERS", "WAIT", "READY", "QUEUED", "RUN", "OLDEST", "RATE")
    for key in keys:
        oldest = key["oldest_wait"]
        paused = (" paused", "yellow") if key["paused"] else ""
        limits = key.get("limits") or _NO_LIMITS
        bounds = "" if limits == _NO_LIMITS else (f" {_limits(limits)}", "dim")
        table.add_row(
            Text.assemble((plain(key["task_key"]), "bold"), paused, bounds),
            plain(", ".join(key["types"]) or "any"),
            str(len(key["workers"])),
            *(str(key[name]) for name in ("waiting", "ready", "queued", "running")),
            "" if oldest is None else _duration(oldest),
            f"{key['rate']:.2f}/s",
        )
    return table


def limits_page(limited: Json) -> RenderableType:
    """How much of a key may be under way, and who has its places."""
    head = Text.assemble((plain(limited["task_key"]), "bold"), f"  {_limits(limited['limits'])}")
    if not limited["holders"]:
        return head
    table = _table("TASK", "JOB", "STATE", "WORKER", "SINCE")
    for holder in limited["holders"]:
        table.add_row(
            str(holder["task_id"]),
            str(holder["job_id"]),
            _status(holder["state"]),
            plain(holder["worker"] or ""),
            _moment(holder["since"]),
        )
    return Group(head, table)


def _limits(limits: Json) -> str:
    words = []
    if limits["concurrency"] is not None:
        words.append(f"{limits['concurrency']} at once")
    if limits["rate"] is not None:
        words.append(f"{limits['rate']:g}/s")
    if limits["burst"] is not None:
        words.append(f"{limits['burst']} together")
    return ", ".join(words) or "no limits"


def owners_table(owners: Sequence[Json]) -> RenderableType:
    """Owners: their shares, and how much of theirs is open."""
    if not owners:
        return Text("nobody has asked for a job by name yet")
    table = _table("OWNER", "WEIGHT", "OPEN", "AT MOST")
    for owner in owners:
        name = (plain(owner["owner"]), "bold") if owner["owner"] else ("nobody", "dim")
        most = owner["max_open"]
        table.add_row(
            Text.assemble(name),
            str(owner["weight"]),
            f"{owner['open']:,}",
            "" if most is None else f"{most:,}",
        )
    return table


# --- words -------------------------------------------------------------------------------------


def plain(value: Any) -> str:
    """Text that only shows: control characters become visible, line breaks become spaces."""
    text = " ".join(str(value).split())
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= _TEXT_WIDTH else f"{shown[:_TEXT_WIDTH]}…"


def _status(status: str) -> Text:
    sign, style = _LOOKS.get(status, ("", ""))
    return Text(f"{sign} {status}", style)


def bar(fraction: float) -> Text:
    """How far something is, from 0 to 1."""
    full = round(min(max(fraction, 0.0), 1.0) * _BAR_WIDTH)
    return Text.assemble(("━" * full, "cyan"), ("━" * (_BAR_WIDTH - full), "dim"))


def _moment(value: str | None) -> str:
    """A time of the server, in the reader's own zone."""
    if value is None:
        return ""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _compact(value: Any) -> str:
    return orjson.dumps(value).decode()


def _pretty(value: Any) -> str:
    # JSON escapes what a terminal would obey, except these, which it may leave as they are.
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _table(*columns: str, show_header: bool = True) -> Table:
    table = Table(box=None, show_header=show_header, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
