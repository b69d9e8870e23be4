"""MEDIAINFO and THUMBNAIL, on real files."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dane_core import Done, Failed, Worker
from dane_core.testing import run_worker
from tests.workers.media import GREEN, RED, first_half, picture, sound, video
from workers.mediainfo import MediaInfo
from workers.thumbnail import Thumbnail


async def info(path: Path) -> dict[str, Any]:
    outcome = await run_worker(MediaInfo, source=path)
    assert isinstance(outcome, Done), outcome
    return dict(outcome.response)


async def thumbnail(path: Path, **args: Any) -> Image.Image:
    outcome = await run_worker(Thumbnail, source=path, args=args, folder=path.parent / "made")
    assert isinstance(outcome, Done), outcome
    with Image.open(outcome.response["thumbnail"]) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size == (outcome.response["width"], outcome.response["height"])
        return image.copy()


def is_close(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(one - other) < 20 for one, other in zip(pixel, colour, strict=True))


# --- MEDIAINFO --------------------------------------------------------------------------------


async def test_a_video_is_told_by_its_streams(tmp_path: Path) -> None:
    found = await info(video(tmp_path / "a.mp4"))

    assert "mp4" in found["container"]
    assert found["duration"] == pytest.approx(2.0, abs=0.1)
    assert (found["width"], found["height"]) == (320, 240)
    assert found["size"] == (tmp_path / "a.mp4").stat().st_size
    pictures, tones = found["streams"]
    assert (pictures["type"], pictures["codec"], pictures["frame_rate"]) == ("video", "h264", 25.0)
    assert (tones["type"], tones["codec"]) == ("audio", "aac")
    assert (tones["sample_rate"], tones["channels"], tones["layout"]) == (44100, 2, "stereo")


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mkv", "mpeg4", "matroska"),
        ("a.webm", "libvpx", "webm"),
        ("a.ts", "libx264", "mpegts"),
        ("a.mxf", "mpeg2video", "mxf"),
        ("a.avi", "mpeg4", "avi"),
    ],
)
async def test_other_containers_are_told_too(
    tmp_path: Path, name: str, codec: str, container: str
) -> None:
    found = await info(video(tmp_path / name, codec=codec, sound=None))

    assert container in found["container"]
    assert found["duration"] == pytest.approx(2.0, abs=0.1)
    assert [stream["type"] for stream in found["streams"]] == ["video"]


async def test_a_sound_has_no_size_in_pixels(tmp_path: Path) -> None:
    found = await info(sound(tmp_path / "a.wav"))

    assert found["container"] == "wav"
    assert found["duration"] == pytest.approx(1.0, abs=0.1)
    assert "width" not in found


async def test_a_cover_is_told_from_a_film(tmp_path: Path) -> None:
    found = await info(sound(tmp_path / "a.mp3", "libmp3lame", cover=True))

    assert {stream["type"] for stream in found["streams"]} == {"audio", "picture"}
    assert "width" not in found


@pytest.mark.parametrize(
    ("name", "mode", "codec"),
    [("a.png", "RGB", "png"), ("a.jpg", "L", "jpeg"), ("a.gif", "P", "gif")],
)
async def test_a_picture_is_told_by_its_size(
    tmp_path: Path, name: str, mode: str, codec: str
) -> None:
    found = await info(picture(tmp_path / name, mode=mode))

    assert (found["container"], found["duration"]) == (codec, None)
    assert (found["width"], found["height"]) == (400, 200)
    (stream,) = found["streams"]
    assert (stream["type"], stream["codec"], stream["mode"]) == ("image", codec, mode)


async def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4").rename(tmp_path / "a.txt")

    assert (await info(tmp_path / "a.txt"))["streams"][0]["codec"] == "h264"


# --- THUMBNAIL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "mpeg4")]
)
async def test_the_first_frame_that_shows_something_is_the_thumbnail(
    tmp_path: Path, name: str, codec: str
) -> None:
    """Films begin with a fade from black. In one of these only the first frame is a key frame."""
    image = await thumbnail(video(tmp_path / name, codec=codec, sound=None, black=20))

    assert image.size == (320, 240)
    assert is_close(image, (20, 20), GREEN)
    assert is_close(image, (300, 200), RED)


async def test_a_black_video_has_a_black_thumbnail(tmp_path: Path) -> None:
    image = await thumbnail(video(tmp_path / "a.mp4", black=100))

    assert is_close(image, (20, 20), (0, 0, 0))


async def test_a_thumbnail_is_no_larger_than_asked_for_and_never_enlarged(tmp_path: Path) -> None:
    clip = video(tmp_path / "a.mp4")

    assert (await thumbnail(clip, size=64)).size == (64, 48)
    assert (await thumbnail(clip, size=1000)).size == (320, 240)


async def test_thumbnails_of_two_sizes_do_not_overwrite_each_other(tmp_path: Path) -> None:
    clip = picture(tmp_path / "a.png")
    await thumbnail(clip, size=64)
    await thumbnail(clip, size=32)

    made = sorted(path.name for path in (tmp_path / "made").rglob("*.*"))
    assert made == ["thumbnail_32.jpg", "thumbnail_64.jpg"]


async def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    image = await thumbnail(video(tmp_path / "a.mp4", turn=90))

    assert image.size == (240, 320)
    assert is_close(image, (20, 300), GREEN)  # a quarter turn to the left


@pytest.mark.parametrize(
    ("orientation", "size", "green"),
    [(1, (320, 160), (10, 80)), (3, (320, 160), (310, 80)), (6, (160, 320), (80, 10))],
)
async def test_a_picture_is_turned_as_its_camera_says(
    tmp_path: Path, orientation: int, size: tuple[int, int], green: tuple[int, int]
) -> None:
    image = await thumbnail(picture(tmp_path / "a.jpg", orientation=orientation))

    assert image.size == size
    assert is_close(image, green, GREEN)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGBA"), ("a.png", "P"), ("a.png", "1"), ("a.jpg", "CMYK"), ("a.gif", "P")],
)
async def test_pictures_of_every_kind_become_rgb(tmp_path: Path, name: str, mode: str) -> None:
    image = await thumbnail(picture(tmp_path / name, mode=mode))

    assert image.size == (320, 160)


async def test_what_is_transparent_is_seen_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "a.png")

    assert is_close(await thumbnail(tmp_path / "a.png"), (25, 25), (255, 255, 255))


async def test_sixteen_bits_of_grey_are_not_cut_to_white(tmp_path: Path) -> None:
    Image.new("I;16", (50, 50), 128 * 256).save(tmp_path / "a.png")

    assert is_close(await thumbnail(tmp_path / "a.png"), (25, 25), (128, 128, 128))


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.flac", "flac")])
async def test_a_sound_with_a_cover_shows_it(tmp_path: Path, name: str, codec: str) -> None:
    image = await thumbnail(sound(tmp_path / name, codec, cover=True))

    assert is_close(image, (32, 32), GREEN)


async def test_a_sound_without_a_cover_is_done_without_a_thumbnail(tmp_path: Path) -> None:
    """A failure would fail the whole job of a sound file."""
    outcome = await run_worker(Thumbnail, source=sound(tmp_path / "a.wav"))

    assert outcome == Done({"thumbnail": None, "reason": "no picture in a sound file"})


# --- what is no media file, or was one --------------------------------------------------------


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def garbage(folder: Path) -> Path:
    path = folder / "garbage.jpg"
    path.write_bytes(bytes((7 * number * number) % 251 for number in range(20_000)))
    return path


def text(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("to be or not to be\n" * 100)
    return path


def cut_video(folder: Path) -> Path:
    return first_half(folder / "cut.mp4", video(folder / "a.mp4"))


def cut_picture(folder: Path) -> Path:
    return first_half(folder / "cut.png", picture(folder / "a.png"))


def playlist(folder: Path) -> Path:
    """Of another file: asking about one must not show the other."""
    secret = video(folder / "secret.ts")
    path = folder / "list.m3u8"
    path.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret.as_uri()}\n#EXT-X-ENDLIST\n"
    )
    return path


def script(folder: Path) -> Path:
    video(folder / "secret.ts")
    path = folder / "list.ffconcat"
    path.write_text("ffconcat version 1.0\nfile secret.ts\n")
    return path


@pytest.mark.parametrize("worker", [MediaInfo, Thumbnail])
@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (empty, "is empty"),
        (garbage, "no video, sound or picture file, or it is broken"),
        (text, "no video, sound or picture file, or it is broken"),
        (cut_video, "no video, sound or picture file, or it is broken"),
        (cut_picture, "the picture is broken"),
        (playlist, "no video, sound or picture file"),
        (script, ""),
    ],
)
async def test_a_file_without_media_is_400_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker: type[Worker],
    make: Callable[[Path], Path],
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    outcome = await run_worker(worker, source=make(tmp_path), folder=tmp_path / "made")

    assert isinstance(outcome, Failed)
    assert outcome.state == 400
    assert hint in outcome.message
    assert not (tmp_path / "made").exists()


async def test_a_cut_jpeg_has_no_thumbnail(tmp_path: Path) -> None:
    path = first_half(tmp_path / "cut.jpg", picture(tmp_path / "a.jpg"))

    outcome = await run_worker(Thumbnail, source=path)

    assert isinstance(outcome, Failed)
    assert "the picture is broken" in outcome.message


async def test_a_cut_film_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = first_half(tmp_path / "cut.mkv", video(tmp_path / "a.mkv", codec="mpeg4"))

    assert is_close(await thumbnail(path), (300, 200), RED)


async def test_a_picture_too_large_to_decode_is_told_but_not_shown(tmp_path: Path) -> None:
    """A PNG of a few kB may claim to be a terabyte of pixels."""
    path = picture(tmp_path / "a.png")
    bomb = bytearray(path.read_bytes())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    path.write_bytes(bomb)

    shown = await run_worker(Thumbnail, source=path)

    assert isinstance(shown, Failed)
    assert "100000 x 100000 is too large" in shown.message
    assert (await info(path))["width"] == 100_000


@pytest.mark.parametrize("worker", [MediaInfo, Thumbnail])
async def test_the_workers_run_in_a_child_process_too(tmp_path: Path, worker: type[Worker]) -> None:
    outcome = await run_worker(
        worker, source=video(tmp_path / "a.mp4"), folder=tmp_path, isolated=True
    )

    assert isinstance(outcome, Done)
