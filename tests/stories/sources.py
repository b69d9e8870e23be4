"""Real files to work on, made on the spot, and a web server that has them."""

import http.server
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Final

import av
from PIL import Image

CLIP: Final = (160, 120)  # pixels
CLIP_SECONDS: Final = 2
PICTURE: Final = (400, 300)
_RATE: Final = 10
_SOUND_RATE: Final = 8_000


def make_sources(folder: Path) -> None:
    """A video, a picture, a sound and a text; a broken file and an empty one."""
    folder.mkdir()
    _make_clip(folder / "clip.mp4")
    Image.linear_gradient("L").resize(PICTURE).convert("RGB").save(folder / "picture.png")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, _SOUND_RATE, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(range(256)) * (_SOUND_RATE // 128))
    (folder / "words.txt").write_text("to be or not to be\n")
    (folder / "broken.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    (folder / "empty.mp4").touch()


def _make_clip(path: Path) -> None:
    """Grey that turns lighter, so that each frame shows something else."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=_RATE)
        stream.width, stream.height = CLIP
        stream.pix_fmt = "yuv420p"
        for number in range(_RATE * CLIP_SECONDS):
            image = Image.linear_gradient("L").resize(CLIP).point(lambda v, n=number: v + 2 * n)
            frame: Any = av.VideoFrame.from_image(image.convert("RGB"))  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server on loopback that has these files."""
    handler = partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
