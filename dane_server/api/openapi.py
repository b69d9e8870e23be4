"""The published contract: OpenAPI as the routes say it, with what they cannot say added."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from dane_core.spec import Limits, job_schema
from dane_server.api.body import JSON, NDJSON
from dane_server.api.problems import MEDIA_TYPE, Problem

_REFS: Final = "#/components/schemas/{model}"
#: What a client sends is named apart from what it gets: both have jobs and tasks.
_SPEC_NAME: Final = "Spec{model}"
_SPEC: Final = {"$ref": _REFS.format(model=_SPEC_NAME.format(model="Job"))}
_PROBLEM: Final = {MEDIA_TYPE: {"schema": {"$ref": _REFS.format(model="Problem")}}}

_ONCE: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request sent again with the same key gives the job of the first one.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

#: What POST /DANE/job takes, which it reads more strictly than FastAPI would.
JOB_REQUEST: Final[dict[str, Any]] = {
    "parameters": [_ONCE],
    "requestBody": {"required": True, "content": {JSON: {"schema": _SPEC}}},
}
#: What POST /DANE/jobs takes.
BATCH_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"type": "array", "items": _SPEC}},
            NDJSON: {"schema": {"type": "string", "description": "A specification per line."}},
        },
    }
}

_WHEN: Final[Mapping[int, str]] = {
    404: "There is no such thing.",
    409: "The present state does not allow this, or the source_id has another source_url.",
    413: "Too long.",
    415: "Not the media type that was expected.",
    429: "So much is to be done already that no more is taken in; `Retry-After` says when to ask.",
    422: "Something in the request is wrong; `errors` says what, and where.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems a route may answer with, besides those that any route may."""
    return {
        status: {"description": _WHEN.get(status, HTTPStatus(status).phrase), "content": _PROBLEM}
        for status in statuses
    }


def publish(app: FastAPI, limits: Limits) -> None:
    """Make `app.openapi()` the whole contract. To be called once all routes are there."""
    contract = _contract(app, limits)
    app.openapi = lambda: contract  # type: ignore[method-assign]  # FastAPI's documented way


def _contract(app: FastAPI, limits: Limits) -> dict[str, Any]:
    contract = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = contract["components"]["schemas"]
    spec = job_schema(limits, refs=_REFS.format(model=_SPEC_NAME))
    definitions = {**spec.pop("$defs"), "Job": spec}
    schemas |= {_SPEC_NAME.format(model=name): made for name, made in definitions.items()}
    schemas["Problem"] = TypeAdapter(Problem).json_schema(ref_template=_REFS)
    schemas |= schemas["Problem"].pop("$defs")
    for operations in contract["paths"].values():
        for operation in operations.values():
            operation["responses"]["default"] = {"description": "A problem.", "content": _PROBLEM}
    return contract
