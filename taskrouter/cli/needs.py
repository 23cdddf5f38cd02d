"""What models need that declare nothing, and whether what is written can be loaded: asked of the backends, offline."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog
from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, MissingDependency, PreflightFailed, TaskRouterError
from taskrouter.manager import Machine
from taskrouter.manager.specs import Use, uses
from taskrouter.types import ModelKey

BOUND_S = 120.0
"""How long checking one model may take before its need counts as unknown. Engines are asked two at a time, each for
seconds, the first time that a command line is seen."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(slots=True)
class Needs:
    """Bytes and where they come from (``estimated``, ``measured``); models that can't be loaded; models not known;
    what those that were checked can do; and the seconds that loads took here.
    """

    known: dict[ModelKey, tuple[int, str]] = field(default_factory=dict)
    barred: dict[ModelKey, str] = field(default_factory=dict)
    unknown: dict[ModelKey, str] = field(default_factory=dict)
    verbs: dict[ModelKey, frozenset[str]] = field(default_factory=dict)
    load_s: dict[ModelKey, float] = field(default_factory=dict)


async def find_needs(
    catalog: Catalog, registry: Registry, machine: Machine, *, elsewhere: bool = False, bound_s: float = BOUND_S
) -> Needs:
    """Ask each local model's backend, all at once, downloading nothing.

    ``elsewhere``: the machine is not this one, so what this one lacks (a GPU) bars nothing, and what was measured here
    counts only where nothing can be estimated.
    """
    first = {use.request.key: use for use in uses(catalog) if not catalog.why_unavailable(use.task, use.option)}
    needs = Needs()
    with offline() as anyway:

        async def ask(use: Use) -> None:
            key = use.request.key
            try:
                async with asyncio.timeout(bound_s):
                    found = await registry.get(use.request.framework).preflight(use.request)
                needs.verbs[key] = found.verbs
                if found.need is not None:
                    needs.known[key] = (found.need.device_bytes, "estimated")
            except TimeoutError:
                needs.unknown[key] = f"its files could not be checked within {bound_s:g} s"
            except TaskRouterError as error:
                where = needs.barred if _bars(error, use, elsewhere, anyway) else needs.unknown
                where[key] = str(error)
            measured = await machine.remembered(key)
            if measured is not None and not (elsewhere and key in needs.known):
                needs.known[key] = (measured.need.device_bytes, "measured")
            if measured is not None and measured.load_s is not None and not elsewhere:
                needs.load_s[key] = measured.load_s
            if key not in needs.known and key not in needs.barred:
                needs.unknown.setdefault(key, "its backend can't tell it; write vram_gb")

        await asyncio.gather(*map(ask, first.values()))
    return needs


def _bars(error: TaskRouterError, use: Use, elsewhere: bool, offline_anyway: bool) -> bool:
    """Whether this keeps the option from being used at all: what is on the hub can still be fetched."""
    if isinstance(error, CheckpointMissing):
        return os.path.isabs(use.request.model_id) or offline_anyway
    if isinstance(error, CheckpointCorrupt | MissingDependency):
        return True
    return not (elsewhere and isinstance(error, PreflightFailed))


@contextmanager
def offline() -> Iterator[bool]:
    """Within, nothing is downloaded; gives whether that was so before, by the user's own wish."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    anyway = (before[OFFLINE[0]] or "").upper() in {"1", "ON", "YES", "TRUE"}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    # The library reads the environment once, when it is imported.
    constants = sys.modules.get("huggingface_hub.constants")
    constant = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield anyway
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = constant  # type: ignore[attr-defined]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
