"""Freed is what is seen free: GPU memory of a process tree, with a driver that says much, little, or wrong things."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from taskrouter.memory.nvml import GpuMemory, GpuProcess, NvmlError
from taskrouter.memory.release import Release, gpu_bytes, listens, tree_bytes
from taskrouter.types import GIB, MIB, DeviceId

GPU = DeviceId("cuda:0")
UUIDS = {GPU: "GPU-a"}
TOOK = {GPU: 10 * GIB}


class Driver:
    """A GPU made of numbers. ``lists``: whether it says which process holds what."""

    def __init__(self, *, lists: bool = True) -> None:
        self.lists = lists
        self.held: dict[int, int | None] = {}
        self.others = 2 * GIB
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            raise NvmlError("the GPU has fallen off the bus")

    def uuids(self) -> tuple[str, ...]:
        return ("GPU-a",)

    def name(self, uuid: str) -> str:
        return "made of numbers"

    def memory(self, uuid: str) -> GpuMemory:
        self._check()
        return GpuMemory(total=80 * GIB, used=self.others + sum(size or 0 for size in self.held.values()))

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        self._check()
        return tuple(GpuProcess(pid, size) for pid, size in self.held.items()) if self.lists else ()


def test_a_driver_that_names_processes_is_believed() -> None:
    driver = Driver()
    driver.held = {11: 9 * GIB, 12: GIB, 99: GIB}
    release = Release(driver, UUIDS, [10, 11, 12], TOOK)
    assert release.missing() == {GPU: 10 * GIB}
    del driver.held[11]
    assert release.missing() == {GPU: GIB}
    driver.others += 50 * GIB  # somebody took more than was freed: that is theirs
    del driver.held[12]
    assert release.missing() == {}


def test_a_process_whose_bytes_are_not_said_holds_all_until_it_is_gone() -> None:
    driver = Driver()
    driver.held = {11: None}
    release = Release(driver, UUIDS, [11], TOOK)
    assert release.missing() == TOOK
    driver.held.clear()
    assert release.missing() == {}


def test_where_processes_are_hidden_the_total_has_to_fall_by_most_of_it() -> None:
    driver = Driver(lists=False)
    driver.held = {11: 10 * GIB}
    release = Release(driver, UUIDS, [11], TOOK)
    assert release.missing() == {GPU: 10 * GIB}
    driver.held = {11: 4 * GIB}
    assert release.missing() == {GPU: 4 * GIB}
    driver.held = {}
    driver.others += GIB  # others take memory meanwhile
    assert release.missing() == {}


def test_of_a_tree_that_has_died_already_only_the_drivers_list_counts() -> None:
    """Its memory is free before anybody looks: a total that doesn't fall any more is no sign that it is held."""
    hidden = Driver(lists=False)
    assert Release(hidden, UUIDS, [11], TOOK, alive=False).missing() == {}
    driver = Driver()
    driver.held = {12: GIB}
    release = Release(driver, UUIDS, [11, 12], TOOK, alive=False)
    assert release.missing() == {GPU: GIB}
    driver.held.clear()
    assert release.missing() == {}


def test_a_driver_that_does_not_answer_keeps_nothing_back() -> None:
    driver = Driver(lists=False)
    driver.held = {11: 10 * GIB}
    release = Release(driver, UUIDS, [11], TOOK)
    driver.broken = True
    assert release.missing() == {}


def test_without_gpus_there_is_nothing_to_wait_for() -> None:
    assert Release(None, UUIDS, [11], TOOK).missing() == {}
    assert Release(Driver(), {}, [11], TOOK).missing() == {}


@pytest.mark.parametrize(
    ("held", "known"), [({11: GIB, 12: GIB, 13: GIB}, 2 * GIB), ({11: GIB, 12: None}, None), ({13: GIB}, None)]
)
def test_what_a_tree_holds_is_known_only_where_all_of_it_is(held: dict[int, int | None], known: int | None) -> None:
    driver = Driver()
    driver.held = held
    assert gpu_bytes(driver, "GPU-a", [11, 12]) == known
    driver.broken = True
    assert gpu_bytes(driver, "GPU-a", [11, 12]) is None
    assert gpu_bytes(None, "GPU-a", [11]) is None


def test_the_ram_of_processes_is_counted_and_those_that_ended_are_not() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    mine = tree_bytes([os.getpid(), ended.pid])
    assert 10 * MIB < mine < 100 * GIB


def test_who_listens_on_a_port_is_looked_up() -> None:
    program = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); sys.stdin.read()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert listens([other.pid], port)
        assert not listens([other.pid], port + 1 if port < 65535 else port - 1)
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))
            mine.listen()
            assert not listens([other.pid, os.getpid(), 0x7FFFFFF], mine.getsockname()[1])
        assert other.stdin is not None
        other.stdin.close()
