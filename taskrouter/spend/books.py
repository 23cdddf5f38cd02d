"""The books of spend: what is added up, by what, and how it is reported. No file, no clock.

Money is whole **pico-dollars** (10⁻¹² $): a token at 0.01 $ per million costs 10 000 of them, and one at 0.0375 $ still
a whole number. So nothing is lost to rounding, and integer sums are exact. A row holds up to 9.2 million dollars.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

PICO = 10**12
"""Pico-dollars in a dollar."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one model of one option took on one day. ``day`` is 'YYYY-MM-DD' in UTC, ``usd`` dollars."""

    day: str
    provider: str
    task: str
    option: str
    model_id: str
    requests: int
    input_tokens: int
    output_tokens: int
    usd: float


class Sums(NamedTuple):
    """What is added up in a row; ``pico`` is pico-dollars."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    pico: int = 0

    def plus(self, other: Sums) -> Sums:
        return Sums(*(mine + its for mine, its in zip(self, other, strict=True)))


Use: TypeAlias = tuple[str, str, str]
"""Task, option and model_id."""
Books: TypeAlias = dict[tuple[str, str], dict[Use, Sums]]
"""By day and provider, then by use: what a day of a provider cost is asked before each call."""


def add(books: Books, place: tuple[str, str], use: Use, sums: Sums) -> None:
    """Add to a row of books in memory."""
    uses = books.setdefault(place, {})
    before = uses.get(use)
    uses[use] = sums if before is None else before.plus(sums)


def rows_of(books: Books) -> list[tuple[str | int, ...]]:
    """Rows as ``ADD`` takes them."""
    return [(*place, *use, *sums) for place, uses in books.items() for use, sums in uses.items()]


def merged(rows: Iterable[tuple[str | int, ...]], *, since_day: str | None) -> list[Spent]:
    """Rows of the file and of memory, each use of a day once: by day, the newest first, then by dollars."""
    books: Books = {}
    for day, provider, task, option, model_id, *sums in rows:
        if since_day is None or str(day) >= since_day:
            add(books, (str(day), str(provider)), (str(task), str(option), str(model_id)), Sums(*map(int, sums)))
    found = [
        Spent(*place, *use, sums.requests, sums.input_tokens, sums.output_tokens, sums.pico / PICO)
        for place, uses in books.items()
        for use, sums in uses.items()
    ]
    found.sort(key=lambda spent: (-spent.usd, spent.provider, spent.task, spent.option, spent.model_id))
    found.sort(key=lambda spent: spent.day, reverse=True)
    return found
