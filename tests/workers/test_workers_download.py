"""DOWNLOAD, from a real HTTP server on this machine, which behaves and misbehaves."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dane_core import Done, Failed
from dane_core.testing import run_worker
from tests.workers.media import picture, sound, video
from workers.download import Download

BODY = bytes(range(1, 256)) * 2000


class Server(BaseHTTPRequestHandler):
    """Does what the path says."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()

    def do_GET(self) -> None:  # noqa: PLR0912  a table
        match urlsplit(self.path).path.split("/")[1:]:
            case ["status", number]:
                self.reply(int(number), b"an error page")
            case ["loop"]:
                self.redirect("/loop")
            case ["hop", left]:
                self.redirect(f"/hop/{int(left) - 1}" if left != "0" else "/clip.bin")
            case ["to-file"]:
                self.redirect("file:///etc/passwd")
            case ["short"]:  # says more than it sends
                self.reply(200, BODY, length=len(BODY) + 1)
                self.close_connection = True
            case ["unsaid"]:  # does not say how much it sends
                self.reply(200, BODY, length=None)
                self.close_connection = True
            case ["silent"]:
                self.released.wait(10)
                self.close_connection = True
            case ["slow"]:
                self.reply(200, b"", length=1000)
                while not self.released.wait(0.02):
                    self.wfile.write(b"x")
                self.close_connection = True
            case ["nonsense"]:
                self.wfile.write(b"this is not HTTP\r\n\r\n")
                self.close_connection = True
            case ["empty"]:
                self.reply(200, b"")
            case ["huge"]:
                self.reply(200, b"", length=10**12)
                self.close_connection = True
            case _:
                self.reply(200, BODY)

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reply(self, status: int, body: bytes, length: int | None = -1) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients break off here; that is what is tested."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    Server.released.clear()
    yield
    Server.released.set()


async def fetched(source: str | Path, folder: Path, **args: Any) -> dict[str, Any]:
    outcome = await run_worker(Download, source=source, folder=folder, args=args)
    assert isinstance(outcome, Done), outcome
    return dict(outcome.response)


async def refused(source: str | Path, folder: Path, **args: Any) -> Failed:
    outcome = await run_worker(Download, source=source, folder=folder, args=args)
    assert isinstance(outcome, Failed), outcome
    assert leftovers(folder) == []
    return outcome


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_file_on_the_web_is_brought_here(web: str, tmp_path: Path) -> None:
    answer = await fetched(f"{web}/some/clip.bin?x=1", tmp_path)

    path = Path(answer["file_path"])
    assert path == tmp_path / "TEMP/so/ur/ce/source/clip.bin"
    assert answer["size"] == len(BODY)
    assert answer["sha256"] == digest_of(path) == hashlib.sha256(BODY).hexdigest()
    assert leftovers(tmp_path) == ["clip.bin"]


async def test_a_file_without_a_length_is_brought_too(web: str, tmp_path: Path) -> None:
    assert (await fetched(f"{web}/unsaid", tmp_path))["size"] == len(BODY)


async def test_progress_is_told_when_the_length_is_known(web: str, tmp_path: Path) -> None:
    told: list[float] = []

    await run_worker(
        Download,
        source=f"{web}/clip.bin",
        folder=tmp_path,
        on_progress=lambda fraction, _: told.append(fraction),
    )

    assert told[-1] == 1.0


async def test_a_few_redirects_are_followed(web: str, tmp_path: Path) -> None:
    assert (await fetched(f"{web}/hop/3", tmp_path))["size"] == len(BODY)


@pytest.mark.parametrize(
    ("path", "args", "state", "hint"),
    [
        ("status/404", {}, 404, "answered 404"),
        ("status/410", {}, 404, "answered 410"),
        ("status/401", {}, 403, "answered 401"),
        ("status/403", {}, 403, "answered 403"),
        ("status/429", {}, 503, "answered 429"),
        ("status/500", {}, 503, "answered 500"),
        ("status/503", {}, 503, "answered 503"),
        ("status/400", {}, 400, "answered 400"),
        ("status/206", {}, 400, "answered 206"),
        ("loop", {}, 400, "redirects too often"),
        ("hop/3", {"max_redirects": 2}, 400, "redirects too often"),
        ("to-file", {}, 400, "file"),
        ("short", {}, 502, "broke off"),
        ("nonsense", {}, 502, "broke off"),
        ("silent", {"read_timeout": 0.05}, 503, "did not answer in time"),
        ("slow", {"max_seconds": 0.1}, 503, "longer than 0.1 s"),
        ("empty", {}, 400, "is empty"),
        ("clip.bin", {"max_bytes": 1000}, 400, "larger than max_bytes, 1000"),
        ("unsaid", {"max_bytes": 1000}, 400, "larger than max_bytes, 1000"),
        ("huge", {}, 400, "larger than max_bytes"),
        ("clip.bin", {"max_bytes": 0}, 400, "args.max_bytes"),
        ("clip.bin", {"max_redirects": 1000}, 400, "args.max_redirects"),
    ],
)
async def test_what_cannot_be_brought_is_refused_with_the_number_that_says_whose_turn_it_is(
    web: str, tmp_path: Path, path: str, args: dict[str, Any], state: int, hint: str
) -> None:
    failure = await refused(f"{web}/{path}", tmp_path, **args)

    assert failure.state == state, failure.message
    assert hint in failure.message


async def test_a_server_that_is_not_there_is_503(tmp_path: Path) -> None:
    failure = await refused("http://127.0.0.1:1/clip.mp4", tmp_path)

    assert failure.state == 503
    assert "127.0.0.1 cannot be reached" in failure.message


async def test_a_password_in_an_address_is_not_told(tmp_path: Path) -> None:
    failure = await refused("http://anna:secret@127.0.0.1:1/clip.mp4", tmp_path)

    assert "secret" not in failure.message


@pytest.mark.parametrize(
    "source",
    ["ftp://example.org/a.mp4", "s3://bucket/key", "http://[::1", "http://", "https:///a.mp4"],
)
async def test_what_is_no_address_for_it_is_400(tmp_path: Path, source: str) -> None:
    assert (await refused(source, tmp_path)).state == 400


# --- local files -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}"])
async def test_a_local_file_stays_where_it_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(BODY)

    answer = await fetched(form.format(path), tmp_path / "folders")

    assert answer["file_path"] == str(path)
    assert answer["size"] == len(BODY)
    assert not (tmp_path / "folders").exists()


async def test_local_sources_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    folder = tmp_path / "folders"

    assert (await refused(tmp_path / "missing.mp4", folder)).state == 404
    assert (await refused(tmp_path, folder)).state == 400
    empty = await refused(tmp_path / "empty.mp4", folder)
    assert empty.state == 400
    assert empty.message.endswith("is empty")


# --- what it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file_type", "content_type"),
    [
        ("a.mp4", "video", "video/mp4"),
        ("a.mkv", "video", "video/x-matroska"),
        ("a.ts", "video", "video/mp2t"),
        ("a.mxf", "video", "application/mxf"),
        ("a.wav", "sound", "audio/x-wav"),
        ("a.flac", "sound", "audio/x-flac"),
        ("a.png", "image", "image/png"),
        ("a.jpg", "image", "image/jpeg"),
        ("a.gif", "image", "image/gif"),
    ],
)
async def test_media_are_known_by_their_content(
    tmp_path: Path, name: str, file_type: str, content_type: str
) -> None:
    path = tmp_path / name
    match file_type:
        case "video":
            video(path, codec="mpeg2video" if name == "a.mxf" else "libx264", sound=None)
        case "sound":
            sound(path, "flac" if name == "a.flac" else "pcm_s16le")
        case "image":
            picture(path)
    bare = path.rename(tmp_path / "source")

    answer = await fetched(bare, tmp_path)

    assert (answer["file_type"], answer["content_type"]) == (file_type, content_type)


@pytest.mark.parametrize(
    ("content", "file_type"),
    [
        (b"to be or not to be", "text"),
        ("to be or not to be: è, ß, 漢字 ".encode() * 1000, "text"),
        (b"x" * 8191 + "é".encode(), "text"),
        ("café au lait".encode("latin-1"), "text"),
        ("wide".encode("utf-16"), "text"),
        (b"BMW is not a bitmap", "text"),
        (b"MZ is not a program", "text"),
        (b'{"a": 1}', "text"),
        (b"%PDF-1.4 a document", "application"),
        (b"\0" * 1000, "unknown"),
        (bytes((7 * number * number) % 251 for number in range(20_000)), "unknown"),
        (b"\x80", "unknown"),
    ],
)
async def test_text_is_told_from_what_is_not(
    tmp_path: Path, content: bytes, file_type: str
) -> None:
    path = tmp_path / "source"
    path.write_bytes(content)

    assert (await fetched(path, tmp_path))["file_type"] == file_type


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/clip.mp4", "clip.mp4"),
        ("/", "source"),
        ("/a/..%2F..%2Fetc%2Fpasswd", "etc_passwd"),
        ("/.hidden", "hidden"),
        ("/%E6%BC%A2%E5%AD%97.mp4", "mp4"),
        ("/a%00b", "a_b"),
        ("/" + "x" * 300 + ".mp4", "x" * 76 + ".mp4"),
    ],
)
async def test_a_name_from_the_web_is_made_safe(
    web: str, tmp_path: Path, path: str, name: str
) -> None:
    answer = await fetched(f"{web}{path}", tmp_path)

    assert Path(answer["file_path"]) == tmp_path / "TEMP/so/ur/ce/source" / name
