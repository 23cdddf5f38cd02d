"""What happens to models, as a listener hears of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.manager import Happened
from taskrouter.manager.watching import WHAT

from .stage import THREE, Stage, option, play, settle
from .test_reload import edit
from .test_sleeping import staged


def told(heard: list[Happened], *names: str) -> list[tuple[Any, ...]]:
    """What happened, each with these facts of it."""
    return [(each.what, *(each.facts.get(name) for name in names)) for each in heard]


def test_loads_evictions_and_the_end_are_told_with_their_reasons(tmp_path: Path) -> None:
    heard: list[Happened] = []

    async def main(stage: Stage) -> None:
        stage.manager.watch(heard.append)
        for name in ("a", "b", "c"):
            await stage.manager.load_option(name)
        await stage.manager.pin_model("c")
        await stage.manager.clear_cooldown("c")
        await stage.manager.unload_model("c")

    play(Stage(tmp_path, THREE), main)
    assert told(heard, "model", "reason", "wanted", "pinned") == [
        ("loading", "a", "request", None, None),
        ("loaded", "a", "request", None, None),
        ("loading", "b", "request", None, None),
        ("loaded", "b", "request", None, None),
        ("unloading", "a", "room_needed", "c", None),
        ("unloaded", "a", None, None, None),
        ("loading", "c", "request", None, None),
        ("loaded", "c", "request", None, None),
        ("pinned", "c", None, None, True),
        ("cooldown_cleared", "c", None, None, None),
        ("unloading", "c", "unloaded_by_request", None, None),
        ("unloaded", "c", None, None, None),
        ("shutting_down", None, None, None, None),
        ("unloading", "b", "shutdown", None, None),
        ("unloaded", "b", None, None, None),
    ]  # fmt: skip
    assert {each.what for each in heard} <= WHAT
    loading = next(each for each in heard if each.what == "loading")
    assert loading.facts["tasks"] == ["a"]
    assert loading.facts["devices"] == ["cuda:0"]
    assert loading.facts["bytes"] == 4 << 30
    assert all(each.facts["seconds"] >= 0 for each in heard if each.what == "loaded")


def test_what_fails_is_told_too(tmp_path: Path) -> None:
    heard: list[Happened] = []

    async def main(stage: Stage) -> None:
        stage.manager.watch(heard.append)
        with pytest.raises(errors.LoadFailed):
            await stage.manager.load_option("bad")
        with pytest.raises(errors.PreflightFailed):
            await stage.manager.load_option("wrong")
        with pytest.raises(errors.InsufficientMemory):
            await stage.manager.load_option("huge")
        await stage.manager.load_option("frail")
        stage.backend.kill("frail")
        await settle()

    tasks = {"bad": {"fail": "error"}, "wrong": {"fail": "preflight"}, "huge": {"vram_gb": 11}, "frail": {}}
    play(Stage(tmp_path, tasks), main)
    found = told(heard, "model", "reason", "callers")
    assert ("load_failed", "bad", "load_failed", None) in found
    assert ("refused", "bad", "load_failed", 1) in found
    assert ("preflight_failed", "wrong", "preflight_failed", None) in found
    assert ("refused", "wrong", "preflight_failed", 1) in found
    assert ("refused", "huge", "too_large", 1) in found
    assert ("died", "frail", None, None) in found
    assert ("clearing", "frail", None, None) in found


def test_selections_and_reloads_are_told(tmp_path: Path) -> None:
    heard: list[Happened] = []
    tasks = {"say": {"selected": "one", "options": {"one": option("one"), "two": option("two")}}}

    async def main(stage: Stage) -> None:
        await stage.manager.load_option("say")
        stage.manager.watch(heard.append)
        await stage.manager.set_selected_model("say", "two")
        edit(stage, {**tasks, "more": {}})
        await stage.manager.reload()

    play(Stage(tmp_path, tasks), main)
    assert [each.facts for each in heard if each.what == "selected"] == [{"task": "say", "option": "two"}]
    (reloaded,) = [each.facts for each in heard if each.what == "reloaded"]
    assert reloaded["added"] == ["more/more"]


def test_a_listener_that_raises_is_logged_and_harms_nobody_and_one_that_left_hears_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Happened] = []

    def broken(_: Happened) -> None:
        raise ZeroDivisionError

    async def main(stage: Stage) -> None:
        ends = [stage.manager.watch(broken), stage.manager.watch(heard.append)]
        with caplog.at_level(logging.ERROR, "taskrouter"):
            await stage.manager.load_option("a")
        assert told(heard) == [("loading",), ("loaded",)]
        for end in (*ends, *ends):
            end()
        await stage.manager.load_option("b")
        assert len(heard) == 2

    play(Stage(tmp_path, THREE), main)
    assert sum("failed to take" in each.message for each in caplog.records) == 2


def test_who_begins_to_listen_in_mid_load_hears_its_end(tmp_path: Path) -> None:
    heard: list[Happened] = []

    async def main(stage: Stage) -> None:
        load = asyncio.ensure_future(stage.manager.load_option("a"))
        await settle()
        stage.manager.watch(heard.append)
        await load

    play(Stage(tmp_path, {"a": {"load_s": 2}}), main)
    assert told(heard, "model", "seconds")[0] == ("loaded", "a", None)


def test_sleeping_and_waking_are_told(tmp_path: Path) -> None:
    heard: list[Happened] = []

    async def main(stage: Stage) -> None:
        stage.manager.watch(heard.append)
        for name in ("a", "b", "a"):
            await stage.manager.load_option(name)

    play(staged(tmp_path), main)
    found = told(heard, "model", "reason")
    assert ("sleeping", "a", "room_needed") in found
    assert ("slept", "a", None) in found
    assert ("waking", "a", "request") in found
    assert ("woke", "a", None) in found
