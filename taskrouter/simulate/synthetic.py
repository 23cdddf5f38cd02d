"""Traces that are made: the shipped ones that policies are compared on, and the adversarial ones.

The same words, tasks and seed make the same trace. Where nothing else is said, gaps and uses are exponential, so that
requests come as a Poisson process; which task is popular is drawn from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

from taskrouter.errors import BadInput
from taskrouter.simulate.traces import Request

BURST = 20
"""Requests of one burst, on average; inside it they come ten times as fast."""
SHIFTS = 10
"""How often ``shift`` makes other tasks popular, over the whole trace."""
STORM_S, STORM_EACH = 400.0, 10
RARE_S = (60.0, 70.0)
HUGE_S = 100.0
SKEW = 1.1
MOST_SKEW = 20.0
RATE = 1.0
HOLD_S = 0.5


@dataclass(frozen=True, slots=True)
class Wish:
    """What a made trace is to be. ``tasks``: at least one, the one with the largest model last."""

    tasks: Sequence[str]
    requests: int
    rate: float = RATE
    hold_s: float = HOLD_S
    seed: int = 0
    skew: float = SKEW


def synthetic(
    kind: str, tasks: Sequence[str], *, requests: int, rate: float = RATE, hold_s: float = HOLD_S, seed: int = 0
) -> list[Request]:
    """A trace of a kind, such as ``zipf:1.1`` or ``storm``, with exactly so many requests, sorted by arrival.

    ``rate`` is requests a second, ``hold_s`` the mean (of the adversarial ones, every) time a request uses its model.
    ``tasks`` have the largest model last. Raises ``BadInput`` for a kind, or a number in it, that there isn't.
    """
    name, colon, text = kind.partition(":")
    if name not in KINDS:
        raise BadInput(f"--synthetic {kind}: there is no {name!r}; there are {', '.join(KINDS)}")
    skew = SKEW
    if colon:
        if name not in SKEWED:
            raise BadInput(f"--synthetic {kind}: {name} takes no number")
        skew = _skew(kind, text)
    return KINDS[name](Wish(tasks, requests, rate, hold_s, seed, skew))


def _skew(kind: str, text: str) -> float:
    try:
        skew = float(text)
    except ValueError:
        skew = -1.0
    if not isfinite(skew) or not 0 <= skew <= MOST_SKEW:
        raise BadInput(f"--synthetic {kind}: the skew is a number from 0 (all alike) to {MOST_SKEW:g}, such as 1.1")
    return skew


def _weights(wish: Wish) -> list[float]:
    return list(accumulate(1 / (rank + 1) ** wish.skew for rank in range(len(wish.tasks))))


def _zipf(wish: Wish, *, shifts: int = 1) -> list[Request]:
    rng = random.Random(wish.seed)
    ranked, weights = list(wish.tasks), _weights(wish)
    now = 0.0
    found: list[Request] = []
    for shift in range(shifts):
        rng.shuffle(ranked)
        some = wish.requests * (shift + 1) // shifts - wish.requests * shift // shifts
        for task in rng.choices(ranked, cum_weights=weights, k=some):
            now += rng.expovariate(wish.rate)
            found.append(Request(now, task, _use(rng, wish)))
    return found


def _use(rng: random.Random, wish: Wish) -> float:
    return rng.expovariate(1 / wish.hold_s) if wish.hold_s else 0.0


def _shift(wish: Wish) -> list[Request]:
    return _zipf(wish, shifts=SHIFTS)


def _burst(wish: Wish) -> list[Request]:
    rng = random.Random(wish.seed)
    ranked, weights = list(wish.tasks), _weights(wish)
    rng.shuffle(ranked)
    now = 0.0
    found: list[Request] = []
    while len(found) < wish.requests:
        (task,) = rng.choices(ranked, cum_weights=weights)
        now += rng.expovariate(wish.rate / (0.9 * BURST))
        for _ in range(min(1 + int(rng.expovariate(1 / (BURST - 0.5))), wish.requests - len(found))):
            found.append(Request(now, task, _use(rng, wish)))
            now += rng.expovariate(10 * wish.rate)
    return found


def _cycle(wish: Wish) -> list[Request]:
    rng = random.Random(wish.seed)
    now = 0.0
    found: list[Request] = []
    for number in range(wish.requests):
        now += rng.expovariate(wish.rate)
        found.append(Request(now, wish.tasks[number % len(wish.tasks)], _use(rng, wish)))
    return found


def _alternate(wish: Wish) -> list[Request]:
    two = (wish.tasks[0], wish.tasks[-1])
    return [Request(number / wish.rate, two[number % 2], wish.hold_s) for number in range(wish.requests)]


def _storm(wish: Wish) -> list[Request]:
    each = len(wish.tasks) * STORM_EACH
    return [
        Request(number // each * STORM_S, wish.tasks[number % each // STORM_EACH], wish.hold_s)
        for number in range(wish.requests)
    ]


def _between(wish: Wish, many: Sequence[str], few: str, gaps: Callable[[random.Random], float]) -> list[Request]:
    """Steady requests to the ``many``, drawn alike, and one to ``few`` whenever a gap is over."""
    rng = random.Random(wish.seed)

    found: list[Request] = []
    due, number = gaps(rng), 0
    while len(found) < wish.requests:
        now = number / wish.rate
        while due <= now:
            found.append(Request(due, few, wish.hold_s))
            due += gaps(rng)
        found.append(Request(now, rng.choice(many), wish.hold_s))
        number += 1
    return found[: wish.requests]


def _rare(wish: Wish) -> list[Request]:
    return _between(wish, wish.tasks[:1], wish.tasks[-1], lambda rng: rng.uniform(*RARE_S))


def _huge(wish: Wish) -> list[Request]:
    return _between(wish, wish.tasks[:-1] or wish.tasks, wish.tasks[-1], lambda rng: HUGE_S)


KINDS: Mapping[str, Callable[[Wish], list[Request]]] = {
    "zipf": _zipf,
    "shift": _shift,
    "burst": _burst,
    "cycle": _cycle,
    "alternate": _alternate,
    "storm": _storm,
    "rare": _rare,
    "huge": _huge,
}
"""The kinds there are. The last four are adversarial: A B A B; everything at once, every 400 s; endless requests for
one and every 60 to 70 s one for the largest; many small ones and every 100 s the largest."""

SKEWED = frozenset({"zipf", "shift", "burst"})

SHIPPED = ("zipf:0.9", "zipf:1.1", "zipf:1.4", "shift:1.1", "burst:1.1", "cycle")
"""The traces that policies are compared on (docs/policies.md): popularity by Zipf's law, flat to steep; popularity that
shifts ten times; bursts; and every task in turn, which is the worst there is for least recently used."""
