"""Rehearsals small enough to be computed by hand: who waits how long, what is loaded, what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from taskrouter.errors import UnknownTask
from taskrouter.residency import Settings
from taskrouter.residency.decisions import Decided, Rule
from taskrouter.simulate import House, Report, Request, Served, Simulation, TaskReport, simulate
from taskrouter.types import CPU, GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, Traits

GPU = DeviceId("cuda:0")
STOPS = {"traits": {"cancellable": True}}


def model(name: str, gib: float, **more: Any) -> ModelSpec:
    """A load takes 2 s per GiB, and nothing beside."""
    traits = Traits(**{"start_s": 0.0, **more.pop("traits", {})})
    return ModelSpec(ModelKey(name), name, Footprint(int(gib * GIB)), ((GPU,),), traits=traits, **more)


def house(*models: ModelSpec, room: float = 10, ram: float = 100, **more: Any) -> House:
    tasks = {spec.label: Served(spec.key) for spec in models}
    settings = more.pop("settings", Settings(min_residency_s=0))
    devices = (
        DeviceSpec(GPU, int(room * GIB), budget=int(room * GIB)),
        DeviceSpec(CPU, int(ram * GIB), budget=int(ram * GIB)),
    )
    return House(devices, models, {**tasks, **more.pop("tasks", {})}, settings, **more)


def asks(*each: tuple[float, str], hold_s: float = 1.0) -> list[Request]:
    return [Request(at, task, hold_s) for at, task in each]


def of(report: Report, task: str) -> TaskReport:
    return next(each for each in report.tasks if each.task == task)


def test_a_cold_start_waits_for_its_load_and_the_next_request_for_nothing() -> None:
    report = simulate(house(model("a", 4)), asks((5, "a"), (100, "a")))
    a = of(report, "a")
    assert (a.requests, a.granted, a.cold, a.loads, a.load_s) == (2, 2, 1, 1, 8.0)
    assert (a.p50_s, a.p99_s, a.longest_s) == (0.0, 8.0, 8.0)
    assert report.span_s == 96.0
    assert (report.late, report.decisions, report.policy) == (0, 1, "lru")


def test_load_times_that_are_known_are_taken_and_expected() -> None:
    made = house(model("a", 4), load_s={ModelKey("a"): 90.0})
    assert of(simulate(made, asks((0, "a"))), "a").load_s == 90.0
    known = Simulation(made)
    known.run(asks((0, "a")))
    assert known.core.status(ModelKey("a")).load_s == 90.0


def test_one_that_makes_room_is_unloaded_first() -> None:
    report = simulate(house(model("a", 6), model("b", 6)), asks((0, "a"), (100, "b"), (200, "a")))
    assert of(report, "b").longest_s == 1 + 12
    assert (of(report, "a").evictions, of(report, "b").evictions) == (1, 1)
    assert report.total.load_s == 36.0
    gpu = next(device for device in report.devices if device.device == GPU)
    assert gpu.peak == 6 * GIB
    assert 5.9 * GIB < gpu.mean <= 6 * GIB


def test_many_callers_of_one_cold_model_are_one_load() -> None:
    report = simulate(house(model("a", 4, slots=1)), asks((0, "a"), (1, "a"), (2, "a")))
    a = of(report, "a")
    assert (a.loads, a.cold, a.longest_s) == (1, 3, 8.0)
    assert sorted(a.waited) == [8.0, 8.0, 8.0]  # granted at 8, 9 and 10


def test_who_is_not_served_in_time_is_refused_at_its_deadline() -> None:
    made = house(model("a", 6), model("b", 6))
    made = replace(made, tasks={**made.tasks, "b": Served(ModelKey("b"), max_wait_s=5.0)})
    report = simulate(made, [Request(0, "a", 500.0), Request(100, "b", 1.0)])
    b = of(report, "b")
    assert (b.requests, b.granted, b.refused) == (1, 0, {"deadline": 1})
    assert report.late == 0
    assert report.total.refused == {"deadline": 1}


def test_what_is_too_large_is_refused_at_once() -> None:
    report = simulate(house(model("a", 11)), asks((0, "a")))
    assert of(report, "a").refused == {"too_large": 1}
    assert (of(report, "a").loads, of(report, "a").p50_s) == (0, 0.0)


def test_external_options_and_those_that_can_not_be_used_take_no_memory() -> None:
    tasks = {"away": Served(None), "broken": Served(None, refused="unavailable")}
    report = simulate(house(tasks=tasks), asks((0, "away"), (1, "broken")))
    assert (of(report, "away").external, of(report, "away").requests) == (1, 1)
    assert of(report, "broken").refused == {"unavailable": 1}
    assert report.span_s == 1.0


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(UnknownTask, match="'nobody'"):
        simulate(house(model("a", 1)), asks((0, "nobody")))


def test_a_trace_without_requests_is_a_warm_up() -> None:
    report = simulate(house(model("a", 4), warm=("a",)), [])
    assert (report.warmup_loads, report.warmup_s, report.total.requests, report.span_s) == (1, 8.0, 0, 0.0)


def test_warm_up_comes_before_the_first_request_and_counts_for_nobody() -> None:
    made = house(model("a", 6), model("b", 6), tasks={"away": Served(None)}, warm=("away", "a", "b"))
    report = simulate(made, asks((0, "a")))
    a = of(report, "a")
    assert (report.warmup_loads, report.warmup_s) == (1, 12.0)  # b finds no free room, and evicts nobody
    assert (a.cold, a.loads, a.p99_s) == (0, 0, 0.0)


def test_what_a_pipeline_needs_next_is_loaded_ahead_in_the_line_of_its_task() -> None:
    made = house(model("a", 4), model("b", 4, **STOPS), after={"a": (("p", (ModelKey("b"),)),)})
    report = simulate(made, asks((0, "a"), (60, "b")))
    assert (of(report, "b").cold, of(report, "b").loads, of(report, "b").load_s) == (0, 1, 8.0)


def test_a_load_ahead_gives_way_to_a_request() -> None:
    made = house(model("a", 1), model("b", 9, **STOPS), model("c", 9), after={"a": (("p", (ModelKey("b"),)),)})
    report = simulate(made, asks((0, "a"), (5, "c")))
    assert (of(report, "b").loads, of(report, "b").granted) == (1, 0)
    assert 0 < of(report, "b").load_s < 18
    assert of(report, "c").longest_s == 1 + 18


@pytest.mark.parametrize(("keeps", "wake_s"), [(True, 0.2 + 8 / 4), (False, 0.2 + 8 / 0.5)])
def test_who_sleeps_wakes_quicker_than_it_was_loaded(*, keeps: bool, wake_s: float) -> None:
    sleeps = {"traits": {"can_sleep": True, "keeps_weights": keeps, "start_s": 10.0}}
    settings = Settings(host_budget=50 * GIB, min_residency_s=0)
    made = house(model("a", 8, **sleeps), model("b", 8, **sleeps), settings=settings)
    report = simulate(made, asks((0, "a"), (100, "b"), (200, "a"), (300, "b")))
    a, b = of(report, "a"), of(report, "b")
    assert (a.loads, a.wakes, a.sleeps, a.evictions) == (1, 1, 2, 2)
    assert (b.loads, b.wakes) == (1, 1)
    assert min(b.waited) == pytest.approx(wake_s + (wake_s if keeps else 1.0))
    assert a.load_s == 26.0


def test_an_idle_model_that_goes_by_its_keep_alive_was_not_evicted() -> None:
    report = simulate(house(model("a", 4, keep_alive_s=10.0)), asks((0, "a"), (100, "a")))
    assert (of(report, "a").loads, of(report, "a").evictions) == (2, 0)


def test_load_times_that_are_known_are_taken() -> None:
    report = simulate(house(model("a", 4), load_s={ModelKey("a"): 3.0}), asks((0, "a")))
    assert of(report, "a").longest_s == 3.0


def test_priority_is_the_requests_own_where_it_has_one() -> None:
    made = house(model("a", 8), model("b", 8), model("c", 8))
    requests = [Request(0, "a", 30.0), Request(1, "b", 1.0), Request(2, "c", 1.0, priority=5)]
    report = simulate(made, requests)
    assert of(report, "c").longest_s < of(report, "b").longest_s


def test_every_decision_is_told_in_the_time_of_the_trace_those_of_the_warm_up_in_its_own() -> None:
    told: list[tuple[float, Decided]] = []
    made = house(model("a", 6), model("b", 6), warm=("a",))
    simulate(made, asks((50, "a"), (150, "b")), on_decided=lambda at, each: told.append((at, each)))
    assert [(at, each.label, each.rule) for at, each in told] == [
        (0.0, "a", Rule.FREE),
        (150.0, "b", Rule.IDLE),
    ]


def test_the_first_task_that_asks_for_a_shared_model_has_its_evictions() -> None:
    made = house(model("a", 6), model("b", 6), tasks={"also": Served(ModelKey("a"))})
    report = simulate(made, asks((0, "also"), (100, "b")))
    assert (of(report, "a").evictions, of(report, "also").evictions) == (1, 0)
    assert of(report, "also").loads == 1


def test_the_books_hold_at_the_end() -> None:
    simulation = Simulation(house(model("a", 6), model("b", 6)))
    simulation.run(asks((0, "a"), (1, "b"), (2, "a"), (3, "b")))
    simulation.core.check()
    assert sum(status.leases for status in simulation.core.snapshot().models.values()) == 0
