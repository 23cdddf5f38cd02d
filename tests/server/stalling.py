"""A core that nothing moves any more, which only a fault of ours could bring about."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskrouter.residency.actions import WakeAt
from taskrouter.residency.events import Tick

from .administering import call
from .serving import Served


@contextmanager
def nothing_moves(served: Served) -> Iterator[None]:
    """What would refuse a waiter at its deadline never comes, and the devices aren't looked at either; then it does."""
    performer = served.manager.performer
    assert performer is not None
    wake, observe = performer._perform[WakeAt], performer.observe

    async def nothing() -> None:
        pass

    async def stall() -> None:
        performer._perform[WakeAt] = lambda action: None
        performer.observe = nothing  # type: ignore[method-assign]

    async def go_on() -> None:
        performer._perform[WakeAt] = wake
        performer.observe = observe  # type: ignore[method-assign]
        performer.post(Tick())

    served.run(stall())
    try:
        yield
    finally:
        served.run(go_on())


def not_ready(served: Served, key: str | None) -> Any:
    """What ``/ready`` says as soon as it says no, for one waiter that is past its bound."""
    until = time.monotonic() + 20
    status, found = 200, dict[str, Any]()
    while status == 200 and time.monotonic() < until:
        status, found, _ = call(served, "/ready", key=key)
    assert (status, found["ready"], found["waiting"]) == (503, False, 1), found
    assert "past its bound" in found["why"]
    return found
