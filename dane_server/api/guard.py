"""What every request passes first. Plain ASGI, so that nothing here can cancel a route's work."""

import ipaddress
import logging
import secrets
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dane_server.api.problems import Rejection, broken, refuse

logger = logging.getLogger(__name__)

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

#: Bytes of an address, or of all headers.
MOST_IN_FRONT: Final = 32 * 1024

#: A browser shows nothing of ours but what a route allows by its own policy.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LastResort:
    """Turns an exception that nobody expected into one log entry and a 500 that leaks nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if begun or scope["type"] != "http":
                raise  # the server cuts the connection, and logs it
            incident = secrets.token_hex(6)
            logger.exception("%s %s failed: incident %s", scope["method"], scope["path"], incident)
            await broken(incident)(scope, receive, send)


class SafeHeaders:
    """Adds the headers that tell browsers to keep their hands off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, dressed if scope["type"] == "http" else send)


class HeadAsGet:
    """Answers HEAD like GET, without the body. `dane.head` in the scope tells who must know."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self.app({**scope, "method": "GET", "dane.head": True}, receive, bodiless)


class WellFormed:
    """Refuses what servers in a row may read differently (smuggling), and too much in front."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (flaw := _flaw(scope)):
            await refuse(flaw)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class KnownHost:
    """Refuses requests for a host that is not this server's.

    A page whose name is made to point at this machine (DNS rebinding) is same-origin for the
    browser, but cannot hide its own name. Requests without a Host (HTTP/1.0 health checks)
    come from no browser.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = Headers(scope=scope).getlist("host")
            if not all(self._is_ours(hostname(host)) for host in hosts):
                await refuse(foreign_host())(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        return name in self.names or cannot_be_rebound(name)


class SameOrigin:
    """Refuses changes that a page of another site sends from a visitor's browser (CSRF).

    `origins` are this server's own, besides the one the request came to: those a proxy has.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self.app = app
        self.origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            if is_foreign(headers, self.origins):
                await refuse(foreign_page())(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _flaw(scope: Scope) -> Rejection | None:
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        message = "given together with Content-Length"
        closing = {"Connection": "close"}  # who knows where the next request begins
        return Rejection(400, "header.Transfer-Encoding", message, headers=closing)
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MOST_IN_FRONT:
        return Rejection(414, "path", f"longer than {MOST_IN_FRONT:,} bytes")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_IN_FRONT:
        return Rejection(431, "header", f"more than {MOST_IN_FRONT:,} bytes")
    return None


def is_foreign(headers: Headers, origins: frozenset[str] = frozenset()) -> bool:
    """Whether a browser says that a page of another origin made it send this."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    host = headers.get("host", "").lower()
    own = origins | {f"http://{host}", f"https://{host}"}
    return any(origin.lower() not in own for origin in headers.getlist("origin"))


def is_from_page(headers: Headers) -> bool:
    """Whether a browser's page may have sent this: scripts and tools send neither header."""
    return "origin" in headers or any(name.startswith("sec-fetch-") for name in headers)


def cannot_be_rebound(name: str) -> bool:
    """Whether a host is a number, or a name that means this machine whatever DNS says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def hostname(authority: str) -> str:
    """`host` of `host:port`, in lower case, without brackets; empty if there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def foreign_page() -> Rejection:
    return Rejection(403, "header.Origin", "a page of another origin may not change anything here")


def foreign_host() -> Rejection:
    return Rejection(
        421,
        "header.Host",
        "names another server; this one answers to numbers, localhost, DANE.HOST and the host "
        "of DANE.API_URL",
    )
