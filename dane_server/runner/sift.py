"""Sorts what workers say by its kind, and keeps out what is not on a ticket of ours."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import orjson

from dane_core.message import (
    RESPONSE_LIMIT,
    Answer,
    Ask,
    Heartbeat,
    Leased,
    Progress,
    Released,
    Report,
    Started,
    Ticket,
)
from dane_server.runner.ticket import Signer
from dane_server.storage.view import Rejected, Rejection

#: Reports by their class, each kind in the order it came.
Said = defaultdict[type[Any], list[Any]]


class _Ticketed(Protocol):
    @property
    def ticket(self) -> Ticket: ...


R = TypeVar("R", bound=_Ticketed)


def by_kind(reports: Sequence[Report]) -> Said:
    said: Said = defaultdict(list)
    for report in reports:
        said[type(report)].append(report)
    return said


def sift(said: Said, signer: Signer) -> tuple[Said, list[Rejection]]:
    """What is on tickets that were signed here, and what is not."""
    forged: list[Rejection] = []
    genuine = said.copy()
    for kind in (Started, Leased, Progress, Released, Answer, Ask):
        genuine[kind] = _signed(said[kind], signer, forged)
    genuine[Heartbeat] = [_signed_beat(beat, signer, forged) for beat in said[Heartbeat]]
    return genuine, forged


def bounded(report: Report, size: int) -> Report:
    """The report; an answer whose response is too large has failed for it.

    `size`: of its message, in bytes. Our own workers see to it themselves. MariaDB would not
    refuse it alone but close the connection, as if the database were away.
    """
    if not isinstance(report, Answer) or size <= RESPONSE_LIMIT:
        return report
    large = len(orjson.dumps(report.response))
    if large <= RESPONSE_LIMIT:
        return report
    why = f"the response is {large:,} bytes and the limit is {RESPONSE_LIMIT:,}"
    return replace(report, state=500, message=why, response={})


def _signed(reports: Sequence[R], signer: Signer, forged: list[Rejection]) -> list[R]:
    signed = []
    for report in reports:
        if signer.is_genuine(report.ticket):
            signed.append(report)
        else:
            forged.append(_forged(report.ticket, getattr(report, "worker", None)))
    return signed


def _signed_beat(beat: Heartbeat, signer: Signer, forged: list[Rejection]) -> Heartbeat:
    signed = []
    for ticket in beat.running:
        if signer.is_genuine(ticket):
            signed.append(ticket)
        else:
            forged.append(_forged(ticket, beat.worker))
    return replace(beat, running=tuple(signed))


def _forged(ticket: Ticket, worker: str | None) -> Rejection:
    return Rejection(ticket=ticket, worker=worker, reason=Rejected.FORGED)
