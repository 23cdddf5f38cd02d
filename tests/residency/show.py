"""Events, actions and houses as short lines, for the story that a violation tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import Settings
from taskrouter.types import GIB, DeviceReading, DeviceSpec, Footprint, ModelSpec, Traits


def size(count: int) -> str:
    return f"{count / GIB:g}G" if count >= GIB // 16 else str(count)


def value(thing: Any) -> str:
    match thing:
        case ev.Reason():
            return thing.value
        case Footprint():
            return size(thing.device_bytes) + (f"+{size(thing.ram_bytes)} RAM" if thing.ram_bytes else "")
        case DeviceReading():
            return f"{size(thing.foreign)}+{size(thing.overhead)}"
        case Mapping():
            return (
                "{" + ", ".join(f"{k}: {size(v) if isinstance(v, int) else value(v)}" for k, v in thing.items()) + "}"
            )
        case float():
            return f"{thing:g}"
        case act.Refusal():
            return f"{thing.reason.value} ({thing.message})"
        case ModelSpec():
            return model(thing)
        case _:
            return str(thing)


def line(thing: ev.Event | act.Action) -> str:
    """An event or action without the fields that stand at their defaults."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(thing)}
    shown = [
        f"{name}={value(content)}"
        if name not in ("key", "ticket", "tickets", "generation")
        else f"{name[:3]} {value(content)}"
        for name, content in ((f.name, getattr(thing, f.name)) for f in fields(thing))
        if name not in defaults or content != defaults[name]
    ]
    return f"{type(thing).__name__}({', '.join(shown)})"


def model(spec: ModelSpec) -> str:
    default = Traits()
    traits = {name: getattr(spec.traits, name) for name in Traits.__slots__}
    marks = [f"{name}={content}" for name, content in traits.items() if content != getattr(default, name)]
    usual = {"slots": None, "priority": 0, "pinned": False, "keep_alive_s": None, "selected": False, "declared": True}
    marks += [f"{name}={getattr(spec, name)}" for name in usual if getattr(spec, name) != usual[name]]
    return f"{spec.key} {value(spec.need)} on {' or '.join('+'.join(p) for p in spec.placements)} {' '.join(marks)}"


def house(devices: list[DeviceSpec], models: list[ModelSpec], settings: Settings) -> list[str]:
    default = Settings()
    changed = [f"{n}={getattr(settings, n)}" for n in Settings.__slots__ if getattr(settings, n) != getattr(default, n)]
    return [
        *(f"{d.id}: {size(d.total)}, capacity {size(d.capacity)}, limit {size(d.limit)}" for d in devices),
        *map(model, models),
        f"settings: {' '.join(changed) or 'as they come'}",
    ]
