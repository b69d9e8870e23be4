"""What a browser can be made to send by somebody else's page does not get in."""

import httpx
import pytest
from starlette.datastructures import Headers

from dane_server.api.guard import cannot_be_rebound, hostname, is_foreign
from tests.server.api.served import Serve

SPEC = b'{"source_url": "x", "source_id": "1", "tasks": "NOOP"}'
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("authority", "ours"),
    [
        ("127.0.0.1:5500", True),
        ("localhost", True),
        ("LOCALHOST:5500", True),
        ("dane.localhost", True),
        ("[::1]:5500", True),
        ("192.168.1.7:5500", True),  # a number cannot be made to point elsewhere
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_host_is_ours_if_nobody_can_point_it_here(authority: str, ours: bool) -> None:  # noqa: FBT001
    assert cannot_be_rebound(hostname(authority)) is ours


async def test_a_host_given_in_the_settings_is_ours(serve: Serve) -> None:
    """A proxy in front has a name of its own, and so have its pages."""
    dane = await serve(DANE={"API_URL": "https://dane.example.org"})
    proxied = {"Host": "dane.example.org", "Origin": "https://dane.example.org"}

    answer = await dane.http.post("/DANE/job", content=SPEC, headers={**JSON, **proxied})
    rewritten = await dane.http.post(
        "/DANE/job", content=SPEC, headers={**JSON, "Origin": "https://dane.example.org"}
    )

    assert (answer.status_code, rewritten.status_code) == (201, 201)


async def test_a_request_without_a_host_is_no_browsers(http: httpx.AsyncClient) -> None:
    """Old health checks speak HTTP/1.0 and name no host."""
    request = http.build_request("GET", "/DANE/health")
    del request.headers["host"]

    assert (await http.send(request)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"origin": "http://127.0.0.1:5500"}, False),
        ({"origin": "https://127.0.0.1:5500"}, False),
        ({"origin": "HTTP://127.0.0.1:5500"}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://127.0.0.1"}, True),
        ({"origin": "http://localhost:5500"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "chrome-extension://127.0.0.1:5500"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
    ],
)
def test_a_page_is_foreign_unless_it_is_of_the_same_origin(
    headers: dict[str, str],
    foreign: bool,  # noqa: FBT001
) -> None:
    assert is_foreign(Headers({"host": "127.0.0.1:5500", **headers})) is foreign


async def test_our_own_page_may_submit(http: httpx.AsyncClient) -> None:
    own = {"Origin": "http://127.0.0.1:5500", "Sec-Fetch-Site": "same-origin"}

    answer = await http.post("/DANE/job", content=SPEC, headers={**JSON, **own})

    assert answer.status_code == 201


@pytest.mark.parametrize("url", ["/DANE/health", "/DANE/job/9", "/nowhere", "/DANE/docs"])
async def test_every_answer_tells_browsers_to_keep_their_hands_off(
    http: httpx.AsyncClient, url: str
) -> None:
    """Errors and refusals too; and no other site may read any of it."""
    for headers in ({}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        answer = await http.get(url, headers=headers)

        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_head_is_get_without_the_body(http: httpx.AsyncClient) -> None:
    """Load balancers ask like that."""
    whole, head = await http.get("/DANE/limits"), await http.head("/DANE/limits")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers


async def test_a_preflight_gets_no_permission(http: httpx.AsyncClient) -> None:
    answer = await http.options(
        "/DANE/job",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )

    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers
