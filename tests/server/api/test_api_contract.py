"""What is published is what happens, and the page that shows it needs no internet."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from dane_core.spec import job_schema
from tests.server.api.served import Served

SPEC = {
    "source_url": "x",
    "source_id": "1",
    "tasks": {"taskSequential": ["A", {"Task": {"task_key": "B", "name": "b", "timeout": 5}}]},
}


@pytest.fixture
async def contract(http: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await http.get("/DANE/openapi.json")).json())


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inside in node.values():
            yield from references(inside)
    elif isinstance(node, list):
        for inside in node:
            yield from references(inside)


def test_every_reference_leads_somewhere(contract: dict[str, Any]) -> None:
    """And nothing that is sent shares a name with something that is answered."""
    schemas = contract["components"]["schemas"]

    assert {ref.removeprefix("#/components/schemas/") for ref in references(contract)} <= set(
        schemas
    )
    assert {f"Spec{name}" for name in job_schema()["$defs"]} <= set(schemas)


def test_a_specification_is_described_as_it_is_read(contract: dict[str, Any]) -> None:
    [body] = contract["paths"]["/DANE/job"]["post"]["requestBody"]["content"].values()
    schema = {**body["schema"], "components": contract["components"]}

    jsonschema.validate(SPEC, schema)
    for wrong in ({}, {**SPEC, "colour": 1}, {**SPEC, "tasks": {"taskSequential": []}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_every_route_says_how_it_fails(contract: dict[str, Any]) -> None:
    for path, operations in contract["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert "application/problem+json" in answers["default"]["content"], (path, method)
            assert operation["description"], (path, method)
            if "{" in path:
                assert {"404", "422"} & answers.keys(), (path, method)
            assert not re.search("HTTPValidationError", json.dumps(operation))


@pytest.mark.parametrize(
    ("method", "url", "template"),
    [
        ("POST", "/DANE/job", "/DANE/job"),
        ("POST", "/DANE/jobs", "/DANE/jobs"),
        ("GET", "/DANE/jobs", "/DANE/jobs"),
        ("GET", "/DANE/job/1", "/DANE/job/{job_id}"),
        ("GET", "/DANE/job/1?tasks=false", "/DANE/job/{job_id}"),
        ("GET", "/DANE/job/1?shape=0.1", "/DANE/job/{job_id}"),
        ("GET", "/DANE/job/1/tasks", "/DANE/job/{job_id}/tasks"),
        ("GET", "/DANE/job/inprogress", "/DANE/job/inprogress"),
        ("GET", "/DANE/search/1", "/DANE/search/{source_id}"),
        ("POST", "/DANE/job/1/retry", "/DANE/job/{job_id}/retry"),
        ("POST", "/DANE/job/1/cancel", "/DANE/job/{job_id}/cancel"),
        ("POST", "/DANE/job/9/cancel", "/DANE/job/{job_id}/cancel"),
        ("GET", "/DANE/job/0", "/DANE/job/{job_id}"),
        ("GET", "/DANE/task/1", "/DANE/task/{task_id}"),
        ("GET", "/DANE/task/1?shape=0.1", "/DANE/task/{task_id}"),
        ("GET", "/DANE/task/1/explain", "/DANE/task/{task_id}/explain"),
        ("GET", "/DANE/task/1/upstream?key=A", "/DANE/task/{task_id}/upstream"),
        ("POST", "/DANE/task/1/reset", "/DANE/task/{task_id}/reset"),
        ("GET", "/DANE/workers", "/DANE/workers"),
        ("POST", "/DANE/workers/A/pause", "/DANE/workers/{key}/pause"),
        ("POST", "/DANE/workers/A/retry?state=500", "/DANE/workers/{key}/retry"),
        ("GET", "/DANE/limits", "/DANE/limits"),
        ("GET", "/DANE/ready", "/DANE/ready"),
        ("GET", "/DANE/doctor", "/DANE/doctor"),
    ],
)
async def test_answers_are_as_published(
    dane: Served, contract: dict[str, Any], method: str, url: str, template: str
) -> None:
    """Each with its status, its media type and its schema."""
    await dane.http.post("/DANE/job", json=SPEC)
    bodies: dict[str, Any] = {"/DANE/job": SPEC, "/DANE/jobs": [SPEC, {}]}
    sent = {"json": bodies[url]} if method == "POST" and url in bodies else {}

    answer = await dane.http.request(method, url, **sent)

    published = contract["paths"][template][method.lower()]["responses"]
    content = published[str(answer.status_code)]["content"]
    schema = content[answer.headers["content-type"]]["schema"]
    jsonschema.validate(
        answer.json(),
        {**schema, "components": contract["components"]},
        format_checker=jsonschema.FormatChecker(),
    )


async def test_the_page_asks_nobody_but_this_server(http: httpx.AsyncClient) -> None:
    """It works where there is no internet, and its policy lets nothing else in."""
    page = await http.get("/DANE/docs")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert all(part.startswith(("/DANE/", "data:")) for part in parts)
    for part in parts:
        if part.startswith("/DANE/"):
            assert (await http.get(part)).status_code == 200, part
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


async def test_the_page_says_nothing_to_others(http: httpx.AsyncClient) -> None:
    script = (await http.get("/DANE/docs/docs.js")).text

    assert "validatorUrl: null" in script
    assert (await http.get("/DANE/docs/docs.js")).headers["content-type"].startswith("text/javasc")


@pytest.mark.parametrize("part", ["redoc.standalone.js", "..%2fdocs.html", "docs.html", "x"])
async def test_the_page_has_no_other_parts(http: httpx.AsyncClient, part: str) -> None:
    assert (await http.get(f"/DANE/docs/{part}")).status_code == 404
