"""Which box of a frame is which object of the frames before: one id per object.

Each object known is expected where it would be if it went on as it did; the boxes of a new frame are given to objects
so that expected and found ones overlap the most in all (SciPy's assignment). A box that nobody is given is a new
object; an object that isn't found is looked for a while longer, where it is expected by then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from taskrouter.verbs import Box, Sighting, Track

LEAST_OVERLAP = 0.2
"""Intersection over union: an expected and a found box with less are not the same object."""
SAME_THING = 0.7
"""Two boxes of one frame that overlap so much are one object, found twice."""
MOST_BOXES = 100
"""Of one frame the surest so many are looked at."""
OTHER_LABEL = 0.15
"""What another label takes off an overlap: it may be a mistake, but the right one is better."""
LOST_S = 1.0
LOST_LOOKS = 3
"""An object is looked for so long, or so many frames, after it was seen last; what is longer counts."""
_NEWEST = 0.6
"""How much the newest step says of an object's speed."""


class Thing(Protocol):
    """What is found in a frame; it may have a ``mask``."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def box(self) -> Box: ...


class Masked(NamedTuple):
    """A thing with a mask: a bool array, height × width."""

    label: str
    score: float
    box: Box
    mask: Any


@dataclass(slots=True)
class _Object:
    """An object on its way; speeds are in pixels a second."""

    sightings: list[Sighting]
    labels: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    across: float = 0.0
    down: float = 0.0

    def expected(self, time_s: float) -> Box:
        last = self.sightings[-1]
        passed = time_s - last.time_s
        left, top, right, bottom = last.box
        x, y = self.across * passed, self.down * passed
        return Box(left + x, top + y, right + x, bottom + y)

    def label(self) -> str:
        return max(self.labels, key=lambda name: self.labels[name])

    def see(self, found: Thing, frame: int, time_s: float) -> None:
        if self.sightings and time_s > (last := self.sightings[-1]).time_s:
            part = _NEWEST if len(self.sightings) > 1 else 1.0
            passed = time_s - last.time_s
            before, now = _middle(last.box), _middle(found.box)
            self.across += part * ((now[0] - before[0]) / passed - self.across)
            self.down += part * ((now[1] - before[1]) / passed - self.down)
        self.sightings.append(Sighting(frame, time_s, found.box, found.score, getattr(found, "mask", None)))
        self.labels[found.label] += found.score


class Association:
    """Objects of a video, told frame by frame, in order of time."""

    def __init__(self, fps: float) -> None:
        self._patience_s = max(LOST_S, LOST_LOOKS / fps)
        self._objects: list[_Object] = []
        self._looks = 0

    def look(self, found: Iterable[Thing], time_s: float) -> None:
        """Tell what is in the next frame, at this second."""
        boxes = _apart(found)
        known = [each for each in self._objects if time_s - each.sightings[-1].time_s <= self._patience_s]
        taken: set[int] = set()
        for one, place in _pairs(known, boxes, time_s):
            known[one].see(boxes[place], self._looks, time_s)
            taken.add(place)
        for place, each in enumerate(boxes):
            if place not in taken:
                self._objects.append(_Object([]))
                self._objects[-1].see(each, self._looks, time_s)
        self._looks += 1

    def tracks(self) -> tuple[Track, ...]:
        """The objects in the order in which they came; what was seen in one frame of several is no object."""
        least = min(2, self._looks)
        real = [each for each in self._objects if len(each.sightings) >= least]
        return tuple(Track(number, each.label(), tuple(each.sightings)) for number, each in enumerate(real, 1))


def _apart(found: Iterable[Thing]) -> list[Thing]:
    """Of boxes that mean one thing the surest."""
    kept: list[Thing] = []
    for each in sorted(found, key=lambda one: -one.score):
        if len(kept) == MOST_BOXES:
            break
        if all(overlap(each.box, other.box) < SAME_THING for other in kept):
            kept.append(each)
    return kept


def _pairs(known: list[_Object], boxes: list[Thing], time_s: float) -> list[tuple[int, int]]:
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    gains = np.zeros((len(known), len(boxes)))
    for row, each in enumerate(known):
        where, label = each.expected(time_s), each.label()
        for column, box in enumerate(boxes):
            shared = overlap(where, box.box)
            if shared >= LEAST_OVERLAP:
                gains[row, column] = shared - OTHER_LABEL * (box.label != label)
    rows, columns = linear_sum_assignment(gains, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if gains[row, column] > 0]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(one) + _area(other) - width * height)


def _area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


def _middle(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2
