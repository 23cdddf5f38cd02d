"""Does the file fit the machine: pins, swapping, several devices, host memory, shared models, unknown needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.config.catalog import Unavailable
from taskrouter.manager.budget import Budget, Fit, OptionFit, Rooms, Survey
from taskrouter.residency import MODEL_SLOTS
from taskrouter.types import CPU, GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec

from .stage import Stage, option, play

GPU0, GPU1 = DeviceId("cuda:0"), DeviceId("cuda:1")
TWO = {"cuda:0": 10 * GIB, "cuda:1": 6 * GIB}


def surveyed(folder: Path, tasks: dict[str, Any], **more: Any) -> tuple[Budget, dict[str, OptionFit]]:
    """The whole answer, and its lines by ``task/option``."""
    found = Stage(folder, tasks, **more).manager.budget()
    return found, {f"{fit.task}/{fit.option}": fit for fit in found.options}


# --- rooms ------------------------------------------------------------------------------------------------------------


def spec(need: int, *placements: tuple[DeviceId, ...], ram: int = 0) -> ModelSpec:
    return ModelSpec(ModelKey("a"), "a", Footprint(need, ram), placements or ((GPU0,), (GPU1,)))


def rooms(max_models: int = 0) -> Rooms:
    specs = [DeviceSpec(GPU0, 99, budget=10), DeviceSpec(GPU1, 99, budget=6), DeviceSpec(CPU, 99, budget=8)]
    return Rooms(specs, max_models)


def test_a_model_goes_to_the_first_device_set_with_room_to_the_byte() -> None:
    room = rooms()
    assert room.put(spec(10)) == (GPU0,)
    assert room.put(spec(6)) == (GPU1,)
    assert room.put(spec(1)) is None
    assert room.left == {GPU0: 0, GPU1: 0, CPU: 8}


def test_looking_for_a_place_takes_none() -> None:
    room = rooms()
    assert room.where(spec(10)) == room.where(spec(10)) == (GPU0,)


def test_a_model_over_two_devices_needs_its_bytes_on_each() -> None:
    room = rooms()
    assert room.put(spec(7, (GPU0, GPU1))) is None
    assert room.put(spec(6, (GPU0, GPU1))) == (GPU0, GPU1)
    assert room.left == {GPU0: 4, GPU1: 0, CPU: 8}


def test_host_memory_is_needed_beside_the_device_and_on_top_where_the_device_is_the_host() -> None:
    room = rooms()
    assert room.put(spec(1, ram=9)) is None
    assert room.put(spec(3, (CPU,), ram=6)) is None
    assert room.put(spec(3, (CPU,), ram=5)) == (CPU,)
    assert room.left[CPU] == 0


def test_max_models_is_room_for_so_many_whatever_their_bytes() -> None:
    room = rooms(max_models=1)
    assert room.put(spec(1)) == (GPU0,)
    assert room.put(spec(1)) is None
    assert room.left[MODEL_SLOTS] == 0


# --- surveys ----------------------------------------------------------------------------------------------------------


def test_what_fits_at_once_what_only_by_swapping_and_what_never_are_told_apart(tmp_path: Path) -> None:
    tasks = {"a": {"vram_gb": 6}, "b": {"vram_gb": 5}, "c": {"vram_gb": 11}}
    found, fits = surveyed(tmp_path, tasks)
    assert [fits[name].fit for name in ("a/a", "b/b", "c/c")] == [Fit.TOGETHER, Fit.SWAPPING, Fit.NEVER]
    assert (fits["a/a"].devices, fits["b/b"].devices, fits["c/c"].devices) == ((GPU0,), (GPU0,), ())
    assert (found.all_resident, found.servable) == (False, False)
    assert found.problems == ("c/c: can never fit: it needs 11.0 GiB and at most 10.0 GiB can be had",)


def test_each_model_is_put_on_the_device_with_room_and_each_device_says_what_it_carries(tmp_path: Path) -> None:
    tasks = {"a": {"vram_gb": 6}, "b": {"vram_gb": 9, "pinned": True}, "c": {"vram_gb": 1}}
    found, fits = surveyed(tmp_path, tasks, machine=TWO)
    assert (fits["a/a"].devices, fits["b/b"].devices, fits["c/c"].devices) == ((GPU1,), (GPU0,), (GPU0,))
    assert found.all_resident
    assert found.problems == ()
    lines = {fit.device: (fit.total, fit.capacity, fit.selected, fit.pinned) for fit in found.devices}
    assert lines[GPU0] == (10 * GIB, 10 * GIB, 10 * GIB, 9 * GIB)
    assert lines[GPU1] == (6 * GIB, 6 * GIB, 6 * GIB, 0)


def test_what_never_fits_is_judged_by_the_device_that_comes_closest(tmp_path: Path) -> None:
    _, fits = surveyed(tmp_path, {"a": {"vram_gb": 12}}, machine=TWO)
    assert fits["a/a"].why == "it needs 12.0 GiB and at most 10.0 GiB can be had"


def test_an_option_for_several_devices_is_bound_by_the_smallest(tmp_path: Path) -> None:
    _, fits = surveyed(tmp_path, {"a": {"vram_gb": 7, "devices": ["cuda:0", "cuda:1"]}}, machine=TWO)
    assert fits["a/a"].why == "it needs 7.0 GiB and at most 6.0 GiB can be had"


def test_a_model_that_fits_only_without_the_pins_can_never_be_served(tmp_path: Path) -> None:
    found, fits = surveyed(tmp_path, {"a": {"vram_gb": 7, "pinned": True}, "b": {"vram_gb": 4}, "c": {"vram_gb": 3}})
    assert [fits[name].fit for name in ("a/a", "b/b", "c/c")] == [Fit.TOGETHER, Fit.NEVER, Fit.TOGETHER]
    assert found.problems == ("b/b: can never fit: it needs 4.0 GiB beside what is pinned",)


def test_two_pinned_models_too_large_for_each_other_are_a_problem_though_each_would_fit(tmp_path: Path) -> None:
    found, fits = surveyed(tmp_path, {"a": {"vram_gb": 6, "pinned": True}, "b": {"vram_gb": 5, "pinned": True}})
    assert (fits["a/a"].fit, fits["b/b"].fit) == (Fit.TOGETHER, Fit.NEVER)
    assert not found.servable


def test_pins_that_fill_max_models_leave_room_for_nobody_and_the_problem_says_so(tmp_path: Path) -> None:
    tasks = {"a": {"vram_gb": 1, "pinned": True}, "b": {"vram_gb": 1}}
    found, fits = surveyed(tmp_path, tasks, memory={"max_models": 1})
    assert fits["b/b"].fit is Fit.NEVER
    assert found.problems == ("b/b: can never fit: what is pinned fills memory.max_models (1)",)


def test_max_models_without_pins_only_makes_them_take_turns(tmp_path: Path) -> None:
    found, fits = surveyed(tmp_path, {"a": {"vram_gb": 1}, "b": {"vram_gb": 1}}, memory={"max_models": 1})
    assert {fits["a/a"].fit, fits["b/b"].fit} == {Fit.TOGETHER, Fit.SWAPPING}
    assert (found.all_resident, found.servable) == (False, True)


def test_host_memory_beside_a_device_is_counted_and_named_where_it_is_what_lacks(tmp_path: Path) -> None:
    machine = {"cuda:0": 10 * GIB, "cpu": 16 * GIB}
    found, fits = surveyed(
        tmp_path, {"a": {"vram_gb": 2, "ram_gb": 20}, "b": {"vram_gb": 2, "ram_gb": 16}}, machine=machine
    )
    assert fits["a/a"].why == "it needs 20.0 GiB of host RAM and at most 16.0 GiB can be had"
    assert fits["b/b"].fit is Fit.TOGETHER
    assert next(fit.selected for fit in found.devices if fit.device == CPU) == 36 * GIB


def test_tasks_that_share_a_model_need_its_bytes_once(tmp_path: Path) -> None:
    shared = {"selected": "one", "options": {"one": option("one", vram_gb=6)}}
    found, fits = surveyed(tmp_path, {"a": shared, "b": shared})
    assert (fits["a/one"].fit, fits["b/one"].fit) == (Fit.TOGETHER, Fit.TOGETHER)
    assert (found.all_resident, found.devices[0].selected) == (True, 6 * GIB)


def test_an_option_not_selected_is_judged_in_the_place_of_the_one_its_task_selects(tmp_path: Path) -> None:
    options = {
        "large": option("large", vram_gb=7),
        "small": option("small", vram_gb=4),
        "huge": option("huge", vram_gb=9),
    }
    tasks = {"a": {"selected": "large", "options": options}, "b": {"vram_gb": 3}}
    found, fits = surveyed(tmp_path, tasks)
    assert found.all_resident
    assert (fits["a/small"].fit, fits["a/huge"].fit) == (Fit.TOGETHER, Fit.SWAPPING)
    assert not fits["a/small"].selected


def test_a_pinned_option_nobody_selects_yet_pins_nothing(tmp_path: Path) -> None:
    options = {"now": option("now", vram_gb=4), "later": option("later", vram_gb=8, pinned=True)}
    found, fits = surveyed(tmp_path, {"a": {"selected": "now", "options": options}, "b": {"vram_gb": 6}})
    assert (fits["a/now"].fit, fits["a/later"].fit, fits["b/b"].fit) == (Fit.TOGETHER, Fit.SWAPPING, Fit.TOGETHER)
    assert found.devices[0].pinned == 0


@pytest.mark.parametrize(
    ("known", "source", "fit", "need"),
    [
        (None, "unknown", Fit.UNKNOWN, 0),
        ((4 * GIB, "estimated"), "estimated", Fit.TOGETHER, 4 * GIB),
        ((11 * GIB, "measured"), "measured", Fit.NEVER, 11 * GIB),
    ],
)
def test_a_model_that_declares_nothing_is_unknown_until_somebody_knows(
    tmp_path: Path, known: tuple[int, str] | None, source: str, fit: Fit, need: int
) -> None:
    manager = Stage(tmp_path, {"a": {"vram_gb": 0}}).manager
    key = next(iter(manager._requests))
    line = manager.budget({} if known is None else {key: known}).options[0]
    assert (line.source, line.fit, line.need) == (source, fit, need)


def test_what_is_declared_is_believed_before_what_is_known(tmp_path: Path) -> None:
    manager = Stage(tmp_path, {"a": {"vram_gb": 3}}).manager
    line = manager.budget({next(iter(manager._requests)): (11 * GIB, "estimated")}).options[0]
    assert (line.source, line.fit, line.need) == ("declared", Fit.TOGETHER, 3 * GIB)


def test_an_option_for_devices_the_machine_lacks_is_a_problem_only_where_it_is_selected(tmp_path: Path) -> None:
    options = {"here": option("here"), "there": option("there", vram_gb=2, devices=["cuda:3"])}
    found, fits = surveyed(tmp_path, {"a": {"selected": "here", "options": options}})
    assert (fits["a/there"].fit, fits["a/there"].need, fits["a/there"].source) == (Fit.UNAVAILABLE, 2 * GIB, "declared")
    assert "cuda:3" in fits["a/there"].why
    assert found.problems == ()
    again, _ = surveyed(tmp_path, {"a": {"selected": "there", "options": options}})
    assert again.problems[0].startswith("a/there: can't be used here: it is written for ")
    assert not again.all_resident


@pytest.mark.parametrize("usable", [True, False])
def test_an_external_option_needs_no_room_and_is_a_problem_only_where_it_cannot_be_used(
    tmp_path: Path, usable: bool
) -> None:
    cloud = {"model_id": "m", "framework": "external_api", "provider": "openai"}
    tasks = {"a": {"selected": "cloud", "options": {"cloud": cloud}}, "b": {"vram_gb": 10}}
    manager = Stage(tmp_path, tasks).manager
    reasons = () if usable else (Unavailable("a", "cloud", "no provider is installed", selected=True),)
    catalog = replace(manager._catalog, unavailable=reasons)
    machine = (DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB), DeviceSpec(CPU, 1 << 40))
    found = Survey(catalog, {"a": "cloud", "b": "b"}, manager._uses, manager._specs(), {}, machine).take()
    line = found.options[0]
    assert (line.fit, line.source, line.need) == (Fit.EXTERNAL if usable else Fit.UNAVAILABLE, "external", 0)
    assert found.all_resident is usable
    assert found.problems == (() if usable else ("a/cloud: can't be used here: no provider is installed",))


def test_models_that_would_be_called_the_same_are_called_by_task_and_option(tmp_path: Path) -> None:
    twice = {
        name: {"selected": "x", "options": {"x": option(name, 6, pinned=name == "one")}} for name in ("one", "two")
    }
    stage = Stage(tmp_path, twice)

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("one")
        with pytest.raises(errors.AllPinned, match=r"two/x needs .* pinned \(one/x 6.0 GiB\)"):
            await stage.manager.get_model("two")

    play(stage, main)


def test_what_needs_nobody_knows_how_much_is_not_said_to_fit(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {"vram_gb": 0}, "b": {"vram_gb": 1}})
    found = stage.manager.validate_memory_budget()
    assert found["valid"] is False
    assert found["servable"] is True
    assert found["model_requirements"]["a"]["fit"] == "need not known yet"
