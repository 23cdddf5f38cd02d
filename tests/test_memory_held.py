"""What stays on a GPU of a process tree that lives on: as the driver says, or from the total where it won't."""

from __future__ import annotations

from taskrouter.memory.held import CONTEXT_LEAST, Held
from taskrouter.types import GIB
from tests.test_memory_release import GPU, TOOK, UUIDS, Driver


def test_a_driver_that_names_processes_is_believed() -> None:
    driver = Driver()
    driver.held = {11: 9 * GIB, 12: GIB, 99: 3 * GIB}
    held = Held(driver, UUIDS, [11, 12], TOOK)
    assert held.before == held.now() == {GPU: 10 * GIB}
    driver.held |= {11: GIB, 12: GIB // 2}
    driver.others += 40 * GIB  # that is nobody's we ask about
    assert held.now() == {GPU: GIB + GIB // 2}


def test_one_that_does_not_is_judged_by_its_total_and_a_context_is_always_left() -> None:
    driver = Driver(lists=False)
    driver.held = {11: 10 * GIB}
    held = Held(driver, UUIDS, [11], TOOK)
    assert held.before == {GPU: 10 * GIB}
    driver.held = {11: 2 * GIB}
    assert held.now() == {GPU: 2 * GIB}
    driver.others -= 2 * GIB  # a neighbour gave back as much: it looks like ours, and a process has a context
    assert held.now() == {GPU: CONTEXT_LEAST}
    driver.others += 9 * GIB  # or took more
    assert held.now() == {GPU: 9 * GIB}


def test_bytes_that_are_not_said_for_every_process_are_judged_by_the_total() -> None:
    driver = Driver()
    driver.held = {11: None, 12: GIB}
    assert Held(driver, UUIDS, [11, 12], TOOK).before == {GPU: 10 * GIB}


def test_of_a_gpu_that_can_not_be_asked_nothing_is_said() -> None:
    driver = Driver()
    driver.broken = True
    assert Held(driver, UUIDS, [11], TOOK).now() == {}
    assert Held(None, UUIDS, [11], TOOK).now() == {}
    held = Held(Driver(), UUIDS, [11], TOOK)
    held._nvml.broken = True  # type: ignore[union-attr]
    assert held.now() == {}
