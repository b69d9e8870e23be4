"""A whole large job, written while it is sent: some tasks at a time, none of them kept.

What is sent is what `shape.job_answer` would make, had it room for all of it.
"""

import asyncio
import re
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Container, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from dane_core.errors import NotFound
from dane_core.job import Task, TaskId
from dane_server.api.answer import dump
from dane_server.api.shape import job_head, task_members
from dane_server.storage.reader import Reader
from dane_server.storage.view import LargeJob

#: Tasks that are read and written together.
_TASKS: Final = 500
#: Answers that are read together: so many at most, and about so many characters of them.
_ANSWERS: Final = 500
_FIRST_ANSWERS: Final = 16
_CHARACTERS: Final = 2 * 1024 * 1024
#: Tasks that are gone through in one turn, answered or not.
_PLACES: Final = 5000

#: In a tree a number is a task; names are strings, and strings have digits of their own.
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[0-9]+')


async def whole_job(reader: Reader, large: LargeJob, *, exact: bool) -> AsyncIterator[bytes]:
    """The JSON of a job in parts. Each is as things stand when it is read.

    Raises: NotFound, where the job is deleted meanwhile: then the answer breaks off.
    """
    yield dump(job_head(large.job, exact=exact))[:-1] + b',"tasks":'
    ids_of_key: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
    pieces = _pieces(large.tree)
    for start in range(0, large.job.counts.total, _TASKS):
        tasks = await reader.some_tasks(large.job.id, after_seq=start - 1, number=_TASKS)
        for task in tasks:
            ids_of_key[task.key].append(task.id)
        yield _written(large, list(islice(pieces, len(tasks))), tasks, exact=exact)
    yield "".join(pieces).encode()
    yield b',"response":{"SHARED":' + dump(large.job.shared)
    answered = await reader.answered(large.job.id)
    async for part in _responses(reader, ids_of_key, answered):
        yield part
    yield b"}}"


def _pieces(tree: str) -> Iterator[str]:
    """What stands in a tree before each of its tasks, and behind the last one.

    Tasks are numbered in the order in which they are written, so their numbers say no more.
    """
    end = 0
    for token in _TOKEN.finditer(tree):
        if not token[0].startswith('"'):
            yield tree[end : token.start()]
            end = token.end()
    yield tree[end:]


def _written(
    large: LargeJob, pieces: Sequence[str], tasks: Sequence[Task], *, exact: bool
) -> bytes:
    expected = min(_TASKS, large.job.counts.total - tasks[0].seq) if tasks else 0
    if not tasks or len(tasks) < expected:
        raise NotFound("job", large.job.id)
    return b"".join(
        piece.encode() + dump({"Task": task_members(task, large.job, exact=exact)})
        for piece, task in zip(pieces, tasks, strict=True)
    )


async def _responses(
    reader: Reader, ids_of_key: Mapping[str, Sequence[int]], answered: Container[int]
) -> AsyncIterator[bytes]:
    """The answers by key, as `shape.responses` has them."""
    writer = _Writer("", 1)
    async for some in _bodies(reader, ids_of_key, answered):
        parts = []
        for key, body in some:
            if key != writer.key:
                parts.append(writer.end())
                writer = _Writer(key, len(ids_of_key[key]))
            parts.append(writer.add(body))
        yield b"".join(parts)
    yield writer.end()


class _Writer:
    """Writes the answers of the tasks of one key: a list where there are several such tasks.

    Nothing is written for a key none of whose tasks has answered.
    """

    def __init__(self, key: str, tasks: int) -> None:
        self.key = key
        self._name = b"," + dump(key) + b":"
        self._many = tasks > 1
        self._missing = 0  # of which nothing is written yet
        self._begun = False

    def add(self, body: str | None) -> bytes:
        """What can be written now that the next answer is known."""
        if body is None:
            self._missing += 1
            return b""
        begin = b"" if self._begun else self._name + (b"[" if self._many else b"")
        comma = b"," if self._begun else b""
        nulls = b"null," * self._missing
        self._begun, self._missing = True, 0
        return begin + comma + nulls + body.encode()

    def end(self) -> bytes:
        """What closes it."""
        if not self._begun or not self._many:
            return b""
        return b",null" * self._missing + b"]"


async def _bodies(
    reader: Reader, ids_of_key: Mapping[str, Sequence[int]], answered: Container[int]
) -> AsyncIterator[list[tuple[str, str | None]]]:
    """The answers of all tasks, those of a key behind each other, with None for each that lacks."""
    places = ((key, TaskId(one)) for key, ids in ids_of_key.items() for one in ids)
    number = _FIRST_ANSWERS
    while some := _up_to(places, number, answered):
        wanted = [one for _, one in some if one in answered]
        answers = await reader.answers(wanted) if wanted else await asyncio.sleep(0, {})
        yield [(key, answers.get(one)) for key, one in some]
        size = sum(len(body) for body in answers.values()) // max(len(answers), 1) + 1
        number = max(1, min(2 * number, _CHARACTERS // size, _ANSWERS))


def _up_to(
    places: Iterator[tuple[str, TaskId]], number: int, answered: Container[int]
) -> list[tuple[str, TaskId]]:
    """The next tasks, up to so many that have answered, or very many in all."""
    some: list[tuple[str, TaskId]] = []
    for place in places:
        some.append(place)
        number -= place[1] in answered
        if not number or len(some) >= _PLACES:
            break
    return some
