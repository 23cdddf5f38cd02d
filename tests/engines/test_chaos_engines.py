"""The same accidents on real engines: three kills each under traffic, and nothing is left of any of them."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrouter.manager import StillMachine
from taskrouter.types import GIB

from . import chaos, watch
from .subjects import CLAIMS, SUBJECTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

KILLS = {name: chaos.KILLS[name] for name in ("kill engine", "kill child", "kill all of it", "kill guardian")}


def ask(dice: random.Random, task: str) -> tuple[str, str | None]:
    """One of the sample's sentences, whose claims are known; the neighbour may say what it likes."""
    question = dice.choice(CLAIMS)
    assert question.messages is not None
    return question.messages[-1]["content"], question.expected if task == "ask" else None


@pytest.mark.parametrize(("engine", "seed"), [("vllm", 1), ("sglang", 2)])
def test_three_kills_of_a_real_engine_cost_only_what_it_was_answering(
    engine: str,
    seed: int,
    tmp_path: Path,
    state: Path,
    engine_python: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = watch.Run(secrets.token_hex(4), Path(tempfile.gettempdir()), stubs=True)
    monkeypatch.setenv(watch.MARK, run.name)
    subject = SUBJECTS[engine](tmp_path, engine_python)
    config = subject.manager().config_path
    said = json.loads(config.read_text())
    said["engines"][engine]["hang_timeout_s"] = 12
    said["tasks"]["ask"]["max_wait_s"] = 120
    config.write_text(json.dumps(said))
    bounds = chaos.Bounds(call_s=140, margin_s=10, rest_s=120, shutdown_s=60, clean_s=10)
    try:
        report = asyncio.run(
            chaos.run(
                config, 3, seed, run, ask=ask, kinds=KILLS, machine=StillMachine({"cpu": 6 * GIB}), users=3,
                pause_s=(25, 30), bounds=bounds,
            )
        )  # fmt: skip
        print(report)  # noqa: T201  (what a failure, or `pytest -s`, shows)
        assert report.wrong == []
        assert report.loads >= 4  # the neighbour once, the engine again after each kill that found it
        assert list((state / "engines").glob("*")) == []
    finally:
        run.clear()
