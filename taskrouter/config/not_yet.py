"""The keys that are read and checked but that nothing acts on yet.

One table, and the only place that knows: whoever builds what a key is for deletes its line. A key of the table that is
written with another value than its default becomes a warning, so that no key is silently without effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from taskrouter.config.paths import Path

NOT_YET: dict[str, str] = {
    "telemetry.capture_content": "recording what was asked and answered",
}
"""Key path (``*``: any name) to what it will decide."""


def not_yet(parsed: BaseModel) -> Iterator[tuple[Path, str]]:
    """The paths written with a value that nothing acts on yet, and what each will decide."""
    for pattern, purpose in NOT_YET.items():
        for path in _written(parsed, tuple(pattern.split(".")), ()):
            yield path, purpose


def _written(here: Any, parts: tuple[str, ...], path: Path) -> Iterator[Path]:
    first, *rest = parts
    if first == "*":
        for name, item in here.items():
            yield from _written(item, tuple(rest), (*path, name))
        return
    field = type(here).model_fields[first]
    if first not in here.model_fields_set:
        return
    value = getattr(here, first)
    if rest:
        yield from _written(value, tuple(rest), (*path, first))
    elif value != field.get_default(call_default_factory=True):
        yield (*path, first)
