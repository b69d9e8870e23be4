"""Owners: who has asked for jobs, what share each has, and how much of theirs may be open."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from dane_server.api.answer import PREFIX, Answer, OwnerBody, OwnersPage
from dane_server.api.change import OwnerChange, TheOwnerChange, described
from dane_server.api.deps import Limit, OwnerName, TheRunner
from dane_server.api.jobs import next_page
from dane_server.api.openapi import problems
from dane_server.storage.view import OwnerState

router = APIRouter(prefix=PREFIX, tags=["owners"])

_Name = Annotated[OwnerName, Path(description="The owner's name; nobody in particular has none.")]


@router.get("/owners", responses={200: {"model": OwnersPage}, **problems(422)})
async def list_owners(
    request: Request,
    runner: TheRunner,
    limit: Limit = 500,
    after: Annotated[
        str | None, Field(max_length=100), Query(description="From the `next` of the page before.")
    ] = None,
) -> Response:
    """Whoever has asked for a job, or was given a share, in the order of their names."""
    found = await runner.owners(after=after, limit=limit)
    following = next_page(request, after=found[-1].name) if len(found) == limit else None
    return Answer(OwnersPage(owners=[_owner(one) for one in found], next=following))


@router.put(
    "/owners/{name:path}",
    openapi_extra=described(OwnerChange),
    responses={200: {"model": OwnerBody}, **problems(413, 415, 422)},
)
async def change_owner(name: _Name, change: TheOwnerChange, runner: TheRunner) -> Response:
    """Give an owner another share, or another bound. In force at once.

    What is left out stays as it is.
    """
    return Answer(_owner(await runner.change_owner(name, change.given())))


def _owner(state: OwnerState) -> OwnerBody:
    return OwnerBody(
        owner=state.name, weight=state.weight, max_open=state.max_open, open=state.open
    )
