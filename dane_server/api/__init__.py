"""HTTP: translates between JSON and the runner and reader, and nothing more."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI

from dane_core.exchange.base import Exchange
from dane_server.api import (
    batch,
    docs_page,
    health,
    jobs,
    legacy,
    limits,
    metrics,
    owners,
    submit,
    tasks,
    workers,
)
from dane_server.api.answer import PREFIX
from dane_server.api.deps import Parts, only_known_parameters
from dane_server.api.guard import (
    HeadAsGet,
    KnownHost,
    LastResort,
    SafeHeaders,
    SameOrigin,
    WellFormed,
)
from dane_server.api.openapi import publish
from dane_server.api.problems import answer_problems
from dane_server.runner.runner import Runner
from dane_server.settings import ServerSettings
from dane_server.storage.reader import Reader

_DESCRIPTION = "Routes compute-heavy tasks to the machines that can do them, and never loses one."
_ROOMS = (submit, batch, jobs, tasks, workers, owners, limits, health, metrics)


def create_api(
    *, runner: Runner, reader: Reader, settings: ServerSettings, exchange: Exchange
) -> FastAPI:
    """The API as an ASGI application. It opens nothing and starts nothing."""
    app = FastAPI(
        title="DANE",
        description=_DESCRIPTION,
        version=health.VERSION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    allowed = limits.limits_of(settings)
    app.state.parts = Parts(
        runner=runner, reader=reader, settings=settings, exchange=exchange, limits=allowed
    )
    answer_problems(app)
    for room in _ROOMS:
        app.include_router(room.router, dependencies=[Depends(only_known_parameters)])
    if settings.COMPAT.GET_ACTIONS:
        app.include_router(legacy.router)
    app.include_router(docs_page.router)
    _guard(app, settings)
    publish(app, allowed)
    return app


def _guard(app: FastAPI, settings: ServerSettings) -> None:
    """The first to be added is the innermost."""
    proxy = urlsplit(settings.DANE.API_URL or "")
    app.add_middleware(SameOrigin, origins=[f"{proxy.scheme}://{proxy.netloc}"])
    app.add_middleware(KnownHost, names=_names(settings))
    app.add_middleware(WellFormed)
    app.add_middleware(HeadAsGet)
    app.add_middleware(LastResort)
    app.add_middleware(SafeHeaders)


def _names(settings: ServerSettings) -> Iterator[str]:
    yield settings.DANE.HOST
    if public := urlsplit(settings.DANE.API_URL or "").hostname:
        yield public
