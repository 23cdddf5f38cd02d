"""vLLM's guard: whoever doesn't show the key gets nothing, whatever they ask for."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from typing import Any

import pytest

from taskrouter.backends.engines.vllm_flags import STARTER


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLLM_API_KEY", "right")
    spec = importlib.util.spec_from_file_location("taskrouter_start", STARTER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Guard(served)


async def served(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "served"})


def sent(guard: Any, kind: str, *headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(guard({"type": kind, "headers": list(headers)}, None, send))
    return said


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_who_shows_the_key_is_served(guard: Any, kind: str) -> None:
    assert sent(guard, kind, (b"host", b"x"), (b"Authorization", b"Bearer right")) == [{"type": "served"}]


def test_its_own_start_and_end_need_no_key(guard: Any) -> None:
    assert sent(guard, "lifespan") == [{"type": "served"}]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"right")],
        [(b"authorization", b"")],
        [(b"authorization", "Bearer schlüssel".encode())],
        [(b"authorization", b"Bearer right"), (b"authorization", b"Bearer wrong")],
        [(b"x-authorization", b"Bearer right")],
    ],
)
def test_nobody_else_is(guard: Any, headers: list[tuple[bytes, bytes]]) -> None:
    start, body = sent(guard, "http", *headers)
    assert start["status"] == 401
    assert "not the API key" in json.loads(body["body"])["error"]["message"]
    assert sent(guard, "websocket", *headers) == [{"type": "websocket.close", "code": 1008}]
