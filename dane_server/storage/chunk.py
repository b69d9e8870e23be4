"""Cuts what is too much for one statement."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

#: Rows of one statement, and ids it names.
ROWS: Final = 500
#: The most that goes into one statement, in characters: in UTF-8 one may take 4 bytes, and
#: MariaDB's packets are limited to 16 MiB.
_STATEMENT: Final = 3 * 1024 * 1024


def chunks(items: Iterable[Any], size: int = 1000) -> Iterator[list[Any]]:
    """Lists of at most `size` items, in order, each made when it is asked for."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def fitting(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into lists that fit into one statement each, made when they are asked for."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        weight = 200 + sum(len(value) for value in row.values() if isinstance(value, str))
        if part and (size + weight > _STATEMENT or len(part) >= ROWS):
            yield part
            part, size = [], 0
        part.append(row)
        size += weight
    if part:
        yield part
