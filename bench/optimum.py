"""What the future would be worth: the least loading any policy could do, had it known every request beforehand.

Belady's idea for models of different sizes and load times: dynamic programming over the sets that fit. Requests come
one after another, each done before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


def least(sizes: Sequence[int], load_s: Sequence[float], room: int, asked: Sequence[int]) -> float:
    """Seconds of loading. ``asked``: the models in the order of the requests, by their place in ``sizes`` (bytes).

    Time and memory grow with the number of sets that fit: for a dozen models at most. What is loaded anyway may stay
    for nothing, so only the largest sets that can be kept are looked at.
    """
    total = [0] * (1 << len(sizes))
    for held in range(1, len(total)):
        low = held & -held
        total[held] = total[held ^ low] + sizes[low.bit_length() - 1]

    @cache
    def kept(held: int, new: int) -> list[int]:
        """What may be held after ``new`` was loaded into ``held``: sets of models as bits."""
        some, found = held, []
        while True:
            if total[some | new] <= room:
                found.append(some | new)
            if not some:
                break
            some = (some - 1) & held
        return [one for one in found if not any(one != other and one & other == one for other in found)]

    costs = {0: 0.0}
    for model in asked:
        bit, after = 1 << model, dict[int, float]()
        for held, cost in costs.items():
            if held & bit:
                after[held] = min(cost, after.get(held, cost))
                continue
            paid = cost + load_s[model]
            for each in kept(held, bit):
                after[each] = min(paid, after.get(each, paid))
        costs = after
    return min(costs.values())
