"""``GET /openapi.json``: an OpenAPI 3.1 document of the routes that are there, and of no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from starlette.routing import BaseRoute, Route

from taskrouter.http import exchange as exchanges
from taskrouter.http.described import DESCRIBED, JSON, Described
from taskrouter.http.exchange import Exchange
from taskrouter.http.state import State
from taskrouter.http.task_schemas import STRING, Schema, maybe, record, ref, task_schemas

_FIELD = re.compile(r"\{(\w+)(?::\w+)?\}")
_SECURITY: dict[str | None, list[dict[str, list[str]]]] = {
    None: [], "caller": [{"bearer": []}, {"x-api-key": []}], "admin": [{"admin": []}],
    "either": [{"bearer": []}, {"x-api-key": []}, {"admin": []}],
}  # fmt: skip
_TIMEOUT = {
    "name": "x-taskrouter-timeout", "in": "header", "required": False,
    "schema": {"type": "number", "minimum": 0},
    "description": "Seconds that the request may wait for its model.",
}  # fmt: skip
_INSIDE = {
    "lease": "The lease that it is asked inside of, of the same key and task.",
    "pipeline": "The pipeline that it counts for, of the same key.",
}
_HEADERS: dict[str, Any] = {
    "x-taskrouter-option": {"description": "The option that answered.", "schema": STRING},
    "x-taskrouter-reason": {"description": "Why that one.", "schema": STRING},
    "x-taskrouter-waited": {"description": "Seconds that the request waited for it.", "schema": {"type": "number"}},
    "x-request-id": {"description": "What the server's log calls the request.", "schema": STRING},
    "retry-after": {"description": "Seconds after which asking again makes sense.", "schema": {"type": "integer"}},
}
_ERRORS: dict[str, Schema] = {
    "Error": record(
        {"error": record({"message": STRING, "type": STRING, "param": maybe(STRING), "code": maybe(STRING)})}
    ),
    "AnthropicError": record(
        {"type": {"const": "error"}, "error": record({"type": STRING, "message": STRING}), "request_id": STRING},
        optional=("request_id",),
    ),
}


async def openapi(state: State, exchange: Exchange) -> None:
    """``GET /openapi.json``."""
    if state.document is None:
        state.document = orjson.dumps(document_of(state.routes))
    await exchange.answer_bytes(state.document, exchanges.JSON)


def document_of(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The document of these routes; those that nothing is known of are left out."""
    paths: dict[str, dict[str, Any]] = {}
    for method, route in _methods(routes):
        described = DESCRIBED.get((method, _plain(route.path)))
        if described is not None:
            paths.setdefault(_FIELD.sub(r"{\1}", route.path), {})[method.lower()] = _operation(method, route, described)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "admin": {"type": "http", "scheme": "bearer", "description": "The admin's own key."},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskrouter", "version": _version()},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {**_ERRORS, **task_schemas()}, "headers": _HEADERS, "securitySchemes": schemes,
        },
    }  # fmt: skip


def undescribed(routes: Iterable[BaseRoute]) -> list[str]:
    """The routes that the document doesn't know: there should be none."""
    return [
        f"{method} {route.path}"
        for method, route in _methods(routes)
        if (method, _plain(route.path)) not in DESCRIBED
    ]  # fmt: skip


def _methods(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, Route]]:
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route) for method in sorted(route.methods or ()) if method != "HEAD")


def _plain(path: str) -> str:
    return _FIELD.sub("{}", path)


def _operation(method: str, route: Route, described: Described) -> dict[str, Any]:
    name = f"{method.lower()}_{route.path.strip('/')}"
    parameters: list[Any] = [
        {"name": field, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for field in _FIELD.findall(route.path)
    ]
    parameters += [
        {"name": field, "in": "query", "required": False, "schema": schema}
        for field, schema in described.query.items()
    ]  # fmt: skip
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", _FIELD.sub(r"\1", name)),
        "summary": described.summary,
        "tags": [described.tag],
        "security": _SECURITY[described.key],
        "parameters": [*parameters, *([_TIMEOUT] if described.asks else []), *map(_inside, described.inside)],
        "responses": {**_answers(described), **_refusals(described)},
    }
    if described.body:
        content = {kind: {"schema": schema} for kind, schema in described.body.items()}
        found["requestBody"] = {"required": described.body_required, "content": content}
    return found


def _inside(what: str) -> dict[str, Any]:
    return {
        "name": f"x-taskrouter-{what}", "in": "header", "required": False, "schema": STRING,
        "description": _INSIDE[what],
    }  # fmt: skip


def _answers(described: Described) -> dict[str, Any]:
    names = [*(list(_HEADERS)[:3] if described.asks else ()), "x-request-id"]
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
            "content": {kind: {"schema": schema} for kind, schema in by_kind.items()},
        }
        for status, by_kind in described.answers.items()
    }


def _refusals(described: Described) -> dict[str, Any]:
    schemas = {"openai": ref("Error"), "anthropic": ref("AnthropicError")}
    schema = {"anyOf": list(schemas.values())} if described.style is None else schemas[described.style]
    return {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", "retry-after")},
            "content": {JSON: {"schema": schema}},
        }
        for status in sorted(set(described.refusals) - described.answers.keys())
    }


def _version() -> str:
    try:
        return version("taskrouter")
    except PackageNotFoundError:
        return "0"
