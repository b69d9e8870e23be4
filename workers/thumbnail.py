"""THUMBNAIL: a small picture of the source."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal, NoReturn
from uuid import uuid4

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageOps, ImageStat, UnidentifiedImageError
from pydantic import BaseModel, Field

from dane_core import Failed, TaskContext, Worker

_PICTURES: Final = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO")
#: Pictures larger than this are not decoded: they take several GB of memory.
_MOST_PIXELS: Final = 500_000_000
#: Lists of other files; who asks about one must not be shown another.
_LISTS: Final = frozenset({"concat", "hls", "dash", "sdp", "rtsp"})
#: How many frames are looked at: key frames first, they are few and far apart; then every one.
_LOOKS: Final[tuple[tuple[int, Literal["NONKEY", "DEFAULT"]], ...]] = (
    (100, "NONKEY"),
    (500, "DEFAULT"),
)
#: The least brightness and contrast, from 0 to 255, of a frame that shows something.
_BRIGHT, _VARIED = 12.0, 4.0


class Thumbnail(Worker):
    """A JPEG of the picture, or of the first frame of the video that shows something."""

    key = "THUMBNAIL"

    class Args(BaseModel):
        """The longer side of the thumbnail, in pixels."""

        size: int = Field(default=320, ge=16, le=4096)

    def work(self, task: TaskContext, args: Args) -> dict[str, Any]:
        path = task.source_path
        if path.stat().st_size == 0:
            raise Failed(f"{path} is empty", 400)
        image = _picture(path, args.size) or _frame(path)
        if image is None:
            return {"thumbnail": None, "reason": "no picture in a sound file"}
        image.thumbnail((args.size, args.size))
        partial = task.out_folder / f".{uuid4().hex}.part"
        _flat(image).save(partial, "JPEG", quality=85)
        target = partial.replace(task.out_folder / f"thumbnail_{args.size}.jpg")
        return {"thumbnail": str(target), "width": image.width, "height": image.height}


def _picture(path: Path, size: int) -> Image.Image | None:
    """The picture the right way up; None if the file is none."""
    Image.MAX_IMAGE_PIXELS = None  # we have a limit of our own
    try:
        with Image.open(path, formats=_PICTURES) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise Failed(f"a picture of {image.width} x {image.height} is too large", 400)
            image.draft("RGB", (size, size))
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, EOFError) as fault:
        raise Failed(f"the picture is broken: {fault}", 400) from fault


def _flat(image: Image.Image) -> Image.Image:
    """The picture as RGB, on white where one can look through it."""
    if image.mode.startswith("I"):  # 16 bits of grey
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _frame(path: Path) -> Image.Image | None:
    """A frame of the video that shows something; the cover of a sound file, or None."""
    best, brightest = None, -1.0
    for number, skip in _LOOKS:
        with _opened(path) as container:
            stream = _best_stream(container)
            if stream is None:
                return None
            stream.codec_context.skip_frame = skip
            for frame in islice(_decoded(container, stream), number):
                brightness, contrast = _look(frame)
                if brightness > brightest:
                    best, brightest = _upright(frame, stream), brightness
                if brightness >= _BRIGHT and contrast >= _VARIED:
                    return _upright(frame, stream)
    if best is None:
        raise Failed("no frame of the video can be decoded", 400)
    return best


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    with path.open("rb") as file:
        # Without its name: what a file is called says nothing about what is in it.
        content: Any = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        try:
            container = av.open(content, "r", io_open=_refuse, metadata_errors="replace")
        except (av.FFmpegError, PermissionError, UnicodeDecodeError) as fault:
            raise Failed(
                "this is no video, sound or picture file, or it is broken: "
                f"{getattr(fault, 'strerror', None) or fault}",
                400,
            ) from fault
        with container:
            yield container


def _best_stream(container: InputContainer) -> VideoStream | None:
    """The first stream to be seen, rather a film than a cover; None where there is only sound."""
    if container.format.name in _LISTS:
        raise Failed(f"this is a list of files ({container.format.name}), not a media file", 400)
    videos = [stream for stream in container.streams.video if stream.codec_context.width]
    videos.sort(key=lambda stream: bool(stream.disposition & Disposition.attached_pic))
    if not videos and not container.streams.audio:
        raise Failed("there is no video or picture in it that can be read", 400)
    return videos[0] if videos else None


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames that can be decoded, of a file that may end too early."""
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):
                yield from packet.decode()


def _look(frame: VideoFrame) -> tuple[float, float]:
    """Brightness and contrast, of a small copy."""
    small = ImageStat.Stat(_image(frame.reformat(width=64, height=64, format="gray")))
    return small.mean[0], small.stddev[0]


def _upright(frame: VideoFrame, stream: VideoStream) -> Image.Image:
    """The frame as people see it: its pixels square, and the right way up."""
    image = _image(frame)
    if aspect := stream.sample_aspect_ratio:
        image = image.resize((max(round(image.width * aspect), 1), image.height))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _image(frame: VideoFrame) -> Image.Image:
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return image


def _refuse(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"it refers to another file, {url}")
