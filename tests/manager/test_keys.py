"""Every key of models.yaml that is acted on now acts: with it something happens that without it does not (case 25)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ConfigError, ModelManager, errors
from taskrouter.types import GIB

from .stage import Stage, now, option, play, spawn

Seen = Callable[[Stage], Coroutine[Any, Any, Any]]
BIG = {"vram_gb": 8}
HUNDRED = " ".join(["word"] * 100)


async def order_of_service(stage: Stage) -> list[str]:
    """Who is served first when two tasks wait for room."""
    order = []

    async def use(name: str) -> None:
        async with stage.manager.lease(name):
            order.append(name)

    async with stage.manager.lease("first"):
        waiting = [spawn(use("low")), spawn(use("high"))]
        await asyncio.sleep(1)
    await asyncio.gather(*waiting)
    return order


async def refused_after(stage: Stage) -> float:
    """How long a caller waits for a model that takes for ever."""
    with pytest.raises(errors.Overloaded):
        await stage.manager.get_model("a")
    return now()


async def evicted_for_b(stage: Stage) -> list[str]:
    async with stage.manager.lease("a"):
        pass
    try:
        await stage.manager.get_model("b")
    except errors.ModelUnavailable:
        return []
    return stage.backend.labels("unload-start")


async def loaded_after_a_minute(stage: Stage) -> list[str]:
    async with stage.manager.lease("a"):
        pass
    await asyncio.sleep(60)
    return list(stage.manager.loaded_models)


async def time_of_four_calls(stage: Stage) -> float:
    model = await stage.manager.get_model("a")
    await asyncio.gather(*[model.chat("hello") for _ in range(4)])
    return now()


async def room_for_b_after(stage: Stage) -> float:
    """When a request for b gets the room of a, which somebody just got a handle on."""
    handle = await stage.manager.get_model("a")
    began = now()
    await spawn(stage.manager.get_model("b"))
    assert handle.task == "a"
    return now() - began


async def room_for_b_after_one_use(stage: Stage) -> float:
    """When a request for b gets the room of a, which was just loaded and used once."""
    async with stage.manager.lease("a"):
        pass
    began = now()
    await stage.manager.get_model("b")
    return round(now() - began, 3)


async def together(stage: Stage) -> int:
    """How many of the models are loaded at once."""
    for name in stage.manager.tasks:
        async with stage.manager.lease(name):
            pass
    return len(stage.manager.loaded_models)


async def capacity(stage: Stage) -> int:
    return stage.manager.statistics().devices["cuda:0"].capacity  # type: ignore[index]


async def fits(stage: Stage) -> bool:
    try:
        await stage.manager.get_model("a")
    except errors.InsufficientMemory:
        return False
    return True


async def warmed(stage: Stage) -> list[str]:
    await stage.manager.warmup_models()
    return sorted(stage.manager.loaded_models)


async def reported_after_a_minute(stage: Stage) -> bool:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("taskrouter").addHandler(handler)
    try:
        async with stage.manager.lease("a"):
            await asyncio.sleep(60)
    finally:
        logging.getLogger("taskrouter").removeHandler(handler)
    return any("has been held" in line for line in said)


async def unread_stream_ends_within_a_minute(stage: Stage) -> bool:
    model = await stage.manager.get_model("a")
    async with model.stream_chat("hello") as chunks:
        await anext(chunks)
        await asyncio.sleep(60)
        return stage.leases() == 0


async def default(stage: Stage) -> str:
    try:
        return (await stage.manager.get_model("default")).task
    except errors.UnknownTask:
        return "unknown"


async def answer(stage: Stage) -> str:
    return (await (await stage.manager.get_model("a")).chat("hello")).text


async def refuses_chat(stage: Stage) -> bool:
    model = await stage.manager.get_model("a")
    try:
        await model.chat("hello")
    except errors.UnsupportedVerb:
        return True
    return False


async def devices(stage: Stage) -> Any:
    await stage.manager.get_model("a")
    return stage.manager.get_loaded_models()["a"]["devices"]


async def stuck_after(stage: Stage) -> float:
    try:
        await stage.manager.get_model("a", timeout=2000)
    except errors.LoadFailed:
        return round(now())
    return -1


async def host_ram(stage: Stage) -> int:
    await stage.manager.get_model("a")
    return stage.manager.statistics().devices["cpu"].charged  # type: ignore[index]


def selected(name: str) -> dict[str, Any]:
    return {"a": {"selected": name, "options": {n: option(n, answer=n) for n in ("one", "two")}}}


ROWS: list[tuple[str, Seen, Any, Any, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # key, what is looked at, with, without; tasks with it, tasks without it, sections with it, sections without it
    (
        "priority",
        order_of_service,
        ["high", "low"],
        ["low", "high"],
        {"first": BIG, "low": BIG, "high": {**BIG, "priority": 5}},
        {"first": BIG, "low": BIG, "high": BIG},
        {},
        {},
    ),
    ("max_wait_s", refused_after, 7, 120, {"a": {"hang": "load", "max_wait_s": 7}}, {"a": {"hang": "load"}}, {}, {}),
    (
        "inference.max_wait_s",
        refused_after,
        9,
        120,
        {"a": {"hang": "load"}},
        {"a": {"hang": "load"}},
        {"inference": {"max_wait_s": 9}},
        {},
    ),
    ("pinned", evicted_for_b, [], ["a"], {"a": {**BIG, "pinned": True}, "b": BIG}, {"a": BIG, "b": BIG}, {}, {}),
    ("keep_alive_s", loaded_after_a_minute, [], ["a"], {"a": {"keep_alive_s": 30}}, {"a": {}}, {}, {}),
    (
        "max_concurrency",
        time_of_four_calls,
        6,
        3,
        {"a": {"call_s": 3, "max_concurrency": 2}},
        {"a": {"call_s": 3}},
        {},
        {},
    ),
    (
        "memory.claim_s",
        room_for_b_after,
        0,
        5,
        {"a": BIG, "b": BIG},
        {"a": BIG, "b": BIG},
        {"memory": {"claim_s": 0}},
        {},
    ),
    (
        "memory.min_residency_s",
        room_for_b_after_one_use,
        25,
        pytest.approx(2, abs=1),
        {"a": {**BIG, "load_s": 10}, "b": BIG},
        {"a": {**BIG, "load_s": 10}, "b": BIG},
        {"memory": {"min_residency_s": 25}},
        {},
    ),
    (
        "memory.max_models",
        together,
        2,
        3,
        {"a": {"vram_gb": 1}, "b": {"vram_gb": 1}, "c": {"vram_gb": 1}},
        {"a": {"vram_gb": 1}, "b": {"vram_gb": 1}, "c": {"vram_gb": 1}},
        {"memory": {"max_models": 2}},
        {},
    ),
    (
        "memory.devices.*.budget",
        capacity,
        6 * GIB,
        10 * GIB,
        {"a": {}},
        {"a": {}},
        {"memory": {"devices": {"cuda:0": {"budget": "6GiB"}}}},
        {},
    ),
    (
        "memory.devices.*.reserve",
        capacity,
        7 * GIB,
        10 * GIB,
        {"a": {}},
        {"a": {}},
        {"memory": {"devices": {"cuda:0": {"reserve": "3GiB"}}}},
        {},
    ),
    (
        "inference.offload_threshold",
        fits,
        False,
        True,
        {"a": {"vram_gb": 9}},
        {"a": {"vram_gb": 9}},
        {"inference": {"offload_threshold": 0.5}},
        {},
    ),
    (
        "inference.warmup_on_startup",
        warmed,
        [],
        ["a"],
        {"a": {}},
        {"a": {}},
        {"inference": {"warmup_on_startup": False}},
        {},
    ),
    (
        "memory.lease_warn_s",
        reported_after_a_minute,
        True,
        False,
        {"a": {}},
        {"a": {}},
        {"memory": {"lease_warn_s": 30}},
        {},
    ),
    (
        "memory.stream_idle_s",
        unread_stream_ends_within_a_minute,
        True,
        False,
        {"a": {"answer": HUNDRED}},
        {"a": {"answer": HUNDRED}},
        {"memory": {"stream_idle_s": 30}},
        {},
    ),
    ("default_task", default, "b", "unknown", {"a": {}, "b": {}}, {"a": {}, "b": {}}, {"default_task": "b"}, {}),
    ("selected", answer, "two", "one", selected("two"), selected("one"), {}, {}),
    ("kind", refuses_chat, True, False, {"a": {"kind": "image_classification"}}, {"a": {}}, {}, {}),
    ("devices", devices, ["cuda:1"], ["cuda:0"], {"a": {"devices": ["cuda:1"]}}, {"a": {}}, {}, {}),
    ("vram_gb", fits, False, True, {"a": {"vram_gb": 11}}, {"a": {"vram_gb": 10}}, {}, {}),
    ("ram_gb", host_ram, 3 * GIB, 0, {"a": {"ram_gb": 3}}, {"a": {}}, {}, {}),
    (
        "engines.*.start_timeout_s",
        stuck_after,
        60,
        600,
        {"a": {"hang": "load"}},
        {"a": {"hang": "load"}},
        {"engines": {"fake": {"start_timeout_s": 60}}},
        {},
    ),
]


@pytest.mark.parametrize(
    ("key", "look", "yes", "no", "given", "bare", "sections", "plain"), ROWS, ids=[r[0] for r in ROWS]
)
def test_the_key_acts(
    tmp_path: Path,
    key: str,
    look: Seen,
    yes: Any,
    no: Any,
    given: dict[str, Any],
    bare: dict[str, Any],
    sections: dict[str, Any],
    plain: dict[str, Any],
) -> None:
    machine = {"cuda:0": 10 * GIB, "cuda:1": 10 * GIB} if key == "devices" else None
    seen = []
    for tasks, more in ((given, sections), (bare, plain)):
        copied = {name: dict(section) if isinstance(section, dict) else section for name, section in more.items()}
        seen.append(play(Stage(tmp_path, tasks, machine=machine, **copied), look))
    assert seen == [yes, no]


def test_a_key_that_is_unknown_is_refused_by_name(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {}})
    stage.file.write_text('{"tasks": {"a": {"selected": "x", "optoins": {}}}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"did you mean.*options"):
        ModelManager(stage.file, registry=stage.registry, machine=stage.machine)
