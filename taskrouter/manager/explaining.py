"""Why the core's latest decisions fell as they did, in lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from taskrouter.residency import Residency
from taskrouter.types import ModelKey


def decided(core: Residency, keys: Iterable[ModelKey | None], now: float) -> list[str]:
    """What was decided for these models, a line each with its time of day (UTC), the newest first.

    ``now`` is this instant on the core's clock.
    """
    found = {id(each): each for key in keys if key is not None for each in core.decisions(key)}
    clock = datetime.now(UTC)
    newest = sorted(found.values(), key=lambda each: each.at, reverse=True)
    return [f"{clock - timedelta(seconds=now - each.at):%H:%M:%S} {each}" for each in newest]
