"""What ``telemetry.record_trace`` writes, when, and that it harms nobody where it can't."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.manager.recording import MOST, Recorder
from taskrouter.residency import Residency
from taskrouter.residency.events import Acquire
from taskrouter.simulate.readers import Reading, read_trace
from taskrouter.types import ModelKey, TicketId

from .stage import THREE, Stage, option, play, settle, spawn


def recording(folder: Path, tasks: dict[str, Any] | None = None, to: str = "trace.jsonl") -> Stage:
    return Stage(folder, THREE if tasks is None else tasks, telemetry={"record_trace": to})


def lines(folder: Path, name: str = "trace.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


async def lease(stage: Stage, task: str, hold_s: float = 1.0, **how: Any) -> None:
    async with stage.manager.lease(task, **how):
        await asyncio.sleep(hold_s)


def test_requests_and_decisions_are_recorded_where_the_file_says(tmp_path: Path) -> None:
    stage = recording(tmp_path, {"a": {"vram_gb": 8, "load_s": 3}, "b": {"vram_gb": 8, "load_s": 1}})

    async def main(stage: Stage) -> None:
        await lease(stage, "a", 1.0)
        await lease(stage, "a", 2.0, priority=7)
        await lease(stage, "b", 0.5)

    play(stage, main)
    found = lines(tmp_path)
    asked = [line for line in found if "task" in line]
    assert [(line["task"], line["option"], line["priority"], line["hold_s"], line["outcome"]) for line in asked] == [
        ("a", "a", 0, 1.0, "answered"),
        ("a", "a", 7, 2.0, "answered"),
        ("b", "b", 0, 0.5, "answered"),
    ]
    assert [line["waited_s"] > 0 for line in asked] == [True, False, True]
    assert asked[1]["at"] - asked[0]["at"] == pytest.approx(asked[0]["waited_s"] + 1.0, abs=1e-3)
    decided = [line["decided"] for line in found if "decided" in line]
    assert [(each["label"], each["rule"], each["tasks"]) for each in decided][:2] == [
        ("a", "free", ["a"]),
        ("b", "idle", ["b", "a"]),
    ]
    assert "of 1 considered a (8.0 GiB, unloaded" in decided[1]["text"]
    trace = read_trace(
        (tmp_path / "trace.jsonl").read_text(encoding="utf-8").splitlines(), Reading(frozenset({"a", "b"}))
    )
    assert (len(trace.requests), trace.broken) == (3, ())


def test_calls_through_a_handle_are_requests_and_its_claim_is_none(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        await model.chat("what nobody else is to read")
        await (await stage.manager.get_model("a")).chat("again")

    play(recording(tmp_path), main)
    asked = [line for line in lines(tmp_path) if "task" in line]
    assert [line["outcome"] for line in asked] == ["answered", "answered"]
    assert "nobody else" not in (tmp_path / "trace.jsonl").read_text()


def test_who_is_refused_and_who_gives_up_is_recorded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.InsufficientMemory):
            await lease(stage, "huge")
        waiting = spawn(lease(stage, "a"))
        await settle()
        waiting.cancel()
        await settle()

    play(recording(tmp_path, {"huge": {"vram_gb": 99}, "a": {"load_s": 5}}), main)
    asked = [line for line in lines(tmp_path) if "task" in line]
    assert [(line["task"], line["outcome"]) for line in asked] == [("huge", "refused"), ("a", "gave_up")]
    assert "hold_s" not in asked[0]


def test_of_a_request_with_a_fallback_the_option_that_answered_is_recorded(tmp_path: Path) -> None:
    options = {"big": option("big", vram_gb=99), "small": option("small", vram_gb=2)}
    task = {"selected": "big", "fallback": ["small"], "options": options}

    async def main(stage: Stage) -> None:
        await lease(stage, "t")

    play(recording(tmp_path, {"t": task}), main)
    assert [(line["option"], line["outcome"]) for line in lines(tmp_path) if "task" in line] == [("small", "answered")]


def test_one_that_no_option_could_answer_is_one_request_that_was_refused(tmp_path: Path) -> None:
    options = {"big": option("big", vram_gb=99), "huge": option("huge", vram_gb=98)}
    task = {"selected": "big", "fallback": ["huge"], "options": options, "priority": 3}

    async def main(stage: Stage) -> None:
        with pytest.raises(errors.NoOptionLeft):
            await lease(stage, "t")
        waiting = spawn(lease(stage, "slow"))
        await settle()
        waiting.cancel()
        await settle()
        await lease(stage, "slow")

    slow = {"selected": "s", "fallback": ["u"], "options": {"s": option("s", load_s=5), "u": option("u", load_s=5)}}
    play(recording(tmp_path, {"t": task, "slow": slow}), main)
    asked = [line for line in lines(tmp_path) if "task" in line]
    assert [(line["task"], line["option"], line["priority"], line["outcome"]) for line in asked] == [
        ("t", "big", 3, "refused"),
        ("slow", "s", 0, "gave_up"),
        ("slow", "s", 0, "answered"),
    ]


def test_a_load_that_goes_on_behind_an_answer_is_no_request(tmp_path: Path) -> None:
    options = {"slow": option("slow", fail="error", load_s=5), "quick": option("quick")}
    task = {"selected": "slow", "fallback": ["quick"], "when_cold": "fallback", "options": options}

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("t", option="quick"):
            pass
        await lease(stage, "t")
        await asyncio.sleep(20)
        await stage.manager.set_selected_model("t", "quick")
        with pytest.raises(errors.TaskRouterError):
            await stage.manager.set_selected_model("t", "slow")
        await asyncio.sleep(20)

    play(recording(tmp_path, {"t": task}), main)
    asked = [line for line in lines(tmp_path) if "task" in line]
    assert [(line["option"], line["outcome"]) for line in asked] == [("quick", "answered")] * 2


def test_without_the_key_nothing_is_written(tmp_path: Path) -> None:
    play(Stage(tmp_path, THREE), lambda stage: lease(stage, "a"))
    assert {file.name for file in tmp_path.iterdir()} == {"models.yaml"}


def test_what_happened_is_written_while_the_manager_runs(tmp_path: Path) -> None:
    async def main(stage: Stage) -> int:
        await lease(stage, "a")
        await asyncio.sleep(3)
        return len(lines(tmp_path))

    assert play(recording(tmp_path), main) == 2


def test_two_managers_add_to_one_file(tmp_path: Path) -> None:
    for _ in range(2):
        play(recording(tmp_path), lambda stage: lease(stage, "a"))
    assert len([line for line in lines(tmp_path) if "task" in line]) == 2


def test_a_folder_that_is_not_there_harms_no_request_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = recording(tmp_path, to="gone/trace.jsonl")

    async def main(stage: Stage) -> None:
        for _ in range(3):
            await lease(stage, "a")
            await asyncio.sleep(2)

    with caplog.at_level(logging.WARNING, "taskrouter"):
        play(stage, main)
    assert [record.getMessage() for record in caplog.records if "can't be written" in record.getMessage()] == [
        f"the trace {tmp_path}/gone/trace.jsonl can't be written, and what is lost is only counted: "
        f"[Errno 2] No such file or directory: '{tmp_path}/gone/trace.jsonl'"
    ]
    performer = stage.manager.performer
    assert performer is not None
    assert performer.recorder is not None
    assert performer.recorder.lost >= 4


async def recorder(path: Path) -> Recorder:
    return Recorder(str(path), Residency([]), lambda key: ["t"])


def took(found: Recorder, ticket: int) -> None:
    found.began(Acquire(TicketId(ticket), ModelKey("m"), 9.0), 1.0, 1.0, "t", "o")
    found.ended(TicketId(ticket), 2.0)


def test_lines_beyond_the_bound_are_lost_and_counted(tmp_path: Path) -> None:
    async def main() -> None:
        found = await recorder(tmp_path / "t")
        for ticket in range(MOST + 3):
            took(found, ticket)
        assert found.lost == 3
        found.ended(TicketId(0), 2.0)  # a second time: nothing
        assert repr(found) == f"<Recorder {tmp_path}/t: {MOST} lines to be written, 3 lost>"

    asyncio.run(main())


def test_a_line_that_a_full_disk_cuts_off_spoils_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        found = await recorder(tmp_path / "t")
        took(found, 1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            await found.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert found.lost == 1
        took(found, 2)
        await found.close()

    asyncio.run(main())
    torn, whole = (tmp_path / "t").read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["task"] == "t"


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t")

    async def main() -> int:
        found = await recorder(tmp_path / "t")
        took(found, 1)
        await found.close()
        return found.lost

    assert asyncio.run(main()) == 1


def test_a_file_that_is_reloaded_says_anew_where_to_and_whether(tmp_path: Path) -> None:
    tasks: dict[str, Any] = {"a": {}, "new": {}}
    stage = recording(tmp_path, {"a": {}})

    def say(**telemetry: str) -> None:
        Stage(tmp_path, tasks, telemetry=telemetry)

    async def main(stage: Stage) -> None:
        manager = stage.manager
        await lease(stage, "a")
        async with manager.lease("a"):
            await asyncio.sleep(3)
            say(record_trace="other.jsonl")
            await manager.reload()
        await lease(stage, "new")
        say()
        await manager.reload()
        await lease(stage, "a")
        say(record_trace="again.jsonl")
        await manager.reload()
        await lease(stage, "a")

    play(stage, main)
    asked = {
        path.stem: [line["task"] for line in lines(tmp_path, path.name) if "task" in line]
        for path in tmp_path.glob("*.jsonl")
    }
    assert asked == {"trace": ["a"], "other": ["a", "new"], "again": ["a"]}
