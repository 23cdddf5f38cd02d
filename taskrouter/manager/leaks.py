"""Leases held for very long are reported, once each, with where they were taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from taskrouter.manager.leases import Held, told_of
from taskrouter.types import TicketId

logger = logging.getLogger("taskrouter")


class LeakWatch:
    """Looks at the leases that are held; called now and then by the observing loop."""

    def __init__(self, leases: Mapping[TicketId, Held], warn_s: Callable[[], float]) -> None:
        self._leases = leases
        self._warn_s = warn_s
        self._reported: set[TicketId] = set()

    def look(self, now: float) -> None:
        self._reported &= self._leases.keys()
        for ticket, (since, where, target) in list(self._leases.items()):
            # In the order they were taken: the first that is young enough ends the search.
            if now - since < self._warn_s():
                break
            if ticket not in self._reported:
                self._reported.add(ticket)
                logger.warning(
                    "a lease on %s/%s has been held for %.0f s; it was taken %s (memory.lease_warn_s)",
                    target.task,
                    target.option,
                    now - since,
                    told_of(where),
                )
