"""What `work` may return or raise, and what that makes of its task."""

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dane_core import Done, Failed, Refused, Worker
from dane_core.message import RESPONSE_LIMIT
from dane_core.outcome import Outcome
from dane_core.worker.answer import clean_text, failure_of, outcome_of, read_args


class Plain(Worker):
    key = "ANY"


class Sized(Worker):
    key = "SIZED"

    class Args(BaseModel):
        width: int = 1
        names: tuple[str, ...] = ()

    class Result(BaseModel):
        size: int
        unit: str = "B"


class Point(BaseModel):
    x: float
    at: datetime


@dataclass
class Shot:
    start: float
    path: Path


class Array:
    """As numpy's: a thing with `tolist`."""

    def tolist(self) -> list[float]:
        return [0.5, 1.5]


def done(value: object, worker: type[Worker] = Plain) -> dict[str, Any]:
    outcome = outcome_of(value, worker)
    assert isinstance(outcome, Done), outcome
    return dict(outcome.response)


def failed(value: object, worker: type[Worker] = Plain) -> Failed:
    outcome = outcome_of(value, worker)
    assert isinstance(outcome, Failed), outcome
    return outcome


@pytest.mark.parametrize(
    ("value", "response"),
    [
        (None, {}),
        ({}, {}),
        ({"a": [1, None, "é"]}, {"a": [1, None, "é"]}),
        (Point(x=1, at=datetime(2026, 1, 2, tzinfo=UTC)), {"x": 1.0, "at": "2026-01-02T00:00:00Z"}),
        (Shot(2.5, Path("/a")), {"start": 2.5, "path": "/a"}),
        ({"points": [Shot(1, Path("b"))]}, {"points": [{"start": 1, "path": "b"}]}),
        ({"scores": Array()}, {"scores": [0.5, 1.5]}),
        ({1: "one", "set": {3}, "tuple": (1, 2)}, {"1": "one", "set": [3], "tuple": [1, 2]}),
        (Done({"a": 1}, "fine"), {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        (b'{"a": 1}', {"a": 1}),
        ({"state": "CA", "message": "hi"}, {"state": "CA", "message": "hi"}),
        ({"state": 200}, {"state": 200}),
        ({"state": True, "message": "hi"}, {"state": True, "message": "hi"}),
    ],
)
def test_what_can_be_json_is_a_response(value: object, response: dict[str, Any]) -> None:
    assert done(value) == response


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ({"state": 200, "message": "Yes", "a": 1}, Done({"a": 1}, "Yes")),
        ('{"state": 200, "message": "Yes"}', Done({}, "Yes")),
        ({"state": 404, "message": "gone"}, Failed("gone", 404)),
        ('{"state": 503, "message": "later", "a": 1}', Failed("later", 503, {"a": 1})),
    ],
)
def test_the_answers_of_dane_0_1_are_understood(value: object, outcome: Outcome) -> None:
    assert repr(outcome_of(value, Plain)) == repr(outcome)


@pytest.mark.parametrize("state", [200, 201, 102, 418, -1, 0, "404", None, [404]])
def test_a_failure_with_a_number_that_is_none_fails_with_500(state: Any) -> None:
    failure = failed(Failed("odd", state))

    assert failure.state == 500
    assert f"state {state}" in failure.message


@pytest.mark.parametrize("state", [400, 403, 404, 422, 499, 500, 502, 503, 504])
def test_a_failure_keeps_the_numbers_of_the_contract(state: int) -> None:
    assert failed(Failed("as said", state)).state == state


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ({"a": [{"model": object()}]}, "response.a[0].model is an object"),
        ({"f": lambda: 1}, "response.f is a function"),
        ({"score": math.nan}, "response.score is nan"),
        ({"a": None, "b": [1.0, math.inf]}, "response.b[1] is inf"),
        ({"n": 2**70}, "response.n is a number too large"),
        ({"text": "\ud800"}, "response.text is text that is not Unicode"),
        ([1, 2], "a list"),
        (7, "an int"),
        (True, "a bool"),
        ("hello", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (object(), "an object"),
    ],
)
def test_what_cannot_be_json_fails_and_is_named(value: object, hint: str) -> None:
    """ "Object of type X is not JSON serializable" helps nobody find it in a large answer."""
    failure = failed(value)

    assert failure.state == 500
    assert hint in failure.message


def test_an_answer_that_contains_itself_fails() -> None:
    value: dict[str, Any] = {}
    value["again"] = value

    assert "deeply" in failed(value).message


def test_a_response_over_the_limit_fails_and_names_the_limit() -> None:
    fits = {"text": "x" * (RESPONSE_LIMIT - len('{"text":""}'))}
    over = {"text": fits["text"] + "x"}

    assert done(fits) == fits
    assert f"{RESPONSE_LIMIT:,}" in failed(over).message


def test_a_failure_keeps_its_message_when_its_response_is_no_json() -> None:
    failure = failed(Failed("no faces", 400, {"why": object()}))

    assert failure.state == 400
    assert failure.message.startswith("no faces; ")
    assert failure.response == {}


def test_an_answer_is_checked_against_the_result_model_and_completed_by_it() -> None:
    assert done({"size": 3}, Sized) == {"size": 3, "unit": "B"}
    assert "Result: size" in failed({"size": "many"}, Sized).message
    assert "Result: sise" in failed({"size": 3, "sise": 3}, Sized).message
    assert "Result: size" in failed(None, Sized).message


@pytest.mark.parametrize(
    ("said", "meant"),
    [(5, 5.0), (-5, 0.0), (math.inf, 86_400.0), (math.nan, 1.0), ("soon", 1.0), (None, 1.0)],
)
def test_a_refusal_waits_a_time_that_can_be_told(said: Any, meant: float) -> None:
    outcome = outcome_of(Refused(said, "hot"), Plain)

    assert isinstance(outcome, Refused)
    assert (outcome.delay, outcome.message) == (meant, "hot")


def test_arguments_become_the_model_as_json_would() -> None:
    args = read_args(Sized, {"width": 2, "names": ["a", "b"]})

    assert args == (Sized.Args(width=2, names=("a", "b")),)


def test_every_wrong_argument_is_named() -> None:
    with pytest.raises(Failed) as refused:
        read_args(Sized, {"width": "wide", "names": ["a", 2], "heigth": 3})

    assert refused.value.state == 400
    for path in ("args.width: ", "args.names[1]: ", "args.heigth: "):
        assert path in refused.value.message


def test_without_a_model_any_arguments_pass() -> None:
    assert read_args(Plain, {"anything": 1}) == ()


def test_an_exception_becomes_its_type_and_text() -> None:
    assert failure_of(ValueError("bad")).message == "ValueError: bad"
    assert failure_of(asyncio.CancelledError()).message == "CancelledError"
    assert len(failure_of(ValueError("x" * 100_000)).message) == 8 * 1024


@given(st.text(st.characters(), max_size=50))
def test_any_text_can_be_put_in_a_message(text: str) -> None:
    """File names that are not Unicode come with lone surrogates; one must not stop an answer."""
    cleaned = clean_text(text)

    assert orjson.loads(orjson.dumps(cleaned)) == cleaned
    assert "\0" not in cleaned


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values))
def test_json_comes_through_unchanged(value: dict[str, Any]) -> None:
    if not {"state", "message"} <= set(value):
        assert done(value) == value
