"""MEDIAINFO: what is in a video, sound or picture file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NoReturn

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from PIL import Image, UnidentifiedImageError

from dane_core import Failed, TaskContext, Worker

#: Pillow reads these, and says more about a picture than a video library does.
_PICTURES: Final = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO")
#: Lists of other files; who asks about one must not be shown another.
_LISTS: Final = frozenset({"concat", "hls", "dash", "sdp", "rtsp"})
_ORIENTATION: Final = 0x0112  # of EXIF


class MediaInfo(Worker):
    """Container, streams, duration in seconds, resolution and codecs of the source."""

    key = "MEDIAINFO"

    def work(self, task: TaskContext) -> dict[str, Any]:
        path = task.source_path
        size = path.stat().st_size
        if size == 0:
            raise Failed(f"{path} is empty", 400)
        return {**(_picture(path) or _recording(path)), "size": size}


def _picture(path: Path) -> dict[str, Any] | None:
    Image.MAX_IMAGE_PIXELS = None  # only the header is read, however large the scan
    try:
        with Image.open(path, formats=_PICTURES) as image:
            image.verify()
        with Image.open(path, formats=_PICTURES) as image:
            stream = {
                "index": 0,
                "type": "image",
                "codec": str(image.format).lower(),
                "width": image.width,
                "height": image.height,
                "mode": image.mode,
                "frames": getattr(image, "n_frames", 1),
                "orientation": _orientation(image),
            }
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, EOFError) as fault:
        raise Failed(f"the picture is broken: {fault}", 400) from fault
    return {"container": stream["codec"], "duration": None, **_size(stream), "streams": [stream]}


def _orientation(image: Image.Image) -> int | None:
    if image.format == "PNG" and "exif" not in image.info:
        return None  # Pillow would decode all of it to find that out
    found: int | None = image.getexif().get(_ORIENTATION)
    return found


def _recording(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        # Without its name: what a file is called says nothing about what is in it.
        content: Any = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        try:
            with av.open(content, "r", io_open=_refuse, metadata_errors="replace") as container:
                return _contents(container)
        except (av.FFmpegError, PermissionError, UnicodeDecodeError) as fault:
            raise Failed(
                "this is no video, sound or picture file, or it is broken: "
                f"{getattr(fault, 'strerror', None) or fault}",
                400,
            ) from fault


def _contents(container: InputContainer) -> dict[str, Any]:
    if container.format.name in _LISTS:
        raise Failed(f"this is a list of files ({container.format.name}), not a media file", 400)
    streams = [_stream(stream) for stream in container.streams]
    if not any(stream.get("width") or stream.get("sample_rate") for stream in streams):
        raise Failed("there is no video, sound or picture in it that can be read", 400)
    duration = container.duration
    return {
        "container": container.format.name,
        "duration": None if duration is None else duration / av.time_base,
        **_size(next((stream for stream in streams if stream["type"] == "video"), {})),
        "bit_rate": container.bit_rate or None,
        "streams": streams,
    }


def _stream(stream: Stream) -> dict[str, Any]:
    facts: dict[str, Any] = {"index": stream.index, "type": stream.type}
    if stream.duration is not None and stream.time_base is not None:
        facts["duration"] = round(float(stream.duration * stream.time_base), 6)
    if language := stream.metadata.get("language"):
        facts["language"] = language
    if isinstance(stream, VideoStream):
        facts |= _video(stream)
    elif isinstance(stream, AudioStream):
        facts |= _audio(stream)
    return facts


def _video(stream: VideoStream) -> dict[str, Any]:
    codec = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    aspect = stream.display_aspect_ratio
    facts = {
        "codec": codec.codec.canonical_name,
        "width": codec.width,
        "height": codec.height,
        "pixel_format": codec.pix_fmt,
        "aspect_ratio": f"{aspect.numerator}:{aspect.denominator}" if aspect else None,
    }
    if stream.disposition & Disposition.attached_pic:
        return {**facts, "type": "picture"}  # a cover
    return {**facts, "frame_rate": round(float(rate), 3) if rate else None}


def _audio(stream: AudioStream) -> dict[str, Any]:
    codec = stream.codec_context
    return {
        "codec": codec.codec.canonical_name,
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "layout": codec.layout.name,
    }


def _size(stream: dict[str, Any]) -> dict[str, Any]:
    return {name: stream[name] for name in ("width", "height") if name in stream}


def _refuse(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"it refers to another file, {url}")
