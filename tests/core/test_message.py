"""Every message reads back as it was written; whatever else arrives is refused, never fatal."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dane_core.errors import BadMessage
from dane_core.job import JobId, TaskId
from dane_core.message import (
    BUNDLE,
    TEXT_LIMIT,
    Answer,
    Ask,
    Control,
    Envelope,
    Goodbye,
    Heartbeat,
    Hello,
    Nudge,
    Offer,
    Progress,
    Released,
    Stamp,
    Started,
    TaskMessage,
    Ticket,
    Verdict,
    bundle,
    open_control,
    open_report,
    open_reports,
    open_task,
    open_verdict,
)

TICKET = Ticket(task_id=TaskId(7), attempt=2, dispatch=3, token="t" * 32)

TASK = TaskMessage(
    ticket=TICKET,
    job_id=JobId(1),
    source_url="http://127.0.0.1/ü",
    source_id="S 🎬",
    type="video",
    priority=10,
    metadata={"a": [1, 2.5, None, {"b": True}]},
    key="OCR",
    name="read it",
    args={"languages": ["nl"]},
    timeout=1.5,
    response={"SHARED": {"TEMP_FOLDER": "/t"}, "DOWNLOAD": {"file_type": "video"}},
    partial=True,
    sent_at=1_700_000_000.25,
    stamp=Stamp("a1", 12.5),
)

HELLO = Hello(
    worker="w1",
    host="h",
    pid=1,
    slots=4,
    inbox="dane.worker.w1",
    offers=(
        Offer(key="OCR", types=("image",), description="d", args_schema={"a": {}}, version="1"),
        Offer(key="B"),
    ),
    running=(TICKET,),
    fresh=True,
    listening=2,
)

NEXT: Final = replace(TICKET, attempt=TICKET.attempt + 1)

REPORTS: list[Any] = [
    Answer(
        ticket=TICKET,
        state=503,
        message="later ✓",
        response={"n": 1},
        worker="w1",
        runtime=0.5,
        started_at="2026-01-01T00:00:00Z",
    ),
    Answer(ticket=TICKET, state=200, message="", response={}),
    Started(ticket=TICKET, worker="w1", runtime=1.0),
    Progress(ticket=TICKET, fraction=0.25, message="half of a half"),
    Released(ticket=TICKET, worker="w1", delay=2.0, reason="drain"),
    Ask(ticket=TICKET, worker="w1", reply_to="dane.worker.w1"),
    HELLO,
    Goodbye(worker="w1"),
    Nudge(),
    Heartbeat(worker="w1", running=(TICKET, NEXT), lease=60.0, leased=frozenset({NEXT})),
]

CONTROLS = [
    Control(act="roll"),
    Control(act="cancel", job_id=JobId(1)),
    Control(act="cancel", task_id=TaskId(2), attempt=3),
    Control(act="pause", key="OCR"),
    Control(act="drain", worker="w1"),
    Control(act="welcome", worker="w1", listening=2),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_reads_back_as_it_was_written(report: Any) -> None:
    assert open_report(report.seal()) == report


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.act)
def test_a_control_reads_back_as_it_was_written(control: Control) -> None:
    assert open_control(control.seal()) == control
    assert open_control(control.seal()).sent_at == control.sent_at
    assert open_control(control.seal()).stamp == control.stamp


def test_a_control_and_a_hello_of_an_earlier_version_can_be_read() -> None:
    """Servers and workers are not brought up to date at one moment."""
    control = Envelope(type="control", body=b'{"v": 1, "act": "roll"}')
    assert open_control(control).sent_at is None
    assert open_control(control).stamp is None

    hello = HELLO.seal()
    old = {name: value for name, value in orjson.loads(hello.body).items() if name != "listening"}
    assert open_report(replace(hello, body=orjson.dumps(old))) == replace(HELLO, listening=0)


def test_a_heartbeat_that_does_not_say_what_is_leased_can_be_read() -> None:
    beat = Heartbeat(worker="w1", running=(TICKET,), lease=60.0, leased=frozenset({TICKET}))
    body = orjson.loads(beat.seal().body)
    del body["running"][0]["leased"]

    old = open_report(replace(beat.seal(), body=orjson.dumps(body)))

    assert old == replace(beat, leased=frozenset())


def test_reports_read_back_from_a_bundle_in_their_order() -> None:
    """What was said first is taken first, and each can be parked as if it had come alone."""
    sealed = [report.seal() for report in REPORTS]

    opened = open_reports(bundle(sealed))

    assert [report for _, report in opened] == REPORTS
    assert [open_report(envelope) for envelope, _ in opened] == REPORTS


def test_one_report_that_cannot_be_read_costs_its_bundle_no_other() -> None:
    good = Goodbye(worker="w1").seal()
    strange = Envelope(type="wish", body=b'{"v": 1}')
    outdated = Envelope(type="goodbye", body=b'{"v": 0, "worker": "w1"}')

    opened = open_reports(bundle([good, strange, outdated, good]))

    kinds = [type(report) for _, report in opened]
    assert kinds == [Goodbye, BadMessage, BadMessage, Goodbye]
    assert [envelope.type for envelope, _ in opened] == ["goodbye", "wish", "goodbye", "goodbye"]


@pytest.mark.parametrize(
    "body", [b"[]", b'{"v": 1}', b'{"v": 1, "said": 1}', b'{"v": 1, "said": [1]}', b"{"]
)
def test_what_is_no_bundle_is_one_bad_message(body: bytes) -> None:
    """It is parked whole, for a person to look at."""
    envelope = Envelope(type=BUNDLE, body=body)

    [(parked, fault)] = open_reports(envelope)

    assert parked is envelope
    assert isinstance(fault, BadMessage)


def test_a_verdict_reads_back_as_it_was_written() -> None:
    verdict = Verdict(ticket=TICKET, run=False, reason="the task is succeeded")

    assert open_verdict(verdict.seal()) == verdict


@pytest.mark.parametrize(
    "task", [TASK, replace(TASK, type=None, name=None, timeout=None, partial=False, sent_at=0.0)]
)
def test_a_task_reads_back_as_it_was_written(task: TaskMessage) -> None:
    assert open_task(task.seal("dane.responses")) == task


def test_a_task_travels_as_the_design_says() -> None:
    """Workers in other languages are written against DESIGN 5."""
    envelope = TASK.seal("dane.responses")

    body = orjson.loads(envelope.body)
    assert body["v"] == 1
    assert set(body["job"]) == {
        "job_id",
        "source_url",
        "source_id",
        "type",
        "priority",
        "metadata",
    }
    assert set(body["task"]) == {"task_id", "task_key", "name", "args", "attempt", "timeout"}
    assert envelope.headers == {"attempt": 2, "dispatch": 3, "token": "t" * 32}
    assert (envelope.correlation_id, envelope.reply_to) == ("7", "dane.responses")
    assert (envelope.type, envelope.priority) == ("task", 10)
    assert TASK.routing_key == "video.OCR"
    assert replace(TASK, type=None).routing_key == "unknown.OCR"


# --- what is not a message ------------------------------------------------------------------


def answer_body(**members: Any) -> bytes:
    body: dict[str, Any] = {"v": 1, "state": 200, "message": "Success", "response": {}}
    return orjson.dumps({name: value for name, value in (body | members).items() if value != ...})


def answer_envelope(body: bytes = answer_body(), **changed: Any) -> Envelope:
    envelope = Envelope(type="answer", body=body, correlation_id="7", headers=TICKET.headers)
    return replace(envelope, **changed)


def with_header(name: str, value: Any) -> Envelope:
    return answer_envelope(headers={**TICKET.headers, name: value})


NOT_ANSWERS: Mapping[str, Envelope] = {
    "an empty body": answer_envelope(b""),
    "not JSON": answer_envelope(b"{"),
    "not UTF-8": answer_envelope(b'{"v": 1, "message": "\xff"}'),
    "a lone surrogate": answer_envelope(answer_body().replace(b"Success", b"\\ud800")),
    "a number too large": answer_envelope(answer_body().replace(b"200", b"1e999")),
    "a list": answer_envelope(b"[]"),
    "no version": answer_envelope(answer_body(v=...)),
    "another version": answer_envelope(answer_body(v=2)),
    "no state": answer_envelope(answer_body(state=...)),
    "a state in words": answer_envelope(answer_body(state="200")),
    "a state of true": answer_envelope(answer_body(state=True)),
    "no message": answer_envelope(answer_body(message=None)),
    "a response that is a list": answer_envelope(answer_body(response=[])),
    "no response": answer_envelope(answer_body(response=...)),
    "a runtime in words": answer_envelope(answer_body(runtime="1")),
    "a worker that is a number": answer_envelope(answer_body(worker=1)),
    "no correlation id": answer_envelope(correlation_id=None),
    "a correlation id in words": answer_envelope(correlation_id="seven"),
    "a negative task id": answer_envelope(correlation_id="-7"),
    "a task id of 0": answer_envelope(correlation_id="0"),
    "a task id of 65 bits": answer_envelope(correlation_id=str(2**64)),
    "a task id of many digits": answer_envelope(correlation_id="9" * 10_000),
    "no headers": answer_envelope(headers={}),
    "no token": answer_envelope(headers={"attempt": 1, "dispatch": 1}),
    "an attempt in words": with_header("attempt", "2"),
    "a negative attempt": with_header("attempt", -1),
    "an attempt of 33 bits": with_header("attempt", 2**32),
    "a dispatch of 65 bits": with_header("dispatch", 2**64),
    "a token that is a number": with_header("token", 1),
    "an unknown type": answer_envelope(type="answers"),
    "an empty type": answer_envelope(type=""),
}


@pytest.mark.parametrize("envelope", NOT_ANSWERS.values(), ids=NOT_ANSWERS)
def test_what_is_not_a_report_is_refused_as_a_bad_message(envelope: Envelope) -> None:
    with pytest.raises(BadMessage):
        open_report(envelope)


def changed(report: Any, **members: Any) -> Envelope:
    envelope: Envelope = report.seal()
    return replace(envelope, body=orjson.dumps(orjson.loads(envelope.body) | members))


def offer(**members: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "key": "A",
        "types": [],
        "description": "",
        "args_schema": None,
        "version": "",
    }
    return body | members


NOT_REPORTS: Mapping[str, Envelope] = {
    "progress beyond the end": changed(REPORTS[3], fraction=1.01),
    "progress before the start": changed(REPORTS[3], fraction=-0.01),
    "progress without a fraction": changed(REPORTS[3], fraction=None),
    "an ask without reply_to": replace(REPORTS[5].seal(), reply_to=None),
    "a hello with a lower-case key": changed(HELLO, offers=[offer(key="a")]),
    "a hello with a key too long": changed(HELLO, offers=[offer(key="A" * 101)]),
    "a hello with a key beyond ASCII": changed(HELLO, offers=[offer(key="Ä")]),
    "a hello with an offer that is a word": changed(HELLO, offers=["A"]),
    "a hello whose types are numbers": changed(HELLO, offers=[offer(types=[1])]),
    "a hello of a huge process": changed(HELLO, pid=2**40),
    "a hello of negative slots": changed(HELLO, slots=-1),
    "a hello that runs words": changed(HELLO, running=["A"]),
    "a hello whose inbox is too long": replace(HELLO.seal(), reply_to="i" * 256),
    "a hello whose inbox is beyond ASCII": replace(HELLO.seal(), reply_to="ü"),
    "a goodbye of nobody": changed(REPORTS[7], worker=None),
}


@pytest.mark.parametrize("envelope", NOT_REPORTS.values(), ids=NOT_REPORTS)
def test_what_the_store_could_not_take_is_refused(envelope: Envelope) -> None:
    """One report that breaks its transaction would come back, and break it, for ever."""
    with pytest.raises(BadMessage):
        open_report(envelope)


@given(body=st.binary(max_size=200), kind=st.sampled_from(["answer", "hello", "ask", "x"]))
def test_noise_is_refused_as_a_bad_message(body: bytes, kind: str) -> None:
    with pytest.raises(BadMessage):
        open_report(Envelope(type=kind, body=body, correlation_id="1", headers=TICKET.headers))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside),
    max_leaves=8,
)
openers: list[tuple[Callable[[Envelope], Any], Envelope]] = [
    *[(open_report, report.seal()) for report in REPORTS],
    (open_control, CONTROLS[1].seal()),
    (open_verdict, Verdict(ticket=TICKET, run=True).seal()),
    (open_task, TASK.seal("q")),
]


@given(opened=st.sampled_from(openers), data=st.data())
def test_any_member_of_another_kind_is_read_or_refused(
    opened: tuple[Callable[[Envelope], Any], Envelope], data: st.DataObject
) -> None:
    """Nothing but BadMessage comes out of a message, whatever is put in."""
    read, envelope = opened
    body = orjson.loads(envelope.body)
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(json_values)
    try:
        body_written = orjson.dumps(body)
    except TypeError:  # a lone surrogate in a text
        return

    try:
        read(replace(envelope, body=body_written))
    except BadMessage:
        return


# --- what is cut to size ----------------------------------------------------------------------


def test_texts_are_cut_to_what_the_store_takes() -> None:
    long = "ü" * (TEXT_LIMIT + 1)
    read = open_report(
        Answer(ticket=TICKET, state=500, message=long, response={}, worker=long).seal()
    )

    assert isinstance(read, Answer)
    assert len(read.message) == TEXT_LIMIT
    assert read.worker == "ü" * 200


@pytest.mark.parametrize(("said", "read"), [(-1.0, 0.0), (1e300, 1e9), (2, 2.0)])
def test_times_that_cannot_be_are_brought_into_range(said: float, read: float) -> None:
    """A clock that went backwards is no reason to lose an answer."""
    report = open_report(answer_envelope(answer_body(runtime=said)))

    assert isinstance(report, Answer)
    assert report.runtime == read


def nested(levels: int) -> dict[str, Any]:
    inside: dict[str, Any] = {}
    for _ in range(levels - 1):
        inside = {"a": inside}
    return inside


def test_a_response_nested_as_deep_as_can_be_written_again_is_taken() -> None:
    read = open_report(answer_envelope(answer_body(response=nested(200))))

    assert isinstance(read, Answer)
    assert (read.state, read.response) == (200, nested(200))


@pytest.mark.parametrize("levels", [220, 1000])
def test_a_response_nested_too_deep_fails_its_task(levels: int) -> None:
    """It could be read, but never written: not into the store, and not into an HTTP answer."""
    deep = b'{"a":' * levels + b"{}" + b"}" * levels
    body = answer_body().replace(b'"response":{}', b'"response":' + deep)

    read = open_report(answer_envelope(body))

    assert isinstance(read, Answer)
    assert (read.state, read.response) == (500, {})
    assert "nested" in read.message
