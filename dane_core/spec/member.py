"""What the objects of a specification may contain: types, ranges and texts, member by member.

The lengths of texts are settable, so the models are read with `Limits` as their context.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from dane_core.job import Retry
from dane_core.routing import MAX_PRIORITY, MEDIA_TYPE, TASK_KEY
from dane_core.spec.fault import Faults, Path, meant, shown
from dane_core.spec.node import Limits
from dane_core.spec.source import leaves_its_folder, requote
from dane_core.spec.strictjson import flaw_in, report_repeated

_RETRY: Final = Retry()
_DAY: Final = 86_400
_YEAR: Final = 366 * _DAY

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DIGITS: Final = re.compile("10|[0-9]")


def read_key(text: str, limits: Limits) -> str:
    """A task key in capitals. Raises: ValueError, with what was expected."""
    # Some letters beyond ASCII become ASCII in capitals: the ligature "ﬁ" becomes "FI".
    key = text.upper() if text.isascii() else ""
    if len(key) > limits.key or not TASK_KEY.fullmatch(key):
        raise ValueError(
            f"{shown(text)} is not a task key: expected 1 to {limits.key} letters A-Z, "
            "digits, '_' or '-'"
        )
    return key


def read_name(text: str, limits: Limits) -> str:
    """The name of a task or of a node in a graph. Raises: ValueError, with what was expected."""
    return _bounded(text, limits.name)


def _source_url(text: str, limits: Limits) -> str:
    # DANE 0.1 took the white space around it away too.
    return _bounded(requote(_bounded(text.strip(), limits.url)), limits.url)


def _source_id(text: str, limits: Limits) -> str:
    source_id = _bounded(text.strip(), limits.source_id)
    if leaves_its_folder(source_id):
        raise ValueError("has a step '.' or '..' in it, and folders are named after it")
    return source_id


def _media_type(text: str, limits: Limits) -> str:
    if len(text) > limits.type or not MEDIA_TYPE.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a type: expected 1 to {limits.type} letters a-z, "
            "digits, '_' or '-'"
        )
    return text


def _bounded(text: str, most: int) -> str:
    if not 1 <= len(text) <= most:
        raise ValueError(f"expected 1 to {most:,} characters, not {len(text):,}")
    if flaw := flaw_in(text):
        raise ValueError(flaw)
    if _CONTROL.search(text):
        raise ValueError("contains a control character")
    return text


def _from_digits(value: object) -> object:
    """DANE 0.1 stored a priority as a string, and sends it back as one."""
    digits = isinstance(value, str) and _DIGITS.fullmatch(value)
    return int(digits[0]) if digits else value


def _left_out(value: object) -> None:
    if value is not None:
        raise ValueError("DANE gives this itself; leave it out")


def _nothing(value: dict[Any, Any]) -> dict[Any, Any]:
    if value:
        raise ValueError("is written by workers; leave it out")
    return value


def _by(rule: Callable[[str, Limits], str]) -> AfterValidator:
    return AfterValidator(lambda text, info: rule(text, info.context))


Free: TypeAlias = Annotated[dict[Any, Any], WithJsonSchema({"type": "object"})]
Empty: TypeAlias = Annotated[
    dict[Any, Any],
    AfterValidator(_nothing),
    WithJsonSchema({"type": "object", "maxProperties": 0}),
]
Unset: TypeAlias = Annotated[None, BeforeValidator(_left_out)]
Priority: TypeAlias = Annotated[
    int,
    BeforeValidator(_from_digits),
    Field(ge=0, le=MAX_PRIORITY),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_PRIORITY},
                {"type": "string", "pattern": f"^({_DIGITS.pattern})$"},
            ]
        }
    ),
]


class _Members(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RetryMembers(_Members):
    """How a task that failed for now (502, 503, 504) is tried again by itself."""

    limit: Annotated[int, Field(ge=0, le=100)] = _RETRY.limit
    """How many times at most."""
    delay: Annotated[float, Field(ge=0, le=_DAY)] = _RETRY.delay
    """Seconds before the first time."""
    factor: Annotated[float, Field(ge=1, le=10)] = _RETRY.factor
    """By how much the delay grows each time."""
    max_delay: Annotated[float, Field(ge=0, le=7 * _DAY)] = _RETRY.max_delay
    """Seconds beyond which it does not grow."""


class TaskMembers(_Members):
    """One piece of work, for the workers of one task key."""

    task_key: Annotated[str, _by(read_key)]
    """The workers' key; small letters are made capitals."""
    name: Annotated[str, _by(read_name)] | None = None
    """A name of your own, unique in the job."""
    args: Free | None = None
    """What the worker is told, as its schema says."""
    priority: Priority | None = None
    """Higher goes first; that of the job when left out."""
    timeout: Annotated[float, Field(gt=0, le=_YEAR)] | None = None
    """Seconds it may run; for ever when left out."""
    retry: RetryMembers | None = None
    """How it is tried again; as the server is set when left out."""
    allow_failure: bool | None = None
    """Whether what comes after it runs even if it failed."""
    task_id: Unset = None
    """Written by DANE."""
    task_state: Unset = None
    """Written by DANE."""
    task_msg: Unset = None
    """Written by DANE."""
    job_id: Unset = None
    """Written by DANE."""


class JobMembers(_Members):
    """One source, and the tasks to do on it."""

    source_url: Annotated[str, _by(_source_url)]
    """URL or path of the source."""
    source_id: Annotated[str, _by(_source_id)]
    """Its id within the collection; always the same URL for the same id."""
    source_set: str | None = None
    """Written by DANE 0.1; ignored."""
    type: Annotated[str, _by(_media_type)] | None = None
    """What kind of source it is (video, image, sound, text, …), for routing."""
    tasks: Any
    """The graph of tasks."""
    metadata: Free | None = None
    """Anything worth finding the job by."""
    priority: Priority | None = None
    """Higher goes first; 1 when left out."""
    job_id: Unset = None
    """Written by DANE."""
    response: Empty | None = None
    """Written by DANE."""


M = TypeVar("M", JobMembers, TaskMembers, RetryMembers)


@dataclass(frozen=True, slots=True)
class Reading:
    """What goes along with the reading of one specification."""

    limits: Limits
    faults: Faults


def read_members(model: type[M], value: object, path: Path, reading: Reading) -> M | None:
    """Read an object by its model; None after its faults were noted."""
    faults = reading.faults
    if not isinstance(value, dict):
        faults.add(path, "expected an object")
        return None
    report_repeated(value, path, faults)
    report_unknown(value, model.model_fields, path, faults)
    known = {name: value[name] for name in model.model_fields if name in value}
    if known.get("retry") is not None:  # on its own, for the faults pydantic does not see
        known["retry"] = read_members(RetryMembers, known["retry"], (path, "retry"), reading)
    try:
        return model.model_validate(known, context=reading.limits)
    except ValidationError as bad:
        for error in bad.errors(include_url=False, include_input=False):
            faults.add(_inside(path, error["loc"]), _said(error))
        return None


def report_unknown(
    value: Mapping[Any, Any], known: Collection[str], path: Path, faults: Faults
) -> None:
    """Note every member that nobody expects."""
    for name in value:
        if name not in known:
            faults.add((path, str(name)), f"unknown{meant(str(name), known)}")


def _inside(path: Path, steps: Iterable[str | int]) -> Path:
    for step in steps:
        path = (path, step)
    return path


def _said(error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return "missing"
        case "dict_type":
            return "expected an object"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return error["msg"].replace("Input should be", "expected", 1)
