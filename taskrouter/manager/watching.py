"""What happens to models, told to whoever listens: loads, evictions, deaths, refusals, selections, reloads.

Listeners are called on the manager's loop, between two events, so they must be quick and never block. While nobody
listens all this costs one look at a flag.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskrouter.manager.spans import real, total_bytes
from taskrouter.residency.actions import Action, Demote, Kill, Load, Promote, Refuse, Unload
from taskrouter.residency.events import (
    ClearCooldown,
    Demoted,
    DemoteFailed,
    Died,
    Event,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadStuck,
    Pin,
    PreflightFailed,
    Promoted,
    PromoteFailed,
    Reason,
    Shutdown,
    Unloaded,
)
from taskrouter.types import ModelKey, ModelRequest

logger = logging.getLogger("taskrouter")


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that happened, ``at`` a Unix time. ``facts`` are plain data: names, numbers, lists of names."""

    what: str
    at: float
    facts: Mapping[str, Any] = field(default_factory=dict)


Watcher = Callable[[Happened], None]

_ENDED: Mapping[type, str] = {
    Loaded: "loaded", LoadFailed: "load_failed", LoadCancelled: "load_cancelled", LoadStuck: "load_stuck",
    PreflightFailed: "preflight_failed", Unloaded: "unloaded", Died: "died", Demoted: "slept",
    DemoteFailed: "sleep_failed", Promoted: "woke", PromoteFailed: "wake_failed", Pin: "pinned",
    ClearCooldown: "cooldown_cleared",
}  # fmt: skip
_BEGUN: Mapping[type, str] = {
    Load: "loading", Unload: "unloading", Demote: "sleeping", Promote: "waking", Kill: "clearing",
}  # fmt: skip

WHAT = frozenset(
    {*_ENDED.values(), *_BEGUN.values(), "refused", "selected", "files_removed", "reloaded", "shutting_down"}
)
"""Everything that is told of."""


class Watchers:
    """One manager's listeners. ``tasks_of`` names the tasks that list a model."""

    def __init__(
        self, requests: Mapping[ModelKey, ModelRequest], tasks_of: Callable[[ModelKey], Iterable[str]]
    ) -> None:
        self.on = False
        self._requests = requests
        self._tasks_of = tasks_of
        self._watchers: tuple[Watcher, ...] = ()
        self._loading: dict[ModelKey, tuple[float, str]] = {}
        """Loads under way: since when, and why."""

    def __repr__(self) -> str:
        return f"<Watchers: {len(self._watchers)} listen>"

    def add(self, watcher: Watcher) -> Callable[[], None]:
        """Tell this one, too, from now on; answers what ends that (idempotent)."""
        self._watchers = (*self._watchers, watcher)
        self.on = True

        def end() -> None:
            self._watchers = tuple(each for each in self._watchers if each is not watcher)
            self.on = bool(self._watchers)
            if not self.on:
                self._loading.clear()

        return end

    def tell(self, what: str, **facts: Any) -> None:
        """Tell everybody. What a listener raises is logged, and harms nobody else."""
        if not self.on:
            return
        happened = Happened(what, time.time(), facts)
        for watcher in self._watchers:
            try:
                watcher(happened)
            except Exception:
                logger.exception("%r failed to take %r", watcher, happened)

    def took(self, event: Event) -> None:
        """The core was told of this."""
        what = _ENDED.get(type(event))
        if what is not None:
            self._ended(what, event)
        elif type(event) is Shutdown:
            self.tell("shutting_down")

    def _ended(self, what: str, event: Any) -> None:
        facts: dict[str, Any] = {}
        match event:
            case Loaded() | LoadFailed() | LoadCancelled():
                begun = self._loading.pop(event.key, None)
                if begun is not None:
                    facts["seconds"] = round(time.monotonic() - begun[0], 6)
                if isinstance(event, LoadFailed):
                    facts["reason"] = (Reason.OUT_OF_MEMORY if event.out_of_memory else Reason.LOAD_FAILED).value
                elif begun is not None:
                    facts["reason"] = begun[1]
            case PreflightFailed():
                facts["reason"] = Reason.PREFLIGHT.value
            case Unloaded():
                facts["residue"] = total_bytes(event.residue)
            case Pin():
                facts["pinned"] = event.pinned
        self.tell(what, **self._model(event.key), **facts)

    def deciding(self, actions: Iterable[Action]) -> None:
        """The core has decided this."""
        for action in actions:
            if isinstance(action, Refuse):
                refusal = action.refusal
                self.tell("refused", **self._model(refusal.key), reason=refusal.reason.value,
                          callers=len(action.tickets), retry_after_s=refusal.retry_after_s)  # fmt: skip
                continue
            what = _BEGUN.get(type(action))
            if what is not None:
                self._begun(what, action)

    def _begun(self, what: str, action: Any) -> None:
        facts: dict[str, Any] = {"devices": list(real(action.charges)), "bytes": total_bytes(action.charges)}
        match action:
            case Load():
                self._loading[action.key] = (time.monotonic(), action.reason.value)
                facts["reason"] = action.reason.value
            case Promote():
                facts["reason"] = action.reason.value
            case Unload() | Demote():
                facts["reason"] = action.why.reason.value
                if action.why.wanted is not None:
                    facts["wanted"] = self._label(action.why.wanted)
        self.tell(what, **self._model(action.key), **facts)

    def _label(self, key: ModelKey) -> str:
        request = self._requests.get(key)
        return key if request is None else request.label

    def _model(self, key: ModelKey) -> dict[str, Any]:
        return {"model": self._label(key), "tasks": list(dict.fromkeys(self._tasks_of(key)))}
