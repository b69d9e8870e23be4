"""What a specification may hold, for clients that check before they send."""

from dataclasses import fields

from fastapi import APIRouter
from starlette.responses import Response

from dane_core.routing import MAX_PRIORITY, MEDIA_TYPE, TASK_KEY
from dane_core.spec import Limits
from dane_core.states import MEANINGS
from dane_server.api.answer import PREFIX, Answer, LimitsBody
from dane_server.api.deps import TheLimits, TheSettings
from dane_server.api.openapi import problems
from dane_server.settings import ServerSettings

router = APIRouter(prefix=PREFIX, tags=["server"])


def limits_of(settings: ServerSettings) -> Limits:
    """The limits as the operator has set them."""
    chosen = settings.LIMITS.model_dump()
    return Limits(**{field.name: chosen[field.name.upper()] for field in fields(Limits)})


@router.get("/limits", responses={200: {"model": LimitsBody}, **problems()})
async def get_limits(limits: TheLimits, settings: TheSettings) -> Response:
    """The limits of this server, and what the numbers of task states mean."""
    return Answer(
        LimitsBody(
            tasks=limits.tasks,
            depth=limits.depth,
            body=limits.body,
            args=limits.args,
            metadata=limits.metadata,
            url=limits.url,
            source_id=limits.source_id,
            key=limits.key,
            name=limits.name,
            type=limits.type,
            batch_body=settings.API.BATCH_BODY,
            open_tasks=settings.LIMITS.OPEN_TASKS,
            open_tasks_per_owner=settings.LIMITS.OPEN_TASKS_PER_OWNER,
            page=500,
            priority=MAX_PRIORITY,
            task_key=TASK_KEY.pattern,
            media_type=MEDIA_TYPE.pattern,
            states={str(number): meaning for number, meaning in MEANINGS.items()},
        )
    )
