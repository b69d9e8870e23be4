"""What servers tell each other of themselves: what they have counted, and found last."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.engine import Store
from dane_server.storage.statements import bulletin as sql

_ROUND: Final = "round"


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """What a round of the doctor found, as it is shown."""

    check: str
    subject: str
    ids: Sequence[int]
    sentence: str
    advice: str
    repaired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRound:
    """All that the last round found, whichever server made it."""

    at: datetime
    divergences: Sequence[Divergence]


class Bulletin:
    """Read by every server, written by whoever has something to say.

    Its promises are those of `Store.write`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def count(self, more: Mapping[tuple[str, str], int]) -> None:
        """Add to the totals, by name and label."""
        rows = [
            {"name": name, "label": label, "times": times}
            for (name, label), times in sorted(more.items())
        ]

        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sql.count_up(), rows)

        if rows:
            await self._store.write(unit)

    async def totals(self) -> Mapping[tuple[str, str], int]:
        """What all servers together have counted, by name and label."""

        async def unit(connection: AsyncConnection) -> Mapping[tuple[str, str], int]:
            rows = await connection.execute(sql.all_totals())
            return {(row.name, row.label): row.times for row in rows}

        return await self._store.read(unit)

    async def tell_round(self, found: Sequence[Divergence]) -> None:
        """Replace what the last round found."""
        text = orjson.dumps([asdict(one) for one in found]).decode()

        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sql.make_bulletin(_ROUND))
            await connection.execute(sql.write_bulletin(_ROUND, text))

        await self._store.write(unit)

    async def last_round(self) -> LastRound | None:
        """What the last round found; None before the first."""

        async def unit(connection: AsyncConnection) -> Any:
            return (await connection.execute(sql.bulletin(_ROUND))).one_or_none()

        row = await self._store.read(unit)
        if row is None:
            return None
        found = [_divergence(one) for one in orjson.loads(row.text)]
        return LastRound(at=row.written_at.replace(tzinfo=UTC), divergences=found)


def _divergence(told: Mapping[str, Any]) -> Divergence:
    # By name: a server of a later version may say more.
    return Divergence(
        check=told["check"],
        subject=told["subject"],
        ids=told["ids"],
        sentence=told["sentence"],
        advice=told["advice"],
        repaired=told["repaired"],
    )
