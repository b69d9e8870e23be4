"""One table says what may follow what; the drawing in the docs is the same table."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dane_core.states import (
    ACTIVE,
    ANSWERS,
    FACES,
    IN_FLIGHT,
    MEANINGS,
    NEXT,
    SENT,
    SETTLED,
    JobStatus,
    TaskState,
    follows,
    outcome_number,
    outcome_state,
)

DOCS = (Path(__file__).parents[2] / "docs" / "states.md").read_text()


def drawn() -> set[tuple[TaskState, TaskState]]:
    """Every arrow of the drawings, those of a frame standing for each state in it."""
    arrows: set[tuple[TaskState, TaskState]] = set()
    for drawing in re.findall(r"```mermaid\n(.*?)```", DOCS, re.DOTALL):
        frames = {
            name: set(re.findall(r"\b[a-z]+\b", re.sub(r":.*", "", inside)))
            for name, inside in re.findall(r"state (\w+) \{(.*?)\}", drawing, re.DOTALL)
        }
        for old, new in re.findall(r"(\w+) --> (\w+):", drawing):
            arrows |= {(TaskState(one), TaskState(new)) for one in frames.get(old, {old})}
    return arrows


def rows(header: str) -> Iterator[list[str]]:
    """The cells of the table with this header."""
    table = DOCS.split(header)[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def named(cell: str) -> list[TaskState]:
    return [TaskState(name) for name in re.findall(r"`(\w+)`", cell)]


def test_the_drawing_shows_what_may_follow_what() -> None:
    table = {(old, new) for old, following in NEXT.items() for new in following}

    assert drawn() == table


def test_the_table_in_the_docs_is_the_table_in_the_code() -> None:
    written = {
        named(state)[0]: (int(number), message, frozenset(named(following)))
        for state, number, message, _, following in rows("| state | number |")
    }

    assert written == {
        state: (FACES[state].number, FACES[state].message, NEXT[state]) for state in TaskState
    }


def test_the_answers_in_the_docs_are_those_in_the_code() -> None:
    written = {int(row[0]): (row[1], named(row[2])[0]) for row in rows("| answer | meaning |")}

    assert written == {number: (MEANINGS[number], state) for number, state in ANSWERS.items()}


def test_every_status_of_a_job_is_in_the_docs() -> None:
    written = [re.sub("`", "", row[0]) for row in rows("| status | when |")]

    assert sorted(written) == sorted(JobStatus)


def test_every_state_has_a_face_a_place_and_something_that_follows() -> None:
    """Settled states too: an operator can always have a task run again."""
    assert set(FACES) == set(NEXT) == set(TaskState)
    assert all(NEXT[state] for state in TaskState)
    assert set(TaskState) == ACTIVE | SETTLED | {TaskState.BLOCKED, TaskState.HELD}
    assert not ACTIVE & SETTLED
    assert SENT < IN_FLIGHT < ACTIVE


def test_a_state_never_follows_itself() -> None:
    assert not [state for state in TaskState if follows(state, state)]


@pytest.mark.parametrize("state", sorted(SETTLED))
def test_only_an_operator_moves_what_is_settled(state: TaskState) -> None:
    assert NEXT[state] == {TaskState.READY, TaskState.BLOCKED, TaskState.HELD}


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
def test_every_answer_can_be_taken_in_flight(state: TaskState) -> None:
    """Also in ready and unroutable: a message thought lost may have reached a worker."""
    assert all(follows(state, outcome) for outcome in ANSWERS.values())


@pytest.mark.parametrize("state", sorted(set(TaskState) - SETTLED))
def test_whatever_is_not_settled_can_be_cancelled(state: TaskState) -> None:
    assert follows(state, TaskState.CANCELLED)


@pytest.mark.parametrize("number", [-1, 0, 1, 102, 201, 418, 424, 599, 2**70])
def test_a_number_nobody_knows_is_a_failure(number: int) -> None:
    """Kept as it is, 102 would make a failed task look queued for ever."""
    assert outcome_state(number) is TaskState.FAILED
    assert outcome_number(number) == 500


@pytest.mark.parametrize("number", sorted(ANSWERS))
def test_a_known_number_is_kept(number: int) -> None:
    assert outcome_number(number) == number
    assert outcome_state(number) is ANSWERS[number]


def test_every_number_shown_outside_has_a_meaning() -> None:
    shown = {face.number for face in FACES.values()} | set(ANSWERS)

    assert shown <= set(MEANINGS)
