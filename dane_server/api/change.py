"""Small bodies that say what is to be changed, read strictly: every fault with its member."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dane_core.errors import BadSpec, Fault
from dane_core.routing import MAX_PRIORITY
from dane_server.api.body import JSON, media_type, read_body

C = TypeVar("C", bound="Change")

_MOST_BYTES: Final = 4096
_MOST: Final = 2**31 - 1


class Change(BaseModel):
    """What may be changed together; members left out stay as they are."""

    model_config: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def given(self) -> dict[str, Any]:
        """The members that were given, null among them."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class PriorityChange(Change):
    """How urgent it is: higher goes first."""

    priority: int = Field(ge=0, le=MAX_PRIORITY)


class LimitsChange(Change):
    """How much of a task key may be under way over all servers; null takes a limit away.

    `concurrency` is how many tasks may be sent or running at once, `rate` how many are sent in
    a second, and `burst` how many of those together.
    """

    concurrency: int | None = Field(default=None, ge=1, le=_MOST)
    rate: float | None = Field(default=None, ge=1e-6, le=1e6)
    burst: int | None = Field(default=None, ge=1, le=_MOST)


class OwnerChange(Change):
    """An owner's share next to others, and how many of its tasks may be open.

    With null for `max_open` it may have as many as any owner.
    """

    weight: int = Field(default=1, ge=1, le=1000)
    max_open: int | None = Field(default=None, ge=1, le=_MOST)


def _reading(kind: type[C]) -> Callable[[Request], Any]:
    async def read(request: Request) -> C:
        media_type(request, {JSON})
        raw = await read_body(request, _MOST_BYTES)
        try:
            change = kind.model_validate_json(raw)
        except ValidationError as error:
            raise BadSpec([_fault(item) for item in error.errors(include_url=False)]) from None
        if not change.model_fields_set:
            names = " or ".join(kind.model_fields)
            raise BadSpec([Fault("", f"says nothing; expected {names}")])
        return change

    return read


def _fault(item: Any) -> Fault:
    message = str(item["msg"])
    path = ".".join(str(part) for part in item["loc"])
    return Fault(path, message[:1].lower() + message[1:])


def described(kind: type[Change]) -> dict[str, Any]:
    """What a route says in the published contract of the body that it reads."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


ThePriority = Annotated[PriorityChange, Depends(_reading(PriorityChange))]
TheLimitsChange = Annotated[LimitsChange, Depends(_reading(LimitsChange))]
TheOwnerChange = Annotated[OwnerChange, Depends(_reading(OwnerChange))]
