"""Where the files of one source live: DANE 0.1's folders, made safe for any source_id."""

import re
from hashlib import sha256
from pathlib import Path
from typing import Final

#: Characters that stand for themselves in a folder's name. A dot does too, inside the name.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_OUTER_DOTS: Final = re.compile(r"^\.+|\.+$")
#: File systems take 255 bytes; some that encrypt names take less.
_LONGEST_NAME: Final = 140
#: Marks a name that was cut and hashed. It never comes out of escaping, so no two ids meet.
_HASHED: Final = "~"


def source_folders(temp_root: str | Path, out_root: str | Path, source_id: str) -> dict[str, str]:
    """`TEMP_FOLDER` and `OUT_FOLDER` of a source, as the `SHARED` member of every response.

    As in DANE 0.1 the first six characters of the id are three folders, and the id is the
    fourth: `TEST123` is at `TE/ST/12/TEST123`. Ids of letters, digits, `_` and `-` stay as
    they are; in others whatever a path could mistake is escaped as in a URL, and an id too
    long for a file name ends in its hash. Two ids never share a folder. Nothing is created.
    """
    below = "/".join((*_chunks(name := _folder_name(source_id)), name))
    return {"TEMP_FOLDER": _under(temp_root, below), "OUT_FOLDER": _under(out_root, below)}


def _under(root: str | Path, below: str) -> str:
    # As text: a path would be parsed for each of its steps, and every new job comes by here. A
    # root that is a path already knows how it is written.
    path = root if isinstance(root, Path) else Path(root)
    return f"{str(path.absolute()).rstrip('/')}/{below}"


def _folder_name(source_id: str) -> str:
    if _PLAIN_NAME.fullmatch(source_id):
        return source_id
    escaped = "".join(char if _PLAIN.fullmatch(char) else _escape(char) for char in source_id)
    escaped = _OUTER_DOTS.sub(lambda dots: _escape(dots[0]), escaped)
    if 0 < len(escaped) <= _LONGEST_NAME:
        return escaped
    digest = sha256(source_id.encode(errors="surrogatepass")).hexdigest()
    return escaped[: _LONGEST_NAME - len(_HASHED + digest)] + _HASHED + digest


def _chunks(name: str) -> list[str]:
    """The first three pairs of characters; a dot in one could make it `..`."""
    pairs = [name[start : start + 2] for start in range(0, min(len(name), 6), 2)]
    return [pair.replace(".", _ESCAPED_DOT) for pair in pairs]


def _escape(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(errors="surrogatepass"))


_ESCAPED_DOT: Final = _escape(".")
