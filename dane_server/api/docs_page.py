"""A page to read and try the API on, from this server alone: Swagger UI, without any CDN."""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from dane_server.api.answer import PREFIX

router = APIRouter(prefix=PREFIX, include_in_schema=False)

#: Scripts and styles from here only, none of them inline. Swagger UI draws icons from data URLs.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

_OURS: Final = files("dane_server.api") / "static"
_THEIRS: Final = files("fastapi_offline") / "static"

_ASSETS: Final = {
    "docs.css": _OURS,
    "docs.js": _OURS,
    "swagger-ui-bundle.js": _THEIRS,
    "swagger-ui.css": _THEIRS,
}


@router.get("/docs")
@router.get("/docs/")
async def get_page() -> Response:
    """The page."""
    return FileResponse(str(_OURS / "docs.html"), headers=HEADERS)


@router.get("/docs/{asset}")
async def get_asset(asset: str) -> Response:
    """A part of the page."""
    if asset not in _ASSETS:
        raise HTTPException(404)
    return FileResponse(str(_ASSETS[asset] / asset), headers=HEADERS)
