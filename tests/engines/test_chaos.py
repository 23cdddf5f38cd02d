"""Random faults on stubs under mixed traffic: nobody is left without an answer, and nothing is left behind.

``CHAOS_SEED`` looks for other accidents, ``CHAOS_FAULTS`` makes more of them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrouter.manager import StillMachine
from taskrouter.types import GIB

from . import chaos, stub_faults, watch

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CHAOS_SEED", "1"))
FAULTS = int(os.environ.get("CHAOS_FAULTS", "200"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[watch.Run]:
    """What is started here is known by its mark, and cleared away whatever happens."""
    run = watch.Run(secrets.token_hex(4), Path(tempfile.gettempdir()), stubs=True)
    monkeypatch.setenv(watch.MARK, run.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield run
    run.clear()


@pytest.mark.timeout(400)
def test_two_hundred_faults_leave_nobody_without_an_answer_and_nothing_behind(
    tmp_path: Path, mine: watch.Run, state: Path
) -> None:
    """Four models share the room of two and a half, so evictions go on all the time."""
    config = stub_faults.write_config(tmp_path, models=4, gib=0.4)
    machine = StillMachine({"cpu": GIB})
    with stub_faults.log_disk(state.parent, list("abcd"), os.getpid()) as disk:
        report = asyncio.run(
            chaos.run(
                config,
                FAULTS,
                SEED,
                mine,
                ask=stub_faults.ask,
                kinds=stub_faults.kinds(disk),
                machine=machine,
                pause_s=(0.05, 0.45),
                more=stub_faults.more_acts,
            )
        )
        left = list((state / "engines").glob("*"))
    print(report)  # noqa: T201  (what a failure, or `pytest -s`, shows)
    assert report.wrong == []
    assert left == []
    assert report.loads >= FAULTS / 2
    # Traffic went on all the time; how much is answered between two faults is the machine's speed.
    assert sum(count for name, count in report.outcomes.items() if name.endswith("right")) >= FAULTS / 4
