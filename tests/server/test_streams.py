"""Answers in pieces: signs of life while a model loads, readers that are slow or gone, and very many at once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from taskrouter.backends.fake import FakeBackend
from taskrouter.http import streaming

from .clients import CHAT, Raw, chat, status_of
from .serving import Served, serving, written


def option(**told: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": "m", "vram_gb": 1, "engine_args": {"bytes": "1GiB", **told}}


TASKS = {
    "say": {"selected": "parrot", "options": {"parrot": option()}},
    "slow": {"selected": "slug", "options": {"slug": option(hang="call")}},
    "cold": {"selected": "ice", "options": {"ice": option(hang="load")}, "max_wait_s": 30},
    "broken": {"selected": "shard", "options": {"shard": option(fail="error", load_s=0.3)}},
    "long": {"selected": "epic", "options": {"epic": option(answer="word " * 40_000)}},
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with serving(written(tmp_path, TASKS), fake=FakeBackend()) as server:
        yield server


def seen(condition: Any, bound_s: float = 20) -> None:
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_stream_hears_something_while_its_model_loads(served: Served) -> None:
    assert served.backend is not None
    with Raw(served.url) as client:
        client.ask(CHAT, chat("cold", stream=True))
        head = client.until(b": waiting for the model\n\n")
        assert status_of(head) == 200
        assert b"text/event-stream" in head
        assert b"x-taskrouter-option: ice" in head
        served.loop.call_soon_threadsafe(served.backend.resume, "ice")
        rest = client.until(b"[DONE]")
        assert b'"content":"ice: "' in rest
        assert b'"content":"hello"' in rest


def test_an_error_after_signs_of_life_is_the_streams_last_event(served: Served) -> None:
    with Raw(served.url) as client:
        client.ask(CHAT, chat("broken", stream=True))
        answer = client.until(b"0\r\n\r\n")
        assert status_of(answer) == 200
        assert b": waiting" in answer
        assert b'"code":"load_failed"' in answer
    with Raw(served.url) as client:  # it cools down not yet: the second failure is told the same way
        client.ask(CHAT, chat("broken"))
        assert status_of(client.until(b"}}")) in (502, 503)


def test_the_wait_of_who_gets_no_pieces_is_bounded_by_its_header(served: Served) -> None:
    began = time.monotonic()
    with Raw(served.url) as client:
        client.ask(CHAT, chat("cold"), {"x-taskrouter-timeout": "0.1"})
        answer = client.until(b"}}")
    assert status_of(answer) == 503
    assert b'"code":"overloaded"' in answer
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_the_work_done_for_it(served: Served, stream: bool) -> None:
    assert served.backend is not None
    with Raw(served.url) as client:
        client.ask(CHAT, chat("slow", stream=stream))
        seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
    seen(lambda: served.backend is not None and served.backend.labels("call-cancelled") == ["slug"])
    seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))


def test_a_client_that_goes_away_while_its_model_loads_leaves_nothing(served: Served) -> None:
    assert served.backend is not None
    with Raw(served.url) as client:
        client.ask(CHAT, chat("cold", stream=True))
        client.until(b": waiting")
    seen(lambda: served.manager.statistics().waiting == 0)
    seen(lambda: served.backend is not None and served.backend.labels("load-cancelled") == ["ice"])


def test_a_client_that_vanishes_in_mid_upload_costs_nothing(served: Served) -> None:
    for _ in range(20):
        with Raw(served.url) as client:
            client.ask(CHAT, b'{"model":', {"content-length": "1000000"})
    with Raw(served.url) as client:
        client.ask(CHAT, chat())
        assert status_of(client.until(b"}}")) == 200
    assert served.backend is not None
    assert served.backend.labels("call-start") == ["parrot"]


def test_a_half_closed_connection_is_still_answered_or_ended(served: Served) -> None:
    with Raw(served.url) as client:
        client.ask(CHAT, chat())
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.rest()  # whichever it is, the connection ends: nothing hangs
    assert answer == b"" or status_of(answer) == 200
    seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))


@pytest.mark.slow
def test_a_slow_reader_slows_its_own_answer_and_nobody_elses(served: Served) -> None:
    """Its answer has 9 MB as events: more than fits between here and there."""
    assert served.backend is not None
    with Raw(served.url, room=65536) as slow, Raw(served.url) as quick:
        slow.ask(CHAT, chat("long", stream=True))
        slow.until(b"data: ")
        for _ in range(20):
            quick.ask(CHAT, chat())
            assert status_of(quick.until(b"}}")) == 200
        assert served.backend.labels("call-end").count("epic") == 0
        slow.until(b"[DONE]")
        seen(lambda: served.backend is not None and served.backend.labels("call-end").count("epic") == 1)


@pytest.mark.slow
def test_two_thousand_streams_at_once(served: Served) -> None:
    async def one(session: aiohttp.ClientSession, number: int) -> str:
        async with session.post(CHAT, json=chat(text=f"n{number}", stream=True)) as response:
            assert response.status == 200
            return (await response.read()).decode()

    async def main() -> list[str]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(served.url, connector=connector, timeout=timeout) as session:
            return await asyncio.gather(*[one(session, number) for number in range(2000)])

    for number, text in enumerate(asyncio.run(main())):
        assert text.endswith("data: [DONE]\n\n")
        assert f'"content":"n{number}"' in text
    assert all(status.leases == 0 for status in served.manager.statistics().models.values())


@pytest.mark.slow
def test_ten_thousand_callers_of_a_cold_model_are_one_load(served: Served) -> None:
    """Case 1 over HTTP, as far as the descriptors of a process go: 900 connections, and all ask at once."""
    assert served.backend is not None
    backend = served.backend

    async def main() -> list[int]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(served.url, connector=connector) as session:

            async def one() -> int:
                async with session.post(CHAT, json=chat("cold")) as response:
                    await response.read()
                    return response.status

            asking = [asyncio.ensure_future(one()) for _ in range(900)]
            await asyncio.to_thread(seen, lambda: served.manager.statistics().waiting == 900)
            served.loop.call_soon_threadsafe(backend.resume, "ice")
            return await asyncio.gather(*asking)

    assert asyncio.run(main()) == [200] * 900
    assert backend.labels("load-start") == ["ice"]
