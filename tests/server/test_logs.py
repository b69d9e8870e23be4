"""Logs: one event is one line, whatever is in it."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dane_server.logs import FILE_NAME, printable, set_up_logging

#: What somebody may hope to have written into a log: another line, another colour, another end.
NASTY = "a\r\nERROR forged: b\x1b[2J\u2028c\x85d\x00e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail() -> None:
    raise ValueError(NASTY)


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else they would be closed
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def test_a_terminal_gets_a_line_for_people() -> None:
    stream = Terminal()
    set_up_logging(stream=stream)

    logging.getLogger("dane.x").info("job %s is done", 7, extra={"job_id": 7})

    [line] = stream.getvalue().splitlines()
    assert line.endswith("INFO    dane.x: job 7 is done job_id=7")


def test_anything_else_gets_json_lines() -> None:
    stream = io.StringIO()
    set_up_logging(stream=stream)

    logging.getLogger("dane.x").warning("job %s failed", 7, extra={"job_id": 7, "level": "no"})

    [line] = stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {"level": "WARNING", "logger": "dane.x", "message": "job 7 failed", "job_id": 7}


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_what_somebody_sent_does_not_end_a_line(stream: io.StringIO) -> None:
    """In the message, in its data, and in an exception (CWE-117)."""
    set_up_logging(stream=stream)

    try:
        fail()
    except ValueError:
        logging.getLogger("dane").exception("failed for %s", NASTY, extra={"source_id": NASTY})

    text = stream.getvalue()
    assert not set("\r\x1b\u2028\x85\x00") & set(text)
    assert "forged" in text
    lines = text.split("\n")[:-1]
    assert not [line for line in lines[1:] if not line.startswith("    | ")]


def test_a_folder_gets_a_file_of_json_lines(tmp_path: Path) -> None:
    """And then the terminal gets them too: somebody collects them."""
    stream, folder = Terminal(), tmp_path / "logs"
    set_up_logging(stream=stream, folder=folder, level="DEBUG")

    logging.getLogger("dane").debug("é %s", NASTY)

    [line] = (folder / FILE_NAME).read_text("utf-8").splitlines()
    assert json.loads(line)["message"] == f"é {NASTY}"
    assert json.loads(stream.getvalue()) == json.loads(line)


def test_a_file_that_was_rotated_away_is_opened_anew(tmp_path: Path) -> None:
    """logrotate moves it; nothing needs to be restarted."""
    set_up_logging(stream=io.StringIO(), folder=tmp_path)
    logging.getLogger("dane").warning("one")
    (tmp_path / FILE_NAME).rename(tmp_path / "old")

    logging.getLogger("dane").warning("two")

    assert json.loads((tmp_path / FILE_NAME).read_text())["message"] == "two"


def test_a_level_leaves_out_what_is_below() -> None:
    stream = io.StringIO()
    set_up_logging(stream=stream, level="WARNING")

    logging.getLogger("dane").info("not this")
    logging.getLogger("httpx").info("nor this")
    logging.getLogger("dane").warning("this")

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["this"]


def test_letters_of_other_alphabets_stay_as_they_are() -> None:
    assert printable("日本語 🎬 é") == "日本語 🎬 é"


def test_a_lack_of_files_does_not_fill_the_disk_with_news_of_it() -> None:
    """Asyncio says so for each connection in its backlog, again and again."""
    stream = io.StringIO()
    set_up_logging(stream=stream)
    for number in range(100):
        logging.getLogger("asyncio").error("socket.accept() out of system resource\n%d", number)
    logging.getLogger("asyncio").error("something else")

    assert len(stream.getvalue().splitlines()) == 2
