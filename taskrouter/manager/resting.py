"""Putting models to sleep and waking them, as the core decides; each ends in exactly one event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from taskrouter.backends.base import LoadedModel, Sleeper
from taskrouter.manager.performing import Performer
from taskrouter.manager.residents import Resident
from taskrouter.residency import State
from taskrouter.residency.actions import Demote, Promote
from taskrouter.residency.events import Demoted, DemoteFailed, Event, Promoted, PromoteFailed

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

        async def work(backend: Sleeper, model: LoadedModel) -> Event:
            asleep = await backend.demote(model, timeout_s=SEEN_FREE_S)
            return Demoted(action.key, action.generation, asleep.ram_bytes, asleep.residue)

        def failed(error: Exception) -> Event:
            logger.warning("%s could not be put to sleep, and is unloaded: %s", resident.request.label, error)
            return DemoteFailed(action.key, action.generation, error)

        self.spawn(self._rest(resident, work, failed, SLEEP_BOUND_S), name=f"put to sleep {action.key}")

    def _start_promote(self, action: Promote) -> None:
        resident = self.residents[action.key]
        self.spans.waking(action, resident.request)

        async def work(backend: Sleeper, model: LoadedModel) -> Event:
            await backend.promote(model, action.charges)
            return Promoted(action.key, action.generation)

        def failed(error: Exception) -> Event:
            logger.warning("%s did not wake, and is loaded anew when asked: %s", resident.request.label, error)
            return PromoteFailed(action.key, action.generation, error)

        request = resident.request
        # Who reads its weights anew may take as long as for a start.
        bound_s = SLEEP_BOUND_S if request.sleep != "discard" else self.start_timeout_s(request.framework)
        self.spawn(self._rest(resident, work, failed, bound_s), name=f"wake {action.key}")

    async def _rest(
        self,
        resident: Resident,
        work: Callable[[Sleeper, LoadedModel], Awaitable[Event]],
        failed: Callable[[Exception], Event],
        bound_s: float,
    ) -> None:
        """Do it within the bound, and tell the core how it ended; a model that died meanwhile has failed, too."""
        key, model = resident.key, resident.model
        assert model is not None, "who sleeps was loaded"
        error: Exception | None = RuntimeError("the manager was stopped")
        event: Event | None = None
        try:
            async with asyncio.timeout(bound_s):
                event = await work(cast(Sleeper, resident.backend), model)
            error = resident.dead
        except TimeoutError as late:
            error = late if str(late) else TimeoutError(f"it took longer than {bound_s:g} s")
        except Exception as failure:  # noqa: BLE001  (every action ends in an event)
            error = failure
        finally:
            self.spans.rested(key, error)
            self.post(event if event is not None and error is None else failed(error or RuntimeError("it was lost")))
            if self.core.status(key).state is State.READY:
                # Somebody asked for it again after it was to go: who waits for that waits no longer.
                self._moved_out(key)
