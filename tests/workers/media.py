"""Makes small real media files."""

from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Disposition
from PIL import Image, ImageDraw

FRAME_RATE, SAMPLE_RATE = 25, 44_100
RED, GREEN = (200, 30, 30), (20, 200, 30)
ORIENTATION = 0x0112  # of EXIF


def video(
    path: Path,
    *,
    codec: str = "libx264",
    sound: str | None = "aac",
    size: tuple[int, int] = (320, 240),
    black: int = 10,
    turn: int = 0,
) -> Path:
    """Two seconds: black, then red with a green square at the top left."""
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream(codec, rate=FRAME_RATE)
        pictures.width, pictures.height = size
        pictures.pix_fmt = "yuv420p"
        if turn:
            pictures.set_display_rotation(turn)
        tones: Any = container.add_stream(sound, rate=SAMPLE_RATE) if sound else None
        for number in range(2 * FRAME_RATE):
            image = Image.new("RGB", size, "black" if number < black else RED)
            if number >= black:
                ImageDraw.Draw(image).rectangle((0, 0, size[0] // 4, size[1] // 4), fill=GREEN)
            container.mux(pictures.encode(_frame(image)))
        container.mux(pictures.encode())
        if tones is not None:
            _silence(container, tones, seconds=2)
    return path


def sound(path: Path, codec: str = "pcm_s16le", *, cover: bool = False) -> Path:
    """A second of silence, with a green cover or without."""
    with av.open(str(path), "w") as container:
        tones: Any = container.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        if cover:
            picture: Any = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            cover_frame = _frame(Image.new("RGB", (64, 64), GREEN))
            container.mux(picture.encode(cover_frame.reformat(format="yuvj420p")))
            container.mux(picture.encode())
        _silence(container, tones, seconds=1)
    return path


def _frame(image: Image.Image) -> av.VideoFrame:
    frame: av.VideoFrame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
    return frame


def _silence(container: OutputContainer, stream: AudioStream, seconds: int) -> None:
    made = 0
    while made < seconds * SAMPLE_RATE:
        count = stream.codec_context.frame_size or 1024
        frame = av.AudioFrame(format=stream.format.name, layout="stereo", samples=count)
        frame.sample_rate, frame.pts = SAMPLE_RATE, made
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        made += count
    container.mux(stream.encode())


def picture(path: Path, *, mode: str = "RGB", orientation: int | None = None) -> Path:
    """A wide picture, green on its left half and red on its right."""
    image = Image.new("RGB", (400, 200), GREEN)
    ImageDraw.Draw(image).rectangle((200, 0, 400, 200), fill=RED)
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.convert(mode).save(path, exif=exif)
    return path


def first_half(path: Path, of: Path) -> Path:
    """A file that was cut off, as by a broken transfer."""
    whole = of.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path
