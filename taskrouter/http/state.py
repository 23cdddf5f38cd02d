"""What all requests share: the manager, the keys, the limits, and what is counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from taskrouter.http.asked import Asked, asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.keys import Keys
from taskrouter.http.limits import Limits
from taskrouter.manager import ModelManager

_BASE64 = 4 / 3
_BESIDE = 1 << 20


class State:
    """One server's. ``most_bytes``: of a JSON body, in which a medium of ``media.max_bytes`` fits as base64."""

    def __init__(self, manager: ModelManager, keys: Keys) -> None:
        self.manager = manager
        self.keys = keys
        self.limits = Limits()
        self.begun = int(time.time())
        self.draining = False
        self.routes: Sequence[BaseRoute] = ()
        self.document: bytes | None = None
        """What ``GET /openapi.json`` answers, once it was asked for."""

    @property
    def most_bytes(self) -> int:
        return int(self.manager.media_limits.max_bytes * _BASE64) + _BESIDE

    def asked(self, exchange: Exchange, model: Any) -> Asked:
        """Who is to answer a request that names this model."""
        return asked(self.manager, exchange, model)
