"""JSON without surprises: one meaning, storable, the same in every reader.

RFC 8259 leaves to its readers what a name given twice, a number beyond double precision or half
a surrogate pair mean. Systems that disagree about such a text can be played off against each
other, so here it has no meaning at all.
"""

import codecs
import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Final

import orjson

from dane_core.errors import BadSpec, Fault
from dane_core.spec.fault import Faults, Path, shown

#: How deep a free value may be nested: with the deepest tree of tasks around it, and an answer
#: around that, it stays within the 254 levels that orjson writes. MariaDB finds nothing in JSON
#: of more than 31.
VALUE_DEPTH: Final = 31

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1
_FLAWS: Final = re.compile("[\0\ud800-\udfff]")


class Repeated(dict[str, Any]):
    """An object in which names were given twice. Whoever reads it reports them."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.names = tuple(name for name, count in counts.items() if count > 1)


def decode(raw: bytes | str) -> Any:
    """Read JSON in UTF-8, keeping for `check` what it must not lose sight of.

    NaN and infinities come as floats, integers far out of range as one that is just out of
    range, `-0` as the float it is to JavaScript, and names given twice as `Repeated`.
    Raises: BadSpec, when it is not JSON or not UTF-8.
    """
    text = raw if isinstance(raw, str) else _text(raw)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno}, column {fault.colno}"
        raise _bad(f"not JSON: {fault.msg} at {where}") from None
    except RecursionError:
        raise _bad("nested too deeply") from None


def _text(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _bad("begins with a byte order mark; send plain UTF-8")
    if b"\0" in raw[:4]:
        raise _bad("looks like UTF-16 or UTF-32; send plain UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise _bad(f"not UTF-8 at byte {fault.start}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeated(pairs)


def _integer(text: str) -> int | float:
    if text == "-0":
        return -0.0
    # Python takes quadratic time for thousands of digits, and refuses more than 4,300.
    return int(text) if len(text) <= len(str(_INT_MIN)) else _INT_MAX + 1


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _bad(message: str) -> BadSpec:
    return BadSpec([Fault("", message)])


def check(value: dict[Any, Any], path: Path, limit: int, faults: Faults) -> None:
    """Note whatever in a free object could not be kept as it is, or is too much.

    `limit` is in bytes of compact JSON. No value is shorter than a byte, so the walk
    never takes more steps than that.
    """
    found = len(faults)
    seen = 0
    ahead: deque[tuple[Any, Path, int]] = deque([(value, path, 1)])
    while ahead:
        here, where, depth = ahead.popleft()
        seen += len(here)
        if seen > limit:
            faults.add(path, too_large(limit))
            return
        if depth > VALUE_DEPTH:
            faults.add(where, f"nested deeper than {VALUE_DEPTH}")
            continue
        for step, item in _members(here, where, faults):
            if isinstance(item, dict | list):
                ahead.append((item, (where, step), depth + 1))
            elif flaw := _flaw_in_scalar(item):
                faults.add((where, step), flaw)
    if len(faults) == found and len(orjson.dumps(value)) > limit:
        faults.add(path, too_large(limit))


def _members(
    value: dict[Any, Any] | list[Any], path: Path, faults: Faults
) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, list):
        return enumerate(value)
    report_repeated(value, path, faults)
    for name in value:
        if flaw := flaw_in(name) if isinstance(name, str) else "not a string":
            faults.add((path, str(name)), f"its name: {flaw}")
    return value.items()


def _flaw_in_scalar(value: object) -> str | None:
    match value:
        case str():
            return flaw_in(value)
        case None | bool():
            return None
        case int():
            return None if _INT_MIN <= value <= _INT_MAX else "a whole number beyond 64 bits"
        case float():
            return None if math.isfinite(value) else "not a finite number"
        case _:
            return f"{type(value).__name__} is not a JSON value"


def too_large(limit: int) -> str:
    return f"larger than {limit:,} bytes"


def flaw_in(text: str) -> str | None:
    """What makes a string impossible to store and send on, if anything does."""
    found = _FLAWS.search(text)
    if found is None:
        return None
    return "contains a NUL character" if found[0] == "\0" else "contains half a surrogate pair"


def report_repeated(members: dict[Any, Any], path: Path, faults: Faults) -> None:
    """Note the names that an object gives more than once."""
    if isinstance(members, Repeated):
        for name in members.names:
            faults.add(path, f"{shown(name)} is given twice")
