"""The server's end where something is under way for longer than it waits: whoever asked is told, in the API's shape."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrouter.backends.fake import FakeBackend
from taskrouter.http import streaming

from .clients import CHAT, Raw, chat, json_of, status_of
from .serving import Served, serving, written
from .test_streams import TASKS, seen


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """It waits for nothing when it ends."""
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with serving(written(tmp_path, TASKS), fake=FakeBackend(), drain_s=0) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield
    assert not [record.getMessage() for record in caplog.get_records("call") if record.exc_info]


def test_who_still_waits_when_the_time_is_over_is_told(served: Served) -> None:
    assert served.backend is not None
    backend = served.backend
    with Raw(served.url) as openai, Raw(served.url) as anthropic, Raw(served.url) as sending:
        openai.ask(CHAT, chat("slow"))
        anthropic.ask("/v1/messages", {**chat("slow"), "max_tokens": 9}, {"anthropic-version": "2023-06-01"})
        sending.ask(CHAT, b'{"model":', {"content-length": "1000000"})
        seen(lambda: "slug" in backend.labels("call-start"))
        with Raw(served.url) as later:
            later.ask("/health", b"", method="GET")
            assert status_of(later.until(b"}")) == 200  # what was asked before is under way
        served.server.should_exit = True
        for client in (openai, sending):
            answer = client.rest()
            assert status_of(answer) == 503
            assert json_of(answer)["error"]["code"] == "manager_closed"
        answer = anthropic.rest()
        assert status_of(answer) == 503
        assert json_of(answer)["error"]["type"] == "overloaded_error"


def test_a_stream_that_is_cut_off_ends_with_an_error(served: Served) -> None:
    with Raw(served.url) as client:
        client.ask(CHAT, chat("cold", stream=True))
        client.until(b": waiting")
        served.server.should_exit = True
        answer = client.rest()
        assert b'"code":"manager_closed"' in answer
        assert answer.endswith(b"\r\n0\r\n\r\n"), "the answer is whole"


def test_who_reads_nothing_keeps_no_server_from_its_end(served: Served) -> None:
    assert served.backend is not None
    backend = served.backend
    with Raw(served.url, room=4096) as client:
        client.ask(CHAT, chat("long", stream=True))
        client.until(b"data: ")
        assert "epic" in backend.labels("call-start")
        served.server.should_exit = True
        seen(lambda: not served.loop.is_running())
