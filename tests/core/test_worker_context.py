"""What `work` is told of its task, and the source as a file."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from dane_core import Failed, TaskContext
from dane_core.folders import source_folders
from dane_core.job import JobId, TaskId
from dane_core.worker.context import Cancellation


def context(source_url: str = "/nowhere", **more: Any) -> TaskContext:
    more |= {"task_id": TaskId(7), "job_id": JobId(3), "attempt": 2}
    return TaskContext(key="K", source_url=source_url, source_id="s", **more)


# --- the source as a file -------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "my clip #1?.mp4"
    path.write_bytes(b"x")
    return path


def test_a_plain_path_is_itself(clip: Path) -> None:
    assert context(str(clip)).source_path == clip


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_a_file_url_is_decoded(clip: Path, form: str) -> None:
    assert context(form.format(quote(str(clip)))).source_path == clip


def test_a_path_that_was_requoted_when_it_was_stored_is_found(clip: Path) -> None:
    assert context(quote(str(clip))).source_path == clip


def test_a_name_that_looks_quoted_is_found_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "100%25.txt"
    path.write_bytes(b"x")

    assert context(str(path)).source_path == path
    assert context(f"file://{path}").source_path == path


def test_what_download_fetched_is_the_source(clip: Path) -> None:
    fetched = {"DOWNLOAD": {"file_path": str(clip)}}

    assert context("https://example.org/clip.mp4", response=fetched).source_path == clip


def test_of_several_downloads_the_first_file_is_the_source(clip: Path) -> None:
    fetched = {"DOWNLOAD": [{}, {"file_path": str(clip)}, {"file_path": "/other"}]}

    assert context("https://example.org/clip.mp4", response=fetched).source_path == clip


@pytest.mark.parametrize(
    ("source_url", "hint"),
    [
        ("https://example.org/clip.mp4", "put DOWNLOAD before K"),
        ("file://otherhost/clip.mp4", "put DOWNLOAD before K"),
        ("/no/such/file.mp4", "is not there"),
        ("file:///no/such/file.mp4", "is not there"),
        ("x" * 4000, "is not there"),
        ("nul\0inside", "is not there"),
    ],
)
def test_a_source_that_is_not_here_is_404(source_url: str, hint: str) -> None:
    with pytest.raises(Failed) as refused:
        _ = context(source_url).source_path

    assert refused.value.state == 404
    assert hint in refused.value.message


def test_a_file_that_download_put_elsewhere_is_404_and_says_so() -> None:
    """Two machines without a shared TEMP_FOLDER are the commonest mistake in a new cluster."""
    with pytest.raises(Failed) as refused:
        _ = context(response={"DOWNLOAD": {"file_path": "/gone/x.mp4"}}).source_path

    assert refused.value.state == 404
    assert "where DOWNLOAD put the source" in refused.value.message


def test_a_folder_is_400(tmp_path: Path) -> None:
    with pytest.raises(Failed) as refused:
        _ = context(str(tmp_path)).source_path

    assert refused.value.state == 400


def test_a_file_that_may_not_be_read_is_403(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read everything

    with pytest.raises(Failed) as refused:
        _ = context(str(clip)).source_path

    assert refused.value.state == 403


# --- folders, log, progress, cancellation -----------------------------------------------------


def test_folders_are_made_on_first_use(tmp_path: Path) -> None:
    shared = source_folders(tmp_path / "TEMP", tmp_path / "OUT", "T1")
    task = context(response={"SHARED": shared})
    assert not any(tmp_path.iterdir())

    assert task.temp_folder.is_dir()
    assert task.out_folder == tmp_path / "OUT/T1/T1"
    assert task.out_folder.is_dir()


def test_a_task_without_folders_fails_in_words() -> None:
    with pytest.raises(Failed) as refused:
        _ = context().temp_folder

    assert "SHARED.TEMP_FOLDER" in refused.value.message


def test_log_lines_name_the_task(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        context().log.info("%d faces", 4, extra={"task_id": 99, "model": "m"})

    (record,) = caplog.records
    assert record.getMessage() == "task 7: 4 faces"
    assert record.__dict__["job_id"] == 3
    assert record.__dict__["model"] == "m"


def test_progress_stays_between_0_and_1() -> None:
    told: list[tuple[float, str]] = []
    task = context(on_progress=lambda *what: told.append(what))

    for fraction in (-1, 0.25, 7, float("nan")):
        task.progress(fraction, "on the way")

    assert [fraction for fraction, _ in told] == [0.0, 0.25, 1.0]


async def test_cancellation_can_be_asked_waited_for_and_awaited() -> None:
    cancelled = Cancellation()
    waiting = asyncio.create_task(asyncio.to_thread(cancelled.wait, 5))
    awaiting = [asyncio.ensure_future(_wait(cancelled)) for _ in range(2)]
    assert not cancelled
    assert not cancelled.wait(0)

    threading.Thread(target=cancelled.set).start()

    assert await waiting
    await asyncio.gather(*awaiting)
    assert cancelled
    await cancelled  # and ever after


async def test_a_wait_for_cancellation_that_was_given_up_leaves_nothing_behind() -> None:
    """A worker may poll with a short wait a million times."""
    cancelled = Cancellation()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_wait(cancelled), 0)
    await asyncio.sleep(0)

    assert cancelled._calls == []


async def _wait(cancelled: Cancellation) -> None:
    await cancelled


# --- answers too large to come along -----------------------------------------------------------

ANSWERS = [{"shot": number} for number in range(5)]


@pytest.fixture
def api() -> Iterator[str]:
    """Serves two answers a page, as the server's API does."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            after = int(query["after"][0])
            page = {
                "answers": [
                    {"task_id": 1, "task_key": "SHOTS", "name": None, "seq": seq, "response": body}
                    for seq, body in enumerate(ANSWERS)
                ][after + 1 : after + 3],
                "next": after + 2 if after + 3 < len(ANSWERS) else None,
            }
            known = url.path == "/DANE/task/7/upstream"
            self.send_response(503 if query["key"] == ["BROKEN"] else 200 if known else 404)
            self.end_headers()
            if query["key"] == ["CIRCLE"]:
                page = {"answers": [], "next": -1}
            self.wfile.write(b"[]" if query["key"] == ["NONSENSE"] else json.dumps(page).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_answers_that_came_along_are_not_fetched() -> None:
    task = context(response={"ONE": {"a": 1}, "MANY": ANSWERS}, api_url="http://127.0.0.1:1")

    assert await task.upstream("ONE") == [{"a": 1}]
    assert [answer async for answer in task.upstream("MANY")] == ANSWERS
    assert list(task.upstream("NONE")) == []


async def test_answers_that_were_too_large_are_fetched_page_by_page(api: str) -> None:
    task = context(partial=True, api_url=api)

    assert await task.upstream("SHOTS") == ANSWERS
    assert await asyncio.to_thread(list, task.upstream("SHOTS")) == ANSWERS


@pytest.mark.parametrize("key", ["BROKEN", "NONSENSE", "CIRCLE"])
async def test_answers_that_cannot_be_fetched_fail_for_now(api: str, key: str) -> None:
    with pytest.raises(Failed) as refused:
        await context(partial=True, api_url=api).upstream(key)

    assert refused.value.state == 503


def test_a_server_that_is_not_there_fails_for_now() -> None:
    task = context(partial=True, api_url="http://127.0.0.1:1")

    with pytest.raises(Failed) as refused:
        list(task.upstream("SHOTS"))

    assert refused.value.state == 503


def test_a_worker_that_knows_no_server_says_so() -> None:
    with pytest.raises(Failed) as refused:
        context(partial=True).upstream("SHOTS")

    assert "API" in refused.value.message
