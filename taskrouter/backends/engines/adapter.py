"""What tells one engine from another. Everything else about engines is the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from taskrouter.backends.base import Preflight
from taskrouter.backends.engines.api import Api
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.backends.engines.supervisor import Supervisor
from taskrouter.types import ModelRequest, Traits
from taskrouter.verbs import PASS_THROUGH

GENERATIVE = frozenset({"chat", "stream_chat", "generate"}) | PASS_THROUGH
SLEEP_BOUND_S = 80.0
"""How long an engine may take to fall asleep, or to wake: with what comes after, less than the manager waits for."""
POOLING = frozenset({"embed"}) | PASS_THROUGH


@dataclass(frozen=True, slots=True)
class KvCache:
    """The KV cache an engine really built. ``bytes`` is over all devices; 0 where it doesn't say."""

    tokens: int
    bytes: int = 0


class Adapter(Protocol):
    """One engine's ways. Nothing here may block the event loop for long; every coroutine may be cancelled."""

    framework: str
    stop_grace_s: float
    """How long it may take to end when it is asked to; then it is killed."""
    fills_grant: bool
    """It is told its grant and may take all of it, whatever it holds just now."""
    inference: frozenset[str]
    """Paths that only compute: what callers from outside may ask for, as they stand."""

    def traits(self, request: ModelRequest) -> Traits:
        """What the core must know. Pure."""

    def ready(self, request: ModelRequest) -> str:
        """The path that answers 200 from when it is ready."""

    def health(self, request: ModelRequest) -> str:
        """The path that answers 200 while it works, as far as it can tell."""

    def verbs(self, request: ModelRequest) -> frozenset[str]:
        """What its model can be asked; empty where only asking tells."""

    async def preflight(self, request: ModelRequest, supervisor: Supervisor) -> Preflight:
        """Check what can be checked without starting it: interpreter, package, files, arguments.

        Raises ``PreflightFailed`` and its kin, or ``MissingDependency``.
        """

    async def examine(self, request: ModelRequest) -> Checkpoint:
        """Find the model's files and what is known of them. Raises ``PreflightFailed`` and its kin."""

    def launch(self, request: ModelRequest, checkpoint: Checkpoint, start: Start) -> Launch:
        """The command line. Pure. Raises ``PreflightFailed``."""

    def model_name(self, request: ModelRequest, start: Start) -> str:
        """What ``model`` is in a request's body."""

    def warm_up(self, request: ModelRequest, name: str) -> tuple[str, Mapping[str, Any]]:
        """The path and body of a request that makes the model compute one token."""

    async def kv_cache(self, api: Api, checkpoint: Checkpoint, lines: list[str]) -> KvCache | None:
        """The KV cache it built, as it says itself; ``None`` where it doesn't."""

    async def progress(self, api: Api) -> object:
        """Something that changes while it works on requests, however long they take; ``None``: it can't be told."""

    def why_awake(self, request: ModelRequest) -> str | None:
        """Why its model can't be put to sleep; ``None``: it can. Pure."""

    def controls(self, request: ModelRequest) -> frozenset[str]:
        """Paths that nobody may call but us: they put it to sleep, wake it, or change what it serves."""

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        """Let an idle engine move its weights to host RAM; returns once it has.

        Raises ``Broken`` where nobody knows whether it did, another ``TaskRouterError`` where it refused and is as it
        was. Bounded by whoever calls.
        """

    async def wake(self, api: Api, request: ModelRequest) -> None:
        """Let a sleeping engine take its memory again; returns once it has. Raises as ``sleep`` does."""
