"""Shared models, warm-up, and keys of the other kind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors

from .stage import Stage, now, option, play, spawn, task

# --- what shared models and warm-up do with their keys ----------------------------------------------------------------


def test_tasks_that_share_a_model_hold_the_strictest_of_their_wishes(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        assert [status.pinned for status in stage.manager.statistics().models.values()] == [False, True]
        model = await stage.manager.get_model("t")
        await asyncio.gather(*[model.chat("hello") for _ in range(4)])
        assert now() == 8
        await asyncio.sleep(60)
        assert sorted(stage.manager.loaded_models) == ["t", "u"]
        await asyncio.sleep(60)
        assert sorted(stage.manager.loaded_models) == []

    first = {"selected": "x", "options": {"x": option("m", call_s=2, keep_alive_s=20), "p": option("p", pinned=True)}}
    second = {
        "selected": "x",
        "options": {"x": option("m", call_s=2, keep_alive_s=100, max_concurrency=1), "p": option("p")},
    }
    play(Stage(tmp_path, {"t": first, "u": second}, memory={"claim_s": 0}), main)


@pytest.mark.parametrize(
    ("one", "other", "counts"),
    [
        ("auto", "discard", "discard"),
        ("discard", "never", "never"),
        ("never", "auto", "never"),
        ("auto", "auto", "auto"),
    ],
)
def test_of_what_is_said_of_the_sleep_of_a_shared_model_one_counts_for_all(
    tmp_path: Path, one: str, other: str, counts: str
) -> None:
    tasks = {
        name: {"selected": "x", "options": {"x": {"model_id": "m", "framework": "vllm", "sleep": how}}}
        for name, how in (("t", one), ("u", other))
    }
    found = Stage(tmp_path, tasks).manager._uses
    assert [use.request.sleep for use in found] == [counts, counts]


def test_warming_up_takes_only_what_fits_and_reports_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("here"):
            pass
        await stage.manager.warmup_models()
        assert sorted(stage.manager.loaded_models) == ["here", "small"]
        assert stage.backend.labels("unload-start") == []
        report = stage.manager.statistics().warmup
        assert (report["here"], report["small"]) == ("loaded", "loaded")
        assert "warm-up" in report["large"]
        assert "scripted" in report["broken"]
        assert "99.0 GiB" in report["huge"]
        assert "broken" in caplog.text

    tasks = {
        "here": {"vram_gb": 4},
        "large": {"vram_gb": 7},
        "broken": {"vram_gb": 1, "fail": "error"},
        "small": {"vram_gb": 3},
        "huge": {"vram_gb": 99},
    }
    play(Stage(tmp_path, tasks), main)


def check_slowly(stage: Stage, **seconds: float) -> None:
    """Let checking these models take so long."""
    quick = stage.backend.preflight

    async def checking(request: Any) -> Any:
        await asyncio.sleep(seconds.get(request.label, 0))
        return await quick(request)

    stage.backend.preflight = checking  # type: ignore[method-assign]


def test_warming_up_goes_by_priority_though_another_is_checked_sooner(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        check_slowly(stage, important=3)
        await stage.manager.warmup_models()
        assert list(stage.manager.loaded_models) == ["important"]

    tasks = {"first": {"vram_gb": 6}, "important": {"vram_gb": 6, "priority": 5}}
    play(Stage(tmp_path, tasks), main)


def test_warming_up_takes_what_is_left_over_though_larger_ones_are_still_checked(tmp_path: Path) -> None:
    # The last was refused for bytes that the second, which does not fit in the end, had set aside meanwhile.
    async def main(stage: Stage) -> None:
        check_slowly(stage, second=3, third=2)
        await stage.manager.warmup_models()
        assert sorted(stage.manager.loaded_models) == ["first", "third"]

    play(
        Stage(tmp_path, {"first": {"vram_gb": 6, "load_s": 1}, "second": {"vram_gb": 6}, "third": {"vram_gb": 3}}), main
    )


def test_warming_up_keeps_its_order_where_a_need_is_not_known_before_it_is_checked(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        check_slowly(stage, first=3)
        await stage.manager.warmup_models()
        assert sorted(stage.manager.loaded_models) == ["first"]

    play(Stage(tmp_path, {"first": {"vram_gb": 0, "bytes": "8GiB"}, "second": {"vram_gb": 6}}), main)


def test_warming_up_never_stands_in_the_way_of_a_request(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        warming = spawn(stage.manager.warmup_models())
        await asyncio.sleep(1)
        await stage.manager.get_model("urgent")
        assert now() < 5
        await warming

    tasks = {"slow": {"vram_gb": 8, "load_s": 90}, "urgent": {"vram_gb": 8, "load_s": 1}}
    play(Stage(tmp_path, tasks), main)


# --- keys of another kind (case 27) -----------------------------------------------------------------------------------


def test_the_value_of_an_api_key_is_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-ant-0123456789abcdefghijkl"
    monkeypatch.setenv("ANTHROPIC_API_KEY", secret)
    monkeypatch.setenv("OTHER_KEY", secret)
    far = {"model_id": "claude", "framework": "external_api", "provider": "anthropic", "requires_api_key": True}
    whole = {"selected": "far", "options": {"far": far, "near": option("near")}}

    async def main(stage: Stage) -> None:
        manager = stage.manager
        config = manager.get_external_api_config("t")
        assert config.api_key == secret
        seen: list[Any] = [config, manager, manager.config, manager.tasks, manager.statistics(), manager.catalog]
        with stage.tracer.start_as_current_span("request"):
            for ask in (manager.get_model("t"), manager.warmup_models(), manager.set_selected_model("t", "near")):
                try:
                    seen.append(await ask)
                except errors.TaskRouterError as error:
                    seen += [error, repr(error)]
        await manager.get_model("t")
        seen += [manager.get_loaded_models(), manager.validate_memory_budget(), manager.statistics()]
        seen += [span.to_json() for span in stage.exporter.get_finished_spans()]
        assert secret not in " ".join(f"{thing!r} {thing!s}" for thing in seen)

    caplog.set_level(logging.DEBUG)
    play(Stage(tmp_path, {"t": whole}, providers={"anthropic": {"api_key_env": "OTHER_KEY"}}), main)
    assert secret not in caplog.text
    assert task("x")["selected"] == "x"
