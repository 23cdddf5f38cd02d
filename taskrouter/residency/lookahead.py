"""What will be needed soon, as pipelines say: whose turn comes when, and who may make room for whom.

A hint only ranks: 0 is needed next. What is needed soon is kept (the later it is needed, the earlier it goes), and is
loaded ahead where no ticket waits: into free bytes, or in place of models that are needed later, or that nobody named
and nobody used for longer than either takes to load. A load ahead gives way to a ticket as warm-up does; so one that
could not be called off is never begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from taskrouter.residency.books import State
from taskrouter.residency.events import Hint
from taskrouter.residency.records import Model
from taskrouter.types import ModelKey


class Hints:
    """The ranks of all models that some source named."""

    __slots__ = ("_sources", "barred", "ranks")

    def __init__(self) -> None:
        self.barred: set[ModelKey] = set()
        """Models not to be loaded ahead as long as they are named now: they could not be, or were told to go."""
        self._sources: dict[str, Hint] = {}
        self.ranks: Mapping[ModelKey, int] = {}

    def __repr__(self) -> str:
        return f"<Hints {len(self.ranks)} models by {len(self._sources)} sources>"

    def bar(self, key: ModelKey) -> None:
        """Don't load this model ahead before somebody names it anew."""
        if key in self.ranks:
            self.barred.add(key)

    def take(self, hint: Hint, now: float) -> bool:
        """What a source says now (nothing, where it names nobody or is over already); whether any rank changes."""
        before = self.ranks
        if hint.keys and hint.until > now:
            self._sources[hint.source] = hint
        else:
            self._sources.pop(hint.source, None)
        self._rank()
        return self.ranks != before

    def forget_old(self, now: float) -> None:
        """Drop what is over."""
        if any(hint.until <= now for hint in self._sources.values()):
            self._sources = {name: hint for name, hint in self._sources.items() if hint.until > now}
            self._rank()

    def next_end(self) -> float:
        """The instant at which the first of them is over."""
        return min((hint.until for hint in self._sources.values()), default=inf)

    def _rank(self) -> None:
        ranks: dict[ModelKey, int] = {}
        for hint in self._sources.values():
            for place, key in enumerate(hint.keys):
                ranks[key] = min(place, ranks.get(key, place))
        self.ranks = ranks
        self.barred &= ranks.keys()

    def rank(self, model: Model) -> float:
        """How many come before it; infinity where nobody named it."""
        return self.ranks.get(model.key, inf)

    def gives_way_at(self, victim: Model, wanted: Model) -> float:
        """The instant from which an idle model may make room for one that is only needed soon; infinity: it may not."""
        if victim.spec.priority > wanted.spec.priority:
            return inf
        rank = self.ranks.get(victim.key)
        if rank is not None:
            return -inf if rank > self.rank(wanted) else inf
        if victim.state is State.HOST:
            return -inf
        return max(victim.last_used or -inf, victim.idle_since) + max(victim.load_s, wanted.load_s)
