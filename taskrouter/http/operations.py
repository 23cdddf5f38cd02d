"""Loads that were asked for by hand: they go on without whoever asked, and say how they ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from taskrouter.http.failing import Refused, failure_of
from taskrouter.manager import ModelManager

KEPT = 256
"""Operations that are remembered, those under way among them."""


@dataclass(slots=True)
class Operation:
    """One load. Times are the loop's."""

    id: str
    task: str
    option: str
    begun: float
    ended: float | None = None
    error: dict[str, str] | None = None

    @property
    def state(self) -> str:
        if self.ended is None:
            return "loading"
        return "done" if self.error is None else "failed"

    def data(self, now: float) -> dict[str, Any]:
        """What it came to, or how long it has been under way."""
        seconds = (self.ended if self.ended is not None else now) - self.begun
        return {"operation": self.id, "state": self.state, "task": self.task, "option": self.option,
                "seconds": round(seconds, 3), "error": self.error}  # fmt: skip


class Operations:
    """One server's."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Operation] = OrderedDict()

    def get(self, name: str) -> Operation:
        """Raises ``Refused`` (404)."""
        found = self._known.get(name)
        if found is None:
            text = f"there is no operation {name[:80]!r}; the last {KEPT} are remembered"
            raise Refused(404, text, code="unknown_operation")
        return found

    def begin(self, name: str, task: str, option: str, now: float) -> Operation:
        """Remember one, and forget the oldest that has ended. Raises ``Refused`` (429) where all are under way."""
        if len(self._known) >= KEPT:
            oldest = next((each.id for each in self._known.values() if each.ended is not None), None)
            if oldest is None:
                text = f"{KEPT} loads are under way, the most there may be"
                raise Refused(429, text, code="too_many_operations", retry_after_s=1.0)
            del self._known[oldest]
        found = self._known[name] = Operation(name, task, option, now)
        return found

    async def load(self, manager: ModelManager, operation: Operation, timeout_s: float | None) -> None:
        """Load, and note how it ended. Raises what loading raises."""
        try:
            await manager.load_option(operation.task, operation.option, timeout=timeout_s)
        except asyncio.CancelledError:
            operation.error = {"code": "cancelled", "message": "whoever asked for it gave it up"}
            raise
        except Exception as error:
            told = failure_of(error, "openai", operation.id, to_admin=True).body["error"]
            operation.error = {"code": told["code"], "message": told["message"]}
            raise
        finally:
            operation.ended = asyncio.get_running_loop().time()
