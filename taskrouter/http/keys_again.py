"""Keys are read again when models.yaml is: one that was taken out of its file opens nothing any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from taskrouter.errors import TaskRouterError
from taskrouter.http.keys import Keys
from taskrouter.http.state import State
from taskrouter.manager import Happened

logger = logging.getLogger("taskrouter.http")


class KeysAgain:
    """Listens for reloads of a server's manager, for as long as that lives. ``read`` blocks, and raises for what is
    wrong with the keys: then those that were go on.
    """

    def __init__(self, state: State, read: Callable[[], Keys]) -> None:
        self._state = state
        self._read = read
        self._reading: asyncio.Task[None] | None = None
        state.manager.watch(self._happened)

    def _happened(self, happened: Happened) -> None:
        if happened.what == "reloaded":
            self._reading = asyncio.ensure_future(self._take(self._reading))

    async def _take(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})  # the later reading decides
        try:
            found = await asyncio.to_thread(self._read)
        except (TaskRouterError, OSError) as error:
            logger.error("the API keys were not read again, those that were go on: %s", error)  # noqa: TRY400
            return
        self._state.keys = found.with_callers_of(self._state.keys)
