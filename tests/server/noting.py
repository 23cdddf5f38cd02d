"""A fake backend that can be waited for from another thread."""

from __future__ import annotations

import threading

from taskrouter.backends.fake import FakeBackend
from taskrouter.types import ModelKey


class Noting(FakeBackend):
    """``event("call-start")`` is set when that happens."""

    def __init__(self) -> None:
        super().__init__()
        self._happened: dict[str, threading.Event] = {}

    def event(self, what: str) -> threading.Event:
        return self._happened.setdefault(what, threading.Event())

    def _note(self, what: str, key: ModelKey) -> None:
        super()._note(what, key)
        self.event(what).set()
