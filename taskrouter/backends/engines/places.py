"""The devices a process is granted bytes on, as they are just before it starts."""

from __future__ import annotations

from taskrouter.backends.engines.launch import Place
from taskrouter.errors import OutOfMemory
from taskrouter.memory.devices import discover, free_bytes
from taskrouter.types import GIB, Charges, DeviceId


def look(label: str, devices: tuple[DeviceId, ...], charges: Charges) -> tuple[Place, ...]:
    """The devices of a placement as they are now. Blocks for milliseconds.

    Raises ``OutOfMemory`` where what the books promise isn't really free. A device that isn't this machine's (the books
    may be kept on numbers) is taken at its word.
    """
    there = {info.id: info for info in discover()}
    places = []
    for device in devices:
        granted = charges.get(device, 0)
        info = there.get(device)
        free = free_bytes(info) if info is not None else None
        if free is not None and free < granted:
            raise OutOfMemory(
                f"{label} was given {granted / GIB:.2f} GiB on {device}, but only {free / GIB:.2f} GiB are really free "
                f"there: somebody else took it. Try again, or lower memory.devices.{device}.budget."
            )
        total = info.total if info is not None else granted
        places.append(Place(device, info.uuid if info else "", total, granted if free is None else free, granted))
    return tuple(places)
