"""Puts answers of earlier tasks into the message of a later one, as far as there is room."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import orjson

from dane_core.message import INLINE_LIMIT

#: Answers in a message at most.
INLINE_ANSWERS: Final = 100

#: Answers by task key, and whether some were left out.
Inline = tuple[Mapping[str, Any], bool]

NOTHING: Final[Inline] = ({}, False)


class Said(Protocol):
    """An answer as it is kept; `solo`, if no other task of its job has that key."""

    @property
    def task_id(self) -> int: ...
    @property
    def task_key(self) -> str: ...
    @property
    def solo(self) -> bool: ...
    @property
    def body(self) -> str: ...


def inline(said: Iterable[Said]) -> Inline:
    """The answers by key, as many as fit: a list where a key occurs more often in the job.

    A list comes whole or not at all: one with gaps would look like one without.
    """
    answers = list({answer.task_id: answer for answer in said}.values())
    response: dict[str, Any] = {}
    left_out = {answer.task_key for answer in answers[INLINE_ANSWERS:]}
    if left_out:  # there may be more than were asked for
        left_out |= {answer.task_key for answer in answers if not answer.solo}
    room = INLINE_LIMIT
    for answer in answers[:INLINE_ANSWERS]:
        size = _bytes_in(answer.body)
        if size > room or answer.task_key in left_out:
            left_out.add(answer.task_key)
            continue
        room -= size
        body = orjson.Fragment(answer.body)
        if answer.solo:
            response[answer.task_key] = body
        else:
            response.setdefault(answer.task_key, []).append(body)
    for key in left_out:
        response.pop(key, None)
    return response, bool(left_out)


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
