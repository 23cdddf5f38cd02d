"""The machine's moves without hypothesis: weighted like a day's traffic, repeatable by seed, cut down when they fail.

Hypothesis explores and shrinks; this is quick enough to meet every seeded fault with thousands of long days.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

from .account import CoreFactory
from .machine import Machine, furnish, machine_for

Move: TypeAlias = tuple[str, dict[str, Any]]

STEPS = 150
PAUSES = [0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 7.0, 15.0, 40.0, 130.0]
WAITS = [0.5, 3.0, 20.0, 60.0, 120.0, 600.0]

MOVES: list[tuple[int, str, Callable[[random.Random], dict[str, Any]]]] = [
    (16, "acquire", lambda r: {
        "pick": r.randrange(720), "wait": r.choice(WAITS), "priority": r.choice([0, 0, 0, 3, -2]),
        "kind": r.choice([0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]), "other": r.randrange(720),
    }),
    (12, "acquire_patiently", lambda r: {"pick": r.randrange(720)}),
    (18, "release", lambda r: {"pick": r.randrange(720)}),
    (2, "release_all", lambda r: {}),
    (3, "give_up", lambda r: {"pick": r.randrange(720)}),
    (2, "end_again", lambda r: {"pick": r.randrange(720), "give_up": r.random() < 0.3}),
    (20, "preflighted", lambda r: {"pick": r.randrange(720), "luck": r.randrange(12), "more": r.choice([0] * 9 + [1])}),
    (20, "loaded", lambda r: {"pick": r.randrange(720), "luck": r.randrange(16), "took": r.choice(PAUSES)}),
    (4, "load_went_wrong", lambda r: {"pick": r.randrange(720), "how": r.randrange(10)}),
    (18, "unloaded", lambda r: {"pick": r.randrange(720), "luck": r.randrange(12)}),
    (14, "demoted", lambda r: {"pick": r.randrange(720), "luck": r.randrange(20)}),
    (14, "promoted", lambda r: {"pick": r.randrange(720), "luck": r.randrange(20), "took": r.choice(PAUSES)}),
    (1, "died", lambda r: {"pick": r.randrange(720), "really": r.randrange(10)}),
    (2, "stale", lambda r: {"pick": r.randrange(720), "kind": r.randrange(10)}),
    (2, "reclaimed", lambda r: {"pick": r.randrange(720), "all_of_it": r.random() < 0.7}),
    (2, "observed", lambda r: {
        "foreign": r.choice([0, 0, 1, 4, 11, 20]), "overhead": r.choice([0, 0, 1]), "pick": r.randrange(720),
    }),
    (2, "pin", lambda r: {"pick": r.randrange(720), "pinned": r.randrange(10)}),
    (2, "manage", lambda r: {"pick": r.randrange(720), "how": r.randrange(10)}),
    (14, "time_passes", lambda r: {"pause": r.choice(PAUSES)}),
    (5, "tick", lambda r: {"late": r.choice([0.0, 0.0, 0.01, 5.0, 70.0])}),
    (6, "hint", lambda r: {
        "source": r.randrange(2), "picks": [r.randrange(720) for _ in range(r.randrange(5))], "lasts": r.choice(PAUSES),
    }),
    (2, "configure", lambda r: {
        "picks": [r.randrange(720) for _ in range(r.choice([0, 1, 1, 2]))], "room": r.choice([None, 10, 12, 12, 5]),
        "change": r.randrange(10),
    }),
    (1, "needless_tick", lambda r: {}),
    (1, "quiesce", lambda r: {"together": r.random() < 0.5}),
]  # fmt: skip

NEEDS: dict[str, Callable[[Machine], object]] = {
    "release": lambda m: m.leases(),
    "release_all": lambda m: m.leases(),
    "give_up": lambda m: m.queued(),
    "end_again": lambda m: m.world.tickets,
    "preflighted": lambda m: m.jobs("preflight"),
    "loaded": lambda m: m.jobs("load"),
    "load_went_wrong": lambda m: m.jobs("load"),
    "unloaded": lambda m: m.jobs("unload"),
    "demoted": lambda m: m.jobs("demote"),
    "promoted": lambda m: m.jobs("promote"),
    "died": lambda m: m.world.lives,
    "stale": lambda m: m.world.generations,
    "reclaimed": lambda m: any(m.world.residue.values()),
    "tick": lambda m: m.world.wake is not None,
}


def plan(seed: int, steps: int) -> list[Move]:
    """A day: what to try, in order (a move that finds nothing to act on is passed over)."""
    rng = random.Random(seed)
    weights = [weight for weight, _, _ in MOVES]
    chosen = rng.choices(MOVES, weights, k=steps)
    return [*((name, arguments(rng)) for _, name, arguments in chosen), ("quiesce", {"together": seed % 2 == 0})]


def play(core: CoreFactory, seed: int, moves: list[Move]) -> AssertionError | None:
    """Play these moves in the seed's house; the law that was broken, or ``None``."""
    machine: Machine = machine_for(core)()
    rng = random.Random(-1 - seed)
    machine.build(house=furnish(rng.choice))
    try:
        for name, arguments in moves:
            if name not in NEEDS or NEEDS[name](machine):
                getattr(machine, name)(**arguments)
    except AssertionError as broken:
        return broken
    return None


def shorten(core: CoreFactory, seed: int, moves: list[Move]) -> list[Move]:
    """Drop every stretch of moves without which the day still ends in the same complaint."""
    want = complaint(play(core, seed, moves))
    size = max(1, len(moves) // 2)
    while size:
        start = 0
        while start < len(moves):
            fewer = moves[:start] + moves[start + size :]
            if complaint(play(core, seed, fewer)) == want:
                moves = fewer
            else:
                start += size
        size //= 2
    return moves


def complaint(broken: AssertionError | None) -> str:
    """What was said, without names and numbers."""
    first = str(broken).splitlines()[0] if broken is not None else ""
    return "".join(letter for letter in first.split(":")[-1] if letter.isalpha() or letter == " ")[:40] if first else ""


def hunt(core: CoreFactory, *, days: int, steps: int = STEPS, first: int = 0) -> tuple[int, AssertionError] | None:
    """The first day of so many on which the core breaks a law."""
    for seed in range(first, first + days):
        broken = play(core, seed, plan(seed, steps))
        if broken is not None:
            return seed, broken
    return None
