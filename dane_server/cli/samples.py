"""Media made on the spot, so that `dane demo` has something to work on without a network."""

import math
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, cast

import av
from PIL import Image, ImageDraw

_SIZE: Final = (640, 360)
_RATE: Final = 25  # frames per second
_SECONDS: Final = 4
_SOUND_RATE: Final = 48_000
_BLOCK: Final = 1024  # samples a frame: what AAC takes


def make_samples(folder: Path) -> list[Path]:
    """Write a clip, an image and a sound into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "clip.mp4", folder / "image.png", folder / "tone.flac"]
    _write_clip(paths[0])
    _picture(0.3).save(paths[1])
    _write_tone(paths[2])
    return paths


def _write_clip(path: Path) -> None:
    """A moving pattern with a tone."""
    with av.open(str(path), "w") as clip:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        picture = cast("av.VideoStream", clip.add_stream(codec, rate=_RATE))
        picture.width, picture.height = _SIZE
        picture.pix_fmt = "yuv420p"
        sound = clip.add_stream("aac", rate=_SOUND_RATE)
        sound.layout = "mono"
        for number in range(_RATE * _SECONDS):
            image = _picture(number / (_RATE * _SECONDS))
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            clip.mux(picture.encode(frame))
        for block in _tone("fltp"):
            clip.mux(sound.encode(block))
        clip.mux(picture.encode(None))
        clip.mux(sound.encode(None))


def _write_tone(path: Path) -> None:
    with av.open(str(path), "w") as file:
        sound = file.add_stream("flac", rate=_SOUND_RATE)
        sound.layout = "mono"
        for block in _tone("s16"):
            file.mux(sound.encode(block))
        file.mux(sound.encode(None))


def _picture(moment: float) -> Image.Image:
    """The pattern at a moment from 0 to 1: bars that wander, and a disc that crosses them."""
    width, height = _SIZE
    image = Image.new("RGB", _SIZE)
    draw = ImageDraw.Draw(image)
    bars = 8
    for bar in range(bars):
        hue = int(255 * ((bar / bars + moment) % 1.0))
        color = Image.new("HSV", (1, 1), (hue, 180, 220)).convert("RGB").getpixel((0, 0))
        left = width * bar // bars
        draw.rectangle((left, 0, width * (bar + 1) // bars, height), fill=color)
    x, y = width * moment, height * (0.5 + 0.3 * math.sin(moment * 4 * math.pi))
    draw.ellipse((x - 50, y - 50, x + 50, y + 50), fill="white", outline="black", width=4)
    return image


def _tone(kind: str) -> Iterator[av.AudioFrame]:
    """A tone of 440 Hz, in blocks."""
    for start in range(0, _SOUND_RATE * _SECONDS, _BLOCK):
        wave = [
            0.3 * math.sin(2 * math.pi * 440 * n / _SOUND_RATE)
            for n in range(start, start + _BLOCK)
        ]
        samples = array("h", (int(32_767 * level) for level in wave))
        block = av.AudioFrame(format=kind, layout="mono", samples=_BLOCK)
        block.planes[0].update(samples.tobytes() if kind == "s16" else array("f", wave).tobytes())
        block.sample_rate, block.pts = _SOUND_RATE, start
        block.time_base = Fraction(1, _SOUND_RATE)
        yield block
