"""Behaviours that must hold, seen from outside: the same as the library's, over HTTP."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.fake import FakeBackend

from .clients import CHAT, Raw, chat
from .serving import ADMIN_KEY, Served, keys, serving, written
from .test_streams import seen

GIB = 1 << 30


def option(name: str, **told: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": name, "vram_gb": 3, "engine_args": {"bytes": 3 * GIB, **told}}


TASKS = {
    name: {"selected": name, "options": {name: one}, "max_wait_s": 20}
    for name, one in {
        "a": option("a"),
        "b": option("b"),
        "c": option("c"),
        "busy": option("busy", hang="call"),
        "late": option("late", hang="load"),
        "broken": option("broken", fail="error"),
        "mended": option("mended", fail="error", fail_times=2),
    }.items()
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Room for two of three."""
    memory = {"devices": {"cpu": {"budget": "7GiB"}}, "min_residency_s": 0, "claim_s": 0.01}
    with serving(
        written(tmp_path, TASKS, memory=memory), keys({"TASKROUTER_ADMIN_KEY": ADMIN_KEY}), fake=FakeBackend()
    ) as server:
        yield server


def ask(served: Served, task: str, timeout_s: float | None = None) -> tuple[int, Any, dict[str, str]]:
    headers = {"content-type": "application/json"}
    if timeout_s is not None:
        headers["x-taskrouter-timeout"] = str(timeout_s)
    request = urllib.request.Request(served.url + CHAT, json.dumps(chat(task)).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def backend(served: Served) -> FakeBackend:
    assert served.backend is not None
    return served.backend


def loaded(served: Served) -> set[str]:
    return {
        status.label.rpartition("/")[2]
        for status in served.manager.statistics().models.values()
        if status.state.value == "ready"
    }


def test_2_a_busy_model_is_never_evicted_and_the_next_idle_one_goes(served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        working: Future[Any] = pool.submit(ask, served, "busy")
        seen(lambda: "busy" in backend(served).labels("call-start"))
        assert ask(served, "a")[0] == 200
        assert ask(served, "b")[0] == 200  # in place of a, though busy was used longer ago
        assert loaded(served) == {"busy", "b"}
        served.loop.call_soon_threadsafe(backend(served).resume, "busy")
        assert working.result(20)[0] == 200
    assert backend(served).labels("unload-busy") == []


def test_2_who_waits_for_a_busy_model_succeeds_once_it_is_idle(served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        assert ask(served, "a")[0] == 200
        with Raw(served.url) as first:
            first.ask(CHAT, chat("busy"))
            seen(lambda: "busy" in backend(served).labels("call-start"))
            second = pool.submit(ask, served, "late")
            seen(lambda: "late" in backend(served).labels("load-start"))  # in place of a
            third = pool.submit(ask, served, "c")  # there is no idle one left
            seen(lambda: served.manager.statistics().waiting == 2)
            served.loop.call_soon_threadsafe(backend(served).resume, "busy")
            served.loop.call_soon_threadsafe(backend(served).resume, "late")
            assert second.result(20)[0] == 200
            assert third.result(20)[0] == 200


def test_4_calls_never_queue_behind_another_models_load(served: Served) -> None:
    assert ask(served, "a")[0] == 200
    with ThreadPoolExecutor() as pool:
        cold = pool.submit(ask, served, "late")
        seen(lambda: "late" in backend(served).labels("load-start"))
        begun = time.monotonic()
        assert [ask(served, "a")[0] for _ in range(20)] == [200] * 20
        assert time.monotonic() - begun < 10
        assert not cold.done()
        served.loop.call_soon_threadsafe(backend(served).resume, "late")
        assert cold.result(20)[0] == 200


def test_13_who_gives_up_while_queued_causes_no_load(served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        one = pool.submit(ask, served, "busy")
        seen(lambda: "busy" in backend(served).labels("call-start"))
        two = pool.submit(ask, served, "late")
        seen(lambda: "late" in backend(served).labels("load-start"))
        with Raw(served.url) as gone:
            gone.ask(CHAT, chat("c"))
            seen(lambda: served.manager.statistics().waiting == 2)
        seen(lambda: served.manager.statistics().waiting == 1)
        for name in ("busy", "late"):
            served.loop.call_soon_threadsafe(backend(served).resume, name)
        assert (one.result(20)[0], two.result(20)[0]) == (200, 200)
    assert "c" not in backend(served).labels("load-start")


def test_14_a_failed_load_is_tried_again_cools_down_and_can_be_cleared(served: Served) -> None:
    first = ask(served, "mended")
    assert first[0] == 502
    assert first[1]["error"]["code"] == "load_failed"
    assert ask(served, "mended")[0] == 502
    status, body, headers = ask(served, "mended")
    assert (status, body["error"]["code"]) == (503, "cooling_down")
    assert int(headers["retry-after"]) >= 1
    assert ask(served, "a")[0] == 200, "nobody else notices"
    clear = urllib.request.Request(
        f"{served.url}/admin/tasks/mended/cooldown/clear", b"", {"authorization": f"Bearer {ADMIN_KEY}"}
    )
    with urllib.request.urlopen(clear, timeout=20) as answer:
        assert answer.status == 200
    assert ask(served, "mended")[0] == 200


def test_14_all_who_wait_for_a_load_hear_of_its_failure(served: Served) -> None:
    barrier = threading.Barrier(8)

    def one() -> int:
        barrier.wait(10)
        return ask(served, "broken")[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = [each.result(30) for each in [pool.submit(one) for _ in range(8)]]
    assert set(statuses) <= {502, 503}
    assert all(status.leases == 0 for status in served.manager.statistics().models.values())
