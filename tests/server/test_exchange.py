"""One request and its end, without a server: what uvicorn tells, said by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from taskrouter.http import watching
from taskrouter.http.exchange import Exchange

pytestmark = pytest.mark.anyio
SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


class Client:
    """As uvicorn has it, what comes after the end of an answer reads like a client that goes away."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.sent: list[Mapping[str, Any]] = []

    async def receive(self) -> Mapping[str, Any]:
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.over.set()


async def soon() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_end_of_an_answer_is_not_taken_for_a_client_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCH_AFTER_S", 0.0)
    client = Client()
    found = Exchange(SCOPE, client.receive, client.send)
    found.watch()
    await soon()
    await found.answer({"a": 1})
    await soon()  # what is closed after an answer may take a while
    assert not found.gone
    found.unwatch()


async def test_a_client_that_left_before_the_end_is_noticed_and_the_work_for_it_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "WATCH_AFTER_S", 0.0)
    client = Client()
    found = Exchange(SCOPE, client.receive, client.send)

    async def work() -> None:
        found.watch()
        await asyncio.Event().wait()

    working = asyncio.ensure_future(work())
    await soon()
    client.over.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert found.gone
    found.unwatch()
    found.unwatch()
