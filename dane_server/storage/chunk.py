"""Cuts what is too much for one statement."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

#: Rows of one statement, and ids it names.
ROWS: Final = 500
#: The most that goes into one statement, in characters: in UTF-8 one may take 4 bytes, and
#: MariaDB's packets are limited to 16 MiB.
_STATEMENT: Final = 3 * 1024 * 1024


def chunks(items: Iterable[Any], size: int = 1000) -> Iterator[list[Any]]:
    """Lists of at most `size` items, in order."""
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


def fitting(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut rows into lists that fit into one statement each."""
    parts: list[list[dict[str, Any]]] = [[]]
    size = 0
    for row in rows:
        weight = 200 + sum(len(value) for value in row.values() if isinstance(value, str))
        if parts[-1] and (size + weight > _STATEMENT or len(parts[-1]) >= ROWS):
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += weight
    return parts
