"""Read-only views that stay true: whoever keeps one sees what is, not what was when they asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LiveView(Mapping[K, V]):
    """A mapping that asks anew each time it is looked at."""

    __slots__ = ("_look",)

    def __init__(self, look: Callable[[], Mapping[K, V]]) -> None:
        self._look = look

    def __getitem__(self, key: K) -> V:
        return self._look()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())

    def __repr__(self) -> str:
        return repr(dict(self._look()))
