"""The oracle itself: each invariant speaks when it is broken, and only then.

Pure: made-up histories and rows. A checker that never objects would make every row green.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.history import Acted, Began, Ended, Event, History, Misbehaved, Seen, Sent
from tests.faults.oracle import (
    INVARIANTS,
    AnswerRow,
    AttemptRow,
    EdgeRow,
    Evidence,
    Footprint,
    JobRow,
    TaskRow,
    violations,
)

POSTED = Sent(source_id="film", status=201, key="k", job_id=7, paths=[])
REFUSED = Sent(
    source_id="bad",
    status=422,
    sound=False,
    content_type="application/problem+json",
    paths=["tasks[0]"],
)
SMALL = Footprint(files=20, threads=4, to_broker=2, to_store=3)


def began(task_id: int, at: float, **change: Any) -> Began:
    facts = {"attempt": 1, "job_id": 7, "key": "TOIL", "pid": 1, "value": f"v{task_id}"}
    return Began(task_id=task_id, at=at, **{**facts, **change})


def ended(task_id: int, at: float, **change: Any) -> Ended:
    facts = {"attempt": 1, "job_id": 7, "key": "TOIL", "pid": 1, "value": f"v{task_id}"}
    return Ended(task_id=task_id, at=at, **{**facts, **change})


def seen(task_id: int, **change: Any) -> Seen:
    return Seen(task_id=task_id, **{"attempt": 1, "state": "succeeded", "outcome": 200, **change})


#: Two tasks with a join between them, all as it should be; task 11 was run twice.
SOUND = Evidence(
    events=[
        POSTED,
        Sent(source_id="film", status=201, key="k", job_id=7),
        Sent(source_id="lost", status=0, key="l"),
        Sent(source_id="later", status=503, key="m"),
        REFUSED,
        began(11, 1.0),
        ended(11, 2.0),
        began(11, 2.5, value="twin"),
        ended(11, 2.6, value="twin"),
        seen(11),
        began(13, 3.0),
        ended(13, 4.0),
        seen(13),
    ],
    jobs=[JobRow(id=7, source_id="film", total=2, succeeded=2)],
    tasks=[
        TaskRow(id=11, job_id=7),
        TaskRow(id=12, job_id=7, key=None, outcome=None),
        TaskRow(id=13, job_id=7),
    ],
    edges=[EdgeRow(src=11, dst=12), EdgeRow(src=12, dst=13)],
    attempts=[AttemptRow(task_id=11, number=1), AttemptRow(task_id=13, number=1)],
    answers=[
        AnswerRow(task_id=11, attempt=1, value="v11"),
        AnswerRow(task_id=13, attempt=1, value="v13"),
    ],
    queues={"dane.responses": 0, "dane.TOIL": 0},
    left_in_queues={"dane.responses": 0},
    footprints={"server-1": (SMALL, replace(SMALL, files=30, to_store=15))},
    logs={"server-1": "DANE is ready at mysql://dane:********@127.0.0.1"},
    secrets={"the password of the store": "hush", "the signing key": ""},
)


def with_task(number: int, evidence: Evidence = SOUND, **change: Any) -> Evidence:
    tasks = [replace(task, **change) if task.id == number else task for task in evidence.tasks]
    return replace(evidence, tasks=tasks)


def with_job(**change: Any) -> Evidence:
    return replace(SOUND, jobs=[replace(SOUND.jobs[0], **change)])


def and_then(*events: Any, evidence: Evidence = SOUND) -> Evidence:
    return replace(evidence, events=[*evidence.events, *events])


def failing(*events: Event, **change: Any) -> Evidence:
    """Task 13 has failed."""
    kept = [one for one in SOUND.events if getattr(one, "task_id", None) != 13]
    failed = {"state": "failed", "outcome": 500, "attempt": 2, **change}
    return with_task(13, replace(SOUND, events=[*kept, *events]), **failed)


def waiting(**change: Any) -> Evidence:
    """Task 13 waits, in a job that is held up by a person."""
    job = JobRow(id=7, source_id="film", finished=False, paused=True)
    return replace(with_task(13, **{"outcome": None, **change}), jobs=[job])


#: Why a task may fail, and that it did.
FAILED_WITH_REASON = {
    "its worker said so": failing(began(13, 3.0), ended(13, 4.0, attempt=2, outcome=500)),
    "for now, and too often": failing(ended(13, 4.0, attempt=2, outcome=503), outcome=503),
    "it has raised": failing(Misbehaved(task_id=13, attempt=2, does="raise")),
    "it has ended its workers": replace(
        failing(message="it has ended 2 workers that began it: here-51-a, here-52-b"),
        harmed=[51, 52],
    ),
    "it ran too long": failing(
        began(13, 3.0, attempt=2), seen(13, attempt=2, at=5.1), outcome=504, timeout=2.0
    ),
    "it was cancelled": failing(
        Acted(act="cancel", job_id=7), state="cancelled", outcome=499, attempt=1
    ),
    "the row says so": replace(failing(), to_fail={13}),
}
FAILED_WITHOUT = {
    "failed for no reason": failing(began(13, 3.0, attempt=2), ended(13, 4.0, attempt=2)),
    "what failed was another attempt": failing(ended(13, 4.0, attempt=1, outcome=500)),
    "it failed otherwise": failing(ended(13, 4.0, attempt=2, outcome=503)),
    "a worker accused that nobody harmed": replace(
        failing(message="it has ended 2 workers that began it: here-51-a, here-52-b"), harmed=[51]
    ),
    "timed out too early": failing(
        began(13, 3.0, attempt=2), seen(13, attempt=2, at=3.5), outcome=504, timeout=2.0
    ),
    "timed out without a timeout": failing(
        began(13, 3.0, attempt=2), seen(13, attempt=2, at=9.0), outcome=504
    ),
    "timed out, and was never begun": failing(
        seen(13, attempt=2, at=9.0), outcome=504, timeout=2.0
    ),
    "cancelled by nobody": failing(
        ended(13, 4.0, attempt=2, outcome=499), state="cancelled", outcome=499
    ),
    "told to stop by nobody": failing(ended(13, 4.0, attempt=2, outcome=499), outcome=499),
    "cancelled with another job": failing(
        Acted(act="cancel", job_id=8), state="cancelled", outcome=499
    ),
    "cancelled by another act": failing(
        Acted(act="pause", job_id=7), state="cancelled", outcome=499
    ),
}
WAITS_TOO_LONG = {
    "leased for an hour": waiting(state="running", leased=True, due_in=3600.0),
    "leased without an end": waiting(state="running", leased=True),
    "claimed for a minute": waiting(state="dispatching", due_in=60.0),
    "in a queue for a day": waiting(state="queued", due_in=86400.0),
    "unroutable for an hour": waiting(state="unroutable", due_in=3600.0),
    "tried again after too long": waiting(state="backoff", due_in=30.0, max_delay=10.0),
    "ready in an hour": waiting(state="ready", due_in=3600.0),
}
WAITS_WELL = [
    waiting(state="running", leased=True, due_in=59.0),
    waiting(state="running"),  # on its message
    waiting(state="dispatching", due_in=3.0),
    waiting(state="queued", due_in=3500.0),
    waiting(state="unroutable", due_in=-1.0),
    waiting(state="backoff", due_in=600.0),
]
RAISED = 'Traceback (most recent call last):\n  File "record.py", line 1\nKeyError: 7'


def logged(message: str, traceback: str = RAISED) -> Evidence:
    record = json.dumps({"level": "ERROR", "message": message, "traceback": traceback})
    return replace(SOUND, logs={"worker-2": f'{{"worker": "w"}}\n{record}\n'})


def without(*events: Any) -> Evidence:
    return replace(SOUND, events=[event for event in SOUND.events if event not in events])


BROKEN = {
    "I1": {
        "an accepted job is gone": replace(SOUND, jobs=[], tasks=[], answers=[], attempts=[]),
        "a job of somebody else": with_job(source_id="another film"),
        "one key, two jobs": and_then(replace(POSTED, job_id=8)),
        "one request, two rows": replace(
            SOUND, jobs=[*SOUND.jobs, replace(SOUND.jobs[0], id=8, total=0, succeeded=0)]
        ),
    },
    "I2": {
        "a value that nobody produced": replace(
            SOUND, answers=[AnswerRow(task_id=11, attempt=1, value="forged"), SOUND.answers[1]]
        ),
        "the value of another attempt": replace(
            SOUND, answers=[AnswerRow(task_id=11, attempt=2, value="v11"), SOUND.answers[1]]
        ),
        "two attempts that succeeded": replace(
            SOUND, attempts=[*SOUND.attempts, AttemptRow(task_id=11, number=2)]
        ),
        "a success without an answer": replace(SOUND, answers=SOUND.answers[1:]),
        "a success without an attempt": replace(SOUND, attempts=SOUND.attempts[1:]),
        "an answer without a task": replace(
            SOUND, answers=[*SOUND.answers, AnswerRow(task_id=99, attempt=1, value="v")]
        ),
        **FAILED_WITHOUT,
    },
    "I3": {
        "queued for ever": with_task(13, state="queued"),
        "nobody looks at it again": with_task(13, state="unroutable"),
        "blocked by nothing": with_task(13, state="blocked"),
        "a job that is done and does not say so": with_job(finished=False),
        **WAITS_TOO_LONG,
    },
    "I4": {
        "a join that counts wrong": with_task(12, pending=1),
        "done, and holds back what follows": with_task(11, released=False),
        "a job that counts wrong": with_job(succeeded=1),
    },
    "I5": {
        "begun too early": and_then(began(13, 1.5)),
        "begun after a failure": replace(
            without(*(e for e in SOUND.events if isinstance(e, Ended) and e.task_id == 11)),
            answers=SOUND.answers,
        ),
    },
    "I6": {
        "another state, seen later": and_then(seen(11, state="failed", outcome=500)),
        "another attempt, at the end": with_task(11, attempt=2),
    },
    "I7": {
        "a message that nobody takes": replace(SOUND, queues={"dane.responses": 1}),
        "a message that was held": replace(SOUND, left_in_queues={"dane.TOIL": 1}),
        "a connection too many": replace(
            SOUND, footprints={"worker-2": (SMALL, replace(SMALL, to_broker=3))}
        ),
        "files that are never closed": replace(
            SOUND, footprints={"server-1": (SMALL, replace(SMALL, files=200))}
        ),
        "threads that never end": replace(
            SOUND, footprints={"server-1": (SMALL, replace(SMALL, threads=60))}
        ),
    },
    "I8": {
        "an error of ours": and_then(replace(POSTED, status=500, job_id=None)),
        "a traceback": and_then(replace(REFUSED, body="Traceback (most recent call last)")),
        "a wrong one that is taken": and_then(replace(REFUSED, status=201, job_id=None)),
        "a refusal without a place": and_then(replace(REFUSED, paths=[])),
        "a wrong one that is stored": with_job(source_id="bad"),
    },
    "I9": {
        "a password in a log": replace(SOUND, logs={"server-1": "mysql://dane:hush@127.0.0.1"}),
        "a traceback in a record": logged("the recorder has failed"),
        "a traceback as Python prints it": replace(SOUND, logs={"server-1": f"so\n{RAISED}\nok"}),
        "another traceback than was expected": replace(logged("other"), expected={"full"}),
    },
}


def test_a_sound_history_has_no_violation() -> None:
    """With a task that ran twice, a lost request and a refused one: all of that is allowed."""
    assert violations(SOUND) == []


@pytest.mark.parametrize(
    ("number", "case"), [(number, case) for number, cases in BROKEN.items() for case in cases]
)
def test_a_broken_invariant_is_told(number: str, case: str) -> None:
    told = [*INVARIANTS[number](BROKEN[number][case])]

    assert told, f"{number} says nothing"


def test_every_invariant_is_broken_here_at_least_once() -> None:
    assert BROKEN.keys() == INVARIANTS.keys()


def test_what_waits_for_a_worker_or_a_person_is_no_limbo() -> None:
    unroutable = with_task(13, state="unroutable", due_in=20.0, outcome=None)
    unfinished = replace(
        unroutable, jobs=[JobRow(id=7, source_id="film", finished=False, status="running")]
    )

    assert [*INVARIANTS["I3"](unfinished)] == []
    assert [*INVARIANTS["I3"](waiting(state="ready", due_in=0.0))] == []


@pytest.mark.parametrize("evidence", WAITS_WELL)
def test_what_waits_within_its_bound_is_no_limbo(evidence: Evidence) -> None:
    assert [*INVARIANTS["I3"](evidence)] == []


@pytest.mark.parametrize("case", FAILED_WITH_REASON)
def test_a_failure_with_a_reason_is_no_violation(case: str) -> None:
    evidence = replace(FAILED_WITH_REASON[case], answers=SOUND.answers[:1])

    assert [*INVARIANTS["I2"](evidence)] == []


def test_a_traceback_that_was_expected_is_no_violation() -> None:
    """By the row, or by everybody: a connection that is lost, or a task that has raised."""
    assert [*INVARIANTS["I9"](replace(logged("no files left"), expected={"no files"}))] == []
    assert [*INVARIANTS["I9"](replace(logged("oh"), expected={"KeyError: 7"}))] == []
    assert [*INVARIANTS["I9"](logged("Cancelling cause reader exited abnormally"))] == []


def test_what_a_person_changes_is_no_violation() -> None:
    """A reset opens what was settled, and a deleted job is gone although it was accepted."""
    reset = Acted(act="retry", job_id=7)
    deleted = Acted(act="delete", job_id=7)

    assert [*INVARIANTS["I6"](and_then(reset, evidence=with_task(11, attempt=2)))] == []
    assert [*INVARIANTS["I6"](and_then(reset, seen(11, state="queued", attempt=2)))] == []
    assert [*INVARIANTS["I5"](and_then(reset, began(13, 1.5)))] == []
    assert [*INVARIANTS["I1"](and_then(deleted, evidence=replace(SOUND, jobs=[])))] == []


def test_a_failure_that_is_allowed_lets_its_successors_go() -> None:
    events: list[Event] = [began(11, 1.0), ended(11, 2.0, outcome=500), began(13, 3.0)]
    allowed = with_task(11, state="failed", outcome=500, allow_failure=True)

    assert [*INVARIANTS["I5"](replace(allowed, events=events))] == []
    assert [*INVARIANTS["I5"](replace(SOUND, events=events))] != []


def test_a_history_is_read_as_it_was_written(tmp_path: Any) -> None:
    history = History(tmp_path)
    events: list[Event] = [
        POSTED,
        began(11, 1.0),
        ended(11, 2.0),
        seen(11),
        Acted(act="delete", job_id=7),
    ]

    for event in events:
        history.note(event)

    assert history.events() == events
    assert history.began(task_id=11) == [events[1]]
    assert history.began(task_id=12) == []


def test_a_line_that_a_killed_process_left_unfinished_is_no_event(tmp_path: Any) -> None:
    """Nor does it spoil the one after it."""
    history = History(tmp_path)
    history.note(Acted(act="pause", job_id=1))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('\n{"is": "Acted", "act": "pau')
    history.note(Acted(act="resume", job_id=1))

    found = history.events()

    assert [event.act for event in found if isinstance(event, Acted)] == ["pause", "resume"]
