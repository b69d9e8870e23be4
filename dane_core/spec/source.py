"""The source of a job: its URL made safe to store, and its id safe to make folders of."""

import re
from typing import Final
from urllib.parse import quote

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_PARTS: Final = re.compile(r"([^:]+:)(//[^/?#]*)?(.*)", re.DOTALL)

# RFC 3986, section 2: the reserved and the unreserved characters, and escapes that are whole.
_ALLOWED: Final = r"A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%"
_BARE_PERCENT: Final = r"%(?![0-9A-Fa-f]{2})"
_REST: Final = re.compile(rf"{_BARE_PERCENT}|[^{_ALLOWED}]+")
_AUTHORITY: Final = re.compile(rf"{_BARE_PERCENT}|[^{_ALLOWED}\u0080-\U0010ffff]+")


def requote(source_url: str) -> str:
    """A URL with everything escaped that a URL may not hold; a plain path as it is.

    What begins with a scheme of two letters or more is a URL (RFC 3986, section 3.1; one letter
    is a drive). In it, every character outside RFC 3986, section 2, and every `%` that begins no
    escape is percent-encoded as UTF-8, and escapes that are there already stay; a host keeps its
    letters, since those are written in IDNA by whoever looks it up. Anything else is a path, in
    which `%` and `#` are part of a file's name, so escaping would make it another file.
    Requoting twice changes nothing more.
    """
    if not _SCHEME.match(source_url) or not (parts := _PARTS.fullmatch(source_url)):
        return source_url
    scheme, authority, rest = parts.groups(default="")
    return scheme + _AUTHORITY.sub(_escaped, authority) + _REST.sub(_escaped, rest)


def _escaped(found: re.Match[str]) -> str:
    return quote(found[0], safe="")


def leaves_its_folder(source_id: str) -> bool:
    """Whether an id has a step `.` or `..` in it, which only a path out of somewhere has."""
    if "." not in source_id and "%" not in source_id:
        return False  # as mostly
    plain = re.sub("%2e", ".", source_id, flags=re.IGNORECASE)
    plain = re.sub("%2f|%5c", "/", plain, flags=re.IGNORECASE)
    return any(step.strip() in (".", "..") for step in re.split(r"[/\\]", plain))
