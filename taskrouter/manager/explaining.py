"""How the latest requests were answered, and why the core's decisions fell as they did, in lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from taskrouter.residency import Residency
from taskrouter.types import ModelKey
from taskrouter.verbs import Routed


def decided(core: Residency, keys: Iterable[ModelKey | None], now: float) -> list[str]:
    """What was decided for these models, a line each with its time of day (UTC), the newest first.

    ``now`` is this instant on the core's clock.
    """
    found = {id(each): each for key in keys if key is not None for each in core.decisions(key)}
    clock = datetime.now(UTC)
    newest = sorted(found.values(), key=lambda each: each.at, reverse=True)
    return [f"{clock - timedelta(seconds=now - each.at):%H:%M:%S} {each}" for each in newest]


def told(at: datetime, ended: Routed | str) -> str:
    """How a request ended, in a line."""
    when = at.strftime("%H:%M:%S")
    if isinstance(ended, Routed):
        passed = "".join(f"; passed over {each}" for each in ended.passed)
        return f"{when} {ended.option} answered{passed}"
    return f"{when} refused: {ended}"
