"""From what `work` returned or raised to an outcome that can travel."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from dane_core.message import RESPONSE_LIMIT, TEXT_LIMIT
from dane_core.outcome import Done, Failed, Outcome, Refused
from dane_core.states import ANSWERS, TaskState
from dane_core.worker.worker import Worker, strictness

_LONGEST_DELAY: Final = 86_400.0  # seconds
_FAILURES: Final = [number for number in ANSWERS if ANSWERS[number] is not TaskState.SUCCEEDED]


def read_args(worker: type[Worker], args: Mapping[str, Any]) -> tuple[BaseModel] | tuple[()]:
    """What `work` gets besides the task. Raises: Failed, with state 400, naming each fault."""
    if worker.Args is None:
        return ()
    try:
        return (worker.Args.model_validate_json(orjson.dumps(args), extra=strictness(worker.Args)),)
    except ValidationError as faults:
        raise Failed(clean_text(_listed(faults, "args")), 400) from None


def outcome_of(value: object, worker: type[Worker]) -> Outcome:
    """What it means that `work` returned `value`; never raises.

    A dict, a model, a dataclass or nothing is `Done`. DANE 0.1's answers, a dict or JSON
    string with `state` and `message`, are understood. The response that comes out is JSON,
    small enough to travel, and fits the worker's `Result` when it has one.
    """
    try:
        match _read(value):
            case Done() as done:
                response = _fitted(_json(done.response), worker.Result)
                return Done(_limited(response), clean_text(done.message))
            case Failed() as failed:
                return _checked_failure(failed)
            case Refused() as refused:
                return Refused(_delay(refused.delay), clean_text(refused.message))
    except _BadAnswer as fault:
        return Failed(clean_text(str(fault)))


def failure_of(error: BaseException) -> Failed:
    """The outcome of a `work` that raised something it did not mean as an answer."""
    text = str(error)
    name = type(error).__name__
    return Failed(clean_text(f"{name}: {text}" if text else name))


def clean_text(text: object, limit: int = TEXT_LIMIT) -> str:
    """A text that fits a message: no lone surrogates, no NUL, not too long."""
    whole = str(text)
    cut = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    return cut.encode(errors="replace").decode().replace("\0", "\ufffd")


class _BadAnswer(Exception):
    """What `work` returned cannot be taken as an answer."""


def _read(value: object) -> Outcome:
    match value:
        case Done() | Failed() | Refused():
            return value
        case None:
            return Done()
        case str() | bytes():
            return _read_mapping(_parsed(value))
        case BaseModel() | Mapping():
            return _read_mapping(value)
        case _ if dataclasses.is_dataclass(value):
            return Done(_json(value))
        case _:
            raise _BadAnswer(f"work returned {_a(value)}: expected a dict, a model, or nothing")


def _read_mapping(value: BaseModel | Mapping[str, Any]) -> Outcome:
    """A dict or model: the response itself, or a whole answer as DANE 0.1's workers gave it."""
    response = value if isinstance(value, dict) else _json(value)
    match response:
        case {"state": int(state), "message": str(message)} if not isinstance(state, bool):
            rest = {name: response[name] for name in response if name not in ("state", "message")}
            return Done(rest, message) if state == 200 else Failed(message, state, rest)
        case _:
            return Done(response)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise _BadAnswer("work returned a string that is not a JSON object")
    return value


def _delay(seconds: object) -> float:
    if isinstance(seconds, int | float) and seconds == seconds:  # noqa: PLR0124  NaN is not
        return float(min(max(seconds, 0.0), _LONGEST_DELAY))
    return Refused().delay


def _checked_failure(failed: Failed) -> Failed:
    message, state = str(failed.message), failed.state
    if state not in _FAILURES:
        message, state = f"{message} (with state {state}, which is no failure's)", 500
    try:
        response = _limited(_json(failed.response))
    except _BadAnswer as bad:
        message, response = f"{message}; {bad}", {}
    return Failed(clean_text(message), state, response)


def _json(value: object) -> dict[str, Any]:
    """The value as a JSON object; models, dates, paths, numpy's numbers … are turned."""
    try:
        plain = to_jsonable_python(value, fallback=_listable)
        text = orjson.dumps(plain)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise _BadAnswer(f"the answer is not JSON: {_first_fault(value) or error}") from None
    # orjson writes NaN as null, which would lose it in silence.
    if b"null" in text and (fault := _first_fault(plain)):
        raise _BadAnswer(f"the answer is not JSON: {fault}")
    if not isinstance(plain, dict):
        raise _BadAnswer(f"the answer is {_a(plain)}: expected a dict")
    return plain


def _limited(response: dict[str, Any]) -> dict[str, Any]:
    size = len(orjson.dumps(response))
    if size > RESPONSE_LIMIT:
        raise _BadAnswer(
            f"the response is {size:,} bytes and the limit is {RESPONSE_LIMIT:,}: "
            "write it to a file in out_folder and answer with its path"
        )
    return response


def _fitted(response: dict[str, Any], result: type[BaseModel] | None) -> dict[str, Any]:
    if result is None:
        return response
    try:
        fitting = result.model_validate_json(orjson.dumps(response), extra=strictness(result))
    except ValidationError as faults:
        raise _BadAnswer(f"the answer does not fit Result: {_listed(faults)}") from None
    return _json(fitting)


def _listable(value: object) -> object:
    """Numpy's and torch's numbers and arrays, without knowing them."""
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"{_a(value)} is not JSON")


def _first_fault(value: object, path: str = "response", depth: int = 0) -> str | None:
    """Where a value stops being JSON, in words."""
    if depth > 200:
        return f"{path[:80]}… is nested too deeply, or in itself"
    if isinstance(value, Mapping):
        inside = [(f"{path}.{name}", item) for name, item in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}"
    else:
        return None if _is_json(value) else f"{path} is {_oddity(value)}"
    faults = (_first_fault(item, where, depth + 1) for where, item in inside)
    return next(filter(None, faults), None)


def _is_json(value: object) -> bool:
    try:
        orjson.dumps(to_jsonable_python(value, fallback=_listable))
    except (PydanticSerializationError, TypeError, ValueError):
        return False
    return True


def _oddity(value: object) -> str:
    if isinstance(value, int):
        return "a number too large"
    return "text that is not Unicode" if isinstance(value, str) else _a(value)


def _a(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listed(faults: ValidationError, root: str = "") -> str:
    def where(loc: tuple[int | str, ...]) -> str:
        path = root
        for step in loc:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        return path

    return "; ".join(
        f"{where(fault['loc'])}: {fault['msg']}"
        for fault in faults.errors(include_url=False, include_context=False, include_input=False)
    )
