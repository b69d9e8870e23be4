"""DOWNLOAD: brings the source to where other workers can read it, and says what it is."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import filetype
import httpx
from pydantic import BaseModel, Field

from dane_core import Failed, TaskContext, Worker

#: As much of a file as tells what it is.
_HEAD: Final = 8192
#: Formats that archives have and the library does not know, by their first bytes.
_MORE_TYPES: Final = (
    (re.compile(rb"\x06\x0e\x2b\x34\x02\x05\x01\x01"), "application/mxf"),
    (re.compile(rb"(?s)\x47.{187}\x47.{187}\x47"), "video/mp2t"),
)
#: Families that are not called by the first word of their MIME type.
_FAMILIES: Final = {"audio": "sound", "application/mxf": "video"}
#: Text may start like these by chance; the library knows them by two or three letters.
_WRITTEN_TYPES: Final = ("application/pdf", "application/postscript", "application/rtf")


class Download(Worker):
    """Fetches the source over http or https; a local file stays where it is."""

    key = "DOWNLOAD"
    run_in = "thread"

    class Args(BaseModel):
        """Limits; times in seconds."""

        max_bytes: int = Field(default=50 * 10**9, gt=0)
        max_seconds: float = Field(default=6 * 3600, gt=0)
        connect_timeout: float = Field(default=10, gt=0)
        read_timeout: float = Field(default=30, gt=0)
        max_redirects: int = Field(default=5, ge=0, le=20)

    def work(self, task: TaskContext, args: Args) -> dict[str, object]:
        try:
            url = urlsplit(task.source_url)
        except ValueError as fault:
            raise Failed(f"{task.source_url} is not a URL: {fault}", 400) from None
        if url.scheme.lower() in ("http", "https"):
            return _fetch(task, args)
        if "://" in task.source_url and url.scheme.lower() != "file":
            raise Failed(f"DOWNLOAD fetches http, https and file, not {url.scheme}", 400)
        return _describe(task.source_path.absolute())


def _fetch(task: TaskContext, args: Download.Args) -> dict[str, object]:
    folder, name = task.temp_folder, _file_name(task.source_url)
    # Under another name until it is whole: who finds the file finds all of it.
    partial = folder / f".{uuid4().hex}.part"
    try:
        digest = _stream(task, args, partial)
        answer = _describe(partial, called=task.source_url)
        path = partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)
    return {**answer, "file_path": str(path), "sha256": digest}


def _stream(task: TaskContext, args: Download.Args, partial: Path) -> str:
    """Write the source to a file; return its checksum."""
    ends = time.monotonic() + args.max_seconds
    timeout = httpx.Timeout(args.read_timeout, connect=args.connect_timeout)
    digest, size = sha256(), 0
    with (
        _explained(task.source_url),
        httpx.Client(
            timeout=timeout, follow_redirects=True, max_redirects=args.max_redirects
        ) as client,
        client.stream("GET", task.source_url, headers={"Accept-Encoding": "identity"}) as source,
    ):
        _check_status(source)
        expected = int(source.headers.get("Content-Length", 0))
        _check_size(expected, args)
        with partial.open("wb") as file:
            for chunk in source.iter_bytes():
                size += len(chunk)
                _check_size(size, args)
                if task.cancelled:
                    raise Failed("Cancelled", 499)
                if time.monotonic() > ends:
                    raise Failed(f"fetching took longer than {args.max_seconds:g} s", 503)
                file.write(chunk)
                digest.update(chunk)
                task.progress(size / expected if expected else 0, f"{size} bytes")
    return digest.hexdigest()


def _check_size(size: int, args: Download.Args) -> None:
    if size > args.max_bytes:
        raise Failed(f"the source is larger than max_bytes, {args.max_bytes} bytes", 400)


def _check_status(source: httpx.Response) -> None:
    """Refuse an answer that is not the file, in the number that says whose turn it is."""
    status = source.status_code
    if status == 200:
        return
    states = {401: 403, 403: 403, 407: 403, 404: 404, 410: 404, 408: 503, 425: 503, 429: 503}
    state = states.get(status, 503 if status >= 500 else 400)
    raise Failed(f"{source.url.host} answered {status} {source.reason_phrase}".rstrip(), state)


@contextmanager
def _explained(source_url: str) -> Iterator[None]:
    host = urlsplit(source_url).hostname
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as fault:
        raise Failed(f"{host} cannot be asked for it: {fault}", 400) from fault
    except httpx.TooManyRedirects as fault:
        raise Failed(f"{host} redirects too often", 400) from fault
    except httpx.TimeoutException as fault:
        raise Failed(f"{host} did not answer in time", 503) from fault
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.DecodingError) as fault:
        raise Failed(f"{host} broke off before the end: {fault}", 502) from fault
    except httpx.HTTPError as fault:
        raise Failed(f"{host} cannot be reached: {fault}", 503) from fault


def _describe(path: Path, called: str | None = None) -> dict[str, object]:
    """Say what a file is, by what is in it."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise Failed(f"{called or path} is empty", 400)
    mime = _mime_type(head)
    family = _FAMILIES.get(mime) or mime.partition("/")[0]
    known = mime != "application/octet-stream"
    return {
        "file_path": str(path),
        "file_type": _FAMILIES.get(family, family) if known else "unknown",
        "content_type": mime,
        "size": path.stat().st_size,
    }


def _mime_type(head: bytes) -> str:
    guess = filetype.guess_mime(head)
    if _is_text(head) and guess not in _WRITTEN_TYPES:
        return "text/plain"
    more = (mime for magic, mime in _MORE_TYPES if magic.match(head))
    return guess or next(more, "application/octet-stream")


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True  # the byte order marks of UTF-16
    if re.search(rb"[\0-\x08\x0e-\x1a\x7f]", head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as fault:
        # A character cut in two by the end of `head`; or Latin-1, which is mostly ASCII.
        foreign = sum(byte >= 0x80 for byte in head)
        return fault.start >= _HEAD - 3 or foreign < len(head) * 0.3
    return True


def _file_name(source_url: str) -> str:
    """What the source is called in its URL, made safe for any file system."""
    name = unquote(urlsplit(source_url).path.rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._")[-80:] or "source"
