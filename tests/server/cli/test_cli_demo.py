"""`dane demo`: the whole of DANE on real files, in one process."""

import hashlib
import io
import os
import signal
from pathlib import Path

import av
import pytest
from PIL import Image
from rich.console import Console, RenderableType

from dane_server.cli.demo import expand
from dane_server.cli.demo_view import Progress, Result, results_page, short_names
from dane_server.cli.samples import make_samples
from tests.core.cli.called import Dane
from tests.server.cli.process import running


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder)
    return folder


# --- the samples ---------------------------------------------------------------------------------


def test_the_clip_made_on_the_spot_moves_and_sounds(samples: Path) -> None:
    with av.open(str(samples / "clip.mp4")) as clip:
        frames = [frame.to_image() for frame in clip.decode(video=0)]  # type: ignore[no-untyped-call]
    with av.open(str(samples / "clip.mp4")) as clip:
        sound = list(clip.decode(audio=0))

    assert len(frames) == 100
    assert frames[0].tobytes() != frames[50].tobytes()
    assert any(any(bytes(block.planes[0])) for block in sound)


# --- the whole of it -----------------------------------------------------------------------------


def test_with_no_argument_it_works_on_what_it_makes(tmp_path: Path) -> None:
    """A fresh machine without a network must see a success."""
    with running(tmp_path, "demo") as demo:
        code, err = demo.wait()

    assert (code, "Traceback" in err) == (0, False)
    thumbnails = sorted((tmp_path / "dane-demo").glob("*.jpg"))
    assert [path.name for path in thumbnails] == ["clip.mp4.jpg", "image.png.jpg"]
    with Image.open(thumbnails[0]) as thumbnail:
        assert max(thumbnail.size) == 320


def test_each_file_gets_its_answers_and_a_bad_one_fails_alone(
    dane: Dane, tmp_path: Path, samples: Path
) -> None:
    """A folder is walked; broken, empty and missing files say what is wrong with them."""
    media = tmp_path / "media"
    (media / "below").mkdir(parents=True)
    clip = (samples / "clip.mp4").read_bytes()
    (media / "below" / "ä film #1 100%.mp4").write_bytes(clip)
    (media / "tone.flac").write_bytes((samples / "tone.flac").read_bytes())
    (media / "broken.mp4").write_bytes(clip[:3000])
    (media / "empty.mp4").touch()
    (media / ".hidden").touch()

    said = dane("demo", "media", "missing.mp4", "--json", "--out", "out")

    by_name = {Path(result["source"]).name: result for result in said.json}
    film, tone = by_name["ä film #1 100%.mp4"], by_name["tone.flac"]
    assert said.code == 1
    assert ".hidden" not in by_name
    assert film["answers"]["CHECKSUM"]["checksum"] == hashlib.sha256(clip).hexdigest()
    assert film["answers"]["FILESIZE"]["size"] == len(clip)
    assert film["answers"]["MEDIAINFO"]["width"] == 640
    assert film["thumbnail"] == str(tmp_path / "out" / "ä film #1 100%.mp4.jpg")
    assert (tone["status"], tone["thumbnail"]) == ("succeeded", None)
    assert by_name["broken.mp4"]["status"] == "failed"
    assert "broken" in by_name["broken.mp4"]["failures"]["MEDIAINFO"]
    assert "is empty" in by_name["empty.mp4"]["failures"]["DOWNLOAD"]
    assert "is not there" in by_name["missing.mp4"]["failures"]["DOWNLOAD"]


def test_names_of_files_neither_steer_the_terminal_nor_stop_the_rest(
    dane: Dane, tmp_path: Path, samples: Path
) -> None:
    """Old archives have names in Latin-1, and worse."""
    (tmp_path / "media").mkdir()
    for name in (b"\x1b[31mred.png", b"caf\xe9.png"):
        (tmp_path / "media" / os.fsdecode(name)).write_bytes((samples / "image.png").read_bytes())

    for_people = dane("demo", "media")
    for_programs = dane("demo", "media", "--json")

    names = {result["source"]: result["status"] for result in for_programs.json}
    assert names["media/\x1b[31mred.png"] == "succeeded"
    assert "media/caf\N{REPLACEMENT CHARACTER}.png" in names
    assert "\N{REPLACEMENT CHARACTER}[31mred.png" in for_people.out
    assert "\x1b" not in for_people.out


def test_keep_leaves_the_service_up_until_it_is_told_to_stop(
    dane: Dane, tmp_path: Path, samples: Path
) -> None:
    with running(tmp_path, "demo", samples / "image.png", "--keep") as demo:
        url = demo.text_until("stays up at").split()[5]
        jobs = dane("job", "list", "--json", "--server", url)
        code, _ = demo.end(signal.SIGINT)

    assert [job["status"] for job in jobs.json] == ["succeeded"]
    assert code == 0


def test_an_empty_folder_is_wrong_usage(dane: Dane, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()

    said = dane("demo", "media")

    assert said.code == 2
    assert "there is no file in this folder" in said.err


def test_a_source_given_twice_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    assert expand([str(tmp_path), f"{tmp_path}/a", "http://x.test/a"]) == [
        f"{tmp_path}/a",
        "http://x.test/a",
    ]


# --- what it shows -------------------------------------------------------------------------------


def drawn(picture: RenderableType) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(picture)
    return console.export_text()


def job(**states: str) -> dict[str, object]:
    tasks = [
        {"Task": {"task_key": key, "status": state, "task_msg": f"{key} {state}"}}
        for key, state in states.items()
    ]
    head = {"job_id": 1, "status": "running", "source_url": "file:///a/b%20c.mp4"}
    return {**head, "tasks": {"taskSequential": tasks}, "response": {"SHARED": {}}}


def test_progress_shows_what_is_under_way_and_counts_the_rest() -> None:
    progress = Progress(total=3)
    progress.see(job(DOWNLOAD="succeeded", FILESIZE="running"))
    progress.see({**job(), "job_id": 2, "status": "succeeded"})

    lines = drawn(progress.render()).splitlines()

    assert "1/3 files" in lines[0]
    assert [" ".join(line.split()) for line in lines[1:]] == ["b c.mp4 ✔ DOWNLOAD ● FILESIZE"]


def test_tasks_that_fail_for_one_reason_say_it_once(tmp_path: Path) -> None:
    failed = job(A="failed", B="failed", C="succeeded")
    tasks = failed["tasks"]["taskSequential"]  # type: ignore[index]
    for task in tasks:
        task["Task"]["task_msg"] = "this is no video"
    results = [
        Result(source="/x/broken.mp4", job={**failed, "status": "failed"}),
        Result(source="bad url", job=None, refusal="source_url: is too long"),
    ]

    text = drawn(results_page(results, tmp_path))

    assert "✘ broken.mp4: A, B: this is no video" in text
    assert "✘ bad url: source_url: is too long" in text
    assert "0 of 2 done, 2 failed" in text
    assert "thumbnails" not in text


def test_files_of_one_name_are_told_apart() -> None:
    names = short_names(["/a/x.png", "/b/x.png", "/b/y.png", "http://h.test/z.png"])

    assert list(names.values()) == ["/a/x.png", "/b/x.png", "y.png", "http://h.test/z.png"]
