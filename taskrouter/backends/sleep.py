"""Why a model isn't put to sleep: what holds for every backend, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable

from taskrouter.types import CPU, DeviceId, ModelRequest


def why_awake(request: ModelRequest) -> str | None:
    """Why this option's model never sleeps, whatever its backend can; ``None``: nothing speaks against it. Pure."""
    if request.sleep == "never":
        return "its option says sleep: never"
    if request.devices == (CPU,):
        return "it is on the cpu, in host RAM already"
    return None


def told(why: str | None, devices: Iterable[DeviceId]) -> str:
    """What ``info["can_sleep"]`` says of a model on these devices: ``yes``, or ``no`` and why."""
    if why is None and CPU in devices:
        why = "it is on the cpu, in host RAM already"
    return "yes" if why is None else f"no: {why}"
