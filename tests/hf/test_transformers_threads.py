"""Threads that end when they must and hold nothing back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import weakref

import pytest

from taskrouter.backends.hf.threads import Worker, run_in_daemon

EXIT = """
import sys, threading
from pathlib import Path
import asyncio, torch
torch.set_num_threads(1)
from taskrouter.backends.hf.threads import Worker
started, stop = threading.Event(), threading.Event()
matrix = torch.randn(600, 600)
def work():
    while not stop.is_set():
        matrix @ matrix
        started.set()
Worker("busy").submit(work, stop)
started.wait()
Worker("idle")
"""


class Held:
    """Something a job holds."""


@pytest.mark.anyio
async def test_a_worker_keeps_neither_the_job_nor_its_result() -> None:
    worker = Worker("w")
    held, result = Held(), Held()
    gone = [threading.Event(), threading.Event()]
    for each, event in zip((held, result), gone, strict=True):
        weakref.finalize(each, event.set)

    def work(what: Held = held, answer: list[Held] = [result]) -> Held:  # noqa: B006  the list is emptied
        return answer.pop()

    stop = threading.Event()
    assert await worker.result(worker.submit(work, stop), stop) is result
    del work, held, result, each
    assert [await asyncio.to_thread(event.wait, 5) for event in gone] == [True, True]
    worker.close()


@pytest.mark.anyio
async def test_errors_come_through_and_the_worker_goes_on() -> None:
    worker, stop = Worker("w"), threading.Event()
    with pytest.raises(ZeroDivisionError):
        await worker.result(worker.submit(lambda: 1 // 0, stop), stop)
    assert await worker.result(worker.submit(lambda: 7, stop), stop) == 7
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon("d", lambda: 1 // 0)
    worker.close()


@pytest.mark.anyio
async def test_what_an_abandoned_job_comes_to_is_handed_on_unless_it_failed() -> None:
    go = threading.Event()
    got: list[int] = []
    came = threading.Event()

    def take(value: int) -> None:
        got.append(value)
        came.set()

    def seven() -> int:
        go.wait()
        return 7

    def fail() -> int:
        go.wait()
        raise ZeroDivisionError

    jobs = [asyncio.create_task(run_in_daemon("d", work, abandoned=take)) for work in (fail, seven)]
    await asyncio.wait(jobs, timeout=0)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    go.set()
    assert await asyncio.to_thread(came.wait, 10)
    assert got == [7]


@pytest.mark.slow
def test_a_process_that_ends_in_mid_answer_ends_cleanly() -> None:
    ended = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_closed_worker_rests() -> None:
    worker = Worker("w")
    worker.close()
    assert worker.rested().result(5) is None
    worker.close()
    assert worker.rested().done()
