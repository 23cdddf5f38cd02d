"""Putting models to sleep and waking them, as the core decides; each ends in exactly one event."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from taskrouter.backends.base import LoadedModel, Sleeper
from taskrouter.manager.performing import Performer
from taskrouter.manager.residents import Resident
from taskrouter.residency.events import Demote, Demoted, DemoteFailed, Event, Promote, Promoted, PromoteFailed

logger = logging.getLogger("taskrouter")

SLEEP_BOUND_S = 120.0
"""How long going to sleep, or waking, may take; after that the model is unloaded."""
SEEN_FREE_S = 30.0
"""How long the device bytes of a model that sleeps are waited for to be seen free."""


class Resting(Performer):
    """The acting half of a manager whose models may sleep."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._perform.update({Demote: self._start_demote, Promote: self._start_promote})

    def _start_demote(self, action: Demote) -> None:
        resident = self.residents[action.key]
        self.spans.resting(action, resident.request)
        self.spawn(self._demote(action, resident), name=f"put to sleep {action.key}")

    async def _demote(self, action: Demote, resident: Resident) -> None:
        key, generation = action.key, action.generation
        error: Exception = TimeoutError(f"it took longer than {SLEEP_BOUND_S:g} s")
        event: Event = DemoteFailed(key, generation, error)
        try:
            backend, model = _sleeper(resident)
            async with asyncio.timeout(SLEEP_BOUND_S):
                asleep = await backend.demote(model, timeout_s=SEEN_FREE_S)
            event = Demoted(key, generation, asleep.ram_bytes, asleep.residue)
            self.spans.rested(key, None)
        except Exception as failure:  # noqa: BLE001  (every action ends in an event)
            error = failure
            event = DemoteFailed(key, generation, failure)
        finally:
            if isinstance(event, DemoteFailed):
                logger.warning("%s could not be put to sleep, and is unloaded: %s", resident.request.label, error)
                self.spans.rested(key, error)
            self.post(event)

    def _start_promote(self, action: Promote) -> None:
        resident = self.residents[action.key]
        self.spans.waking(action, resident.request)
        self.spawn(self._promote(action, resident), name=f"wake {action.key}")

    async def _promote(self, action: Promote, resident: Resident) -> None:
        key, generation = action.key, action.generation
        error: Exception = TimeoutError(f"it took longer than {SLEEP_BOUND_S:g} s")
        event: Event = PromoteFailed(key, generation, error)
        try:
            backend, model = _sleeper(resident)
            async with asyncio.timeout(SLEEP_BOUND_S):
                await backend.promote(model, action.charges)
            event = Promoted(key, generation)
            self.spans.rested(key, None)
        except Exception as failure:  # noqa: BLE001  (every action ends in an event)
            error = failure
            event = PromoteFailed(key, generation, failure)
        finally:
            if isinstance(event, PromoteFailed):
                logger.warning("%s did not wake, and is loaded anew when asked: %s", resident.request.label, error)
                self.spans.rested(key, error)
            self.post(event)


def _sleeper(resident: Resident) -> tuple[Sleeper, LoadedModel]:
    assert resident.model is not None, "who sleeps was loaded"
    return cast(Sleeper, resident.backend), resident.model
