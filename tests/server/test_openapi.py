"""The OpenAPI document: it is of the routes that are there, and what the server does is what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import schemathesis
import schemathesis.specs.openapi.checks as conformance
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from starlette.routing import Route

from taskrouter.http.app import create_app
from taskrouter.http.document import undescribed
from taskrouter.http.task_bodies import MEDIA
from tests.hub_cache import HubCache, use

from .serving import ADMIN_KEY, API_KEY, Served
from .task_server import ASKED, TASKS, URL, task_client, task_server

TASK_PATH = "/v1/tasks/{task}"
ENDLESS = {("get", "/admin/events"), ("post", "/v1/leases"), ("post", "/v1/pipelines")}
"""What never ends its answer, where it answers well."""
CLOSING = {("post", "/admin/drain")}
"""What makes the server refuse all that comes after."""
METHODS = ("get", "post", "put", "delete", "patch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubCache]:
    """All that may be deleted: no real cache is within reach, and of this one nothing is any task's."""
    found = HubCache(tmp_path_factory.mktemp("cache") / "hub")
    found.model("org/tiny", "a", "main")
    with pytest.MonkeyPatch.context() as patch:
        use(found, patch)
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, cache: HubCache) -> Iterator[Served]:
    with task_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    with urlopen(f"{served.url}/openapi.json", timeout=30) as answer:
        assert answer.headers["content-type"] == "application/json"
        found: dict[str, Any] = json.load(answer)
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method, path) for path, it in document["paths"].items() for method in it if method in METHODS]


def refs(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (value for key, value in part.items() if key == "$ref")
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from refs(each)


def test_every_route_is_described_and_nothing_else(served: Served, document: dict[str, Any]) -> None:
    routes = [each for each in create_app(served.manager, lifespan=False).routes if isinstance(each, Route)]
    assert undescribed(routes) == []
    there = {
        (method.lower(), re.sub(r":\w+\}", "}", route.path))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert set(operations(document)) == there
    assert undescribed([Route("/v1/news", endpoint=lambda request: None, methods=["GET"])]) == ["GET /v1/news"]


def test_the_document_is_sound(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    for ref in refs(document):
        part: Any = document
        for step in ref.removeprefix("#/").split("/"):
            part = part[step]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = [document["paths"][path][method]["operationId"] for method, path in operations(document)]
    assert len(set(names)) == len(names)
    for method, path in operations(document):
        it = document["paths"][path][method]
        fields = [each["name"] for each in it["parameters"] if each["in"] == "path"]
        assert fields == re.findall(r"\{(\w+)\}", path)
        assert all(answer["content"] for answer in it["responses"].values())
        assert any(status.startswith("2") for status in it["responses"])
        if it["security"]:
            assert {"401", "403"} <= it["responses"].keys()


def test_the_document_names_no_task(document: dict[str, Any]) -> None:
    """Who has no key reads it, too."""
    assert {"stuck", "listen"} <= TASKS.keys()
    assert not {"stuck", "listen"} & set(re.findall(r"\w+", json.dumps(document)))


@pytest.mark.parametrize("task", ASKED)
def test_answers_and_questions_of_every_kind_are_as_it_says(
    served: Served, document: dict[str, Any], task: str
) -> None:
    verb, arguments, _ = ASKED[task]
    whole = {"components": document["components"], "$ref": "#/components/schemas/TaskAnswer"}
    with task_client(served) as client:
        said = client.post(task, json=arguments).json()
    assert said["verb"] == verb
    Draft202012Validator(whole).validate(said)
    call = f"{verb.capitalize()}Call"
    Draft202012Validator({**whole, "$ref": f"#/components/schemas/{call}"}).validate(arguments)
    assert not Draft202012Validator({**whole, "$ref": f"#/components/schemas/{call}"}).is_valid({**arguments, "x": 1})
    assert not Draft202012Validator(whole).is_valid({**said, "result": 3})


def narrowed(document: dict[str, Any], task: str | None = None) -> dict[str, Any]:
    """The same document, with names and media that lead somewhere: most questions are to get past the first check.

    With a task, its only path is that one's, and the bodies are those of its verb.
    """
    found: dict[str, Any] = json.loads(json.dumps(document))
    schemas = found["components"]["schemas"]
    # With it, what generates other forms than these fails on the files in them.
    del schemas["TaskForm"]["additionalProperties"]
    for name, schema in schemas.items():
        for argument in MEDIA & schema.get("properties", {}).keys():
            if name.endswith("Call") and argument != "inputs":
                schema["properties"][argument] = {"enum": [URL, {"base64": "eA=="}]}
    tasks = [*(name for name in TASKS if name != "stuck"), "say/it", "default", "nobody", "find/none"]
    if task is not None:
        found["paths"] = {TASK_PATH: found["paths"][TASK_PATH]}
        asking = found["paths"][TASK_PATH]["post"]
        # No id that is made up is one of a lease.
        asking["parameters"] = [each for each in asking["parameters"] if each["name"] != "x-taskrouter-lease"]
        body = asking["requestBody"]["content"]
        body["application/json"]["schema"] = {"$ref": f"#/components/schemas/{ASKED[task][0].capitalize()}Call"}
        tasks = [task]
    messages = schemas["ChatCall"]["properties"]["messages"]["anyOf"][1]
    for path, methods in found["paths"].items():
        for it in methods.values():
            for parameter in it["parameters"]:
                if parameter["in"] == "path" and "operations" not in path:
                    parameter["schema"] = {"enum": tasks}
            for content in it.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                if "model" in properties:
                    properties["model"] = {"enum": ["say", "write", "vectors", "hear", "nobody"]}
                if "messages" in properties:
                    properties["messages"] = messages
    return found


CHECKS = [
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
]


def loaded(document: dict[str, Any]) -> list[Any]:
    found: list[Any] = list(schemathesis.openapi.from_dict(document).get_all_operations())
    return [each.ok() for each in found]


def asked(operation: Any, mode: schemathesis.GenerationMode, url: str) -> set[int]:
    """Put generated requests to one operation; answers the statuses that came."""
    headers = {"authorization": f"Bearer {ADMIN_KEY if operation.path.startswith('/admin') else API_KEY}"}
    statuses: set[int] = set()

    @settings(
        max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(base_url=url, headers=headers, timeout=30)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)
        assert answer.status_code < 500 or answer.status_code in (501, 503, 507), answer.text

    ask()
    return statuses


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_server_does_what_the_document_says(
    served: Served, document: dict[str, Any], cache: HubCache, mode: schemathesis.GenerationMode
) -> None:
    """Generated requests, sound ones and others: no answer that isn't described, and no failure of the server's own."""
    held = cache.files()
    with task_client(served) as client:
        for task, (_, arguments, _) in ASKED.items():
            assert client.post(task, json=arguments).status_code == 200  # loaded: a timeout of 0 is enough
    seen: dict[tuple[str, str], set[int]] = {}
    for operation in loaded(narrowed(document)):
        where = (operation.method.lower(), operation.path)
        told = operation.definition.raw
        # What can't be asked wrongly has nothing to generate; and what is answered well may never end.
        nothing = mode.is_negative and not told["parameters"] and "requestBody" not in told
        if nothing or where in CLOSING or (mode.is_positive and where in ENDLESS):
            continue
        seen[where] = asked(operation, mode, served.url)
    if mode.is_positive:
        assert set(seen) == set(operations(document)) - ENDLESS - CLOSING
        assert 200 in seen["post", "/v1/chat/completions"]
        assert 409 in seen["post", "/admin/tasks/{task}/remove"]
    assert cache.files() == held
    for task in ASKED:
        (operation,) = loaded(narrowed(document, task))
        statuses = asked(operation, mode, served.url)
        assert (200 if mode.is_positive else 400) in statuses, (task, statuses)
