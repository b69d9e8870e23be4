"""How the server is, for those who watch it: its metrics, and what the doctor found last."""

from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from dane_server.api.answer import PREFIX, Answer
from dane_server.api.deps import TheRunner
from dane_server.runner.checks import Check

router = APIRouter(tags=["server"])


class DivergenceBody(TypedDict):
    """Something that does not agree between store, broker and workers."""

    check: Annotated[Check, Field(description="Which check found it: docs/operators.md.")]
    subject: str
    ids: Annotated[list[int], Field(description="The jobs or tasks that it is about.")]
    sentence: str
    advice: Annotated[str, Field(description="What repairs it.")]
    repaired: Annotated[bool, Field(description="Whether the server has done so.")]


class DoctorBody(TypedDict):
    """What the last round of checks found."""

    checked_at: Annotated[datetime | None, Field(description="null: none was made yet.")]
    divergences: list[DivergenceBody]


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(runner: TheRunner) -> Response:
    """Numbers for Prometheus, in its text format."""
    return Response(await runner.gauges.page(), media_type=CONTENT_TYPE_LATEST)


@router.get(f"{PREFIX}/doctor", responses={200: {"model": DoctorBody}})
async def get_doctor(runner: TheRunner) -> Response:
    """What the server's own checks found last: those of `dane doctor`, made all the time."""
    made = await runner.last_round()
    if made is None:
        return Answer(DoctorBody(checked_at=None, divergences=[]))
    divergences = [
        DivergenceBody(
            check=cast("Check", found.check),
            subject=found.subject,
            ids=list(found.ids),
            sentence=found.sentence,
            advice=found.advice,
            repaired=found.repaired,
        )
        for found in made.divergences
    ]
    return Answer(DoctorBody(checked_at=made.at, divergences=divergences))
