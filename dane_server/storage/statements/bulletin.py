"""Questions and changes of what servers tell each other, each named after it. No I/O here."""

import sqlalchemy as sa

from dane_server.storage.functions import CountingInsert, insert_missing, now
from dane_server.storage.tables import bulletins, totals


def count_up() -> sa.Insert:
    """`times` more of each; many rows at once."""
    return CountingInsert(totals)


def all_totals() -> sa.Select[tuple[str, str, int]]:
    return sa.select(totals.c.name, totals.c.label, totals.c.times)


def make_bulletin(name: str) -> sa.Insert:
    return insert_missing(bulletins).values(name=name, written_at=now(), text="[]")


def write_bulletin(name: str, text: str) -> sa.Update:
    return sa.update(bulletins).where(bulletins.c.name == name).values(written_at=now(), text=text)


def bulletin(name: str) -> sa.Select[tuple[object, str]]:
    return sa.select(bulletins.c.written_at, bulletins.c.text).where(bulletins.c.name == name)
