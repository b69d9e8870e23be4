"""Questions and changes of what was rejected, each a function named after it. No I/O here."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dane_server.storage.functions import CountingInsert, now
from dane_server.storage.tables import rejected, tasks


def the_time() -> sa.Select[Any]:
    return sa.select(now())


def attempts_of(ids: Sequence[int]) -> sa.Select[Any]:
    """The current attempt of each of some tasks that exist."""
    return sa.select(tasks.c.id, tasks.c.attempt).where(tasks.c.id.in_(ids))


def count_rejections() -> sa.Insert:
    """`times` more of each kind; many rows at once."""
    return CountingInsert(rejected)
