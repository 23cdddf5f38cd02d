"""Which requests become spans where there are more of them than anybody wants to pay for."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from taskrouter import telemetry
from taskrouter.http import serving as serves
from taskrouter.http import tracing
from taskrouter.http.keys import Keys
from taskrouter.http.tracing import Tracing
from taskrouter.manager import ModelManager

from .serving import written

SENT = {b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, {"say": {"selected": "it", "options": {"it": {"framework": "fake", "model_id": "m"}}}})


def wanted(tracing: Tracing, times: int, headers: dict[bytes, bytes] | None = None) -> int:
    return sum(tracing.wants(headers or {}) for _ in range(times))


def test_the_first_of_each_second_and_whoever_traces_already(file: Path) -> None:
    clock = Clock()
    traced = Tracing(ModelManager(file, tracer_provider=TracerProvider(shutdown_on_exit=False)), 3, clock)
    assert wanted(traced, 10) == 3
    assert wanted(traced, 10, SENT) == 10, "the client has decided"
    clock.now = 0.99
    assert wanted(traced, 10) == 0
    clock.now = 1.0
    assert wanted(traced, 10) == 3


def test_all_where_nobody_bounds_them(file: Path) -> None:
    traced = Tracing(ModelManager(file, tracer_provider=TracerProvider(shutdown_on_exit=False)))
    assert wanted(traced, 1000) == 1000


def test_none_where_nobody_looks_until_somebody_does(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), [False]
    monkeypatch.setattr(telemetry, "is_set_up", lambda: looks[0])
    traced = Tracing(ModelManager(file), clock=clock)
    assert wanted(traced, 3, SENT) == 0
    looks[0] = True
    clock.now = 0.5
    assert wanted(traced, 3) == 0, "it is looked once a second"
    clock.now = 1.0
    assert wanted(traced, 3) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(("sampler", "bound"), [(None, tracing.PER_SECOND), ("always_on", None)])
async def test_a_server_bounds_them_unless_a_sampler_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, sampler: str | None, bound: int | None
) -> None:
    made = []

    class Stop(Exception):
        pass

    def create_app(*_: object, traced_per_second: int | None) -> None:
        made.append(traced_per_second)
        raise Stop

    monkeypatch.setattr(serves, "create_app", create_app)
    monkeypatch.delenv(serves.SAMPLER, raising=False)
    if sampler is not None:
        monkeypatch.setenv(serves.SAMPLER, sampler)
    with serves.listen("127.0.0.1", 0) as listening, pytest.raises(Stop):
        await serves.serve(ModelManager(file), Keys(), listening)
    assert made == [bound]
