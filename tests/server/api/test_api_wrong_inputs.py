"""Two hundred wrong inputs: each gets a 4xx that names what is wrong, and changes nothing."""

import codecs
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa

from dane_server.storage.engine import Store
from dane_server.storage.tables import metadata
from tests.server.api.served import Served, serving

JSON: Final = {"Content-Type": "application/json"}
NDJSON: Final = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A request, the status that refuses it, and the path that it names."""

    path: str
    status: int = 422
    method: str = "POST"
    url: str = "/DANE/job"
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = field(default_factory=lambda: JSON)
    body: bytes = b""


def spec(**members: Any) -> dict[str, Any]:
    whole = {"source_url": "http://127.0.0.1/x", "source_id": "T1", "tasks": "NOOP", **members}
    return {name: value for name, value in whole.items() if value is not ...}


def raw(body: bytes | str, path: str = "body") -> Wrong:
    return Wrong(body=body.encode() if isinstance(body, str) else body, path=path)


def member(path: str, **members: Any) -> Wrong:
    """A specification with a wrong member; `...` leaves it out."""
    return raw(json.dumps(spec(**members)), path)


def job(tasks: Any, path: str = "tasks") -> Wrong:
    return member(path, tasks=tasks)


def task(path: str = "", **members: Any) -> Wrong:
    """A task with a wrong member."""
    at = path or f"tasks.Task.{next(iter(members))}"
    return job({"Task": {"task_key": "NOOP", **members}}, at)


def text(old: str, new: str, path: str = "body") -> Wrong:
    """A good specification as JSON text, with a piece replaced that json.dumps cannot write."""
    good = json.dumps(spec(metadata={"a": 1}, tasks={"Task": {"task_key": "NOOP", "args": {}}}))
    assert old in good
    return raw(good.replace(old, new), path)


def graph(path: str, **nodes: Any) -> Wrong:
    return job({"taskGraph": nodes}, path)


def get(url: str, path: str, status: int = 422) -> Wrong:
    return Wrong(method="GET", url=f"/DANE/{url}", headers={}, path=path, status=status)


def post(url: str, path: str, status: int = 422, **headers: str) -> Wrong:
    return Wrong(url=f"/DANE/{url}", headers=headers, path=path, status=status)


def sent_with(path: str, status: int, *headers: tuple[str, str]) -> Wrong:
    """A good specification with wrong headers."""
    body = json.dumps(spec()).encode()
    return Wrong(headers=list(headers), path=path, status=status, body=body)


def batch(path: str, headers: Mapping[str, str], body: str, status: int = 422) -> Wrong:
    return Wrong(url="/DANE/jobs", headers=headers, body=body.encode(), path=path, status=status)


def nested(depth: int) -> Any:
    tasks: Any = "NOOP"
    for _ in range(depth):
        tasks = {"taskSequential": [tasks]}
    return tasks


GOOD: Final = json.dumps(spec())
CT: Final = ("Content-Type", "application/json")
KEY: Final = "Idempotency-Key"

NOT_JSON: Final = {
    "empty": raw(b""),
    "white space": raw(b" \r\n\t "),
    "an open brace": raw(b"{"),
    "an array": raw(b"[]"),
    "null": raw(b"null"),
    "true": raw(b"true"),
    "a number": raw(b"1"),
    "a string": raw(b'"NOOP"'),
    "an empty object": raw(b"{}", "source_url"),
    "something behind": raw(f"{GOOD} x"),
    "two documents": raw(f"{GOOD}\n{GOOD}"),
    "a closing brace too many": raw(f"{GOOD}}}"),
    "a byte order mark": raw(codecs.BOM_UTF8 + GOOD.encode()),
    "utf-16 with a mark": raw(GOOD.encode("utf-16")),
    "utf-16 without": raw(GOOD.encode("utf-16-le")),
    "utf-16 big end first": raw(GOOD.encode("utf-16-be")),
    "utf-32": raw(GOOD.encode("utf-32")),
    "latin-1": raw(json.dumps(spec(source_id="é"), ensure_ascii=False).encode("latin-1")),
    "a broken utf-8 sequence": raw(GOOD.encode().replace(b"T1", b"\xc3\x28")),
    "an overlong utf-8 sequence": raw(GOOD.encode().replace(b"T1", b"\xc0\xaf")),
    "a surrogate in utf-8": raw(GOOD.encode().replace(b"T1", b"\xed\xa0\x80")),
    "single quotes": raw(GOOD.replace('"', "'")),
    "a comment": raw(GOOD.replace("{", "{ // hello\n", 1)),
    "a trailing comma": raw(GOOD.replace("}", ",}")),
    "a bare name": raw(GOOD.replace('"tasks"', "tasks")),
    "NaN": text('"a": 1', '"a": NaN', "metadata.a"),
    "Infinity": text('"a": 1', '"a": Infinity', "metadata.a"),
    "-Infinity": text('"a": 1', '"a": -Infinity', "metadata.a"),
    "1e400": text('"a": 1', '"a": 1e400', "metadata.a"),
    "-1e400": text('"a": 1', '"a": -1e400', "metadata.a"),
    "a hexadecimal number": text('"a": 1', '"a": 0x1'),
    "a leading zero": text('"a": 1', '"a": 01'),
    "a leading plus": text('"a": 1', '"a": +1'),
    "no digit behind the point": text('"a": 1', '"a": 1.'),
    "2 to the 63": text('"a": 1', f'"a": {2**63}', "metadata.a"),
    "below -2 to the 63": text('"a": 1', f'"a": {-(2**63) - 1}', "metadata.a"),
    "four thousand digits": text('"a": 1', f'"a": {"9" * 4000}', "metadata.a"),
    "five thousand digits": text('"a": 1', f'"a": {"9" * 5000}', "metadata.a"),
    "a raw NUL": text('"a": 1', '"a": "\0"'),
    "a raw line end in a string": text('"a": 1', '"a": "x\ny"'),
    "an escaped NUL": text('"a": 1', r'"a": "\u0000"', "metadata.a"),
    "a NUL in a name": text('"a": 1', r'"a\u0000": 1', "metadata"),
    "half a surrogate pair": text('"a": 1', r'"a": "\ud800"', "metadata.a"),
    "the other half": text('"a": 1', r'"a": "\udc00"', "metadata.a"),
    "a surrogate in a name": text('"a": 1', r'"\ud800": 1', "metadata"),
    "an unknown escape": text('"a": 1', r'"a": "\x41"'),
    "a name twice": text('"source_id"', '"source_url"', ""),
    "a name twice in metadata": text('"a": 1', '"a": 1, "a": 2', "metadata"),
    "a name twice in a task": text('"args": {}', '"args": {}, "args": {}', "tasks"),
    "a name twice in args": text('"args": {}', '"args": {"b": 1, "b": 1}', "tasks.Task.args"),
    "a hundred thousand brackets": raw("[" * 100_000),
    "a hundred thousand braces": raw('{"a":' * 100_000),
    "xml": raw(b"<job><tasks>NOOP</tasks></job>"),
    "a form": raw(b"source_url=x&source_id=1&tasks=NOOP"),
    "gzip": raw(gzip.compress(GOOD.encode())),
}

MEMBERS: Final = {
    "no source_url": member("source_url", source_url=...),
    "no source_id": member("source_id", source_id=...),
    "no tasks": member("tasks", tasks=...),
    "an unknown member": member("colour", colour="red"),
    "a misspelt member": member("sourceurl", sourceurl="x"),
    "an owner": member("owner", owner="me"),
    "a state": member("state", state=200),
    "an attempt": member("attempt", attempt=3),
    "is_admin": member("is_admin", is_admin=True),
    "__proto__": member("__proto__", __proto__={"a": 1}),
    "an empty name": raw(GOOD.replace("{", '{"": 1, ', 1), ""),
    "a job_id": member("job_id", job_id=1),
    "a job_id of zero": member("job_id", job_id=0),
    "a response": member("response", response={"NOOP": {}}),
    "a response that is a list": member("response", response=[]),
    "source_set a number": member("source_set", source_set=1),
    "source_url null": member("source_url", source_url=None),
    "source_url a number": member("source_url", source_url=1),
    "source_url a list": member("source_url", source_url=["x"]),
    "source_url empty": member("source_url", source_url=""),
    "source_url blank": member("source_url", source_url="  "),
    "source_url too long": member("source_url", source_url="x" * 4097),
    "source_url too long once quoted": member("source_url", source_url="http://x/" + "é" * 4000),
    "source_url with NUL": member("source_url", source_url="a\0b"),
    "source_url with a line end": member("source_url", source_url="http://x/\r\nHost: y"),
    "source_id null": member("source_id", source_id=None),
    "source_id a number": member("source_id", source_id=123),
    "source_id true": member("source_id", source_id=True),
    "source_id empty": member("source_id", source_id=""),
    "source_id blank": member("source_id", source_id=" \t"),
    "source_id too long": member("source_id", source_id="x" * 256),
    "source_id with NUL": member("source_id", source_id="a\0"),
    "source_id with an escape": member("source_id", source_id="\x1b[2J"),
    "source_id up": member("source_id", source_id=".."),
    "source_id up and away": member("source_id", source_id="../../etc/passwd"),
    "source_id up in the middle": member("source_id", source_id="a/../../b"),
    "source_id up with backslashes": member("source_id", source_id="a\\..\\b"),
    "type in capitals": member("type", type="Video"),
    "type with a dot": member("type", type="vi.deo"),
    "type a star": member("type", type="*"),
    "type a hash": member("type", type="#"),
    "type empty": member("type", type=""),
    "type too long": member("type", type="x" * 33),
    "type in another alphabet": member("type", type="видео"),
    "type a number": member("type", type=1),
    "metadata a list": member("metadata", metadata=[]),
    "metadata a string": member("metadata", metadata="{}"),
    "metadata too large": member("metadata", metadata={"a": "x" * 65_536}),
    "metadata with 1e5 names": member("metadata", metadata={str(n): n for n in range(100_000)}),
    "metadata too deep": member("metadata", metadata=json.loads('{"a":' * 40 + "1" + "}" * 40)),
    "priority -1": member("priority", priority=-1),
    "priority 11": member("priority", priority=11),
    "priority 1.5": member("priority", priority=1.5),
    "priority 1.0": text('"metadata"', '"priority": 1.0, "metadata"', "priority"),
    "priority -0": text('"metadata"', '"priority": -0, "metadata"', "priority"),
    "priority true": member("priority", priority=True),
    "priority 2 to the 63": member("priority", priority=2**63),
    "priority 4000 digits": member("priority", priority=10**3999),
    "priority '11'": member("priority", priority="11"),
    "priority '1.0'": member("priority", priority="1.0"),
    "priority ' 1'": member("priority", priority=" 1"),
    "priority in other digits": member("priority", priority="٣"),
    "priority empty": member("priority", priority=""),
    "priority a list": member("priority", priority=[1]),
    "a hundred thousand members": raw(
        json.dumps(spec(**{f"x{n}": n for n in range(100_000)})), "x"
    ),
}

TASKS: Final = {
    "tasks null": job(None),
    "tasks a number": job(3),
    "tasks true": job(True),  # noqa: FBT003
    "tasks a list": job(["NOOP"]),
    "tasks an empty object": job({}),
    "tasks empty": job(""),
    "an unknown container": job({"taskSometimes": ["NOOP"]}),
    "two containers at once": job({"taskSequential": ["A"], "taskParallel": ["B"]}),
    "a task beside its container": job({"Task": {"task_key": "A"}, "after": []}),
    "an empty sequence": job({"taskSequential": []}, "tasks.taskSequential"),
    "an empty parallel": job({"taskParallel": []}, "tasks.taskParallel"),
    "an empty graph": job({"taskGraph": {}}, "tasks.taskGraph"),
    "a sequence of an object": job({"taskSequential": {"A": "B"}}, "tasks.taskSequential"),
    "a sequence of a string": job({"taskSequential": "NOOP"}, "tasks.taskSequential"),
    "a graph of a list": job({"taskGraph": ["A"]}, "tasks.taskGraph"),
    "null in a sequence": job({"taskSequential": ["A", None]}, "tasks.taskSequential[1]"),
    "a number in a parallel": job({"taskParallel": [1]}, "tasks.taskParallel[0]"),
    "a list in a sequence": job({"taskSequential": [["A"]]}, "tasks.taskSequential[0]"),
    "an empty sequence inside": job(
        {"taskParallel": ["A", {"taskSequential": []}]}, "tasks.taskParallel[1].taskSequential"
    ),
    "a fault deep down": job(
        {"taskParallel": [{"taskSequential": ["A", {"Task": {"task_key": "B", "args": 1}}]}]},
        "tasks.taskParallel[0].taskSequential[1].Task.args",
    ),
    "a key with a dot": job("A.B"),
    "a key that is a star": job("*"),
    "a key that is a hash": job("#"),
    "a key with a space": job("A B"),
    "a key with a slash": job("A/B"),
    "a key with a line end": job("A\n"),
    "a key with NUL": job("A\0"),
    "a key with an accent": job("CAFÉ"),
    "a key that becomes ASCII in capitals": job("\ufb01lesize"),
    "a key that is too long": job("A" * 101),
    "a key in mathematical letters": job("\U0001d400"),
    "a Task that is a string": job({"Task": "NOOP"}, "tasks.Task"),
    "a Task that is a list": job({"Task": []}, "tasks.Task"),
    "a Task that is null": job({"Task": None}, "tasks.Task"),
    "a Task without a key": job({"Task": {}}, "tasks.Task.task_key"),
    "a Task with a null key": task(task_key=None),
    "a Task with a key that is a number": task(task_key=7),
    "a Task with an empty key": task(task_key=""),
    "an unknown member of a Task": task(colour="red"),
    "a Task with an id": task(task_id=1),
    "a Task with a state": task(task_state=200),
    "a Task with a message": task(task_msg="Success"),
    "a Task with a job": task(job_id=1),
    "a Task with a status": task(status="succeeded"),
    "a name that is empty": task(name=""),
    "a name that is too long": task(name="x" * 101),
    "a name that is a number": task(name=1),
    "a name with NUL": task(name="\0"),
    "a name given to two tasks": job(
        {"taskParallel": [{"Task": {"task_key": key, "name": "same"}} for key in "AB"]},
        "tasks.taskParallel[1]",
    ),
    "args a list": task(args=[]),
    "args a string": task(args="{}"),
    "args too large": task(args={"a": "x" * 65_536}),
    "args too deep": task(args=json.loads('{"a":' * 40 + "1" + "}" * 40)),
    "args with a NUL": task("tasks.Task.args.a", args={"a": "\0"}),
    "args with half a surrogate pair": task("tasks.Task.args.a", args={"a": "\ud800"}),
    "args with a huge number": task("tasks.Task.args.a", args={"a": 10**30}),
    "a task's priority 11": task(priority=11),
    "a task's priority true": task(priority=True),
    "timeout zero": task(timeout=0),
    "timeout negative": task(timeout=-1),
    "timeout a string": task(timeout="10"),
    "timeout true": task(timeout=True),
    "timeout a thousand years": task(timeout=1e12),
    "timeout without end": text('"args": {}', '"timeout": 1e400', "tasks.Task.timeout"),
    "retry a number": task(retry=3),
    "retry with an unknown member": task("tasks.Task.retry", retry={"limits": 3}),
    "retry limit negative": task("tasks.Task.retry.limit", retry={"limit": -1}),
    "retry limit 1.5": task("tasks.Task.retry.limit", retry={"limit": 1.5}),
    "retry limit huge": task("tasks.Task.retry.limit", retry={"limit": 10**9}),
    "retry delay negative": task("tasks.Task.retry.delay", retry={"delay": -1}),
    "retry delay a string": task("tasks.Task.retry.delay", retry={"delay": "2"}),
    "retry factor zero": task("tasks.Task.retry.factor", retry={"factor": 0}),
    "retry max_delay negative": task("tasks.Task.retry.max_delay", retry={"max_delay": -1}),
    "allow_failure a string": task(allow_failure="true"),
    "allow_failure 1": task(allow_failure=1),
    "after itself": graph("tasks.taskGraph", a={"task": "A", "after": ["a"]}),
    "a cycle of two": graph(
        "tasks.taskGraph", a={"task": "A", "after": ["b"]}, b={"task": "B", "after": ["a"]}
    ),
    "a cycle of three behind others": graph(
        "tasks.taskGraph",
        z="Z",
        a={"task": "A", "after": ["c", "z"]},
        b={"task": "B", "after": ["a"]},
        c={"task": "C", "after": ["b"]},
    ),
    "after an unknown name": graph("tasks.taskGraph.a.after", a={"task": "A", "after": ["x"]}),
    "after a name twice": graph(
        "tasks.taskGraph.b.after", a="A", b={"task": "B", "after": ["a", "a"]}
    ),
    "after a string": graph("tasks.taskGraph.b.after", a="A", b={"task": "B", "after": "a"}),
    "after a number": graph("tasks.taskGraph.b.after", a="A", b={"task": "B", "after": [0]}),
    "a node without a task": graph("tasks.taskGraph.a", a={"after": []}),
    "a node with an unknown member": graph("tasks.taskGraph.a", a={"task": "A", "before": []}),
    "a node that is null": graph("tasks.taskGraph.a", a=None),
    "a node without a name": job({"taskGraph": {"": "A"}}, "tasks.taskGraph"),
    "a node with a long name": job({"taskGraph": {"x" * 101: "A"}}, "tasks.taskGraph"),
    "one level too deep": job(nested(65)),
    "ten thousand levels": raw(
        GOOD.replace('"NOOP"', '{"taskSequential":[' * 10_000 + '"A"' + "]}" * 10_000)
    ),
    "one task too many": job({"taskParallel": ["A"] * 100_001}),
    "a million tasks": job({"taskParallel": ["A"] * 1_000_000}),
}

HEADERS: Final = {
    "text/plain": sent_with("header.Content-Type", 415, ("Content-Type", "text/plain")),
    "a form's type": sent_with(
        "header.Content-Type", 415, ("Content-Type", "application/x-www-form-urlencoded")
    ),
    "a multipart type": sent_with(
        "header.Content-Type", 415, ("Content-Type", "multipart/form-data; boundary=x")
    ),
    "text/json": sent_with("header.Content-Type", 415, ("Content-Type", "text/json")),
    "utf-16 said": sent_with(
        "header.Content-Type", 415, ("Content-Type", "application/json; charset=utf-16")
    ),
    "an empty type": sent_with("header.Content-Type", 415, ("Content-Type", "")),
    "nonsense for a type": sent_with("header.Content-Type", 415, ("Content-Type", ";;=,")),
    "two types": sent_with("header.Content-Type", 415, CT, ("Content-Type", "text/plain")),
    "ndjson for one job": sent_with("header.Content-Type", 415, *NDJSON.items()),
    "no type, from a page": sent_with(
        "header.Content-Type", 415, ("Origin", "http://127.0.0.1:5500")
    ),
    "no type, from a fetch": sent_with("header.Content-Type", 415, ("Sec-Fetch-Mode", "no-cors")),
    "gzip said": sent_with("header.Content-Encoding", 415, CT, ("Content-Encoding", "gzip")),
    "gzip said, no type": sent_with("header.Content-Encoding", 415, ("Content-Encoding", "gzip")),
    "another origin": sent_with("header.Origin", 403, CT, ("Origin", "http://evil.example")),
    "no origin to speak of": sent_with("header.Origin", 403, CT, ("Origin", "null")),
    "another port": sent_with("header.Origin", 403, CT, ("Origin", "http://127.0.0.1:3000")),
    "two origins": sent_with(
        "header.Origin", 403, CT, ("Origin", "http://127.0.0.1:5500"), ("Origin", "http://x")
    ),
    "a page of another site": sent_with("header.Origin", 403, CT, ("Sec-Fetch-Site", "cross-site")),
    "a page of the same site": sent_with("header.Origin", 403, CT, ("Sec-Fetch-Site", "same-site")),
    "another host": sent_with("header.Host", 421, CT, ("Host", "evil.example")),
    "a host that only begins well": sent_with(
        "header.Host", 421, CT, ("Host", "127.0.0.1.evil.example")
    ),
    "a broken host": sent_with("header.Host", 421, CT, ("Host", "[::1")),
    "two ways to end": sent_with(
        "header.Transfer-Encoding", 400, CT, ("Content-Length", "5"), ("Transfer-Encoding", "x")
    ),
    "headers without end": sent_with("header", 431, CT, ("X-Long", "x" * 33_000)),
    "an empty key": sent_with(f"header.{KEY}", 422, CT, (KEY, "")),
    "a key with a space in it": sent_with(f"header.{KEY}", 422, CT, (KEY, "a b")),
    "a key that is too long for a header": sent_with(f"header.{KEY}", 422, CT, (KEY, "x" * 256)),
    "a key beyond ASCII": Wrong(
        headers=httpx.Headers([CT, (KEY, "cl\xe9")], encoding="latin-1"),
        path=f"header.{KEY}",
        body=GOOD.encode(),
    ),
    "two keys": sent_with(f"header.{KEY}", 422, CT, (KEY, "a"), (KEY, "b")),
    "an act from another origin": post(
        "job/1/delete", "header.Origin", 403, Origin="http://evil.example"
    ),
    "an act for another host": post("job/1/cancel", "header.Host", 421, Host="evil.example"),
    "a parameter for a submission": Wrong(url="/DANE/job?dry=1", body=GOOD.encode(), path="query"),
    "a body that is too long": Wrong(
        body=b" " * (32 * 1024 * 1024) + GOOD.encode(), status=413, path="body"
    ),
    "a body said to be too long": sent_with(
        "body", 413, CT, ("Content-Length", str(32 * 1024 * 1024 + 1))
    ),
}

BATCHES: Final = {
    "many without a type": batch("header.Content-Type", {}, GOOD, 415),
    "many as text": batch("header.Content-Type", {"Content-Type": "text/plain"}, GOOD, 415),
    "many packed": batch(
        "header.Content-Encoding", {**NDJSON, "Content-Encoding": "gzip"}, GOOD, 415
    ),
    "many with a key": batch(f"header.{KEY}", {**NDJSON, KEY: "a"}, GOOD),
    "many from a page elsewhere": batch("header.Origin", {**NDJSON, "Origin": "http://x"}, "", 403),
    "many with a parameter": Wrong(url="/DANE/jobs?limit=1", headers=NDJSON, path="query.limit"),
}

IDS: Final = ["0", "-1", str(2**63), "9" * 30, "1.0", "1e3", "0x1", "x", "٣", "1_0", "%20", "+1"]

PARAMETERS: Final = {
    **{f"job {ident}": get(f"job/{ident}", "path.job_id") for ident in IDS},
    **{f"task {ident}": get(f"task/{ident}", "path.task_id") for ident in IDS},
    "retry of job 0": post("job/0/retry", "path.job_id"),
    "deletion of job x": Wrong(method="DELETE", url="/DANE/job/x", headers={}, path="path.job_id"),
    "reset of task x": post("task/x/reset", "path.task_id"),
    "an address without end": get(f"search/{'x' * 33_000}", "path", 414),
    "a query without end": get(f"jobs?after={'x' * 33_000}", "path", 414),
    "an unknown parameter": get("job/1?verbose=1", "query.verbose"),
    "tasks=maybe": get("job/1?tasks=maybe", "query.tasks"),
    "tasks twice": get("job/1?tasks=true&tasks=false", "query.tasks"),
    "an unknown shape": get("job/1?shape=0.2", "query.shape"),
    "an unknown status": get("jobs?status=done", "query.status"),
    "a state in words": get("jobs?state=failed", "query.state"),
    "a state of 99": get("jobs?state=99", "query.state"),
    "a wrong task key": get("jobs?task_key=A.B", "query.task_key"),
    "an empty source": get("jobs?source_id=", "query.source_id"),
    "a source with NUL": get("jobs?source_id=%00", "query.source_id"),
    "an owner to look for": get("jobs?owner=an%20owner", "query.owner"),
    "an owner that is too long": get(f"jobs?owner={'x' * 101}", "query.owner"),
    "owners after nobody could": get(f"owners?after={'x' * 101}", "query.after"),
    "places of a wrong key": get("workers/A.B/limits", "path.key"),
    "places after none": get("workers/A/limits?after=-2", "query.after"),
    "no limit": get("jobs?limit=0", "query.limit"),
    "too high a limit": get("jobs?limit=501", "query.limit"),
    "a limit in words": get("jobs?limit=all", "query.limit"),
    "a limit with a sign": get("jobs?limit=%2B5", "query.limit"),
    "limit twice": get("jobs?limit=1&limit=2", "query.limit"),
    "yesterday": get("jobs?since=yesterday", "query.since"),
    "a time as a number": get("jobs?since=1700000000", "query.since"),
    "a time before time": get("jobs?since=0001-01-01T00:00:00%2B14:00", "query.since"),
    "a time after time": get("jobs?until=9999-12-31T23:59:59-14:00", "query.until"),
    "the 30th of February": get("jobs?until=2026-02-30", "query.until"),
    "a cursor of our own": get("jobs?after=abc", "after"),
    "a cursor that is too long": get(f"jobs?after={'1' * 201}", "query.after"),
    "a huge cursor": get(f"jobs?after={'9' * 200}", "after"),
    "metadata without a name": get("jobs?metadata.=x", "query.metadata"),
    "metadata with NUL": get("jobs?metadata.a=%00", "query.metadata.a"),
    "metadata that is too long": get(f"jobs?metadata.a={'x' * 256}", "query.metadata.a"),
    "nine conditions": get(
        "jobs?" + "&".join(f"metadata.a{n}=1" for n in range(9)), "query.metadata"
    ),
    "a source that is too long": get(f"search/{'x' * 256}", "path.source_id"),
    "a source that is NUL": get("search/%00", "path.source_id"),
    "no source": get("search/", "path.source_id"),
    "a state that no task has": get("job/1/tasks?state=done", "query.state"),
    "a wrong key of tasks": get("job/1/tasks?key=*", "query.key"),
    "tasks after -2": get("job/1/tasks?after=-2", "query.after"),
    "upstream of nothing": get("task/1/upstream", "query.key"),
    "upstream of a wildcard": get("task/1/upstream?key=%23", "query.key"),
    "too much upstream": get("task/1/upstream?key=A&limit=101", "query.limit"),
    "a key with a wildcard": post("workers/*/pause", "path.key"),
    "a key too long": post(f"workers/{'A' * 101}/resume", "path.key"),
    "a key with NUL": post("workers/%00/pause", "path.key"),
    "retry of no state": post("workers/NOOP/retry", "query.state"),
    "retry of a state in words": post("workers/NOOP/retry?state=failed", "query.state"),
    "retry of state 1000": post("workers/NOOP/retry?state=1000", "query.state"),
    "no such job": get("job/4711", "path", 404),
    "no such task": get("task/4711", "path", 404),
    "tasks of no such job": get("job/4711/tasks", "path", 404),
    "why no such task": get("task/4711/explain", "path", 404),
    "retry of no such job": post("job/4711/retry", "path", 404),
    "cancel of no such job": post("job/4711/cancel", "path", 404),
    "pause of no such job": post("job/4711/pause", "path", 404),
    "deletion of no such job": post("job/4711/delete", "path", 404),
    "retry of no such task": post("task/4711/retry", "path", 404),
    "reset of no such task": post("task/4711/reset", "path", 404),
    "no such place": get("nowhere", "path", 404),
    "no such act": post("job/1/explode", "path", 404),
    "an act by GET": get("job/1/retry", "method", 405),
    "a deletion by GET": get("job/1/delete", "method", 405),
    "PUT": Wrong(method="PUT", url="/DANE/job/1", headers={}, path="method", status=405),
    "PATCH": Wrong(method="PATCH", url="/DANE/task/1", headers={}, path="method", status=405),
    "TRACE": Wrong(method="TRACE", url="/DANE/job/1", headers={}, path="method", status=405),
}

ALL: Final = {**NOT_JSON, **MEMBERS, **TASKS, **HEADERS, **BATCHES, **PARAMETERS}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One server for all of them: none leaves a trace."""
    async with serving(tmp_path_factory.mktemp("dane")) as served:
        made = await served.http.post("/DANE/job", json=spec(source_id="before"))
        assert made.status_code == 201
        yield served


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in ALL.items()])
async def test_a_wrong_request_is_refused_and_changes_nothing(wrong: Wrong, dane: Served) -> None:
    """Whatever comes in: a 4xx that names the part at fault, and not a byte in the store."""
    before = await everything_in(dane.store)

    answer = await dane.http.request(
        wrong.method, wrong.url, headers=wrong.headers, content=wrong.body or None
    )

    assert answer.status_code == wrong.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == wrong.status
    assert any(error["path"].startswith(wrong.path) for error in problem["errors"]), problem
    assert all(error["message"] for error in problem["errors"])
    assert await everything_in(dane.store) == before


def test_there_are_two_hundred_of_them() -> None:
    assert len(ALL) >= 200


async def everything_in(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    async with store.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in await connection.execute(sa.select(table))]
            for table in metadata.sorted_tables
        }
