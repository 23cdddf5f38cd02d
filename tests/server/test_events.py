"""``GET /admin/events`` over a real socket: what is told, to slow readers too, and how it ends."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskrouter.http import events as module
from taskrouter.http.events import KEPT, MOST_READERS, Events

from .administering import TASKS, ask, call, ok, wait_for
from .serving import ADMIN_KEY, API_KEY, Served, keys, serving, written


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    file = written(tmp_path, TASKS, memory={"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0})
    with serving(file, keys()) as server:
        yield server


class Listening:
    """A reader of the events."""

    def __init__(self, served: Served) -> None:
        request = urllib.request.Request(f"{served.url}/admin/events")
        request.add_header("authorization", f"Bearer {ADMIN_KEY}")
        self.answer = urllib.request.urlopen(request, timeout=20)
        assert self.answer.headers["content-type"].startswith("text/event-stream")
        assert self.block() == [": listening"]

    def block(self) -> list[str]:
        """The lines up to the next empty one; none at the end."""
        lines: list[str] = []
        while line := self.answer.readline():
            if line == b"\n":
                break
            lines.append(line.decode().rstrip("\n"))
        return lines

    def next(self) -> dict[str, Any]:
        """The next event."""
        while (lines := self.block())[0].startswith(":"):
            pass
        name, data = lines
        found: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {found['event']}"
        return found

    def until(self, what: str) -> list[dict[str, Any]]:
        """All events up to one of this name."""
        found = [self.next()]
        while found[-1]["event"] != what:
            found.append(self.next())
        return found


@contextmanager
def listening(served: Served) -> Iterator[Listening]:
    reader = Listening(served)
    try:
        yield reader
    finally:
        reader.answer.close()


def hub(served: Served) -> Events:
    config: Any = served.server.config
    found: Events = config.app.state.taskrouter.events
    return found


def test_what_happens_is_told_as_it_happens(served: Served) -> None:
    with listening(served) as reader:
        assert ask(served)[0] == 200
        loading, loaded = reader.until("loaded")
        assert (loading["event"], loading["model"], loading["tasks"], loading["reason"]) == (
            "loading", "one", ["say"], "request",
        )  # fmt: skip
        assert abs(loading["at"] - time.time()) < 60
        assert loaded["seconds"] >= 0
        ok(served, "/admin/tasks/say/select", {"option": "two"})
        told = reader.until("selected")
        assert (told[-1]["task"], told[-1]["option"]) == ("say", "two")
        ok(served, "/admin/tasks/write/load", {"wait": True})
        gone = next(each for each in reader.until("loaded") if each["event"] == "unloading" and "wanted" in each)
        assert (gone["model"], gone["reason"], gone["wanted"]) == ("two", "room_needed", "it")
        ok(served, "/admin/tasks/write/pin", {"pinned": True})
        assert reader.until("pinned")[-1]["pinned"] is True
        assert ask(served, "huge")[0] == 507
        found = reader.until("request_refused")
        assert ("refused", "too_large") in {(each["event"], each.get("reason")) for each in found}
        assert (found[-1]["status"], found[-1]["task"], found[-1]["caller"]) == (507, "huge", "tests")
        ok(served, "/admin/reload", {})
        assert reader.until("reloaded")[-1]["added"] == []
        ok(served, "/admin/drain", {"draining": True})
        assert reader.until("draining")[-1]["draining"] is True
        assert ask(served)[0] == 503
        assert reader.until("request_refused")[-1]["status"] == 503
        assert API_KEY not in json.dumps(found)


def test_a_silent_stream_shows_signs_of_life(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with listening(served) as reader:
        assert reader.block() == [": nothing happened"]
        assert reader.block() == [": nothing happened"]
        ok(served, "/admin/drain", {"draining": True})
        assert reader.next()["event"] == "draining"


def test_the_streams_end_when_the_server_does_and_hold_nothing_up(served: Served) -> None:
    with listening(served) as reader, listening(served) as other:
        begun = time.monotonic()
        served.server.should_exit = True
        for each in (reader, other):
            assert each.next()["event"] == "shutting_down"
            assert each.block() == []
        assert time.monotonic() - begun < 4, "uvicorn itself gives up after 5 s"
        wait_for(lambda: not len(hub(served)))


@pytest.mark.slow
def test_a_reader_that_takes_nothing_loses_events_is_told_and_does_not_hold_the_end_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_S", 0.2)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET /admin/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode())
        wait_for(lambda: len(hub(served)) == 1)
        (reader,) = hub(served)._readers

        async def much() -> None:
            for number in range(KEPT):
                hub(served).tell("draining", number=number, text="x" * 5000)

        while not reader.lost:
            served.run(much())
        with listening(served) as quick:
            served.run(much())
            assert quick.next()["number"] == 0
        received = b""
        while b"event: lost" not in received:
            received += slow.recv(1 << 16)
        while b"\n\n" not in received.partition(b"event: lost\n")[2]:
            received += slow.recv(1 << 16)
        said = received.partition(b"event: lost\ndata: ")[2].partition(b"\n")[0]
        assert json.loads(said)["count"] > 0
        while not reader.lost:  # it reads no more
            served.run(much())
        begun = time.monotonic()
        served.server.should_exit = True
        wait_for(lambda: not len(hub(served)))
        assert time.monotonic() - begun < 4


def test_a_reader_that_leaves_is_forgotten_and_only_so_many_are_let_in(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_READERS > 2
    monkeypatch.setattr(module, "MOST_READERS", 2)
    with listening(served), listening(served):
        status, found, _ = call(served, "/admin/events")
        assert (status, found["error"]["code"]) == (429, "too_many_readers")
    wait_for(lambda: not len(hub(served)))
    with listening(served):
        assert len(hub(served)) == 1


def test_nothing_is_written_for_nobody() -> None:
    events = Events()
    events.tell("draining", thing=object())  # which JSON couldn't hold
    assert len(events) == 0
