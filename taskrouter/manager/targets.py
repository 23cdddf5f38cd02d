"""What a task means at this moment: the option that is selected, the model it is, and how long its callers wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskrouter.errors import UnsupportedVerb
from taskrouter.telemetry import Attributes
from taskrouter.types import ModelKey
from taskrouter.verbs import PASS_THROUGH, VERBS_OF_KIND

if TYPE_CHECKING:
    from taskrouter.manager.performing import Performer


@dataclass(frozen=True, slots=True)
class Target:
    """One task and one of its options. ``attributes`` is what a caller's span is told.

    ``routed``: there is more to decide than whether this model is there (fallbacks, an external option, ``when_cold``).
    """

    task: str
    option: str
    key: ModelKey
    kind: str | None
    max_wait_s: float
    priority: int
    attributes: Attributes
    routed: bool = False

    def check(self, verb: str, performer: Performer, request: Any = None) -> None:
        """Raise ``UnsupportedVerb`` where the task's kind, or what is known of the model, says it can't do that.

        With the request also ``UnsupportedInput`` and ``ContextTooLong``.
        """
        if self.kind is not None and verb not in VERBS_OF_KIND[self.kind] and verb not in PASS_THROUGH:
            can = ", ".join(sorted(VERBS_OF_KIND[self.kind]))
            raise UnsupportedVerb(f"the task {self.task!r} is of kind {self.kind}, which can't {verb}; it can: {can}")
        error = performer.unable(self.key, verb, request)
        if error is not None:
            raise error
