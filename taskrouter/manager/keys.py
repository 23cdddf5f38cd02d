"""Whether the keys of a file's external options are there and are taken, asked of the providers themselves."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from enum import Enum

from taskrouter import errors
from taskrouter.backends.external.base import Call, Endpoint
from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog
from taskrouter.manager.externals import key_env_of

BOUND_S = 15.0


class KeyState(Enum):
    """What is known of a key. The values are what people see."""

    TAKEN = "taken"
    MISSING = "missing"
    REFUSED = "refused"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """One key: the variable it is in, the options that use it, and what came of asking."""

    provider: str
    variable: str
    options: tuple[str, ...]
    state: KeyState
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.state is KeyState.TAKEN


async def check_keys(catalog: Catalog, registry: Registry) -> list[KeyCheck]:
    """Ask each provider, once for each key and address, for something that costs nothing. Never raises for a key."""
    options: dict[tuple[str, str, str | None], list[str]] = {}
    needed: set[tuple[str, str, str | None]] = set()
    for task in catalog.tasks.values():
        for name, config in task.options.items():
            if not config.is_external or catalog.why_unavailable(task.task_name, name):
                continue
            try:
                provider = registry.provider(config.provider or "")
            except errors.TaskRouterError:
                continue  # said by the file's own check, and where it is used
            base_url = provider.base_url(config.api_endpoint) if config.api_endpoint else None
            place = (config.provider or "", key_env_of(catalog, config, provider), base_url)
            options.setdefault(place, []).append(f"{task.task_name}/{name}")
            if config.requires_api_key:
                needed.add(place)
    found = await asyncio.gather(
        *[_check(registry, place, tuple(names), needed=place in needed) for place, names in options.items()]
    )
    return [each for each in found if each is not None]


async def _check(
    registry: Registry, place: tuple[str, str, str | None], options: tuple[str, ...], *, needed: bool
) -> KeyCheck | None:
    name, variable, base_url = place
    key = os.environ.get(variable)
    if not key:
        return KeyCheck(name, variable, options, KeyState.MISSING, f"set {variable}") if needed else None
    call = Call(options[0], "", BOUND_S, variable)
    try:
        connection = registry.provider(name).connect(Endpoint(base_url, key))
        try:
            check = getattr(connection, "check", None)
            if check is None:
                return KeyCheck(name, variable, options, KeyState.UNCHECKED, f"the provider {name} can't check keys")
            async with asyncio.timeout(BOUND_S):
                await check(call)
        finally:
            await connection.close()
    except errors.ProviderAuth as error:
        return KeyCheck(name, variable, options, KeyState.REFUSED, str(error))
    except Exception as error:  # noqa: BLE001 - a plug-in raises what it likes; the other keys are checked all the same
        return KeyCheck(name, variable, options, KeyState.UNCHECKED, str(error) or f"no answer within {BOUND_S:g} s")
    return KeyCheck(name, variable, options, KeyState.TAKEN)
